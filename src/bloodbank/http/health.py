"""Whether the server serves, and whether what it needs can be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from bloodbank import wiring
from bloodbank.errors import BloodbankError
from bloodbank.http import description
from bloodbank.http.bus import Bus, bus_of
from bloodbank.http.shapes import Health, Live, Readiness

CHECK_TIMEOUT_SECONDS = 2.0
VERSION = version("bloodbank")

router = APIRouter(tags=["health"])


@router.get(
    "/healthz",
    summary="See whether the server serves",
    response_class=Response,
    responses={200: description.answer(Health, "It does.")} | description.refusals(503),
    openapi_extra={"security": []},
)
async def read_health(request: Request) -> Response:
    """Always 200 while the process serves, whatever its dependencies do; /readyz tells of those."""
    settings = bus_of(request).settings
    answer = {
        "ok": True,
        "service": settings.service_name,
        "version": VERSION,
        "environment": settings.environment,
    }
    return Response(orjson.dumps(answer), media_type="application/json")


@router.get(
    "/livez",
    summary="See whether the process lives",
    response_class=Response,
    responses={200: description.answer(Live, "It does.")} | description.refusals(),
    openapi_extra={"security": []},
)
async def read_liveness() -> Response:
    """Always 200 while the process serves."""
    return Response(b'{"ok":true}', media_type="application/json")


@router.get(
    "/readyz",
    summary="See whether events can be accepted",
    response_class=Response,
    responses={
        200: description.answer(Readiness, "They can. `degraded`: but the correlation store is away."),
        503: description.answer(Readiness, "They cannot: the bus does not answer."),
    }
    | description.refusals(401, 403),
)
async def read_readiness(request: Request) -> Response:
    """Make a round trip to each dependency, all at once, for at most two seconds.

    A correlation store that is away leaves the server ready and `degraded`: events are accepted and kept, their
    causes stand in the log, and only questions about lineage have to wait.
    """
    bus = bus_of(request)
    what = wiring.describe(bus.settings, tracking=bus.publisher.tracking_enabled)
    async with asyncio.TaskGroup() as tasks:
        transport = tasks.create_task(
            _check(lambda: bus.publisher.transport.check(timeout_seconds=CHECK_TIMEOUT_SECONDS))
        )
        store = tasks.create_task(_check_store(bus))
    ready, degraded = transport.result()["ok"], not store.result()["ok"]
    answer = {
        "ready": ready,
        "degraded": degraded,
        "transport": transport.result() | {"what": what["transport"]},
        "store": store.result() | {"what": what["store"]},
    }
    return Response(orjson.dumps(answer), 200 if ready else 503, media_type="application/json")


async def _check_store(bus: Bus) -> dict[str, Any]:
    if not bus.publisher.tracking_enabled:
        return {"ok": True, "detail": "Correlation tracking is off.", "deferred_total": 0}
    return await _check(bus.publisher.tracker.check) | {"deferred_total": bus.publisher.tracker.deferred_total}


async def _check(round_trip: Callable[[], Awaitable[None]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await round_trip()
    except TimeoutError:
        return {"ok": False, "detail": f"No answer within {CHECK_TIMEOUT_SECONDS:g} s."}
    except BloodbankError as error:
        return {"ok": False, "detail": str(error)}
    return {"ok": True, "detail": "It answers."}
