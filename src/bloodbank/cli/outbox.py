"""`bb outbox`: what waits for the broker, and what it refused for good."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from bloodbank.cli.bus import Json
from bloodbank.cli.confirm import confirmed
from bloodbank.cli.edge import at_edge, run_async
from bloodbank.cli.outbox_access import OutboxAccess, reach
from bloodbank.cli.text import Line, Span, clock, note, printable, table, write_json, write_lines
from bloodbank.errors import EventNotFound, InvalidQuery
from bloodbank.ids import short_ids

if TYPE_CHECKING:
    from bloodbank.config import Settings

DEFAULT_LIMIT = 50

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

Ids = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="Ids of events that were set aside, or their first 8 digits.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
@at_edge
def outbox(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what waits for the broker, and settle what it refused for good."""
    if context.invoked_subcommand is None:
        _list(None, None, DEFAULT_LIMIT, as_json=as_json)
    elif as_json:
        raise InvalidQuery("--json stands behind 'list': bb outbox list --json.")


@app.command("list")
@at_edge
def list_outbox(
    set_aside: Annotated[
        bool | None, typer.Option("--set-aside/--waiting", help="Only what was refused for good, or only what waits.")
    ] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on from here: `next` of the list before.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most events.")] = DEFAULT_LIMIT,
    as_json: AsJson = False,
) -> None:
    """List the events in the outbox, the first accepted first, and how much there is."""
    _list(set_aside, cursor, limit, as_json=as_json)


@app.command()
@at_edge
def retry(
    event_ids: Ids = None,
    all_events: Annotated[bool, typer.Option("--all", help="All that were set aside.")] = False,
) -> None:
    """Send events again that the broker refused for good: once what it refused them for is mended."""
    from bloodbank.config import load_settings

    if bool(event_ids) == all_events:
        raise InvalidQuery("Say which events to send again: their ids, or --all.")
    count = run_async(_retry(load_settings(), event_ids))
    write_lines([(Span(f"{_events(count)} waiting again. A running server sends {'it' if count == 1 else 'them'}."),)])


@app.command()
@at_edge
def drop(
    event_ids: Annotated[
        list[str], typer.Argument(metavar="ID", help="Ids of events that were set aside, or their first 8 digits.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete events that the broker refused for good. They are gone then; what waits is never deleted."""
    from bloodbank.config import load_settings

    settings = load_settings()
    items = run_async(_set_aside(settings, event_ids))
    question = f"Delete {_counted(len(items))} for good?"
    lines = entry_lines(items, datetime.now(UTC))
    if yes or confirmed(question, "Deleted events are gone for good", lines):
        run_async(_delete(settings, items))
    else:
        note("Nothing was deleted.")


def _list(set_aside: bool | None, cursor: str | None, limit: int, *, as_json: bool) -> None:
    from bloodbank.config import load_settings

    answer = run_async(_page(load_settings(), set_aside, cursor, limit))
    if as_json:
        write_json(answer)
        return
    now = datetime.now(UTC)
    write_lines([*totals_lines(answer, now), *entry_lines(answer["items"], now)])
    if answer["next"] is not None:
        note(f"There are more. Ask for them with --limit, or with --cursor {answer['next']}.")


async def _page(settings: Settings, set_aside: bool | None, cursor: str | None, limit: int) -> Json:
    """Return a list of at most `limit` events, of as many pages as that takes."""
    async with reach(settings) as access:
        answer = await access.outbox_page(set_aside=set_aside, cursor=cursor, limit=min(limit, settings.page_limit))
        while answer["next"] is not None and len(answer["items"]) < limit:
            part = min(limit - len(answer["items"]), settings.page_limit)
            page = await access.outbox_page(set_aside=set_aside, cursor=answer["next"], limit=part)
            answer |= {"items": [*answer["items"], *page["items"]], "next": page["next"]}
        return answer


async def _retry(settings: Settings, event_ids: Sequence[str] | None) -> int:
    async with reach(settings) as access:
        if not event_ids:
            return await access.retry_in_outbox(None)
        items = await _find(access, event_ids, settings.page_limit)
        return sum([await access.retry_in_outbox(UUID(item["event_id"])) for item in items])


async def _set_aside(settings: Settings, event_ids: Sequence[str]) -> list[Json]:
    async with reach(settings) as access:
        return await _find(access, event_ids, settings.page_limit)


async def _delete(settings: Settings, items: Sequence[Json]) -> None:
    async with reach(settings) as access:
        for item in items:
            await access.drop_from_outbox(UUID(item["event_id"]))
            write_lines([(Span(f"{item['event_id']}  deleted"),)])


async def _find(access: OutboxAccess, texts: Sequence[str], page_limit: int) -> list[Json]:
    """Return the entries that were set aside and that ids or prefixes mean, each once.

    Raises InvalidQuery, AmbiguousEventId, and EventNotFound when one was not set aside.
    """
    from bloodbank.event_log import only_match, parse_prefix

    wanted = {text: parse_prefix(text) for text in texts}
    found: dict[str, dict[UUID, Json]] = {text: {} for text in texts}
    cursor: str | None = None
    while True:
        page = await access.outbox_page(set_aside=True, cursor=cursor, limit=page_limit)
        for item in page["items"]:
            event_id = UUID(item["event_id"])
            for text, prefix in wanted.items():
                if event_id == prefix or (isinstance(prefix, str) and event_id.hex.startswith(prefix)):
                    found[text][event_id] = item
        cursor = page["next"]
        if cursor is None:
            break
    for text, items in found.items():
        if not items:
            raise EventNotFound(
                f"No event {text} is set aside in the outbox. What waits there is sent by itself, and is never deleted."
            )
        only_match(text, list(items))
    return list({event_id: item for items in found.values() for event_id, item in items.items()}.values())


def totals_lines(answer: Json, now: datetime) -> list[Line]:
    """Return what is said of the outbox as a whole."""
    if not answer["on"]:
        return [
            (Span("There is no outbox: the embedded log needs none, and BLOODBANK_OUTBOX=off leaves it out."),),
        ]
    totals = answer["totals"]
    waiting, set_aside, oldest = totals["waiting"], totals["set_aside"], totals["oldest_accepted_at"]
    if not waiting and not set_aside:
        return [(Span("The outbox is empty."),)]
    since = f", since {clock([oldest], now)(oldest)}" if oldest else ""
    used = f"{_size(totals['used_bytes'])} of {_size(totals['limit_bytes'])} are used"
    lines: list[Line] = []
    if waiting:
        waits = f"{_events(waiting)} waiting for the broker ({_size(totals['waiting_bytes'])}{since}); {used}."
        lines.append((Span(waits, "bold"),))
    if set_aside:
        refused = f"{_events(set_aside)} set aside, refused for good ({_size(totals['set_aside_bytes'])})"
        lines.append((Span(f"{refused}." if waiting else f"{refused}; {used}.", "yellow"),))
    return lines


def entry_lines(items: Sequence[Json], now: datetime) -> list[Line]:
    """Return a line for each event: when it was accepted, its id, type, size, and why it was refused."""
    short = short_ids(item["event_id"] for item in items)
    time = clock([item["accepted_at"] for item in items], now)
    rows: list[tuple[Span, ...]] = []
    for item in items:
        waits = f"waiting{_tried(item['attempts'])}"
        state = Span(f"refused: {printable(item['reason'])}", "yellow") if item["set_aside"] else Span(waits, "dim")
        rows.append(
            (
                Span(time(item["accepted_at"])),
                Span(short[item["event_id"]], "cyan"),
                Span(printable(item["event_type"]), "bold"),
                Span(_size(item["size_bytes"])),
                state,
            )
        )
    return table(rows)


def _tried(attempts: int) -> str:
    if not attempts:
        return ""
    return ", tried once" if attempts == 1 else f", tried {attempts:,} times"


def _counted(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"


def _events(count: int) -> str:
    return f"{_counted(count)} {'is' if count == 1 else 'are'}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
