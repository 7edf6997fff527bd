"""Why events happened and what they led to: the graph around one, what joins several, what one led to in numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar
from uuid import UUID

import orjson
from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from bloodbank.correlation_tracker import MOST_LOOKED_THROUGH
from bloodbank.errors import InvalidQuery
from bloodbank.http import description, diagrams, examples
from bloodbank.http.answers import bounds_of, common_answer, impact_answer, lineage_body, path_answer
from bloodbank.http.bus import Bus, bus_of
from bloodbank.http.events import EventId
from bloodbank.http.shapes import CommonOut, ImpactOut, LineageOut, PathOut
from bloodbank.kinship import MOST_EVENTS, CausalPath, CommonCauses
from bloodbank.stores.base import Direction, Graph

DEFAULT_DEPTH = 50
DEFAULT_LIMIT = 500
LARGE = 2000
"""Answers of more events are written in a thread, so that the event loop goes on."""

MaxDepth = Annotated[int | None, Query(ge=1, description="Most hops from the event; else 50.")]
Limit = Annotated[int | None, Query(ge=1, description="Most events in the answer, this one included; else 500.")]

MostHops = Annotated[int | None, Query(ge=1, description="Most hops of a walk; else 10,000.")]
MostEvents = Annotated[int | None, Query(ge=1, description="Most events of a walk; else 10,000.")]
LONGEST_IDS = 1000
"""In characters."""
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"

Asked = TypeVar("Asked", Graph, CausalPath, CommonCauses)
Format = Literal["json", "mermaid", "dot"]
FORMATS: dict[Format, tuple[str, Callable[[Graph], bytes]]] = {
    "json": ("application/json", lineage_body),
    "mermaid": (diagrams.MERMAID, lambda graph: diagrams.mermaid(orjson.loads(lineage_body(graph))).encode()),
    "dot": (diagrams.GRAPHVIZ, lambda graph: diagrams.graphviz(orjson.loads(lineage_body(graph))).encode()),
}

router = APIRouter(tags=["lineage"])


@router.get(
    "/events/{event_id}/lineage",
    summary="Ask why an event happened, and what it led to",
    response_class=Response,
    responses={
        200: description.answer(
            LineageOut,
            "The graph; an event without parents is its only node.",
            texts=(diagrams.MERMAID, diagrams.GRAPHVIZ),
        )
    }
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_lineage(
    request: Request,
    event_id: EventId,
    direction: Annotated[Direction, Query(description="To the causes, to the effects, or both ways.")] = Direction.BOTH,
    max_depth: MaxDepth = None,
    limit: Limit = None,
    format: Annotated[Format, Query(description="JSON, or text for Mermaid or Graphviz to draw.")] = "json",
) -> Response:
    """Return the events around one, parents before children, with all edges among them."""
    bus = bus_of(request)
    hops, nodes = bounds_of(bus.settings, max_depth, limit, default_depth=DEFAULT_DEPTH, default_limit=DEFAULT_LIMIT)
    graph = await bus.publisher.tracker.walk(event_id, direction, max_depth=hops, limit=nodes)
    media_type, write = FORMATS[format]
    return Response(await _written(write, graph), media_type=media_type)


@router.get(
    "/events/{event_id}/impact",
    summary="Count what an event led to",
    response_class=Response,
    responses={200: description.answer(ImpactOut, "Numbers; an event that led to nothing has zeros.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_impact(
    request: Request, event_id: EventId, max_depth: MostHops = None, limit: MostEvents = None
) -> Response:
    """Count the descendants of an event by type, source and status, and say when the first and the last happened."""
    bus = bus_of(request)
    hops, nodes = _bounds(bus, max_depth, limit)
    impact = await bus.publisher.tracker.impact(event_id, max_depth=hops, limit=nodes)
    return Response(orjson.dumps(impact_answer(impact)), media_type="application/json")


@router.get(
    "/lineage/path",
    summary="Ask how one event led to another",
    response_class=Response,
    responses={200: description.answer(PathOut, "The path; that there is none is an answer.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_path(
    request: Request,
    start: Annotated[UUID, Query(alias="from", description="Id of an event.", examples=[examples.PARENT_ID])],
    to: Annotated[UUID, Query(description="Id of another.", examples=[examples.EVENT_ID])],
    max_depth: MostHops = None,
    limit: MostEvents = None,
) -> Response:
    """Return the shortest way by causes between two events, whichever of them led to the other."""
    bus = bus_of(request)
    hops, nodes = _bounds(bus, max_depth, limit)
    path = await bus.publisher.tracker.path(start, to, max_depth=hops, limit=nodes)
    return Response(await _written(lambda path: orjson.dumps(path_answer(path)), path), media_type="application/json")


@router.get(
    "/lineage/common",
    summary="Ask what several events have in common",
    response_class=Response,
    responses={200: description.answer(CommonOut, "The causes; that there are none is an answer.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_common(
    request: Request,
    ids: Annotated[
        str,
        Query(
            max_length=LONGEST_IDS,
            description=f"Ids of 2 to {MOST_EVENTS} events, separated by commas.",
            examples=[f"{examples.EVENT_ID},{examples.PARENT_ID}"],
            json_schema_extra={"pattern": f"^{_UUID}(,{_UUID}){{1,{MOST_EVENTS - 1}}}$"},
        ),
    ],
    max_depth: MostHops = None,
    limit: MostEvents = None,
) -> Response:
    """Return the lowest common causes of several events: those that led to all of them, but to no other such event."""
    bus = bus_of(request)
    hops, nodes = _bounds(bus, max_depth, limit)
    common = await bus.publisher.tracker.common_causes(_ids_of(ids), max_depth=hops, limit=nodes)
    body = await _written(lambda common: orjson.dumps(common_answer(common)), common)
    return Response(body, media_type="application/json")


async def _written(write: Callable[[Asked], bytes], answer: Asked) -> bytes:
    return await to_thread.run_sync(write, answer) if len(answer.steps) > LARGE else write(answer)


def _bounds(bus: Bus, max_depth: int | None, limit: int | None) -> tuple[int, int]:
    """Return the bounds of the walks behind a small answer. Raises InvalidQuery."""
    most = MOST_LOOKED_THROUGH
    return bounds_of(bus.settings, max_depth, limit, default_depth=most, default_limit=most)


def _ids_of(text: str) -> list[UUID]:
    """Return the ids that are separated by commas. Raises InvalidQuery."""
    try:
        return [UUID(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise InvalidQuery(f"{text[:80]!r} is no list of event ids. Write UUIDs with commas between them.") from error
