"""What waits in the outbox, and what the broker refused for good: looked at, sent again, or deleted."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response

from bloodbank.errors import InvalidQuery
from bloodbank.http import description
from bloodbank.http.answers import drop_from_outbox, outbox_page, retry_in_outbox
from bloodbank.http.bus import bus_of
from bloodbank.http.cursors import LONGEST_CURSOR, cursor_of, position_of
from bloodbank.http.events import DEFAULT_PAGE, EventId
from bloodbank.http.shapes import OutboxDropped, OutboxPage, OutboxRetried

router = APIRouter(prefix="/outbox", tags=["outbox"])


@router.get(
    "",
    summary="List the events in the outbox, the first accepted first",
    response_class=Response,
    responses={200: description.answer(OutboxPage, "A page, and how much there is in all.")}
    | description.refusals(400, 401, 403, 503),
)
async def list_outbox(
    request: Request,
    set_aside: Annotated[
        bool | None, Query(description="Only those refused for good, or only those that wait.")
    ] = None,
    cursor: Annotated[str | None, Query(max_length=LONGEST_CURSOR, description="`next` of the page before.")] = None,
    limit: Annotated[int | None, Query(ge=1, description="Most events on the page; else 50.")] = None,
) -> Response:
    """List events that wait for the broker, and those that it refused for good, with its reason."""
    bus = bus_of(request)
    size = min(DEFAULT_PAGE, bus.settings.page_limit) if limit is None else limit
    if size > bus.settings.page_limit:
        raise InvalidQuery(f"limit must be between 1 and {bus.settings.page_limit}.")
    after = 0 if cursor is None else position_of(cursor)
    answer, following = await outbox_page(bus.publisher.outbox, set_aside=set_aside, after=after, limit=size)
    answer["next"] = None if following is None else cursor_of(following)
    return Response(orjson.dumps(answer), media_type="application/json")


@router.post(
    "/retry",
    summary="Send all events again that were set aside",
    response_class=Response,
    responses={200: description.answer(OutboxRetried, "They wait again.")} | description.refusals(401, 403, 503),
)
async def retry_all(request: Request) -> Response:
    """Let all events that the broker refused for good wait again, in their places."""
    answer = await retry_in_outbox(bus_of(request).publisher.outbox, None)
    return Response(orjson.dumps(answer), media_type="application/json")


@router.post(
    "/{event_id}/retry",
    summary="Send an event again that was set aside",
    response_class=Response,
    responses={200: description.answer(OutboxRetried, "It waits again.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def retry_one(request: Request, event_id: EventId) -> Response:
    """Let an event that the broker refused for good wait again, in its place. 404: it was not set aside."""
    answer = await retry_in_outbox(bus_of(request).publisher.outbox, event_id)
    return Response(orjson.dumps(answer), media_type="application/json")


@router.delete(
    "/{event_id}",
    summary="Delete an event that was set aside",
    response_class=Response,
    responses={200: description.answer(OutboxDropped, "It is gone for good.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def drop_one(request: Request, event_id: EventId) -> Response:
    """Delete an event that the broker refused for good. 404: it was not set aside; what waits is never deleted."""
    answer = await drop_from_outbox(bus_of(request).publisher.outbox, event_id)
    return Response(orjson.dumps(answer), media_type="application/json")
