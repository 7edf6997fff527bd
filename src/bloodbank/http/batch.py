"""Publishing several events in one request; each is accepted or refused by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import orjson
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from bloodbank.acceptance import PublishResult
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import BloodbankError, InvalidEvent
from bloodbank.http import description, examples, incoming
from bloodbank.http.body import parse_json, read_body, require_json
from bloodbank.http.bus import Bus, bus_of
from bloodbank.http.problems import problem_of
from bloodbank.http.publish import published
from bloodbank.http.refusals import BatchTooLarge, BodyTooLarge, RequestRefused
from bloodbank.http.shapes import BatchIn, BatchOut, EnvelopeV1, EventIn

LIST = {"type": "array", "items": {"anyOf": [description.reference(EventIn), description.reference(EnvelopeV1)]}}

LARGE_BYTES = 65_536
"""Larger bodies are parsed and checked in a thread: one of 16 MiB takes seconds, in which nobody else is answered."""

router = APIRouter(tags=["publish"])


@router.post(
    "/events/batch",
    summary="Publish several events",
    response_class=Response,
    responses={
        200: description.answer(BatchOut, "One result an event, in the order sent.", {"results": [examples.PUBLISHED]})
    }
    | description.refusals(400, 401, 403, 413, 415, 422, 503),
    openapi_extra=description.json_body(BatchIn, LIST, examples=examples.BATCH)
    | {"parameters": description.HEADERS[:1]},
)
async def publish_batch(request: Request) -> Response:
    """Publish events that share confirms and round trips. One that fails does not stop the others."""
    bus = bus_of(request)
    require_json(request)
    caller = incoming.caller_of(request)
    if caller.idempotency_key is not None:
        raise RequestRefused(
            f"{incoming.IDEMPOTENCY_HEADER} is for single events; give each event of a batch its event_id. Nothing was "
            "published."
        )
    body = await read_body(request, limit_bytes=bus.settings.batch_body_limit_bytes)
    is_large = len(body) > LARGE_BYTES
    read = await to_thread.run_sync(_read_items, body, caller, bus) if is_large else _read_items(body, caller, bus)
    results = iter(await bus.publisher.publish_many([event for event in read if isinstance(event, EventEnvelope)]))
    answers = [_answer(event, next(results) if isinstance(event, EventEnvelope) else event) for event in read]
    return Response(orjson.dumps({"results": answers}), media_type="application/json")


def _read_items(body: bytes, caller: incoming.Caller, bus: Bus) -> list[EventEnvelope[Any] | BloodbankError]:
    """Return each event, or what is wrong with it. Raises InvalidJson, InvalidEvent and BatchTooLarge for the whole."""
    items = _items(parse_json(body, depth_limit=bus.settings.json_depth_limit))
    if len(items) > bus.settings.batch_limit:
        raise BatchTooLarge(
            f"The batch has {len(items)} events; at most {bus.settings.batch_limit} are taken. Nothing was published."
        )
    measure = len(body) > bus.settings.body_limit_bytes
    return [_read_item(item, caller, bus, measure=measure) for item in items]


def _items(parsed: object) -> Sequence[object]:
    events: object = parsed
    if isinstance(parsed, dict):
        fields = cast("dict[str, object]", parsed)
        events = fields["events"] if fields.keys() == {"events"} else None
    if not isinstance(events, list):
        raise InvalidEvent(
            'The body must be a list of events, or {"events": [...]} with nothing beside it. Nothing was published.',
            [("events", "Input should be a list")],
        )
    return cast("list[object]", events)


def _read_item(
    item: object, caller: incoming.Caller, bus: Bus, *, measure: bool
) -> EventEnvelope[Any] | BloodbankError:
    limit = bus.settings.body_limit_bytes
    try:
        if not isinstance(item, dict):
            raise InvalidEvent(
                "An event must be a JSON object. It was not published.", [("", "Input should be an object")]
            )
        if measure and len(to_json(item)) > limit:
            raise BodyTooLarge(f"The event is larger than {limit} bytes. It was not published.")
        return incoming.read_event(cast("dict[str, Any]", item), caller, bus.publisher.registry)
    except BloodbankError as error:
        return error


def _answer(event: EventEnvelope[Any] | BloodbankError, outcome: PublishResult | BloodbankError) -> dict[str, Any]:
    if isinstance(outcome, PublishResult):
        return published(outcome)
    event_id = event.event_id if isinstance(event, EventEnvelope) else None
    return {"problem": problem_of(outcome, event_id=event_id)}
