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
from bloodbank.events.registry import utc_now
from bloodbank.http import description
from bloodbank.http.bus import Bus, bus_of
from bloodbank.http.shapes import Health, Live, Readiness
from bloodbank.outbox import describe_outbox

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
        200: description.answer(Readiness, "They can. `degraded`: but not all is as it should be."),
        503: description.answer(
            Readiness,
            "They cannot: the broker is away and there is no outbox with room, or the server is `stopping`.",
        ),
    }
    | description.refusals(401, 403),
)
async def read_readiness(request: Request) -> Response:
    """Make a round trip to each dependency, all at once, for at most two seconds.

    A broker that is away leaves the server ready and `degraded` while the outbox has room; so does a correlation store
    that is away: events are accepted and kept, their causes too, and only questions about lineage have to wait.
    """
    bus = bus_of(request)
    what = wiring.describe(bus.settings, tracking=bus.publisher.tracking_enabled)
    async with asyncio.TaskGroup() as tasks:
        transport = tasks.create_task(
            _check(lambda: bus.publisher.transport.check(timeout_seconds=CHECK_TIMEOUT_SECONDS))
        )
        store = tasks.create_task(_check_store(bus))
        outbox = tasks.create_task(_check_outbox(bus))
    is_stopping: bool = request.app.state.is_stopping
    can_accept = transport.result()["ok"] or (outbox.result()["on"] and outbox.result()["ok"])
    ready = can_accept and not is_stopping
    answer = {
        "ready": ready,
        "degraded": not all(part.result()["ok"] for part in (transport, store, outbox)),
        "stopping": is_stopping,
        "transport": transport.result() | {"what": what["transport"]},
        "store": store.result() | {"what": what["store"]},
        "outbox": outbox.result(),
    }
    return Response(orjson.dumps(answer), 200 if ready else 503, media_type="application/json")


async def _check_store(bus: Bus) -> dict[str, Any]:
    if not bus.publisher.tracking_enabled:
        nothing = {"deferred_total": 0, "journalled": 0, "unjournalled_total": 0, "unjournalled_since": None}
        return {"ok": True, "detail": "Correlation tracking is off.", **nothing}
    tracker = bus.publisher.tracker
    return await _check(tracker.check) | {
        "deferred_total": tracker.deferred_total,
        "journalled": tracker.journalled,
        "unjournalled_total": tracker.unjournalled_total,
        "unjournalled_since": tracker.unjournalled_since,
    }


async def _check_outbox(bus: Bus) -> dict[str, Any]:
    outbox = bus.publisher.outbox
    numbers = dict.fromkeys(("waiting", "waiting_bytes", "used_bytes", "limit_bytes", "set_aside"), 0)
    if outbox is None:
        return {"on": False, "ok": True, "detail": "There is none.", **numbers, "oldest_seconds": None}
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            totals = await outbox.totals()
            await outbox.check()
    except TimeoutError:
        detail = f"No answer within {CHECK_TIMEOUT_SECONDS:g} s."
        return {"on": True, "ok": False, "detail": detail, **numbers, "oldest_seconds": None}
    except BloodbankError as error:
        return {"on": True, "ok": False, "detail": str(error), **numbers, "oldest_seconds": None}
    oldest = totals.oldest_accepted_at
    return {
        "on": True,
        "ok": totals.used_bytes < totals.limit_bytes,
        "detail": describe_outbox(totals),
        **{name: getattr(totals, name) for name in numbers},
        "oldest_seconds": None if oldest is None else max(0.0, (utc_now() - oldest).total_seconds()),
    }


async def _check(round_trip: Callable[[], Awaitable[None]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await round_trip()
    except TimeoutError:
        return {"ok": False, "detail": f"No answer within {CHECK_TIMEOUT_SECONDS:g} s."}
    except BloodbankError as error:
        return {"ok": False, "detail": str(error)}
    return {"ok": True, "detail": "It answers."}
