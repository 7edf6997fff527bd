"""Requests to envelopes: which fields a body may have, and what the headers add."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast
from uuid import UUID

from fastapi import Request
from pydantic import ValidationError

from bloodbank import ids
from bloodbank.causation import PARENTS_HEADER, parents_of_request
from bloodbank.envelope import EventEnvelope, Source, TriggerType, is_v1, read_envelope, upgrade_v1
from bloodbank.errors import InvalidEvent
from bloodbank.events import EventRegistry
from bloodbank.http.head import header, headers
from bloodbank.http.refusals import RequestRefused

IDEMPOTENCY_HEADER = "Idempotency-Key"
APP = "http-api"
UNKNOWN_HOST = "unknown"
LONGEST_HOST = 255
"""What a source can hold; a longer one is no address."""
SOURCES_KEPT = 256
"""How many clients' sources are kept, so that they need not be made for each of their requests."""
MOST_NAMED_PARENTS = 1024
"""Most entries of correlation_ids, repeated ones included, that are looked at; 64 different ones are allowed."""

REQUEST_FIELDS = frozenset({"payload", "event_id", "correlation_ids", "source", "agent_context", "timestamp"})
"""A body with `payload` and nothing beside these is a request object; any other is the bare payload."""

_PARENTS, _IDEMPOTENCY = PARENTS_HEADER.lower().encode(), IDEMPOTENCY_HEADER.lower().encode()
_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}")


class Caller(NamedTuple):
    """What a request says beside its body.

    source: of events that name none. parents: added to those in the body. idempotency_key: makes the event's
    id; the same key and type, the same id.
    """

    source: Source
    parents: tuple[UUID, ...] = ()
    idempotency_key: str | None = None


def caller_of(request: Request) -> Caller:
    """Read the headers. Raises RequestRefused for one that cannot be understood."""
    scope = request.scope
    key = header(scope, _IDEMPOTENCY)
    if key is not None and not _VISIBLE.fullmatch(key):
        raise RequestRefused(f"{IDEMPOTENCY_HEADER} must be 1 to 255 visible ASCII characters. Nothing was published.")
    return Caller(source_of(request), _parents(headers(scope, _PARENTS)), key)


def source_of(request: Request) -> Source:
    """Return the source of events that name none: the client's address.

    Behind a proxy the address is what `X-Forwarded-For` says, and that may be anything.
    """
    client = request.scope.get("client")
    host = client[0] if client else UNKNOWN_HOST
    return _source(host if len(host) <= LONGEST_HOST else UNKNOWN_HOST)


@lru_cache(maxsize=SOURCES_KEPT)
def _source(host: str) -> Source:
    try:
        return Source(host=host, type=TriggerType.HOOK, app=APP)
    except ValidationError:
        return Source(host=UNKNOWN_HOST, type=TriggerType.HOOK, app=APP)


def of_type(event_type: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an event whose type the route knows; the body is a payload or a request object."""
    if "payload" in body and body.keys() <= REQUEST_FIELDS:
        return {**body, "event_type": event_type}
    return {"event_type": event_type, "payload": body}


def read_event(body: Mapping[str, Any], caller: Caller, registry: EventRegistry) -> EventEnvelope[Any]:
    """Return the checked envelope of an event; what the body leaves out comes from the caller.

    body: an envelope 2.0.0, of which all but event_type and payload may be missing, or one of version 1.
    Raises InvalidEvent, with the path of each problem.
    """
    fields = upgrade_v1(body) if is_v1(body) else dict(body)
    # Version 2 wrote "1.0.0" there; its fields are those of 2.0.0.
    if fields.get("version") == "1.0.0":
        del fields["version"]
    if not isinstance(fields.get("payload", {}), dict):
        raise InvalidEvent(
            "The payload must be a JSON object. Nothing was published.", [("payload", "Input should be an object")]
        )
    fields.setdefault("source", caller.source)
    _add_parents(fields, caller.parents)
    if caller.idempotency_key is not None:
        _add_id(fields, caller.idempotency_key)
    if "payload" not in fields:
        return read_envelope(fields)  # which says that it is missing
    try:
        payload = registry.validate(cast("str", fields.get("event_type")), fields["payload"])
    except InvalidEvent:
        # What is wrong with the envelope is told first.
        read_envelope(fields)
        raise
    fields["payload"] = payload
    return read_envelope(fields)


def add_parent(fields: dict[str, Any], parent: UUID) -> None:
    """Add a parent behind those that the fields of an event name."""
    _add_parents(fields, (parent,))


def _add_parents(fields: dict[str, Any], parents: tuple[UUID, ...]) -> None:
    value = fields.get("correlation_ids", [])
    if not isinstance(value, list):
        return  # The envelope refuses it, and says why.
    named = cast("list[object]", value)
    if len(named) > MOST_NAMED_PARENTS:
        raise InvalidEvent(
            f"correlation_ids has {len(named)} entries; at most 64 different parents are allowed. Add an event that "
            "joins them. Nothing was published.",
            [("correlation_ids", "too many parents")],
        )
    if parents:
        fields["correlation_ids"] = [*named, *parents]


def _add_id(fields: dict[str, Any], key: str) -> None:
    if "event_id" in fields:
        raise InvalidEvent(
            f"The event has an event_id and the request an {IDEMPOTENCY_HEADER}; each would make the id. Leave one "
            "out. Nothing was published.",
            [("event_id", f"cannot be given together with {IDEMPOTENCY_HEADER}")],
        )
    event_type = fields.get("event_type")
    if isinstance(event_type, str) and event_type:
        fields["event_id"] = ids.event_id(event_type, idempotency_key=key)


def _parents(lines: list[str]) -> tuple[UUID, ...]:
    if not lines:
        return ()
    try:
        return parents_of_request(lines)
    except InvalidEvent as error:
        raise RequestRefused(str(error)) from error
