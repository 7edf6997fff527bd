"""The broker's limit: frames encoded beforehand, blasted through a plain socket, confirms counted."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from urllib.parse import urlsplit

from pamqp import base, commands, frame, header
from pamqp.body import ContentBody

from bench.peers.base import WINDOW

BURST = 100
"""Messages a write: one system call each would measure the client."""
ACK = struct.Struct(">BHIHHQBB")
"""A confirm: frame type, channel, size, class 60, method 80, delivery tag, multiple, frame end."""


class Blaster:
    """Sends one message's frames again and again and counts confirms; costs next to no CPU.

    body: the event as JSON. properties: as a safe publisher sets them.
    """

    def __init__(self, body: bytes, properties: commands.Basic.Properties, routing_key: str) -> None:
        self._body, self._properties, self._routing_key = body, properties, routing_key
        self._socket: socket.socket | None = None
        self._frames = memoryview(b"")
        self._message_bytes = 0
        self._confirms = Confirms()

    async def open(self, url: str, exchange: str) -> None:
        """Connect, open channel 1 and select confirms."""
        await asyncio.to_thread(self._open, url, exchange)

    async def send(self, count: int) -> None:
        """Send that many messages and return when the last is confirmed."""
        await asyncio.to_thread(self._send, count)

    async def close(self) -> None:
        """Drop the connection."""
        if self._socket is not None:
            # Wakes a thread that waits for confirms, when a run is given up; closing alone would not.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _open(self, url: str, exchange: str) -> None:
        address = urlsplit(url)
        self._confirms = Confirms()
        self._socket = connection = socket.create_connection((address.hostname, address.port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(header.ProtocolHeader().marshal())
        _expect(connection, commands.Connection.Start)
        _send(connection, 0, commands.Connection.StartOk(mechanism="PLAIN", response="\0guest\0guest"))
        tune = _expect(connection, commands.Connection.Tune)
        frame_max = tune.frame_max or 131_072
        _send(connection, 0, commands.Connection.TuneOk(channel_max=16, frame_max=frame_max, heartbeat=0))
        _send(connection, 0, commands.Connection.Open(virtual_host="/"))
        _expect(connection, commands.Connection.OpenOk)
        _send(connection, 1, commands.Channel.Open())
        _expect(connection, commands.Channel.OpenOk)
        _send(connection, 1, commands.Confirm.Select())
        _expect(connection, commands.Confirm.SelectOk)
        frames = self._encode(exchange, frame_max)
        self._message_bytes = len(frames)
        self._frames = memoryview(frames * WINDOW)

    def _encode(self, exchange: str, frame_max: int) -> bytes:
        size = frame_max - 8  # a frame's head and end
        content = header.ContentHeader(body_size=len(self._body), properties=self._properties)
        parts = [
            frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=self._routing_key), 1),
            frame.marshal(content, 1),
        ]
        parts += [frame.marshal(ContentBody(self._body[at : at + size]), 1) for at in range(0, len(self._body), size)]
        return b"".join(parts)

    def _send(self, count: int) -> None:
        connection = self._socket
        assert connection is not None
        sent, target = self._confirms.total, self._confirms.total + count
        while self._confirms.total < target:
            free = min(WINDOW - (sent - self._confirms.total), target - sent)
            if free >= BURST or free == target - sent:
                connection.sendall(self._frames[: free * self._message_bytes])
                sent += free
            received = connection.recv(65_536)
            if not received:
                raise ConnectionError("The broker closed the connection.")
            self._confirms.read(received)


class Confirms:
    """Counts confirms, which come singly, out of order, and for all up to a tag at once.

    total: how many messages are confirmed.
    """

    def __init__(self) -> None:
        self.total = 0
        self._all_up_to = 0
        self._beyond: set[int] = set()
        self._unread = b""

    def read(self, received: bytes) -> None:
        """Take bytes from the broker, which may end within a frame. Raises ConnectionError for other methods."""
        data = self._unread + received
        whole = len(data) - len(data) % ACK.size
        for kind, _, _, family, method, tag, multiple, _ in ACK.iter_unpack(data[:whole]):
            if (kind, family, method) != (1, 60, 80):
                raise ConnectionError(f"The broker sent method {family}.{method} where a confirm was awaited.")
            if multiple:
                self._all_up_to = max(self._all_up_to, tag)
                self._beyond = {one for one in self._beyond if one > self._all_up_to}
            elif tag > self._all_up_to:
                self._beyond.add(tag)
            while self._all_up_to + 1 in self._beyond:
                self._all_up_to += 1
                self._beyond.remove(self._all_up_to)
        self._unread = data[whole:]
        self.total = self._all_up_to + len(self._beyond)


def _send(connection: socket.socket, channel: int, command: base.Frame) -> None:
    connection.sendall(frame.marshal(command, channel))


def _expect(connection: socket.socket, kind: type[base.Frame]) -> base.Frame:
    data = connection.recv(7, socket.MSG_WAITALL)
    data += connection.recv(int.from_bytes(data[3:7], "big") + 1, socket.MSG_WAITALL)
    received = frame.unmarshal(data)[2]
    if not isinstance(received, kind):
        raise ConnectionError(f"The broker sent {received!r} where {kind.__name__} was awaited.")
    return received
