"""`bb why` and `bb effects`: the two questions, answered as trees or as flowcharts."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from bloodbank.cli.bus import Bus, Json, connect
from bloodbank.cli.edge import at_edge, run_async
from bloodbank.cli.text import note, write_json, write_lines
from bloodbank.cli.tree import tree_lines
from bloodbank.errors import InvalidQuery, TransportUnavailable

if TYPE_CHECKING:
    from bloodbank.config import Settings

DEFAULT_DEPTH = 1000
DEFAULT_LIMIT = 500

EventId = Annotated[str, typer.Argument(metavar="ID", help="Id of the event, or its first digits, 8 or more.")]
Depth = Annotated[int | None, typer.Option("--depth", min=1, help="Most hops from the event; else 1000.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Most events; else 500.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
AsMermaid = Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")]


@at_edge
def why(
    event_id: EventId,
    depth: Depth = None,
    limit: Limit = None,
    as_json: AsJson = False,
    as_mermaid: AsMermaid = False,
) -> None:
    """Show why an event happened: its causes below it, and theirs below them."""
    _answer(event_id, "ancestors", depth, limit, as_json=as_json, as_mermaid=as_mermaid)


@at_edge
def effects(
    event_id: EventId,
    depth: Depth = None,
    limit: Limit = None,
    as_json: AsJson = False,
    as_mermaid: AsMermaid = False,
) -> None:
    """Show what an event led to: its effects below it, and theirs below them."""
    _answer(event_id, "descendants", depth, limit, as_json=as_json, as_mermaid=as_mermaid)


def _answer(
    text: str, direction: str, depth: int | None, limit: int | None, *, as_json: bool, as_mermaid: bool
) -> None:
    from bloodbank.config import load_settings

    if as_json and as_mermaid:
        raise InvalidQuery("--json and --mermaid are two forms of one answer. Give one of them.")
    settings = load_settings()
    # Where the settings allow less than the defaults, as much as they allow.
    depth = min(DEFAULT_DEPTH, settings.lineage_depth_limit) if depth is None else depth
    limit = min(DEFAULT_LIMIT, settings.lineage_node_limit) if limit is None else limit
    answer = run_async(_ask(settings, text, direction, depth, limit))
    if as_json:
        write_json(answer)
        return
    if as_mermaid:
        from bloodbank.http.diagrams import mermaid

        sys.stdout.write(mermaid(answer))
    else:
        write_lines(tree_lines(answer, direction, now=datetime.now(UTC)))
    for remark in remarks(answer, depth, limit):
        note(remark)


async def _ask(settings: Settings, text: str, direction: str, depth: int, limit: int) -> Json:
    async with connect(settings) as bus:
        return await bus.lineage(await _resolve(bus, text), direction, max_depth=depth, limit=limit)


async def _resolve(bus: Bus, text: str) -> UUID:
    """Return the id that is meant. A prefix is looked for in the log, which the questions themselves do not need."""
    try:
        return await bus.resolve(text)
    except TransportUnavailable as error:
        from bloodbank.cli.remote import ServerUnavailable

        if isinstance(error, ServerUnavailable):
            raise
        raise TransportUnavailable(f"{error} Give the whole id: then the log is not needed.") from error


def remarks(answer: Json, depth: int, limit: int) -> list[str]:
    """Return what must be said beside the tree: where it was cut, circles, and causes not seen."""
    said: list[str] = []
    if answer["truncated"]["depth"]:
        said.append(f"There is more beyond {depth} hops. Ask for it with --depth.")
    if answer["truncated"]["limit"]:
        said.append(f"There is more than these {limit} events. Ask for it with --limit.")
    if answer["cycle"]:
        said.append("Some of these events name each other as causes, in a circle.")
    if any(not node["known"] for node in answer["nodes"]):
        said.append(
            "What is not seen was named as a cause, and the index does not have it: it is not published yet, was "
            "published with tracking off, or has expired. 'bb reindex' records what the log has."
        )
    return said
