"""Confirms and deliveries, read where they arrive: between the socket and the driver.

The driver reads each frame with four awaits, two queues and a task. What a publisher gets by the thousand is confirms
of 21 bytes, and a consumer deliveries. So the protocol that feeds the driver's reader takes the confirms of one channel
out and hands them to who published there, and deliveries to who consumes; all else goes on to the driver, which keeps
the connection.

Sources: AMQP 0-9-1 specification, section 4.2.3 (frames); RabbitMQ's confirms (confirm.select, basic.nack) and
connection.blocked.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Protocol, cast

from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

from bloodbank.transports._rabbit_received import Incoming, Receiver

_HEAD = struct.Struct(">BHI")
_METHOD = struct.Struct(">HH")
_CONFIRM = struct.Struct(">HHQB")
_HEAD_AND_END_BYTES = 8
_END = 0xCE
_METHOD_FRAME, _HEADER_FRAME, _BODY_FRAME, _HEARTBEAT_FRAME = 1, 2, 3, 8
_KINDS = frozenset({_METHOD_FRAME, _HEADER_FRAME, _BODY_FRAME, _HEARTBEAT_FRAME})

_BASIC = 60
_ACK, _NACK, _RETURN, _DELIVER = 80, 120, 50, 60
_CHANNEL_CLOSE = (20, 40)
_CONNECTION_CLOSE, _BLOCKED, _UNBLOCKED = (10, 50), (10, 60), (10, 61)

_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
_HEARD_SECONDS = 1.0
"""The driver takes a broker for dead that it does not hear; where all that comes is confirms, it is told so often."""


class Listener(Protocol):
    """Who published on a channel."""

    def confirmed(self, tag: int, *, multiple: bool) -> None:
        """The broker has taken responsibility for a message, or for all up to it."""
        ...

    def not_confirmed(self, tag: int, *, multiple: bool) -> None:
        """Some queue did not take a message, or one of all up to it."""
        ...

    def returned(self, message_id: str) -> None:
        """No queue takes a message. Its confirm follows."""
        ...

    def closing(self) -> None:
        """The broker closes the channel or the connection: nothing more may be sent. The driver learns why."""
        ...

    def may_write(self) -> None:
        """The socket takes more, or the broker does, after it did not."""
        ...


class ConfirmingProtocol(asyncio.StreamReaderProtocol):
    """Feeds a stream reader, except for what belongs to the listener.

    blocked: the broker takes nothing from publishers (a memory or disk alarm). paused: the socket takes nothing.
    takes: neither, and there is a socket. heard: how often bytes came in.
    """

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self.blocked = False
        self.paused = False
        self.takes = False
        self.heard = 0
        self.transport: asyncio.Transport | None = None
        self._time = loop.time
        self._channel: int | None = None
        self._listener: Listener | None = None
        self._incoming: dict[int, Incoming] = {}
        self._rest = b""
        self._in_return = False
        self._is_amqp = True
        self._told = 0.0

    def listen(self, channel: int, listener: Listener) -> None:
        """Hand what concerns the messages published on a channel to a listener, from now on."""
        self._channel, self._listener, self._in_return = channel, listener, False

    def receive(self, channel: int, receiver: Receiver) -> None:
        """Hand the deliveries of a channel to a receiver, from now on."""
        self._incoming[channel] = Incoming(receiver)

    def stop_receiving(self, channel: int) -> None:
        """Leave the deliveries of a channel to the driver again. Idempotent."""
        self._incoming.pop(channel, None)

    def forget(self, listener: Listener) -> None:
        """Leave the channel of a listener to the driver again: it is closed, and another may get its number.

        Nothing happens where another listener has come since.
        """
        if self._listener is listener:
            self._channel, self._listener, self._in_return = None, None, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport, for writing to it."""
        # What create_connection gives; that of uvloop has the methods and not the base class.
        self.transport = cast("asyncio.Transport", transport)
        self._look_whether_it_takes()
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        super().pause_writing()
        self.paused = True
        self._look_whether_it_takes()

    def resume_writing(self) -> None:
        """The socket's buffer has room."""
        super().resume_writing()
        self.paused = False
        self._look_whether_it_takes()
        if self._listener is not None:
            self._listener.may_write()

    def _look_whether_it_takes(self) -> None:
        self.takes = not (self.blocked or self.paused or self.transport is None)

    def data_received(self, data: bytes) -> None:
        """Take bytes, which may end within a frame."""
        self.heard += 1
        if self._rest:
            data = self._rest + data
        if not self._is_amqp:
            self._rest = b""
            super().data_received(data)
            return
        at = kept = 0
        end = len(data)
        passed: list[bytes] = []
        while end - at >= _HEAD_AND_END_BYTES:
            kind, channel, size = _HEAD.unpack_from(data, at)
            after = at + size + _HEAD_AND_END_BYTES
            if kind not in _KINDS:
                # Whatever it is, the driver refuses it.
                self._is_amqp = False
                at = end
                break
            if after > end:
                break
            if self._is_taken(kind, channel, data, at, after):
                if kept < at:
                    passed.append(data[kept:at])
                kept = after
            at = after
        if kept < at:
            passed.append(data[kept:at])
        self._rest = data[at:]
        self._pass_on(passed)

    def _pass_on(self, passed: list[bytes]) -> None:
        now = self._time()
        if passed:
            self._told = now
            super().data_received(b"".join(passed))
        elif now - self._told > _HEARD_SECONDS:
            self._told = now
            super().data_received(_HEARTBEAT)

    def _is_taken(self, kind: int, channel: int, data: bytes, at: int, after: int) -> bool:
        """Say whether a frame was for somebody else than the driver."""
        if channel == self._channel:
            return self._taken(kind, data, at, after)
        incoming = self._incoming.get(channel)
        if incoming is not None:
            return self._received(incoming, kind, data, at, after)
        if channel == 0 and kind == _METHOD_FRAME:
            self._look(_METHOD.unpack_from(data, at + _HEAD.size))
        return False

    def _taken(self, kind: int, data: bytes, at: int, after: int) -> bool:
        """Say whether a frame of the listener's channel was for the listener."""
        listener = self._listener
        assert listener is not None  # noqa: S101, it comes with the channel
        if kind != _METHOD_FRAME:
            if self._in_return and kind == _HEADER_FRAME:
                listener.returned(_message_id(data[at:after]))
            return self._in_return
        self._in_return = False
        family, method = _METHOD.unpack_from(data, at + _HEAD.size)
        if family == _BASIC:
            if method == _ACK:
                _, _, tag, multiple = _CONFIRM.unpack_from(data, at + _HEAD.size)
                listener.confirmed(tag, multiple=bool(multiple & 1))
                return True
            if method == _NACK:
                _, _, tag, multiple = _CONFIRM.unpack_from(data, at + _HEAD.size)
                listener.not_confirmed(tag, multiple=bool(multiple & 1))
                return True
            if method == _RETURN:
                self._in_return = True
                return True
        elif (family, method) == _CHANNEL_CLOSE:
            listener.closing()
            # The broker sends nothing more on it, and the driver gives its number to whoever opens the next channel.
            self.forget(listener)
        return False

    def _received(self, incoming: Incoming, kind: int, data: bytes, at: int, after: int) -> bool:
        """Say whether a frame of a channel that is consumed on was part of a delivery."""
        if kind != _METHOD_FRAME:
            return incoming.content(kind, data, at, after)
        if _METHOD.unpack_from(data, at + _HEAD.size) != (_BASIC, _DELIVER):
            return False
        incoming.method(data, at)
        return True

    def _look(self, method: tuple[int, int]) -> None:
        """Note what the broker tells the connection; the driver gets it as well."""
        if method == _BLOCKED:
            self.blocked = True
            self._look_whether_it_takes()
        elif method == _UNBLOCKED:
            self.blocked = False
            self._look_whether_it_takes()
            if self._listener is not None:
                self._listener.may_write()
        elif method == _CONNECTION_CLOSE and self._listener is not None:
            self._listener.closing()


def _message_id(frame: bytes) -> str:
    _, _, header = unmarshal(frame)
    return (header.properties.message_id or "") if isinstance(header, ContentHeader) else ""
