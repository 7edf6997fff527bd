"""Why an event happened and what it led to: the graph around it."""

from __future__ import annotations

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from bloodbank.http import description
from bloodbank.http.answers import bounds_of, lineage_body
from bloodbank.http.bus import bus_of
from bloodbank.http.events import EventId
from bloodbank.http.shapes import LineageOut
from bloodbank.stores.base import Direction

DEFAULT_DEPTH = 50
DEFAULT_LIMIT = 500
LARGE = 2000
"""Graphs of more nodes are written in a thread, so that the event loop goes on."""

MaxDepth = Annotated[int | None, Query(ge=1, description="Most hops from the event; else 50.")]
Limit = Annotated[int | None, Query(ge=1, description="Most events in the answer, this one included; else 500.")]

router = APIRouter(tags=["lineage"])


@router.get(
    "/events/{event_id}/lineage",
    summary="Ask why an event happened, and what it led to",
    response_class=Response,
    responses={200: description.answer(LineageOut, "The graph; an event without parents is its only node.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_lineage(
    request: Request,
    event_id: EventId,
    direction: Annotated[Direction, Query(description="To the causes, to the effects, or both ways.")] = Direction.BOTH,
    max_depth: MaxDepth = None,
    limit: Limit = None,
) -> Response:
    """Return the events around one, parents before children, with all edges among them."""
    bus = bus_of(request)
    hops, nodes = bounds_of(bus.settings, max_depth, limit, default_depth=DEFAULT_DEPTH, default_limit=DEFAULT_LIMIT)
    graph = await bus.publisher.tracker.walk(event_id, direction, max_depth=hops, limit=nodes)
    body = await to_thread.run_sync(lineage_body, graph) if len(graph.steps) > LARGE else lineage_body(graph)
    return Response(body, media_type="application/json")
