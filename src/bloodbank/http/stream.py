"""`GET /events/stream`: events as they come, as server-sent events.

The format is that of the HTML standard, section "Server-sent events". What a client gets: `hello`, then an `event` for
each event that fits, with the cursor as its id; `behind`, `gap` and `trouble` when not all is well; a comment when
nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.types import Receive, Scope, Send

from bloodbank.errors import NotOpen
from bloodbank.http import description
from bloodbank.http.bus import bus_of
from bloodbank.http.cursors import LONGEST_CURSOR, position_of
from bloodbank.http.feed import BEFORE_ALL
from bloodbank.http.follower import Follower
from bloodbank.http.problems import problem_response
from bloodbank.http.streams import Streams
from bloodbank.transports.base import compile_type_pattern

GOODBYE_SECONDS = 0.5
"""How long a client may take to accept the end of its stream."""
MEDIA_TYPE = "text/event-stream"

router = APIRouter(tags=["read"])


@router.get(
    "/events/stream",
    summary="Follow events as they come",
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events, without an end: `hello`, then `event` with an envelope as its data.",
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        }
    }
    | description.refusals(400, 401, 403, 503),
)
async def follow_events(
    request: Request,
    type: Annotated[str, Query(max_length=255, description="Pattern: `*` is one word, `#` any number.")] = "#",
    after: Annotated[
        str | None, Query(max_length=LONGEST_CURSOR, description="Cursor to go on behind; Last-Event-ID goes first.")
    ] = None,
    last_event_id: Annotated[
        str | None, Header(max_length=LONGEST_CURSOR, description="`id` of the last event that was received.")
    ] = None,
) -> Response:
    """Send events from now on or, behind a cursor, with nothing missing in between while the log holds it."""
    fits = compile_type_pattern(type)
    cursor = last_event_id or after
    position = None if not cursor else position_of(cursor, lowest=BEFORE_ALL)
    everything = type == "#"
    return EventStream(
        bus_of(request).streams, position, lambda key: everything or fits.fullmatch("." + key) is not None
    )


class EventStream(Response):
    """The answer that does not end. after: position to go on behind; None: from now on. fits: whose type is sent."""

    def __init__(self, streams: Streams, after: int | None, fits: Callable[[str], bool]) -> None:
        super().__init__(
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type=f"{MEDIA_TYPE}; charset=utf-8"
        )
        del self.headers["content-length"]
        self._streams = streams
        self._after = after
        self._fits = fits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the client leaves or the server stops."""
        if (refusal := self._streams.refusal()) is not None:
            await problem_response(refusal, scope)(scope, receive, send)
            return
        with self._streams.counted():
            writing = asyncio.create_task(self._write(send))
            others = [asyncio.create_task(_gone(receive)), asyncio.create_task(_wait(self._streams.stopping))]
            try:
                await asyncio.wait([writing, *others], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (writing, *others):
                    task.cancel()
                await asyncio.wait([writing, *others])
            if not writing.cancelled():
                writing.result()
            if self._streams.stopping.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(GOODBYE_SECONDS):
                        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        heartbeat_seconds = self._streams.settings.stream_heartbeat_seconds
        follower = Follower(self._streams.feed, self._after, self._fits, heartbeat_seconds=heartbeat_seconds)
        # NotOpen: the server has closed the bus, and ends.
        with suppress(NotOpen):
            async with aclosing(follower.chunks()) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _gone(receive: Receive) -> None:
    message: MutableMapping[str, Any] = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
