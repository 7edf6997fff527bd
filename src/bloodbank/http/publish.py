"""Publishing: each route takes the raw body, parses and checks it once, and answers prepared bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel
from starlette.types import Scope

from bloodbank.acceptance import PublishResult, Status
from bloodbank.deduplication import Dedup
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import InvalidEvent, PublishError
from bloodbank.events import Artifact, LLMErrorPayload, LLMPrompt, LLMResponse
from bloodbank.http import description, examples, incoming
from bloodbank.http.body import read_object
from bloodbank.http.bus import Bus, bus_of
from bloodbank.http.problems import problem_response
from bloodbank.http.shapes import EnvelopeV1, EventIn, Published, WithPayload

ACTIONS = ("created", "updated", "deleted")
STATUS_CODES = {Status.PUBLISHED: 201, Status.DUPLICATE: 200, Status.QUEUED: 202}
ACCEPTED: Mapping[int, str] = {
    201: "Published: the broker confirmed it, or the log has it on disk. Location says where to read it.",
    200: "This id with this body is on the bus already; nothing was added.",
    202: "Kept on disk until the broker is back.",
}

router = APIRouter(tags=["publish"])


def _publishing(
    summary: str,
    *bodies: type[BaseModel] | Mapping[str, Any],
    of: Mapping[str, Any],
    answers: Mapping[int, str] = ACCEPTED,
) -> dict[str, Any]:
    """Return what the decorator of a publishing route needs to describe it."""
    responses: dict[int | str, dict[str, Any]] = {
        status: description.answer(
            Published, text, examples.PUBLISHED | {"status": next(k for k, v in STATUS_CODES.items() if v == status)}
        )
        for status, text in answers.items()
    }
    return {
        "summary": summary,
        "status_code": 201,
        "response_class": Response,
        "responses": responses | description.refusals(400, 401, 403, 409, 413, 415, 422, 503, 504),
        "openapi_extra": description.json_body(*bodies, examples=of) | {"parameters": description.HEADERS},
    }


@router.post("/events", **_publishing("Publish an event", EventIn, EnvelopeV1, of=examples.EVENTS))
async def publish_event(request: Request) -> Response:
    """Publish an envelope, or a type with its payload; what is left out is filled in."""
    return await _publish(request, await _read(request))


@router.post(
    "/events/llm/prompt",
    **_publishing("Publish an llm.prompt", LLMPrompt, WithPayload[LLMPrompt], of=examples.of_payload(examples.PROMPT)),
)
async def publish_prompt(request: Request) -> Response:
    """A prompt was sent to a model. The body is the payload, or a request object with parents and more."""
    return await _publish(request, incoming.of_type("llm.prompt", await _read(request)))


@router.post(
    "/events/llm/response",
    **_publishing(
        "Publish an llm.response", LLMResponse, WithPayload[LLMResponse], of=examples.of_payload(examples.RESPONSE)
    ),
)
async def publish_response(request: Request) -> Response:
    """A model answered. A `prompt_id` that is an event id counts as a parent, as in version 2."""
    fields = incoming.of_type("llm.response", await _read(request))
    prompt = _prompt_of(fields["payload"])
    if prompt is not None:
        incoming.add_parent(fields, prompt)
    return await _publish(request, fields)


@router.post(
    "/events/llm/error",
    **_publishing(
        "Publish an llm.error", LLMErrorPayload, WithPayload[LLMErrorPayload], of=examples.of_payload(examples.ERROR)
    ),
)
async def publish_error(request: Request) -> Response:
    """A model call failed. The body is the payload, or a request object with parents and more."""
    return await _publish(request, incoming.of_type("llm.error", await _read(request)))


@router.post(
    "/events/artifact",
    **_publishing(
        "Publish an artifact event", Artifact, WithPayload[Artifact], of=examples.of_payload(examples.ARTIFACT)
    ),
)
async def publish_artifact(request: Request) -> Response:
    """An artifact was created, updated or deleted; the type is `artifact.<action>`."""
    body = await _read(request)
    payload = incoming.of_type("artifact", body)["payload"]
    action = cast("dict[str, Any]", payload).get("action") if isinstance(payload, dict) else None
    if action not in ACTIONS:
        wanted = ", ".join(ACTIONS)
        raise InvalidEvent(
            f"Invalid artifact event. payload.action must be one of {wanted}. Nothing was published.",
            [("payload.action", f"Input should be one of {wanted}")],
        )
    return await _publish(request, incoming.of_type(f"artifact.{action}", body))


@router.post(
    "/events/{event_type}",
    **_publishing(
        "Publish an event of a type",
        {"type": "object"},
        WithPayload[dict[str, Any]],
        of=examples.of_payload(examples.INVOICE),
    ),
)
async def publish_typed(
    request: Request,
    event_type: Annotated[
        str,
        Path(
            description="Two to eight words joined by dots.",
            examples=["invoice.paid"],
            json_schema_extra=description.EVENT_TYPE,
        ),
    ],
) -> Response:
    """Publish a payload under a type. The body is the payload, or a request object with parents and more."""
    return await _publish(request, incoming.of_type(event_type, await _read(request)))


async def publish_envelope(request: Request, bus: Bus, envelope: EventEnvelope[Any]) -> Response:
    """Publish, and answer what became of it: `Published`, or a problem that names the event."""
    try:
        result = await bus.publisher.publish(envelope)
    except PublishError as error:
        return problem_response(error, request.scope, event_id=envelope.event_id)
    return Accepted(request.scope, result, STATUS_CODES[result.status])


class Accepted(Response):
    """The answer for an accepted event, made of bytes that need no further look."""

    media_type = "application/json"

    def __init__(self, scope: Scope, result: PublishResult, status_code: int) -> None:
        event_id = str(result.event_id)
        dedup = ',"dedup":"skipped"' if result.dedup is Dedup.SKIPPED else ""
        body = f'{{"event_id":"{event_id}","status":"{result.status}","lineage":"{result.lineage}"{dedup}}}'.encode()
        self.status_code = status_code
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"location", f"{scope.get('root_path', '')}/events/{event_id}".encode("latin-1")),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]


def published(result: PublishResult) -> dict[str, str | UUID]:
    """Return the fields of an accepted event's answer."""
    fields = {"event_id": result.event_id, "status": result.status.value, "lineage": result.lineage.value}
    return fields | {"dedup": result.dedup.value} if result.dedup is Dedup.SKIPPED else fields


async def _read(request: Request) -> dict[str, Any]:
    settings = bus_of(request).settings
    return await read_object(request, limit_bytes=settings.body_limit_bytes, depth_limit=settings.json_depth_limit)


async def _publish(request: Request, fields: Mapping[str, Any]) -> Response:
    bus = bus_of(request)
    envelope = incoming.read_event(fields, incoming.caller_of(request), bus.publisher.registry)
    return await publish_envelope(request, bus, envelope)


def _prompt_of(payload: Any) -> UUID | None:
    try:
        return UUID(payload["prompt_id"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
