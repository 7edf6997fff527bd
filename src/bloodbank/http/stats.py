"""`GET /stats`: what the bus does now."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from bloodbank.http import description
from bloodbank.http.bus import bus_of
from bloodbank.http.shapes import Stats

router = APIRouter(tags=["read"])


@router.get(
    "/stats",
    summary="See what the bus does now",
    response_class=Response,
    responses={200: description.answer(Stats, "Counts, and what is waiting.")} | description.refusals(401, 403, 503),
)
async def read_stats(request: Request) -> Response:
    """Count events a second and by type, and what waits: for groups, in the outbox, among the dead letters.

    It answers 200 also while the broker is away, and says what could not be asked. Counting begins with the first
    question of this kind, or the first stream, that the server gets; the log's newest events count too.
    """
    return Response(orjson.dumps(await bus_of(request).statistics.answer()), media_type="application/json")
