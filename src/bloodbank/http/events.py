"""Reading events back: one by its id, or the newest first."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime

from bloodbank.http import description, examples
from bloodbank.http.bus import bus_of
from bloodbank.http.cursors import LONGEST_CURSOR, cursor_of, position_of
from bloodbank.http.shapes import ENVELOPE, EventPage
from bloodbank.search import LONGEST_TEXT, SHORTEST_TEXT, Search

DEFAULT_PAGE = 50

EventId = Annotated[UUID, Path(description="Id of an event.", examples=[examples.EVENT_ID])]

router = APIRouter(tags=["read"])


@router.get(
    "/events",
    summary="List events, newest first",
    response_class=Response,
    responses={
        200: description.answer(EventPage, "A page; ask again with its `next` as `cursor`."),
    }
    | description.refusals(400, 401, 403, 503),
)
async def list_events(
    request: Request,
    type: Annotated[str, Query(max_length=255, description="Pattern: `*` is one word, `#` any number.")] = "#",
    since: Annotated[AwareDatetime | None, Query(description="Accepted at or after; write + as %2B.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Accepted before; write + as %2B.")] = None,
    cursor: Annotated[str | None, Query(max_length=LONGEST_CURSOR, description="`next` of the page before.")] = None,
    limit: Annotated[int | None, Query(ge=1, description="Most events on the page; else 50.")] = None,
    id_prefix: Annotated[
        str | None,
        Query(min_length=4, max_length=64, description="First digits of the id, 4 to 32; dashes or not."),
    ] = None,
    source: Annotated[
        str | None, Query(min_length=1, max_length=LONGEST_TEXT, description="Name of the host or the application.")
    ] = None,
    text: Annotated[
        str | None,
        Query(min_length=SHORTEST_TEXT, max_length=LONGEST_TEXT, description="Part of any text in the event."),
    ] = None,
) -> Response:
    """List the events of the log. A page may be short, or empty, and still have a `next`.

    With `id_prefix`, `source` or `text` it is a search: all that is given must fit, whatever the case. One request
    looks at a limited number of events, and says at how many.
    """
    bus = bus_of(request)
    before = position_of(cursor) if cursor is not None else None
    size = min(DEFAULT_PAGE, bus.settings.page_limit) if limit is None else limit
    search = Search(id_prefix or "", source or "", text or "")
    page = await bus.log.page(pattern=type, since=since, until=until, before=before, limit=size, search=search)
    items = [orjson.Fragment(event.envelope.model_dump_json()) for event in page.items]
    answer: dict[str, Any] = {"items": items, "next": cursor_of(page.next) if page.next is not None else None}
    if search:
        answer["searched"] = page.searched
    return Response(orjson.dumps(answer), media_type="application/json")


@router.get(
    "/events/{event_id}",
    summary="Read an event",
    response_class=Response,
    responses={200: description.answer(ENVELOPE, "The envelope, as it was published.", examples.ENVELOPE)}
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_event(request: Request, event_id: EventId) -> Response:
    """Read the envelope of an event from the log. Events of version 1 are upgraded."""
    envelope = await bus_of(request).log.get(event_id)
    return Response(envelope.model_dump_json(), media_type="application/json")
