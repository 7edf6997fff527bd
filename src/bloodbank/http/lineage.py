"""Why an event happened and what it led to: the graph around it."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response

from bloodbank.config import Settings
from bloodbank.errors import InvalidQuery
from bloodbank.events import is_failure
from bloodbank.http import description
from bloodbank.http.bus import bus_of
from bloodbank.http.events import EventId
from bloodbank.http.shapes import LineageOut
from bloodbank.stores.base import Direction, Graph, Step

DEFAULT_DEPTH = 50
DEFAULT_LIMIT = 500
LARGE = 2000
"""Graphs of more nodes are written in a thread, so that the event loop goes on."""

MaxDepth = Annotated[int, Query(ge=1, description="Most hops from the event.")]
Limit = Annotated[int, Query(ge=1, description="Most events in the answer, this one included.")]

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
    max_depth: MaxDepth = DEFAULT_DEPTH,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """Return the events around one, parents before children, with all edges among them."""
    bus = bus_of(request)
    require_bounds(bus.settings, max_depth, limit)
    graph = await bus.publisher.tracker.walk(event_id, direction, max_depth=max_depth, limit=limit)
    body = await to_thread.run_sync(_body, graph) if len(graph.steps) > LARGE else _body(graph)
    return Response(body, media_type="application/json")


def require_bounds(settings: Settings, max_depth: int, limit: int) -> None:
    """Raise InvalidQuery for a question that is larger than the settings allow."""
    if max_depth > settings.lineage_depth_limit:
        raise InvalidQuery(f"max_depth must be at most {settings.lineage_depth_limit}.")
    if limit > settings.lineage_node_limit:
        raise InvalidQuery(f"limit must be at most {settings.lineage_node_limit}.")


def _body(graph: Graph) -> bytes:
    truncated = graph.truncated
    return orjson.dumps(
        {
            "focus": graph.focus,
            "direction": graph.direction.value,
            "nodes": [_node(step) for step in graph.steps],
            "edges": [{"parent": parent, "child": child} for parent, child in graph.edges],
            "roots": graph.roots,
            "missing": graph.missing,
            "cycle": graph.cycle,
            "truncated": {"depth": truncated.depth, "limit": truncated.limit, "frontier": truncated.frontier},
        }
    )


def _node(step: Step) -> dict[str, Any]:
    node, link = step.node, step.node.link
    return {
        "id": node.event_id,
        "depth": step.depth,
        "event_type": link.event_type if link else None,
        "timestamp": link.timestamp if link else None,
        "source": link.source if link else None,
        "status": ("failed" if is_failure(link.event_type) else "ok") if link else None,
        "known": node.known,
        "parents_total": len(node.parents),
        "children_total": node.children_total,
    }
