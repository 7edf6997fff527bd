"""The OpenAPI description of what the routes read and answer as plain bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from bloodbank.causation import LONGEST_PARENTS_HEADER, PARENTS_HEADER
from bloodbank.envelope import EventType
from bloodbank.events import Artifact, LLMErrorPayload, LLMPrompt, LLMResponse
from bloodbank.http import incoming, problems
from bloodbank.http.shapes import (
    BatchIn,
    EnvelopeV1,
    EventIn,
    FirefliesV1,
    FirefliesV2,
    Problem,
    ReplayIn,
    WithPayload,
)

REFERENCE = "#/components/schemas/{model}"
BODIES: tuple[type[BaseModel], ...] = (
    EventIn,
    EnvelopeV1,
    BatchIn,
    WithPayload[LLMPrompt],
    WithPayload[LLMResponse],
    WithPayload[LLMErrorPayload],
    WithPayload[Artifact],
    WithPayload[dict[str, Any]],
    FirefliesV1,
    FirefliesV2,
    ReplayIn,
    Problem,
)
SECURITY: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of BLOODBANK_API_KEYS."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same, in another header."},
}
# Said, and left to the registry and the envelope to check: they answer 422 with the path of what is wrong.
EVENT_TYPE: dict[str, Any] = TypeAdapter(EventType).json_schema()
REASONS = {
    400: "The request cannot be understood: not JSON, not a UUID, a wrong parameter.",
    401: "No API key, or a wrong one; for webhooks, no signature or a wrong one.",
    403: "The API key lacks the scope, or no keys are set and the client is not on the server's machine.",
    404: "Unknown.",
    409: "An event with this id is on the bus with another body, or this cannot be done on this bus.",
    413: "The body is over its limit.",
    415: "The body is not declared as JSON.",
    422: "The event breaks a rule; `errors` lists what to change. Nothing was published.",
    503: "The bus, or the store that the answer needs, cannot be reached, or tracking is off. Try again later.",
    504: "The event may be on the bus: the broker did not confirm in time. Send it again with the same `event_id`.",
}
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
HEADERS: list[dict[str, Any]] = [
    {
        "name": PARENTS_HEADER,
        "in": "header",
        "required": False,
        "description": "Ids of events that caused this one, separated by commas; added to those in the body.",
        "schema": {
            "type": "string",
            "maxLength": LONGEST_PARENTS_HEADER,
            "pattern": f"^{_UUID}(, ?{_UUID}){{0,63}}$",
        },
    },
    {
        "name": incoming.IDEMPOTENCY_HEADER,
        "in": "header",
        "required": False,
        "description": "Makes the event's id: the same key and type are the same event. Not together with `event_id`.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
]


class DescribedApp(FastAPI):
    """FastAPI whose description has the bodies that raw routes read, and how keys are sent."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description; it is made once."""
        if self.openapi_schema is None:
            description = super().openapi()
            components = description.setdefault("components", {})
            components["schemas"] = _schemas_of(BODIES) | components.get("schemas", {})
            components["securitySchemes"] = SECURITY
            # The empty one: without BLOODBANK_API_KEYS none is asked for.
            description["security"] = [{}, *({name: []} for name in SECURITY)]
        return super().openapi()


def json_body(*models: type[BaseModel] | Mapping[str, Any], examples: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a JSON body that is any one of some models or schemas."""
    schemas = [model if isinstance(model, Mapping) else reference(model) for model in models]
    content = {
        "schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas},
        "examples": {name: {"summary": name.capitalize(), "value": value} for name, value in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def answer(
    model: type[BaseModel], description: str, example: Any = None, *, texts: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the description of a JSON answer. texts: media types of text that it can be had as too."""
    content: dict[str, Any] = {"application/json": {"example": example} if example is not None else {}}
    content |= {f"{media_type}; charset=utf-8": {"schema": {"type": "string"}} for media_type in texts}
    return {"model": model, "description": description, "content": content}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of the problems that a route answers, and of those that any route may."""
    content = {problems.MEDIA_TYPE: {"schema": reference(Problem)}}
    described: dict[int | str, dict[str, Any]] = {
        status: {"description": REASONS[status], "content": content} for status in statuses
    }
    described["default"] = {"description": "Any other problem, of the same shape.", "content": content}
    for status in {503} & set(statuses):
        described[status] |= {"headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}}
    return described


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Return the reference to a model's schema among the components."""
    # The names that pydantic gives: brackets and commas of generics become underscores.
    name = "".join(character if character.isalnum() else "_" for character in model.__name__)
    return {"$ref": REFERENCE.format(model=name)}


def _schemas_of(models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    return definitions["$defs"]
