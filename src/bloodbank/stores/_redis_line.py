"""Connections to Redis that stay out of the pool, for the commands there are most of.

Opening it, logging in and opening it again stay the driver's. What is saved is the pipeline, which takes every
argument into its hands, the way from the pool and back, and the driver's streams: more than the round trip itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection

from bloodbank.stores._redis_wire import Done, Wire

Argument = bytes | str | int


class Line:
    """A connection that is taken from a pool when it is first needed, and used by one call at a time.

    It goes with the pool: closing that closes it.
    """

    def __init__(self, pool: BlockingConnectionPool) -> None:
        self._pool = pool
        self._connection: AbstractConnection | None = None
        self._wire: Wire | None = None
        self._turn = asyncio.Lock()

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port that it was connected to last, None before it was."""
        connection = cast("Any", self._connection)
        return None if connection is None else (connection.host, connection.port)

    def abort(self) -> None:
        """Close at once; the next call connects again, to the server that is the right one then."""
        if self._wire is not None:
            self._wire.abort()

    async def round_trip(self, commands: bytes, count: int) -> list[Any]:
        """Send commands that are packed already; return an answer for each, which may be a RedisError.

        count: how many commands there are.

        Raises the driver's errors. Whatever ends it early, cancelling too, closes the connection, so that nobody
        reads an answer that is not his; the next call opens it again.
        """
        async with self._turn:
            wire = self._wire
            if wire is not None:
                await wire.idle()
            if wire is None or not wire.is_open:
                wire = self._wire = await self._connect()
            return await wire.round_trip(commands, count)

    def call(self, commands: bytes, count: int, done: Done) -> Callable[[], None] | None:
        """Send commands without a task, where the connection is open and free; None where it is not.

        done: called in the turn of the event loop that brings the end, see `Done`. Returns what closes the
        connection, for who gives up before.
        """
        wire = self._wire
        if wire is None or wire.is_busy or not wire.is_open or self._turn.locked():
            return None
        wire.call(commands, count, done)
        return wire.abort

    async def _connect(self) -> Wire:
        connection = self._connection
        if connection is None:
            connection = self._connection = await cast("Any", self._pool).get_connection()  # partly typed
        else:
            await connection.disconnect(nowait=True)
            await self._pool.ensure_connection(connection)
        return Wire(connection)


class Lines:
    """Several lines, of which each call takes a free one, or waits. most: how many; each opens when first needed."""

    def __init__(self, pool: BlockingConnectionPool, most: int) -> None:
        # The last one used is taken first, so that few are opened where calls come one by one.
        self._free = [Line(pool) for _ in range(most)]
        self._places = asyncio.Semaphore(most)

    async def round_trip(self, commands: bytes, count: int) -> list[Any]:
        """Send commands on one line; as `Line.round_trip`."""
        async with self._places:
            line = self._free.pop()
            try:
                return await line.round_trip(commands, count)
            finally:
                self._free.append(line)


def pack_command(arguments: Sequence[Argument]) -> bytes:
    """Return a command as it goes over the wire. Source: the Redis serialization protocol, RESP."""
    packed = [pack_argument(one if isinstance(one, bytes) else str(one).encode()) for one in arguments]
    return b"*%d\r\n" % len(packed) + b"".join(packed)


def pack_argument(argument: bytes) -> bytes:
    """Return one argument of a command; how many there are goes before the first."""
    return b"$%d\r\n%b\r\n" % (len(argument), argument)
