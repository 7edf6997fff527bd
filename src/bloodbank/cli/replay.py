"""`bb replay`: events of the log, delivered to consumers again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bloodbank.cli.confirm import confirmed
from bloodbank.cli.dlq_access import Wanted, reach
from bloodbank.cli.edge import at_edge, run_async
from bloodbank.cli.events import Time, parse_time
from bloodbank.cli.progress import counted
from bloodbank.cli.text import Span, note, printable, write_json, write_lines
from bloodbank.errors import InvalidQuery

if TYPE_CHECKING:
    from bloodbank.config import Settings
    from bloodbank.progress import Progress


@at_edge
def replay(
    pattern: Annotated[
        str | None, typer.Option("--type", metavar="PATTERN", help="Only these types, such as 'llm.*'; else all.")
    ] = None,
    since: Annotated[str | None, Time] = None,
    until: Annotated[str | None, Time] = None,
    event: Annotated[
        str | None, typer.Option("--event", metavar="ID", help="This event alone; its first 8 digits are enough.")
    ] = None,
    descendants: Annotated[bool, typer.Option("--descendants", help="And all that the event led to.")] = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="GROUP", help="To this group, whatever its patterns.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the events only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a replay to all groups.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Deliver events of the log again: to one group, or to all whose patterns fit. Their handlers run again."""
    from bloodbank.config import load_settings

    if event is not None and (pattern, since, until) != (None, None, None):
        raise InvalidQuery("Give either --event, or --type, --since and --until.")
    if descendants and event is None:
        raise InvalidQuery("--descendants are those of an event: give it with --event.")
    settings = load_settings()
    now = datetime.now(UTC)
    wanted = Wanted("#" if pattern is None else pattern, parse_time(since, now), parse_time(until, now))
    wanted = replace(wanted, descendants=descendants, to=to)
    if dry_run or not (yes or to is not None):
        wanted, found = run_async(_replay(settings, wanted, event, dry_run=True))
        if dry_run or not found.total:
            _tell(found, f"{_events(found.total or 0)} would be replayed.", as_json=as_json)
            return
        question = f"Replay {_events(found.total)} to every group whose patterns fit? Handlers run again."
        if not confirmed(question, "A replay to all groups makes their handlers run again"):
            note("Nothing was replayed.")
            return
    wanted, result = run_async(_replay(settings, wanted, event, dry_run=False))
    gone = f" {result.skipped:,} were gone from the log by then." if result.skipped else ""
    _tell(result, f"{_events(result.done)} replayed to {printable(to or 'all groups')}.{gone}", as_json=as_json)


async def _replay(settings: Settings, wanted: Wanted, event: str | None, *, dry_run: bool) -> tuple[Wanted, Progress]:
    """Replay or count; return what was meant, with the event's whole id, and the result."""
    async with reach(settings) as access:
        if event is not None and wanted.event_id is None:
            wanted = replace(wanted, event_id=await access.resolve(event))
        with counted("Counted" if dry_run else "Replayed") as report:
            return wanted, await access.replay(wanted, report, dry_run=dry_run)


def _tell(result: Progress, sentence: str, *, as_json: bool) -> None:
    if as_json:
        write_json({"total": result.total, "done": result.done, "skipped": result.skipped})
    else:
        write_lines([(Span(sentence),)])


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"
