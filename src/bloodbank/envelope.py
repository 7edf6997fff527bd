"""The envelope, schema 2.0.0: what every event carries, whatever its type."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, lru_cache
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, cast
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from bloodbank import ids
from bloodbank.causation import current_parents
from bloodbank.errors import InvalidEvent
from bloodbank.events.registry import EventRegistry, invalid_event, utc_now

SCHEMA_VERSION = "2.0.0"
MAX_PARENTS = 64

EventType = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+){1,7}$", max_length=255, strict=True)]
"""Two to eight words joined by dots, such as `llm.prompt`; 255 bytes is what an AMQP short string holds."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]

Payload = TypeVar("Payload")


class TriggerType(StrEnum):
    """How an event was triggered."""

    MANUAL = "manual"
    AGENT = "agent"
    SCHEDULED = "scheduled"
    FILE_WATCH = "file_watch"
    HOOK = "hook"


class Source(BaseModel):
    """Who or what triggered an event.

    host: machine that made the event.
    app: name of the application.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    host: Name
    type: TriggerType
    app: Name | None = None
    meta: dict[str, Any] | None = None

    @classmethod
    def local(cls, app: str | None = None, type: TriggerType = TriggerType.MANUAL) -> Self:
        """Return the source that this machine is."""
        return cls(host=_hostname(), type=type, app=app)


class CodeState(BaseModel):
    """State of the repository that an agent works in."""

    model_config = ConfigDict(extra="forbid")

    repo_url: str | None = None
    branch: str | None = None
    working_diff: str | None = None
    branch_diff: str | None = None
    last_commit_hash: str | None = None


class AgentType(StrEnum):
    """Agents known by name; `AgentContext.type` takes any other name too."""

    CLAUDE_CODE = "claude-code"
    CLAUDE_CHAT = "claude-chat"
    GEMINI_CLI = "gemini-cli"
    GEMINI_CODE = "gemini-code"
    LETTA = "letta"
    AGNO = "agno"
    SMOLAGENT = "smolagent"
    ATOMIC_AGENT = "atomic-agent"
    CUSTOM = "custom"


class AgentContext(BaseModel):
    """What is known of the agent that made an event.

    instance_id: id of the agent's run or conversation.
    checkpoint_id: for agents that work with checkpoints.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    type: Name
    name: str | None = None
    system_prompt: str | None = None
    instance_id: str | None = None
    mcp_servers: list[str] | None = None
    file_references: list[str] | None = None
    url_references: list[str] | None = None
    code_state: CodeState | None = None
    checkpoint_id: str | None = None
    meta: dict[str, Any] | None = None


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time lies outside of the years 1 to 9999 in UTC") from None


def _fold(parents: list[UUID]) -> list[UUID]:
    """Remove duplicates and keep the order; refuse more than the limit."""
    if len(parents) < 2:
        return parents
    folded = list(dict.fromkeys(parents))
    if len(folded) > MAX_PARENTS:
        raise ValueError(f"{len(folded)} parents, and at most {MAX_PARENTS} are allowed; add an event that joins them")
    return folded


class EventEnvelope(BaseModel, Generic[Payload]):
    """An event: who, when, what, and which events caused it.

    correlation_ids: ids of the parents, the first being `correlation_id`; order kept, duplicates removed,
        at most 64, never the event itself. They need not be on the bus yet.
    timestamp: aware; kept in UTC.
    payload: a JSON object or a payload model. Parse `EventEnvelope[LLMPrompt]` to get it typed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants", serialize_by_alias=True)

    event_id: UUID = Field(default_factory=ids.new_event_id)
    event_type: EventType
    timestamp: Annotated[AwareDatetime, AfterValidator(_to_utc)] = Field(default_factory=utc_now)
    version: Literal["2.0.0"] = SCHEMA_VERSION
    source: Source
    correlation_ids: Annotated[list[UUID], AfterValidator(_fold)] = Field(default_factory=list[UUID])
    agent_context: AgentContext | None = None
    payload: Payload

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.event_id in self.correlation_ids:
            raise ValueError("an event cannot be its own parent; remove its event_id from correlation_ids")
        if not isinstance(self.payload, dict | BaseModel):
            raise ValueError("payload must be a JSON object or a payload model")
        return self

    @property
    def correlation_id(self) -> UUID | None:
        """The first parent, or None."""
        return self.correlation_ids[0] if self.correlation_ids else None


# What model_validate calls, at half the price.
AnyEnvelope = EventEnvelope[Any]
_VALIDATOR = AnyEnvelope.__pydantic_validator__
_TYPE_VALIDATOR = TypeAdapter[str](EventType).validator
_DECLARED = EventRegistry()


def create_envelope(
    event_type: str,
    payload: object,
    source: Source | None = None,
    correlation_ids: Iterable[UUID] | None = None,
    agent_context: AgentContext | None = None,
    event_id: UUID | None = None,
    *,
    timestamp: datetime | None = None,
    registry: EventRegistry | None = None,
) -> EventEnvelope[Any]:
    """Make an envelope whose payload is checked against the model of its type.

    correlation_ids: parents; the events being handled here (`bloodbank.causation`) are added to them.
    source: default: this machine, triggered by hand.
    event_id: default: a new UUIDv7. Give one of `event_id()` to make publishing idempotent.
    timestamp: aware; default: now.
    registry: default: the types that are registered with the `event` decorator.

    Raises InvalidEvent, with the path of each problem.
    """
    source = source or _this_machine()
    if isinstance(correlation_ids, UUID | str):
        raise InvalidEvent(
            "correlation_ids is one id and must be a list of them: write [event.event_id]. Nothing was published.",
            [("correlation_ids", "Input should be a list")],
        )
    parents = [*(correlation_ids or ()), *current_parents()]
    checked = (registry or _DECLARED).validate(event_type, payload)
    if timestamp is None and _is_valid(event_type, source, parents, agent_context, event_id):
        return _made(event_type, source, parents, agent_context, event_id, checked)
    fields: dict[str, Any] = {
        "event_type": event_type,
        "source": source,
        "correlation_ids": parents,
        "agent_context": agent_context,
        "payload": checked,
    }
    if event_id is not None:
        fields["event_id"] = event_id
    if timestamp is not None:
        fields["timestamp"] = timestamp
    try:
        return _VALIDATOR.validate_python(fields)
    except ValidationError as error:
        raise invalid_event(error, str(event_type)) from error


def _is_valid(
    event_type: object, source: object, parents: list[UUID], agent_context: object, event_id: UUID | None
) -> bool:
    """Say whether each field is of the very type that the envelope keeps, and breaks no rule.

    False is no verdict: such fields go through pydantic, which converts what can be converted and tells what is wrong.
    """
    return (
        type(event_type) is str
        and _is_event_type(event_type)
        and type(source) is Source
        and (agent_context is None or type(agent_context) is AgentContext)
        and (event_id is None or type(event_id) is UUID)
        and (not parents or _are_parents(parents, event_id))
    )


@lru_cache(maxsize=1024)
def _is_event_type(text: str) -> bool:
    try:
        _TYPE_VALIDATOR.validate_python(text)
    except ValidationError:
        return False
    return True


def _are_parents(several: list[UUID], event_id: UUID | None) -> bool:
    if any(type(one) is not UUID for one in several):
        return False
    # Where one stands twice, pydantic folds them.
    return len(several) <= MAX_PARENTS and len(set(several)) == len(several) and event_id not in several


def _made(
    event_type: str,
    source: Source,
    parents: list[UUID],
    agent_context: AgentContext | None,
    event_id: UUID | None,
    payload: object,
) -> EventEnvelope[Any]:
    """Return the envelope that pydantic would make of valid fields, put together as `model_construct` does it."""
    given = {"event_type", "source", "correlation_ids", "agent_context", "payload"}
    if event_id is None:
        event_id = ids.new_event_id()
    else:
        given.add("event_id")
    values = {
        "event_id": event_id,
        "event_type": event_type,
        "timestamp": utc_now(),
        "version": SCHEMA_VERSION,
        "source": source,
        "correlation_ids": parents,
        "agent_context": agent_context,
        "payload": payload,
    }
    return _put_together(values, given)


def with_payload(envelope: EventEnvelope[Any], payload: object) -> EventEnvelope[Any]:
    """Return the envelope with another payload, as `model_copy` does at four times the price; nothing is checked."""
    if type(envelope) is not AnyEnvelope:
        return envelope.model_copy(update={"payload": payload})
    return _put_together({**envelope.__dict__, "payload": payload}, {*envelope.model_fields_set, "payload"})


def _put_together(values: dict[str, Any], given: set[str]) -> EventEnvelope[Any]:
    made = _new(AnyEnvelope)
    _set(made, "__dict__", values)
    _set(made, "__pydantic_fields_set__", given)
    _set(made, "__pydantic_extra__", None)
    _set(made, "__pydantic_private__", None)
    return made


# The class refuses assignment, being frozen.
_new = object.__new__
_set = object.__setattr__


def envelope_for(event_type: str, source: str, data: object, correlation_id: UUID | None = None) -> EventEnvelope[Any]:
    """Make an envelope from the arguments of version 1. New code calls `create_envelope`.

    source: name of the application. correlation_id: the parent.
    """
    parents = [correlation_id] if correlation_id is not None else []
    return create_envelope(event_type, data, source=Source.local(app=source), correlation_ids=parents)


def read_envelope(fields: Mapping[str, Any]) -> EventEnvelope[Any]:
    """Read an envelope from a parsed JSON object; envelopes of version 1 are upgraded.

    The payload stays a JSON object. Raises InvalidEvent.
    """
    if is_v1(fields):
        fields = upgrade_v1(fields)
    try:
        return _VALIDATOR.validate_python(fields)
    except ValidationError as error:
        raise invalid_event(error, str(fields.get("event_type", "unnamed"))[:255]) from error


def is_v1(fields: Mapping[str, Any]) -> bool:
    """Say whether a parsed JSON object is an envelope of version 1: it has `data` and no `payload`."""
    return "data" in fields and "event_type" in fields and "payload" not in fields


def upgrade_v1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the 2.0.0 fields of an envelope of version 1 (`id`, `ts`, `source`, `correlation_id`, `data`).

    An id that is no UUID becomes the UUIDv5 that belongs to it, in `id` and in `correlation_id` alike, so
    that the edges stay. What version 1 had beyond that is kept in `source.meta`.
    """
    known = {"id", "event_type", "ts", "version", "source", "correlation_id", "data"}
    rest = {name: value for name, value in fields.items() if name not in known}
    source = fields.get("source")
    upgraded: dict[str, Any] = {
        "event_type": fields.get("event_type"),
        "source": {
            "host": _hostname(),
            "type": TriggerType.MANUAL,
            "app": source if isinstance(source, str) and source else None,
            "meta": {"upgraded_from": "1", **rest},
        },
        "payload": fields["data"],
    }
    if isinstance(source, dict):
        upgraded["source"] = cast("dict[str, Any]", source)
    if fields.get("id") is not None:
        upgraded["event_id"] = _v1_id(fields["id"])
    if fields.get("ts") is not None:
        upgraded["timestamp"] = fields["ts"]
    if fields.get("correlation_id") is not None:
        upgraded["correlation_ids"] = [_v1_id(fields["correlation_id"])]
    return upgraded


def envelope_from_v2_call(
    routing_key: str,
    body: Mapping[str, Any],
    *,
    event_id: UUID | str | None,
    parent_event_ids: Sequence[UUID | str] | None,
    correlation_metadata: Mapping[str, Any] | None,
    source: Source,
    registry: EventRegistry,
) -> EventEnvelope[Any]:
    """Make the envelope that `publish(routing_key=…, body=…)` of version 2 means.

    `body` is an envelope as a dict (2.0.0, or version 1) or a bare payload. `parent_event_ids` are added to
    the parents that the envelope names. `routing_key` must be the type of the event.

    Raises InvalidEvent.
    """
    fields: dict[str, Any]
    if is_v1(body):
        fields = upgrade_v1(body)
    elif "payload" in body and "event_type" in body:
        fields = dict(body)
        # Version 2 wrote "1.0.0" there; its fields are those of 2.0.0.
        if fields.get("version") == "1.0.0":
            del fields["version"]
    else:
        fields = {"event_type": routing_key, "source": source, "payload": dict(body)}
    if fields.get("event_type") != routing_key:
        raise InvalidEvent(
            f"The routing key {routing_key!r} is not the event_type of the body, {fields.get('event_type')!r}. "
            "Make them equal. Nothing was published.",
            [("routing_key", "must be the event_type of the body")],
        )
    if event_id is not None:
        fields["event_id"] = event_id
    named: object = fields.get("correlation_ids") or []
    if isinstance(named, list):  # anything else is refused below
        named = [*cast("list[object]", named), *(parent_event_ids or ()), *current_parents()]
    fields["correlation_ids"] = named
    envelope = read_envelope(fields)
    updates: dict[str, Any] = {"payload": registry.validate(routing_key, envelope.payload)}
    if correlation_metadata:
        meta = {**(envelope.source.meta or {}), "correlation": dict(correlation_metadata)}
        updates["source"] = envelope.source.model_copy(update={"meta": meta})
    return envelope.model_copy(update=updates)


def _v1_id(value: object) -> UUID:
    text = str(value)
    try:
        return UUID(text)
    except ValueError:
        return ids.event_id("bloodbank.v1", id=text)


@cache
def _this_machine() -> Source:
    return Source.local()


@cache
def _hostname() -> str:
    return socket.gethostname() or "localhost"
