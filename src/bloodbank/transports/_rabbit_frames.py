"""A published message as AMQP frames, put together from parts that are made once.

Sources: AMQP 0-9-1 specification, sections 4.2.3 (frames), 4.2.6.1 (content header), 4.2.6.2 (content body).
"""

from __future__ import annotations

import struct
import time
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from pamqp.commands import Basic
from pamqp.frame import marshal

from bloodbank.errors import PublishRejected
from bloodbank.transports.base import Message

PUBLISHED_HEADER = "bloodbank-published-ms"
"""When the message was published: milliseconds since 1970."""

# Kind, channel, size, class 60 (basic), weight, size of the body; the properties follow.
_HEADER = struct.Struct(">BHIHHQ")
_HEADER_BYTES = 12
# The end of a frame, then kind, channel and size of the first body frame.
_END_AND_BODY = struct.Struct(">BBHI")
_END = b"\xce"
_MILLISECONDS = struct.Struct(">q")
_SECONDS = struct.Struct(">Q")

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_CORRELATION_ID, _MESSAGE_ID, _TIMESTAMP, _TYPE, _APP_ID = 1 << 10, 1 << 7, 1 << 6, 1 << 5, 1 << 3
_ALWAYS = _CONTENT_TYPE | _CONTENT_ENCODING | _HEADERS | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP | _TYPE

_LONGEST_SHORT_STRING = 255


class Outgoing(NamedTuple):
    """What is to be published, ready but for the channel.

    properties: as on the wire, their flags first. message_id: by which the broker's return is told.
    """

    exchange: str
    routing_key: str
    properties: bytes
    message_id: str
    body: bytes


def outgoing(message: Message, exchange: str) -> Outgoing:
    """Return an event that is published now. Raises PublishRejected for what AMQP cannot carry."""
    now = time.time()
    routing_key, parent = message.routing_key, message.correlation_id
    message_id = str(message.event_id)
    try:
        before, after = _fixed(tuple(message.headers.items()), routing_key, message.app_id, parent is not None)
    except (ValueError, struct.error) as error:
        raise _not_carried(error) from error
    properties = b"".join(
        (before, _MILLISECONDS.pack(int(now * 1000)), _ids(message_id, parent), _SECONDS.pack(int(now)), after)
    )
    return Outgoing(exchange, routing_key, properties, message_id, message.body)


def outgoing_with(properties: Basic.Properties, body: bytes, *, exchange: str, routing_key: str) -> Outgoing:
    """Return a message with properties of any kind. Raises PublishRejected for what AMQP cannot carry."""
    try:
        return Outgoing(exchange, routing_key, properties.marshal(), properties.message_id or "", body)
    except (TypeError, ValueError) as error:
        raise _not_carried(error) from error


@lru_cache(maxsize=1024)
def publish_method(channel: int, exchange: str, routing_key: str) -> bytes:
    """Return the frame of basic.publish, mandatory. Raises PublishRejected for names that AMQP cannot carry."""
    try:
        return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True), channel)
    except (TypeError, ValueError) as error:
        raise _not_carried(error) from error


def content(channel: int, properties: bytes, body: bytes, most_bytes: int) -> tuple[bytes, ...]:
    """Return header and body as parts to be joined. most_bytes: of the body in one frame."""
    size = len(body)
    header = _HEADER.pack(2, channel, _HEADER_BYTES + len(properties), 60, 0, size)
    if size <= most_bytes:
        if not size:
            return header, properties, _END
        return header, properties, _END_AND_BODY.pack(0xCE, 3, channel, size), body, _END
    parts = [header, properties]
    for at in range(0, size, most_bytes):
        piece = body[at : at + most_bytes]
        parts += (_END_AND_BODY.pack(0xCE, 3, channel, len(piece)), piece)
    return *parts, _END


@lru_cache(maxsize=1024)
def _fixed(
    headers: tuple[tuple[str, str], ...], routing_key: str, app_id: str | None, has_parent: bool
) -> tuple[bytes, bytes]:
    """Return what stands before the milliseconds, the last of the headers, and what stands after the seconds."""
    flags = _ALWAYS | (_CORRELATION_ID if has_parent else 0) | (_APP_ID if app_id else 0)
    table = b"".join(
        _short(name) + b"S" + struct.pack(">I", len(value.encode())) + value.encode()
        for name, value in headers
        if name != PUBLISHED_HEADER
    )
    table += _short(PUBLISHED_HEADER) + b"l"
    before = struct.pack(">H", flags) + _short("application/json") + _short("utf-8")
    before += struct.pack(">I", len(table) + _MILLISECONDS.size) + table
    return before, _short(routing_key) + (_short(cut(app_id)) if app_id else b"")


def _ids(message_id: str, parent: UUID | None) -> bytes:
    # Delivery mode 2, then short strings of 36 bytes, whose length is a dollar sign in ASCII.
    text = f"\x02${message_id}" if parent is None else f"\x02${parent}${message_id}"
    return text.encode("ascii")


def cut(text: str) -> str:
    """Cut a text to what an AMQP short string holds."""
    return text.encode()[:_LONGEST_SHORT_STRING].decode(errors="ignore")


def _short(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > _LONGEST_SHORT_STRING:
        raise ValueError(f"{text[:40]!r}… has {len(encoded)} bytes, and at most {_LONGEST_SHORT_STRING} fit")
    return bytes((len(encoded),)) + encoded


def _not_carried(error: Exception) -> PublishRejected:
    return PublishRejected(f"AMQP cannot carry this event, and it was not sent: {error}.")
