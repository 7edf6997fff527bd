"""A delivery as its frames came in, read no further than a consumer needs.

The driver builds four objects and a task for each. Here the few properties that make a message are read out of the
bytes; what is sent on, or has headers of uncommon types, is read by the driver's library.

Sources: AMQP 0-9-1 specification, sections 4.2.5.5 (field tables), 4.2.6.1 (content header), 1.8.3.13 (basic.deliver).
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._rabbit_frames import cut
from bloodbank.transports.base import Message

logger = logging.getLogger(__name__)

_U32 = struct.Struct(">I")
_I64 = struct.Struct(">q")
_TAG = struct.Struct(">QB")
_U64 = struct.Struct(">Q")
_FLAGS = struct.Struct(">H")
_METHOD_AT = 11
"""Where the arguments of a method begin in its frame: behind the frame's head, the class and the method."""
_SIZE_AT = 11
_FLAGS_AT = 19
_PROPERTIES_AT = 21

_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY = 1 << 15, 1 << 14, 1 << 13, 1 << 12, 1 << 11
_CORRELATION_ID, _REPLY_TO, _EXPIRATION, _MESSAGE_ID = 1 << 10, 1 << 9, 1 << 8, 1 << 7
_TIMESTAMP, _TYPE, _USER_ID, _APP_ID = 1 << 6, 1 << 5, 1 << 4, 1 << 3
_IN_ORDER = [1 << bit for bit in range(15, 2, -1)]
_MORE_FLAGS = 1
_TEXT, _LONG, _TRUE_OR_FALSE = ord("S"), ord("l"), ord("t")
_FIXED_BYTES = {
    ord(kind): size
    for kind, size in zip("tbBsuIilLfdDTV\0", (1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0, 0), strict=True)
}
"""How long the values of a field table are, by their kind; those of other kinds say it themselves, in four bytes."""
_LONGEST_SECONDS = 2**32 - 1
"""A timestamp beyond this, in the year 2106, is taken for milliseconds, as the driver does."""
_UNREADABLE = "\ufffd"
"""Stands in a text where bytes were no UTF-8."""


class Receiver(Protocol):
    """Who consumes on a channel."""

    def arrived(self, received: Received) -> None:
        """A delivery came in."""
        ...


class Properties(NamedTuple):
    """What of a delivery's properties makes a message, and when it was published. timestamp: as it was sent."""

    message_id: str | None
    correlation_id: str | None
    app_id: str | None
    headers: Mapping[str, Any]
    timestamp: int | None = None

    @property
    def published_at(self) -> datetime | None:
        """When the message was published, by the clock of its publisher; None when nobody said."""
        return wire.published_from(self.headers, self.time)

    @property
    def time(self) -> datetime | None:
        """The timestamp as a time; None where it is none."""
        timestamp = self.timestamp
        if timestamp is None:
            return None
        return wire.time_from(timestamp if timestamp > _LONGEST_SECONDS else timestamp * 1000)


class Received:
    """One delivery. consumer: its tag. header: a frame."""

    __slots__ = ("_header", "body", "consumer", "exchange", "redelivered", "routing_key", "tag")

    def __init__(
        self, consumer: bytes, tag: int, redelivered: bool, exchange: str, routing_key: str, header: bytes, body: bytes
    ) -> None:
        self.consumer = consumer
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
            return _any_properties(self._header)._replace(headers=theirs.headers or {})

    def message(self, properties: Properties) -> Message:
        """Return the message, whoever published it."""
        message_id, correlation_id, app_id, headers, _ = properties
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


class Arrivals(asyncio.Queue[Received | None]):
    """What came in and was not handed out. None: the channel or the consumer has ended."""

    def arrived(self, received: Received) -> None:
        """Keep a delivery; see `Receiver`."""
        self.put_nowait(received)


async def never(delivered: DeliveredMessage) -> None:
    """Stand where the driver wants to be told of deliveries, which do not reach it."""
    logger.error("The driver got delivery %s, which was not meant for it; it comes again.", delivered.delivery_tag)


class Incoming:
    """Puts the deliveries of one channel together from their frames."""

    __slots__ = ("_body", "_deliver", "_header", "_missing", "_receiver")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._deliver: tuple[bytes, int, bool, str, str] | None = None
        self._header = b""
        self._body: list[bytes] = []
        self._missing = 0

    def method(self, data: bytes, at: int) -> None:
        """Take basic.deliver."""
        begin = at + _METHOD_AT + 1
        at = begin + data[begin - 1]
        consumer = data[begin:at]
        tag, redelivered = _TAG.unpack_from(data, at)
        at += _TAG.size
        exchange, at = _short(data, at)
        routing_key, _ = _short(data, at)
        self._deliver = consumer, tag, bool(redelivered & 1), exchange, routing_key

    def content(self, kind: int, data: bytes, at: int, after: int) -> bool:
        """Take a header or a piece of a body; say whether it belongs to a delivery."""
        if self._deliver is None:
            return False
        if kind == _HEADER_FRAME:
            self._header = data[at:after]
            (self._missing,) = _U64.unpack_from(data, at + _SIZE_AT)
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
    """A property that Bloodbank does not send, or a header of a type that it does not."""


def _properties(header: bytes) -> Properties:
    (flags,) = _FLAGS.unpack_from(header, _FLAGS_AT)
    if flags & (_MORE_FLAGS | _PRIORITY | _REPLY_TO | _EXPIRATION | _USER_ID):
        raise _Uncommon
    at = _PROPERTIES_AT
    headers: Mapping[str, Any] = {}
    correlation_id = message_id = app_id = timestamp = None
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
        (timestamp,) = _U64.unpack_from(header, at)
        at += 8
    if flags & _TYPE:
        at += 1 + header[at]
    if flags & _APP_ID:
        app_id, at = _short(header, at)
    return Properties(message_id, correlation_id, app_id, headers, timestamp)


def _any_properties(header: bytes) -> Properties:
    """Read the same where there may be any properties; headers of uncommon types are passed over."""
    (flags,) = _FLAGS.unpack_from(header, _FLAGS_AT)
    at = _PROPERTIES_AT
    headers: Mapping[str, Any] = {}
    timestamp: int | None = None
    texts: dict[int, str] = {}
    for flag in _IN_ORDER:
        if not flags & flag:
            continue
        if flag == _HEADERS:
            (size,) = _U32.unpack_from(header, at)
            at += 4
            headers = _table(header, at, at + size, passing_over=True)
            at += size
        elif flag == _TIMESTAMP:
            (timestamp,) = _U64.unpack_from(header, at)
            at += 8
        elif flag in (_DELIVERY_MODE, _PRIORITY):
            at += 1
        else:
            texts[flag], at = _short(header, at)
    return Properties(texts.get(_MESSAGE_ID), texts.get(_CORRELATION_ID), texts.get(_APP_ID), headers, timestamp)


def _table(data: bytes, at: int, end: int, *, passing_over: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while at < end:
        name, at = _short(data, at)
        kind = data[at]
        at += 1
        if kind == _TEXT:
            (size,) = _U32.unpack_from(data, at)
            at += 4
            found[name] = _text_or_bytes(data[at : at + size])
            at += size
        elif kind == _LONG:
            (found[name],) = _I64.unpack_from(data, at)
            at += 8
        elif kind == _TRUE_OR_FALSE:
            found[name] = bool(data[at])
            at += 1
        elif not passing_over:
            raise _Uncommon
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            (size,) = _U32.unpack_from(data, at)
            at += 4 + size
    return found


def _short(data: bytes, at: int) -> tuple[str, int]:
    """Read a short text. RabbitMQ passes any bytes on, and one message must not keep those behind it."""
    begin = at + 1
    end = begin + data[at]
    try:
        return data[begin:end].decode(), end
    except UnicodeDecodeError:
        # No longer than it may be when it is sent again.
        return cut(data[begin:end].decode(errors="replace")), end


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _content_header(frame: bytes) -> ContentHeader:
    """Read all properties; where the library cannot read one of them, those that are needed and can be read."""
    try:
        _, _, header = unmarshal(frame)
    except (PAMQPException, ValueError, OverflowError, OSError, RecursionError):
        return ContentHeader(properties=_readable(frame))
    if not isinstance(header, ContentHeader):
        raise TypeError(f"{header!r} is no content header")
    return header


def _readable(frame: bytes) -> Basic.Properties:
    """Return what makes a message, without texts that are none: they cannot be sent again as they were."""
    message_id, correlation_id, app_id, headers, _ = found = _any_properties(frame)
    return Basic.Properties(
        message_id=_if_readable(message_id),
        correlation_id=_if_readable(correlation_id),
        app_id=_if_readable(app_id),
        timestamp=found.time,
        headers={
            name: value for name, value in headers.items() if _UNREADABLE not in name and not isinstance(value, bytes)
        },
    )


def _if_readable(text: str | None) -> str | None:
    return None if text is None or _UNREADABLE in text else text
