"""How far something is, on standard error: as a bar on a terminal, a line now and then otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from bloodbank.cli.text import note
from bloodbank.progress import Progress, Report

LINE_SECONDS = 5.0
"""How often a line is written where there is no terminal for a bar."""

Show = Callable[[float | None, str], None]
"""Shows how much of the way is done, from 0 to 1, or None while that is not known; and says something beside it."""


@contextmanager
def counted(doing: str) -> Generator[Report]:
    """Show how many of how many are done. doing: such as "Given back"."""
    show_on = bar if sys.stderr.isatty() else lines
    with show_on(f"{doing}: counting") as show:

        def report(progress: Progress) -> None:
            if progress.total is not None:
                settled = progress.done + progress.skipped
                fraction = settled / progress.total if progress.total else 1.0
                show(fraction, f"{doing}: {settled:,} of {progress.total:,}")

        yield report


@contextmanager
def bar(first: str) -> Generator[Show]:
    """Show a bar, which is gone afterwards. first: what is said until there is something else to say."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(first, total=None)

        def show(fraction: float | None, text: str) -> None:
            total = None if fraction is None else 1.0
            shown.update(task, total=total, completed=fraction or 0.0, description=text)

        yield show


@contextmanager
def lines(first: str) -> Generator[Show]:
    """Write a line every LINE_SECONDS; what takes less than that needs none, not even the first."""
    written_at = time.monotonic()

    def show(fraction: float | None, text: str) -> None:
        nonlocal written_at
        if time.monotonic() - written_at >= LINE_SECONDS:
            written_at = time.monotonic()
            note(text)

    yield show
