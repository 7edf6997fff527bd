"""The debug endpoints of version 2: what is known around an event, as lists of ids."""

from __future__ import annotations

from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response

from bloodbank.http import description
from bloodbank.http.answers import bounds_of
from bloodbank.http.bus import bus_of
from bloodbank.http.events import EventId
from bloodbank.http.lineage import DEFAULT_LIMIT, Limit
from bloodbank.http.shapes import ChainOut, CorrelationOut

DEFAULT_DEPTH = 100

router = APIRouter(prefix="/debug", tags=["debug"])


@router.get(
    "/correlation/{event_id}",
    summary="Look at everything around an event",
    response_class=Response,
    responses={200: description.answer(CorrelationOut, "Parents, children, ancestors, descendants and metadata.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_correlation(request: Request, event_id: EventId) -> Response:
    """Return the ids of parents, children, ancestors and descendants; the event itself is in none of them."""
    return Response(
        orjson.dumps(await bus_of(request).publisher.debug_correlation(event_id)), media_type="application/json"
    )


@router.get(
    "/correlation/{event_id}/chain",
    summary="List the causes or the effects of an event",
    response_class=Response,
    responses={200: description.answer(ChainOut, "The event and its ancestors or descendants, parents first.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_chain(
    request: Request,
    event_id: EventId,
    direction: Annotated[Literal["ancestors", "descendants"], Query(description="Causes or effects.")] = "ancestors",
    max_depth: Annotated[int | None, Query(ge=1, description="Most hops from the event; else 100.")] = None,
    limit: Limit = None,
) -> Response:
    """Return the ids of an event and of its ancestors or descendants, parents before children."""
    bus = bus_of(request)
    hops, nodes = bounds_of(bus.settings, max_depth, limit, default_depth=DEFAULT_DEPTH, default_limit=DEFAULT_LIMIT)
    graph = await bus.publisher.tracker.walk(event_id, direction, max_depth=hops, limit=nodes)
    answer = {
        "event_id": event_id,
        "direction": direction,
        "chain": graph.ids,
        "count": len(graph.ids),
        "truncated": graph.truncated.depth or graph.truncated.limit,
    }
    return Response(orjson.dumps(answer), media_type="application/json")
