"""`bb reindex`: the index of causes, rebuilt from the log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bloodbank.cli.bus import Json
from bloodbank.cli.edge import at_edge, run_async
from bloodbank.cli.events import parse_time
from bloodbank.cli.progress import LINE_SECONDS, bar
from bloodbank.cli.text import Line, Span, clock, note, printable, write_json, write_lines
from bloodbank.errors import ConfigurationError, TrackingDisabled

if TYPE_CHECKING:
    from bloodbank.config import Settings
    from bloodbank.reindex import Progress

Since = typer.Option(
    metavar="TIME",
    help="Only events from then on, and some earlier ones that stand beside them in the log: a time such as "
    "2026-03-01T09:00, or how long ago: 90s, 15m, 2h, 3d.",
)

Report = Callable[["Progress"], None]


@at_edge
def reindex(
    since: Annotated[str | None, Since] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and count only; record nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Rebuild the index of causes from the log, while the bus is in use. Doing it again does no harm."""
    from bloodbank.config import load_settings

    settings = load_settings()
    begin = parse_time(since, datetime.now(UTC))
    if settings.server_url is not None:
        raise ConfigurationError(
            "bb reindex works on the bus itself, not through a server. Unset BLOODBANK_URL and give it the settings "
            "that the server has (RABBIT_URL, REDIS_URL, BLOODBANK_DATA_DIR), or run it where the server runs."
        )
    if not settings.correlation_tracking and not dry_run:
        raise TrackingDisabled(
            "Correlation tracking is off, so there is no index to rebuild. Set BLOODBANK_CORRELATION_TRACKING=true."
        )
    started = time.monotonic()
    result = _run(settings, begin, dry_run=dry_run)
    seconds = time.monotonic() - started
    if as_json:
        write_json(_as_json(result, dry_run=dry_run))
        return
    write_lines(summary_lines(result, seconds, dry_run=dry_run))


def _run(settings: Settings, since: datetime | None, *, dry_run: bool) -> Progress:
    from bloodbank.reindex import Progress, way_on

    latest = Progress(resume_since=since)

    def keep(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        show(progress)

    try:
        with _shown() as show:
            return run_async(_reindex(settings, since, keep, dry_run=dry_run))
    except KeyboardInterrupt:
        if not dry_run:
            note(f"Stopped. What was recorded stays. {way_on(latest)}")
        raise


async def _reindex(settings: Settings, since: datetime | None, report: Report, *, dry_run: bool) -> Progress:
    from bloodbank.publisher import Publisher
    from bloodbank.reindex import reindex as rebuild

    async with Publisher(settings, enable_correlation_tracking=not dry_run) as publisher:
        tracker = None if dry_run else publisher.tracker
        result = await rebuild(publisher.transport, tracker, settings, since=since, on_progress=report)
        if tracker is not None and tracker.unjournalled_since is not None:
            note(
                f"{tracker.unjournalled_total} events found no place in the journal, some of them within the last "
                "minute or before the time that was given. Do this again later: bb reindex --since "
                f"{tracker.unjournalled_since.isoformat(timespec='seconds')}"
            )
        return result


def summary_lines(result: Progress, seconds: float, *, dry_run: bool) -> list[Line]:
    """Return what is said at the end. seconds: how long it took."""
    megabytes = result.size_bytes / 1e6
    read = f"Read {result.entries:,} entries of the log ({megabytes:,.1f} MB) in {seconds:,.1f} s."
    kept = f"{result.recorded:,} events {'would be' if dry_run else 'are'} in the index."
    lines: list[Line] = [(Span(read),), (Span(kept, "bold"),)]
    if dry_run:
        lines.append((Span("Nothing was recorded, since this was a dry run."),))
    if result.skipped:
        listed = ", ".join(map(str, result.skipped_positions))
        more = ", …" if result.skipped > len(result.skipped_positions) else ""
        what = f"{result.skipped:,} entries are no events and were passed over, at the positions {listed}{more}."
        lines.append((Span(what, "yellow"),))
    return lines


def _as_json(result: Progress, *, dry_run: bool) -> Json:
    return {
        "dry_run": dry_run,
        "entries": result.entries,
        "size_bytes": result.size_bytes,
        "recorded": result.recorded,
        "skipped": result.skipped,
        "skipped_positions": list(result.skipped_positions),
    }


def _shown() -> AbstractContextManager[Report]:
    """Show how far a run has come, on standard error: as a bar on a terminal, a line now and then otherwise."""
    return _bar() if sys.stderr.isatty() else _lines()


@contextmanager
def _lines() -> Generator[Report]:
    written_at = time.monotonic()
    was_waiting = False

    def show(progress: Progress) -> None:
        nonlocal written_at, was_waiting
        waits = progress.waiting is not None
        if waits == was_waiting and (waits or time.monotonic() - written_at < LINE_SECONDS):
            return
        written_at, was_waiting = time.monotonic(), waits
        note(f"Waiting: {printable(progress.waiting)}" if waits else f"{_percent(progress)}{_reached(progress)}")

    yield show


@contextmanager
def _bar() -> Generator[Report]:
    with bar("Looking for the end of the log") as show:
        yield lambda progress: show(
            progress.fraction,
            f"waiting: {printable(progress.waiting)}" if progress.waiting else _reached(progress),
        )


def _percent(progress: Progress) -> str:
    return "" if progress.fraction is None else f"{progress.fraction:.0%}, "


def _reached(progress: Progress) -> str:
    if progress.reached_at is None:
        return f"{progress.entries:,} entries"
    reached = progress.reached_at.isoformat()
    return f"{progress.entries:,} entries, up to {clock([reached], datetime.now(UTC))(reached)}"
