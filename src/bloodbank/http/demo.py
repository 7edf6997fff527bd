"""`POST /demo`: the demo's day on this bus, for those who look at an empty one."""

from __future__ import annotations

import time
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response

from bloodbank.config import Settings
from bloodbank.envelope import EventEnvelope, Source, TriggerType, create_envelope
from bloodbank.http import description, fireflies
from bloodbank.http.bus import Bus, bus_of
from bloodbank.http.refusals import DemoUnavailable
from bloodbank.http.shapes import DemoPlayed
from bloodbank.ids import new_event_id
from bloodbank.story import MEETING_ID, STORY, WEBHOOK, Scene

FOCUS = "artifact"
"""The scene that has causes to look at, and an effect."""

router = APIRouter(tags=["demo"])


@router.post(
    "/demo",
    summary="Play the demo's day on this bus",
    response_class=Response,
    status_code=201,
    responses={201: description.answer(DemoPlayed, "It was played.")} | description.refusals(401, 403, 409, 503, 504),
)
async def play_demo(request: Request) -> Response:
    """Publish the events that `bb demo` plays, with new ids each time. Only on a bus in this server's own file."""
    bus = bus_of(request)
    _require_embedded(bus.settings)
    ids: dict[str, UUID] = {}
    for scene in STORY:
        envelope = _envelope(bus, scene, ids)
        # One after the other: an event's causes are on the bus before it.
        await bus.publisher.publish(envelope)
        ids[scene.name] = envelope.event_id
    return Response(orjson.dumps({"events": len(ids), "focus": ids[FOCUS]}), 201, media_type="application/json")


def _require_embedded(settings: Settings) -> None:
    if settings.rabbit_url is not None or settings.redis_address() is not None:
        raise DemoUnavailable(
            "The demo is played only where bus and index lie in this server's own file, and RABBIT_URL, REDIS_URL or "
            "REDIS_HOST is set here. Nothing was published; 'bb demo' plays it on a server of its own."
        )


def _envelope(bus: Bus, scene: Scene, ids: dict[str, UUID]) -> EventEnvelope[object]:
    event_id, payload = new_event_id(), scene.payload
    if scene is WEBHOOK:
        notice = fireflies.read_notice(
            {
                "event": "meeting.transcribed",
                "timestamp": int(time.time() * 1000),
                "meeting_id": f"{MEETING_ID}-{ids['upload'].hex[-8:]}",
                "client_reference_id": str(ids["upload"]),
            }
        )
        event_id, payload = notice.event_id, notice.payload
    return create_envelope(
        scene.event_type,
        payload,
        source=Source.local(scene.app, TriggerType.AGENT),
        correlation_ids=[ids[cause] for cause in scene.causes],
        event_id=event_id,
        registry=bus.publisher.registry,
    )
