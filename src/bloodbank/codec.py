"""Envelope to wire message and back: the only place that knows headers and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, cast

import orjson
from pydantic_core import PydanticSerializationError, from_json

from bloodbank.envelope import MAX_PARENTS, SCHEMA_VERSION, EventEnvelope, read_envelope
from bloodbank.errors import InvalidEvent
from bloodbank.transports.base import Message

VERSION_HEADER = "bloodbank-version"


_HEADERS: Mapping[str, str] = MappingProxyType({VERSION_HEADER: SCHEMA_VERSION})

_SMALL_BYTES = 4096
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
    parents = envelope.correlation_ids
    if len(parents) > MAX_PARENTS or envelope.event_id in parents:
        raise InvalidEvent(
            f"correlation_ids holds {len(parents)} parents or the event itself; at most {MAX_PARENTS} others "
            "are allowed. Nothing was published.",
            [("correlation_ids", "changed after the envelope was made")],
        )
    try:
        # What model_dump_json calls; it would make a text of the bytes.
        body = type(envelope).__pydantic_serializer__.to_json(envelope)
        body_digest = digest(body) if with_digest or not is_plain(body) else b""
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidEvent(
            f"The {envelope.event_type} event cannot be written as JSON: {error}. Nothing was published.",
            [("payload", "must hold JSON values only")],
        ) from error
    return Message(
        event_id=envelope.event_id,
        routing_key=envelope.event_type,
        body=body,
        digest=body_digest,
        correlation_id=parents[0] if parents else None,
        app_id=envelope.source.app,
        headers=_HEADERS,
    )


def is_plain(body: bytes) -> bool:
    """Say whether JSON certainly holds nothing that `digest` refuses, in a third of its time.

    False may be wrong: for a body that is large, has many objects, or words that look like what is looked for.
    """
    if len(body) > _SMALL_BYTES:
        return False
    # Most of a body goes: what is left are digits in their runs, brackets, and letters of NaN and Infinity.
    left = body.translate(_DIGITS_ALIKE, _OTHERS)
    return not (
        _LONG_NUMBER in left or b"NaN" in left or b"Iy" in left or left.count(b"{") + left.count(b"[") > _SHALLOW
    )


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


def digest(body: bytes) -> bytes:
    """Return 16 bytes that two envelopes share when they say the same.

    Compared are type, parents, agent context and payload, whatever the order of their keys. The time and
    the source may differ: a retry from another host is the same event.

    Raises ValueError when the body holds what is not JSON, or an integer beyond 64 bits.
    """
    # orjson would read a large integer as the nearest float, and two bodies that differ as one.
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"NaN, an infinity or too deep nesting ({error})") from error
    meaning = [
        fields["event_type"],
        fields["correlation_ids"],
        fields["agent_context"],
        fields["payload"],
    ]
    try:
        canonical = orjson.dumps(meaning, option=orjson.OPT_SORT_KEYS)
        orjson.dumps(fields["source"])  # no part of the digest, and held to the same limits
    except TypeError as error:
        raise ValueError(str(error)) from error
    return blake2b(canonical, digest_size=16).digest()
