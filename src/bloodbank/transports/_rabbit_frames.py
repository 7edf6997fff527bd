"""A published message as AMQP frames, put together from parts that are made once.

Sources: AMQP 0-9-1 specification, sections 4.2.3 (frames), 4.2.6.1 (content header), 4.2.6.2 (content body).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import orjson
from pamqp.commands import Basic
from pamqp.frame import marshal

from bloodbank.errors import PublishRejected
from bloodbank.transports.base import Message

PUBLISHED_HEADER = "bloodbank-published-ms"
"""When the message was published: milliseconds since 1970."""

# Kind, channel, size, class 60 (basic), weight; the size of the body and the properties follow.
_HEADER = struct.Struct(">BHIHH")
_SIZE = struct.Struct(">Q")
_HEADER_BYTES = 12
_BODY_HEAD = struct.Struct(">BHI")
_BODY_HEAD_BYTES = _BODY_HEAD.size
_END = b"\xce"
_MILLISECONDS = struct.Struct(">q")
_SECONDS = struct.Struct(">Q")

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_CORRELATION_ID, _MESSAGE_ID, _TIMESTAMP, _TYPE, _APP_ID = 1 << 10, 1 << 7, 1 << 6, 1 << 5, 1 << 3
_ALWAYS = _CONTENT_TYPE | _CONTENT_ENCODING | _HEADERS | _DELIVERY_MODE | _MESSAGE_ID | _TIMESTAMP | _TYPE

_LONGEST_SHORT_STRING = 255
_MOST_SHAPES = 1024
"""Different types and origins whose shape is remembered; beyond that, learning begins anew."""


class Outgoing(NamedTuple):
    """A message with properties of its own, such as a delivery that is sent on.

    properties: as on the wire, their flags first. message_id: by which the broker's return is told.
    mandatory: the broker shall return it when no queue takes it, which is an error then.
    """

    exchange: str
    routing_key: str
    properties: bytes
    message_id: str
    body: bytes
    mandatory: bool = True


class _Shape(NamedTuple):
    """What is alike in the frames of events of one type and origin.

    layout: of all up to the body. before, middle, after: its parts that do not change. headers: those of the message.
    """

    layout: struct.Struct
    before: bytes
    middle: bytes
    after: bytes
    headers: Mapping[str, str]


class EventFrames:
    """Writes events as frames of one channel: what differs between two of them goes into the gaps of a fixed shape.

    most_bytes: of the body in one frame.
    """

    def __init__(self, channel: int, exchange: str, most_bytes: int) -> None:
        self._channel = channel
        self._exchange = exchange
        self._most_bytes = most_bytes
        self._shapes: dict[tuple[str, str | None, bool], _Shape] = {}

    def of(self, message: Message) -> tuple[bytes, ...]:
        """Return an event that is published now, as parts to be joined. Raises PublishRejected."""
        event_id, routing_key, body, _, parent, app_id, headers = message
        shape = self._shapes.get((routing_key, app_id, parent is None))
        if shape is None or shape.headers is not headers:
            shape = self._learn(message)
        now, size, channel = time.time(), len(body), self._channel
        # orjson writes a UUID faster than the UUID itself; its quotation marks go.
        message_id = orjson.dumps(event_id, str)[1:-1]
        ids = message_id if parent is None else b"%b$%b" % (orjson.dumps(parent, str)[1:-1], message_id)
        layout, before, middle, after, _ = shape
        # Delivery mode 2; then the ids, short strings of 36 bytes each; at the end the head of the body's frame.
        head = layout.pack(before, size, middle, int(now * 1000), 2, 36, ids, int(now), after, 3, channel, size)
        if 0 < size <= self._most_bytes:
            return head, body, _END
        return head[:-_BODY_HEAD_BYTES], *_split(channel, body, self._most_bytes)

    def _learn(self, message: Message) -> _Shape:
        has_parent = message.correlation_id is not None
        try:
            before_ms, after_ids = _fixed(message.headers, message.routing_key, message.app_id, has_parent)
        except (ValueError, struct.error) as error:
            raise _not_carried(error) from error
        ids_bytes = 73 if has_parent else 36
        between = _MILLISECONDS.size + 2 + ids_bytes + _SECONDS.size
        properties_bytes = len(before_ms) + between + len(after_ids)
        method = publish_method(self._channel, self._exchange, message.routing_key)
        before = method + _HEADER.pack(2, self._channel, _HEADER_BYTES + properties_bytes, 60, 0)
        after = after_ids + _END
        layout = struct.Struct(f">{len(before)}sQ{len(before_ms)}sqBB{ids_bytes}sQ{len(after)}sBHI")
        shape = _Shape(layout, before, before_ms, after, message.headers)
        if isinstance(message.headers, MappingProxyType):  # others may change behind our back
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes[message.routing_key, message.app_id, not has_parent] = shape
        return shape


def outgoing_with(
    properties: Basic.Properties, body: bytes, *, exchange: str, routing_key: str, mandatory: bool = True
) -> Outgoing:
    """Return a message with properties of any kind. Raises PublishRejected for what AMQP cannot carry."""
    try:
        return Outgoing(exchange, routing_key, properties.marshal(), properties.message_id or "", body, mandatory)
    except (TypeError, ValueError) as error:
        raise _not_carried(error) from error


@lru_cache(maxsize=1024)
def publish_method(channel: int, exchange: str, routing_key: str, *, mandatory: bool = True) -> bytes:
    """Return the frame of basic.publish. Raises PublishRejected for names that AMQP cannot carry."""
    try:
        return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory), channel)
    except (TypeError, ValueError) as error:
        raise _not_carried(error) from error


def frames(channel: int, message: Outgoing, most_bytes: int) -> tuple[bytes, ...]:
    """Return the frames of a message as parts to be joined. Raises PublishRejected for names AMQP cannot carry."""
    method = publish_method(channel, message.exchange, message.routing_key, mandatory=message.mandatory)
    header = _HEADER.pack(2, channel, _HEADER_BYTES + len(message.properties), 60, 0)
    size = _SIZE.pack(len(message.body))
    return method, header, size, message.properties, _END, *_split(channel, message.body, most_bytes)


def _split(channel: int, body: bytes, most_bytes: int) -> Iterator[bytes]:
    """Yield the frames of a body; an empty one has none."""
    for at in range(0, len(body), most_bytes):
        piece = body[at : at + most_bytes]
        yield _BODY_HEAD.pack(3, channel, len(piece))
        yield piece
        yield _END


def _fixed(headers: Mapping[str, str], routing_key: str, app_id: str | None, has_parent: bool) -> tuple[bytes, bytes]:
    """Return what stands before the milliseconds, the last of the headers, and what stands after the seconds."""
    flags = _ALWAYS | (_CORRELATION_ID if has_parent else 0) | (_APP_ID if app_id else 0)
    table = b"".join(
        _short(name) + b"S" + struct.pack(">I", len(value.encode())) + value.encode()
        for name, value in headers.items()
        if name != PUBLISHED_HEADER
    )
    table += _short(PUBLISHED_HEADER) + b"l"
    before = struct.pack(">H", flags) + _short("application/json") + _short("utf-8")
    before += struct.pack(">I", len(table) + _MILLISECONDS.size) + table
    return before, _short(routing_key) + (_short(cut(app_id)) if app_id else b"")


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
