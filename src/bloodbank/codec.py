"""Envelope to wire message and back: the only place that knows headers and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID

import orjson
from pydantic import ConfigDict, TypeAdapter
from pydantic_core import PydanticSerializationError, from_json

from bloodbank.envelope import (
    MAX_PARENTS,
    SCHEMA_VERSION,
    AgentContext,
    AnyEnvelope,
    EventEnvelope,
    Source,
    TriggerType,
    read_envelope,
)
from bloodbank.errors import InvalidEvent
from bloodbank.events.registry import utc_now
from bloodbank.stores.base import Link
from bloodbank.transports.base import Message

VERSION_HEADER = "bloodbank-version"


_HEADERS: Mapping[str, str] = MappingProxyType({VERSION_HEADER: SCHEMA_VERSION})
# A payload is written as in the envelope: the field is of any type there, and these are the envelope's settings.
_PAYLOAD = TypeAdapter[Any](Any, config=ConfigDict(ser_json_inf_nan="constants", serialize_by_alias=True)).serializer

_TELLING = b'0123456789[{NaIy ":,'
_OTHERS = bytes(set(range(256)).difference(_TELLING))
_DIGITS_ALIKE = bytes(ord("0") if byte in b"0123456789" else byte for byte in range(256))
_LONG_NUMBER = b"0" * 19
_SHALLOW = 100


def encode(envelope: EventEnvelope[Any], *, with_digest: bool = True) -> Message:
    """Serialise an envelope, once; the same bytes go everywhere.

    with_digest: whether anyone will tell duplicates by it.

    Raises InvalidEvent when the payload holds something that JSON cannot, or that readers would take for
    something else (NaN, infinities, integers beyond 64 bits), or when the list of parents was changed behind
    the envelope's back.
    """
    parents, event_id = envelope.correlation_ids, envelope.event_id
    if parents and (len(parents) > MAX_PARENTS or event_id in parents):
        raise InvalidEvent(
            f"correlation_ids holds {len(parents)} parents or the event itself; at most {MAX_PARENTS} others "
            "are allowed. Nothing was published.",
            [("correlation_ids", "changed after the envelope was made")],
        )
    if not _is_uuid(event_id) or (parents and not all(map(_is_uuid, parents))):
        # Transports put them among the bytes of a message as they are.
        raise InvalidEvent(
            "event_id or correlation_ids holds what is no UUID. Nothing was published.",
            [("event_id, correlation_ids", "changed after the envelope was made")],
        )
    try:
        body, body_digest = _written(envelope, with_digest)
    except (PydanticSerializationError, TypeError, ValueError) as error:
        raise InvalidEvent(
            f"The {envelope.event_type} event cannot be written as JSON: {error}. Nothing was published.",
            [("payload", "must hold JSON values only")],
        ) from error
    parent, app = parents[0] if parents else None, envelope.source.app
    return Message(event_id, envelope.event_type, body, body_digest, parent, app, _HEADERS)


def _is_uuid(value: object) -> bool:
    return isinstance(value, UUID)


def _written(envelope: EventEnvelope[Any], with_digest: bool) -> tuple[bytes, bytes]:
    """Return the envelope as JSON, and its digest or nothing. Raises what `digest` refuses in either case.

    Pydantic writes the payload, which is what differs. What stands around it is put together here in a quarter of the
    time. An envelope of another class, or of another version, is left to pydantic as a whole.
    """
    source, context = envelope.source, envelope.agent_context
    if type(envelope) is not AnyEnvelope or envelope.version != SCHEMA_VERSION:
        # What model_dump_json calls; it would make a text of the bytes.
        body = type(envelope).__pydantic_serializer__.to_json(envelope)
        return body, digest(body) if with_digest or not is_plain(body) else b""
    event_type, parents = envelope.event_type, envelope.correlation_ids
    payload = _PAYLOAD.to_json(envelope.payload)
    # orjson takes subclasses of UUID and datetime, such as those of some database drivers, for things unknown to it.
    parents_json = orjson.dumps(parents, str) if parents else b"[]"
    if source.meta is None:
        before_time, before_parents = _named(event_type, source.host, source.type, source.app)
    else:
        before_time, before_parents = _between(event_type, Source.__pydantic_serializer__.to_json(source))
    parts = (
        b'{"event_id":',
        orjson.dumps(envelope.event_id, str),
        before_time,
        orjson.dumps(envelope.timestamp, _plain_time, orjson.OPT_UTC_Z),
        before_parents,
        parents_json,
        b',"agent_context":',
        b"null" if context is None else AgentContext.__pydantic_serializer__.to_json(context),
        b',"payload":',
        payload,
        b"}",
    )
    body = b"".join(parts)
    if context is not None or source.meta is not None:
        return body, digest(body) if with_digest or not is_plain(body) else b""
    if with_digest:
        # Within brackets, so that it nests as deep as in the envelope.
        return body, _digest_of([event_type, orjson.loads(parents_json), None, *_parsed(b"[%b]" % payload)])
    if not is_plain(payload):
        digest(body)
    return body, b""


def _plain_time(moment: datetime) -> datetime:
    return datetime.combine(moment.date(), moment.timetz())


@lru_cache(maxsize=1024)
def _named(event_type: str, host: str, type: TriggerType, app: str | None) -> tuple[bytes, bytes]:
    return _between(event_type, Source.__pydantic_serializer__.to_json(Source(host=host, type=type, app=app)))


def _between(event_type: str, source_json: bytes) -> tuple[bytes, bytes]:
    """Return what stands between the id and the time, and between the time and the parents."""
    before_time = b',"event_type":' + orjson.dumps(event_type) + b',"timestamp":'
    return before_time, b',"version":"%b","source":%b,"correlation_ids":' % (SCHEMA_VERSION.encode(), source_json)


def is_plain(body: bytes) -> bool:
    """Say whether JSON certainly holds nothing that `digest` refuses, in a tenth of its time.

    False may be wrong: where there are many objects, or where a text says NaN or Infinity.
    """
    # Most of a body goes: what is left are digits in their runs, brackets, and letters of NaN and Infinity.
    left = body.translate(_DIGITS_ALIKE, _OTHERS)
    if len(left) >= len(_LONG_NUMBER) and _LONG_NUMBER in left:
        return False
    if len(left) > _SHALLOW and left.count(b"{") + left.count(b"[") > _SHALLOW:
        return False
    # Each is looked for where it costs least: first a byte, then the letters that are left, then the whole word.
    has_nan = _CAPITAL_N in left and b"NaN" in left and b"NaN" in body
    return not (has_nan or (_CAPITAL_I in left and b"Iy" in left and b"Infinity" in body))


_CAPITAL_N, _CAPITAL_I = b"NI"


def decode(body: bytes) -> EventEnvelope[Any]:
    """Read an envelope from the body of a message; the payload stays a JSON object.

    Envelopes of version 1 are upgraded. Raises InvalidEvent when the bytes are no envelope.
    """
    try:
        fields: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidEvent(f"The message is not JSON: {error}", [("body", str(error))]) from error
    if not isinstance(fields, dict):
        raise InvalidEvent("The message is not a JSON object.", [("body", "Input should be an object")])
    return read_envelope(cast("dict[str, Any]", fields))


def link_of(envelope: EventEnvelope[Any], digest: bytes, accepted_at: datetime | None = None) -> Link:
    """Return what the index keeps of an event.

    digest: of the envelope, or empty where nobody asked for it. accepted_at: aware; default: now.
    """
    source = envelope.source
    return Link(
        envelope.event_id,
        tuple(envelope.correlation_ids),
        envelope.event_type,
        envelope.timestamp,
        source.app or source.host,
        accepted_at or utc_now(),
        digest,
    )


def digest(body: bytes) -> bytes:
    """Return 16 bytes that two envelopes share when they say the same.

    Compared are type, parents, agent context and payload, whatever the order of their keys. The time and
    the source may differ: a retry from another host is the same event.

    Raises ValueError when the body holds what is not JSON, or an integer beyond 64 bits.
    """
    fields = _parsed(body)
    meaning = [
        fields["event_type"],
        fields["correlation_ids"],
        fields["agent_context"],
        fields["payload"],
    ]
    _canonical(fields["source"])  # no part of the digest, and held to the same limits
    return _digest_of(meaning)


def _parsed(json: bytes) -> Any:
    # orjson would read a large integer as the nearest float, and two bodies that differ as one.
    try:
        return from_json(json, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"NaN, an infinity or too deep nesting ({error})") from error


def _digest_of(meaning: list[Any]) -> bytes:
    return blake2b(_canonical(meaning), digest_size=16).digest()


def _canonical(value: Any) -> bytes:
    try:
        return orjson.dumps(value, None, orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise ValueError(str(error)) from error
