"""Benchmarks: one module a subject, `python -m bench.NAME`; all of them: `python -m bench`, or `make bench`."""
