"""`bb events list`, `get` and `schema`, and `bb tail`: the log, read."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from bloodbank.cli.bus import Json, connect
from bloodbank.cli.causes import Causes
from bloodbank.cli.edge import at_edge, run_async
from bloodbank.cli.text import (
    Line,
    Span,
    clock,
    note,
    printable,
    source_name,
    table,
    write_json,
    write_json_line,
    write_lines,
)
from bloodbank.errors import InvalidQuery
from bloodbank.ids import short_ids

if TYPE_CHECKING:
    from bloodbank.config import Settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Time = typer.Option(metavar="TIME", help="A time such as 2026-03-01T09:00, or how long ago: 90s, 15m, 2h, 3d.")


@app.command("list")
@at_edge
def list_events(
    pattern: Annotated[
        str, typer.Option("--type", metavar="PATTERN", help="Types to list, such as 'llm.*' or 'fireflies.#'.")
    ] = "#",
    since: Annotated[str | None, Time] = None,
    until: Annotated[str | None, Time] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most events.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List events, the newest first."""
    from bloodbank.config import load_settings

    now = datetime.now(UTC)
    span = (parse_time(since, now), parse_time(until, now))
    items, complete = run_async(_newest(load_settings(), pattern, *span, limit))
    if as_json:
        write_json(items)
        return
    write_lines(event_lines(items, now))
    if not complete:
        note("There are more. Ask for them with --limit or --until.")


@app.command("get")
@at_edge
def get_event(
    event_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the event, or its first digits, 8 or more.")],
) -> None:
    """Print an event as JSON, with its payload."""
    from bloodbank.config import load_settings

    settings = load_settings()

    async def ask() -> Json:
        async with connect(settings) as bus:
            return await bus.get(await bus.resolve(event_id))

    write_json(run_async(ask()))


@app.command("schema")
@at_edge
def show_schema(
    event_type: Annotated[str | None, typer.Argument(metavar="TYPE", help="Type of an event.")] = None,
) -> None:
    """List the event types that have a model, or print the JSON Schema of one."""
    from bloodbank.config import load_settings

    settings = load_settings()

    async def ask() -> Json:
        async with connect(settings) as bus:
            return await (bus.schemas() if event_type is None else bus.schema(event_type))

    answer = run_async(ask())
    if event_type is not None:
        write_json(answer)
        return
    write_lines([(Span(printable(item["event_type"])),) for item in answer["items"]])


@at_edge
def tail(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Types to show, such as 'llm.*' or '#' for all.")],
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
) -> None:
    """Show events as they come, until Ctrl-C."""
    from bloodbank.config import load_settings

    run_async(_tail(load_settings(), pattern, count, as_json=as_json))


async def _tail(settings: Settings, pattern: str, count: int | None, *, as_json: bool) -> None:
    async with connect(settings) as bus, bus.tail(pattern) as events:
        causes = Causes(bus)
        note(f"Waiting for events that fit {printable(pattern)}. Ctrl-C ends this.")
        shown = 0
        async for event in events:
            if as_json:
                write_json_line(event)
            else:
                [line] = event_lines([event], datetime.now(UTC), with_causes=False)
                write_lines([(*line, *await causes.of(event))])
                # Handed on at once, for whoever reads the stream.
                sys.stdout.flush()
            shown += 1
            if shown == count:
                return


async def _newest(
    settings: Settings, pattern: str, since: datetime | None, until: datetime | None, limit: int
) -> tuple[list[Json], bool]:
    """Return at most `limit` events, newest first, and whether these are all."""
    items: list[Json] = []
    cursor: str | None = None
    async with connect(settings) as bus:
        while len(items) < limit:
            part = min(limit - len(items), settings.page_limit)
            page = await bus.page(pattern=pattern, since=since, until=until, cursor=cursor, limit=part)
            items.extend(page["items"])
            cursor = page["next"]
            if cursor is None:
                return items, True
    return items, False


def event_lines(items: list[Json], now: datetime, *, with_causes: bool = True) -> list[Line]:
    """Return a line for each envelope: time, id, type, source and how many causes it names, unless those follow."""
    from bloodbank.events.failures import is_failure

    short = short_ids(item["event_id"] for item in items)
    time = clock([item["timestamp"] for item in items], now)
    rows: list[tuple[Span, ...]] = []
    for item in items:
        style = "bold red" if is_failure(item["event_type"]) else "bold"
        causes = item["correlation_ids"]
        rows.append(
            (
                Span(time(item["timestamp"])),
                Span(short[item["event_id"]], "cyan"),
                Span(printable(item["event_type"]), style),
                Span(source_name(item["source"]), "green"),
                Span(f"{len(causes)} cause{'s' if len(causes) > 1 else ''}" if causes and with_causes else "", "dim"),
            )
        )
    return table(rows)


def parse_time(text: str | None, now: datetime) -> datetime | None:
    """Return the aware time that a text means: ISO 8601 (local where it names no zone), or how long ago.

    Raises InvalidQuery.
    """
    if text is None:
        return None
    try:
        if ago := re.fullmatch(r"(\d{1,9})([smhd])", text.strip()):
            return now - timedelta(seconds=int(ago[1]) * SECONDS[ago[2]])
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidQuery(
            f"{text[:80]!r} is no time. Write 2026-03-01T09:00, or how long ago: 90s, 15m, 2h, 3d."
        ) from error
