"""The socket of a connection that the driver has made, without the driver's streams.

Opening, TLS and logging in stay the driver's. From then on a round trip here is one write, one callback with what
came: half of the processor time that the driver's StreamReader and parser take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError

Done = Callable[[list[Any] | Exception], None]
"""Takes an answer for each command, which may be a RedisError; or the RedisError or OSError that ended it all."""

_ARRAY, _BULK, _ERROR, _INTEGER, _SIMPLE = b"*$-:+"


class Wire(asyncio.Protocol):
    """Sends commands and reads their answers, for one caller at a time.

    connection: connected, with nothing left to read; the driver must not use it any more, but may close it.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        # The one private name of the driver used here: it has no other way to its transport. What the handshake
        # left unread would be lost; the pool has looked that there is nothing.
        writer = cast("asyncio.StreamWriter", cast("Any", connection)._writer)
        self._transport = cast("asyncio.Transport", writer.transport)
        self._driver = self._transport.get_protocol()
        self._received = bytearray()
        self._answers: list[Any] = []
        self._count = 0
        self._done: Done | None = None
        self._idle: asyncio.Future[None] | None = None
        self._lost = False
        if self._transport.is_closing():
            raise DriverConnectionError("the connection was closed")
        self._transport.set_protocol(self)

    @property
    def is_open(self) -> bool:
        """Whether a round trip may be tried."""
        return not self._lost and not self._transport.is_closing()

    @property
    def is_busy(self) -> bool:
        """Whether a round trip is under way."""
        return self._done is not None

    async def idle(self) -> None:
        """Wait until no round trip is under way; for one caller at a time."""
        if self._done is not None:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    def call(self, commands: bytes, count: int, done: Done) -> None:
        """Send commands that are packed already, and call `done` in the turn of the event loop that brings the end.

        count: how many commands there are. Whoever gives it up before must `abort`, or the next caller gets an
        answer that is not his.
        """
        self._answers, self._count, self._done = [], count, done
        self._transport.write(commands)

    async def round_trip(self, commands: bytes, count: int) -> list[Any]:
        """Return the answers; otherwise as `call`. Raises RedisError, OSError."""
        end: asyncio.Future[list[Any] | Exception] = asyncio.get_running_loop().create_future()

        def done(result: list[Any] | Exception) -> None:
            if not end.done():
                end.set_result(result)

        try:
            self.call(commands, count, done)
            result = await end
        except BaseException:
            self.abort()
            raise
        if isinstance(result, Exception):
            raise result
        return result

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what the server sent."""
        self._received += data
        if self._done is None:
            self._end(InvalidResponse("an answer that nobody asked for"))
            return
        answers, at = self._answers, 0
        try:
            while len(answers) < self._count and (found := parse(self._received, at)) is not None:
                answer, at = found
                answers.append(answer)
                if type(answer) is ReadOnlyError:
                    # A master that became a replica: the next caller connects again, to the one that followed it.
                    self._transport.close()
        except ValueError:
            self._end(InvalidResponse(f"no answer as RESP has it: {bytes(self._received[at : at + 50])!r}"))
            return
        del self._received[:at]
        if len(answers) == self._count:
            self._end(answers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the caller and the driver, which waits for it when it closes."""
        self._lost = True
        self._end(exc if isinstance(exc, OSError) else DriverConnectionError("the connection was closed"))
        cast("asyncio.Protocol", self._driver).connection_lost(None)

    def _end(self, result: list[Any] | Exception) -> None:
        done, self._done = self._done, None
        if isinstance(result, Exception):
            self._transport.abort()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        if done is not None:
            done(result)


def parse(received: bytearray, at: int) -> tuple[Any, int] | None:
    """Return the answer that begins there and where it ends; None when it is not all there.

    Source: the Redis serialization protocol, RESP2. Raises ValueError.
    """
    end = received.find(b"\r\n", at)
    if end < 0:
        return None
    kind, line, at = received[at], received[at + 1 : end], end + 2
    if kind in (_BULK, _ARRAY):
        return _parse_long(received, at, kind, int(line))
    if kind == _INTEGER:
        return int(line), at
    if kind == _SIMPLE:
        return bytes(line), at
    if kind == _ERROR:
        # The driver's own table of what the first word of an error means.
        return cast("Any", DefaultParser).parse_error(line.decode(errors="replace")), at
    raise ValueError(f"{kind:#x} begins no answer")


def _parse_long(received: bytearray, at: int, kind: int, length: int) -> tuple[Any, int] | None:
    if length < 0:
        return None, at
    if kind == _BULK:
        end = at + length
        return (bytes(received[at:end]), end + 2) if len(received) >= end + 2 else None
    items: list[Any] = []
    for _ in range(length):
        found = parse(received, at)
        if found is None:
            return None
        item, at = found
        items.append(item)
    return items, at
