"""Run all benchmarks, one process a subject, and print one table; write the rows to bench/results.json.

python -m bench [NAME ...]; without a name all but `explorer`, which needs a browser
"""

from __future__ import annotations

import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import bench
from bench._harness import Row, read, table, write

RESULTS = Path(__file__).with_name("results.json")
LONGEST_SECONDS = 450.0
"""For all subjects together; one that does not get its turn, or is not done by then, is named as failed. With
what comes before and after it stays within eight minutes."""
ENDING_SECONDS = 20.0
APART = ("explorer",)
"""Run when named only: it needs a browser and the built explorer."""
FIRST, LAST = ("publish", "http", "tracking"), ("growth", "memory")
"""What most targets are about comes first; what takes longest comes last, should a slow machine run out of time."""


def subjects() -> list[str]:
    """Return the names of the modules that measure something, in the order in which they run."""
    found = pkgutil.iter_modules(bench.__path__)
    names = {module.name for module in found if not module.ispkg and not module.name.startswith("_")}
    return [*FIRST, *sorted(names.difference(FIRST, LAST)), *LAST]


def merge(reports: Iterable[Sequence[Row]]) -> list[Row]:
    """Put the rows of all subjects together; what each says of the machine and of versions stands once."""
    about: dict[str, Row] = {}
    measured: list[Row] = []
    for rows in reports:
        for row in rows:
            if isinstance(row.value, str):
                about.setdefault(row.name, row)
            else:
                measured.append(row)
    return [*about.values(), *measured]


def _run(names: Sequence[str]) -> tuple[list[Row], list[str]]:
    deadline = time.monotonic() + LONGEST_SECONDS
    reports: list[list[Row]] = []
    failed: list[str] = []
    with TemporaryDirectory(prefix="bloodbank-bench-") as folder:
        for name in names:
            if time.monotonic() > deadline:
                failed.append(name)
                continue
            file = Path(folder) / f"{name}.json"
            begun = time.monotonic()
            print(f"{name} …", end=" ", flush=True)
            trouble = _run_one(name, file, deadline - begun)
            print(trouble or "done", f"in {time.monotonic() - begun:.0f} s", flush=True)
            if trouble:
                failed.append(name)
            else:
                reports.append(read(file))
    return merge(reports), failed


def _run_one(name: str, file: Path, seconds: float) -> str:
    """Run a subject; return what went wrong, or nothing."""
    command = [sys.executable, "-m", f"bench.{name}", "--json", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603, a module of this folder
        try:
            code = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            _interrupt(process)
            return "ended, since the time for all was over,"
    return f"FAILED with {code}" if code else ""


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """End a subject as Ctrl-C would, so that it ends its servers and removes their files; then by force."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def main(arguments: Sequence[str]) -> int:
    """Run the named subjects, or all; return 1 when one failed. A target that is missed fails nothing."""
    if {"-h", "--help"}.intersection(arguments):
        print(f"{__doc__}\nNAME: {', '.join(subjects())}. `python -m bench.NAME --help` lists what one takes.")
        return 0
    unknown = set(arguments) - set(subjects())
    if unknown:
        print(f"Unknown: {', '.join(sorted(unknown))}. There are: {', '.join(subjects())}.")
        return 2
    rows, failed = _run(list(arguments) or [name for name in subjects() if name not in APART])
    write(rows, RESULTS)
    print()
    print(table(rows))
    missed = [row for row in rows if row.holds is False]
    judged = [row for row in rows if row.holds is not None]
    print(f"\n{len(judged) - len(missed)} of {len(judged)} targets hold. Rows: {RESULTS}")
    if failed:
        print(f"Not measured: {', '.join(failed)}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
