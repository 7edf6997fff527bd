"""Why an event happened and what it led to: the graph around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import orjson
from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from bloodbank.http import description, diagrams
from bloodbank.http.answers import bounds_of, lineage_body
from bloodbank.http.bus import bus_of
from bloodbank.http.events import EventId
from bloodbank.http.shapes import LineageOut
from bloodbank.stores.base import Direction, Graph

DEFAULT_DEPTH = 50
DEFAULT_LIMIT = 500
LARGE = 2000
"""Graphs of more nodes are written in a thread, so that the event loop goes on."""

MaxDepth = Annotated[int | None, Query(ge=1, description="Most hops from the event; else 50.")]
Limit = Annotated[int | None, Query(ge=1, description="Most events in the answer, this one included; else 500.")]

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
    body = await to_thread.run_sync(write, graph) if len(graph.steps) > LARGE else write(graph)
    return Response(body, media_type=media_type)
