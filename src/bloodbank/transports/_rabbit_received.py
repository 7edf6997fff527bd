"""A delivery as its frames came in, read no further than a consumer needs.

The driver builds four objects and a task for each. Here the few properties that make a message are read out of the
bytes; what is sent on, or has headers of uncommon types, is read by the driver's library.

Sources: AMQP 0-9-1 specification, sections 4.2.5.5 (field tables), 4.2.6.1 (content header), 1.8.3.13 (basic.deliver).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports.base import Message

_U32 = struct.Struct(">I")
_I64 = struct.Struct(">q")
_TAG = struct.Struct(">QB")
_SIZE = struct.Struct(">Q")
_FLAGS = struct.Struct(">H")
_METHOD_AT = 11
"""Where the arguments of a method begin in its frame: behind the frame's head, the class and the method."""
_SIZE_AT = 11
_FLAGS_AT = 19
_PROPERTIES_AT = 21

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY = 1 << 15, 1 << 14, 1 << 13, 1 << 12, 1 << 11
_CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID = 1 << 10, 1 << 9, 1 << 8, 1 << 7
_TIMESTAMP, _TYPE, _USER_ID, _APP_ID = 1 << 6, 1 << 5, 1 << 4, 1 << 3
_MORE_FLAGS = 1
_TEXT, _LONG, _TRUE_OR_FALSE = ord("S"), ord("l"), ord("t")


class Receiver(Protocol):
    """Who consumes on a channel."""

    def arrived(self, received: Received) -> None:
        """A delivery came in."""
        ...


class Properties(NamedTuple):
    """What of a delivery's properties makes a message."""

    message_id: str | None
    correlation_id: str | None
    app_id: str | None
    headers: Mapping[str, Any]


class Received:
    """One delivery. `method` and `header` are frames."""

    __slots__ = ("_header", "body", "exchange", "redelivered", "routing_key", "tag")

    def __init__(
        self, tag: int, redelivered: bool, exchange: str, routing_key: str, header: bytes, body: bytes
    ) -> None:
        self.tag = tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.body = body
        self._header = header

    def properties(self) -> Properties:
        """Read what makes a message."""
        try:
            return _properties(self._header)
        except _Uncommon:
            theirs = _content_header(self._header).properties
            return Properties(theirs.message_id, theirs.correlation_id, theirs.app_id, theirs.headers or {})

    def message(self, properties: Properties) -> Message:
        """Return the message, whoever published it."""
        message_id, correlation_id, app_id, headers = properties
        original = headers.get(wire.ROUTING_KEY_HEADER)
        return wire.message_from(
            message_id,
            correlation_id,
            app_id,
            headers,
            original if isinstance(original, str) else self.routing_key,
            self.body,
        )

    def delivered(self, channel: Channel) -> DeliveredMessage:
        """Return it as the driver would, with all properties."""
        deliver = Basic.Deliver(
            delivery_tag=self.tag,
            redelivered=self.redelivered,
            exchange=self.exchange,
            routing_key=self.routing_key,
        )
        return DeliveredMessage(delivery=deliver, header=_content_header(self._header), body=self.body, channel=channel)


class Incoming:
    """Puts the deliveries of one channel together from their frames."""

    __slots__ = ("_body", "_deliver", "_header", "_missing", "_receiver")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._deliver: tuple[int, bool, str, str] | None = None
        self._header = b""
        self._body: list[bytes] = []
        self._missing = 0

    def method(self, data: bytes, at: int) -> None:
        """Take basic.deliver."""
        at += _METHOD_AT
        at += 1 + data[at]
        tag, redelivered = _TAG.unpack_from(data, at)
        at += _TAG.size
        exchange, at = _short(data, at)
        routing_key, _ = _short(data, at)
        self._deliver = tag, bool(redelivered & 1), exchange, routing_key

    def content(self, kind: int, data: bytes, at: int, after: int) -> bool:
        """Take a header or a piece of a body; say whether it belongs to a delivery."""
        if self._deliver is None:
            return False
        if kind == _HEADER_FRAME:
            self._header = data[at:after]
            (self._missing,) = _SIZE.unpack_from(data, at + _SIZE_AT)
        else:
            piece = data[at + _FRAME_HEAD : after - 1]
            self._missing -= len(piece)
            self._body.append(piece)
        if not self._missing:
            body = self._body
            whole = body[0] if len(body) == 1 else b"".join(body)
            deliver, header = self._deliver, self._header
            self._deliver, self._body = None, []
            self._receiver.arrived(Received(*deliver, header, whole))
        return True


_HEADER_FRAME = 2
_FRAME_HEAD = 7


class _Uncommon(Exception):
    """A property that is left to the driver's library."""


def _properties(header: bytes) -> Properties:
    (flags,) = _FLAGS.unpack_from(header, _FLAGS_AT)
    if flags & (_MORE_FLAGS | _PRIORITY | _REPLY_TO | _EXPIRATION | _USER_ID):
        raise _Uncommon
    at = _PROPERTIES_AT
    headers: Mapping[str, Any] = {}
    correlation_id = message_id = app_id = None
    if flags & _CONTENT_TYPE:
        at += 1 + header[at]
    if flags & _CONTENT_ENCODING:
        at += 1 + header[at]
    if flags & _HEADERS:
        (size,) = _U32.unpack_from(header, at)
        at += 4
        headers = _table(header, at, at + size)
        at += size
    if flags & _DELIVERY_MODE:
        at += 1
    if flags & _CORRELATION_ID:
        correlation_id, at = _short(header, at)
    if flags & _MESSAGE_ID:
        message_id, at = _short(header, at)
    if flags & _TIMESTAMP:
        at += 8
    if flags & _TYPE:
        at += 1 + header[at]
    if flags & _APP_ID:
        app_id, at = _short(header, at)
    return Properties(message_id, correlation_id, app_id, headers)


def _table(data: bytes, at: int, end: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while at < end:
        name, at = _short(data, at)
        kind = data[at]
        at += 1
        if kind == _TEXT:
            (size,) = _U32.unpack_from(data, at)
            at += 4
            found[name] = _text(data[at : at + size])
            at += size
        elif kind == _LONG:
            (found[name],) = _I64.unpack_from(data, at)
            at += 8
        elif kind == _TRUE_OR_FALSE:
            found[name] = bool(data[at])
            at += 1
        else:
            raise _Uncommon
    return found


def _short(data: bytes, at: int) -> tuple[str, int]:
    begin = at + 1
    end = begin + data[at]
    return _text(data[begin:end]), end


def _text(data: bytes) -> str:
    """Read a text. RabbitMQ passes any bytes on, and one message must not keep those behind it."""
    return data.decode(errors="replace")


def _content_header(frame: bytes) -> ContentHeader:
    """Read all properties; without any where the library cannot read one of them, such as a text that is none."""
    try:
        _, _, header = unmarshal(frame)
    except (PAMQPException, ValueError):
        return ContentHeader(properties=Basic.Properties())
    if not isinstance(header, ContentHeader):
        raise TypeError(f"{header!r} is no content header")
    return header
