"""A TCP proxy that breaks the wire on command."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65_536


class TcpProxy:
    """Forward a local port to a server, in the event loop of the test.

        async with TcpProxy(server.port) as proxy:
            ...  # connect to 127.0.0.1:proxy.port
            proxy.cut()

    port: on 127.0.0.1; it stays the same while the proxy is open.
    connections: how many clients are connected now.
    delay_seconds: how long the server's bytes are held back. It may be changed at any time.
    answered_bytes: how many bytes of the server's were forwarded.
    stalled: whether `stall_after` has come to its end.
    chunk_bytes: most bytes sent on at once; few of them, with a delay, cut what was one segment into many.
    """

    def __init__(self, target_port: int, *, delay_seconds: float = 0.0, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.target_port = target_port
        self.delay_seconds = delay_seconds
        self.chunk_bytes = chunk_bytes
        self.port = 0
        self._to_server = asyncio.Event()
        self._to_client = asyncio.Event()
        self.answered_bytes = 0
        self._left: int | None = None
        self._to_server.set()
        self._to_client.set()
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def connections(self) -> int:
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections that there are. New ones are taken."""
        for writer in self._writers:
            writer.transport.abort()

    async def refuse(self) -> None:
        """Take no new connections, as a server that is down."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """Take connections again."""
        if self._listener is None:
            await self._listen()

    def stall(self, *, replies_only: bool = False) -> None:
        """Forward nothing more and close nothing, as a half-open connection. New ones stall too.

        replies_only: what the client sends still reaches the server.
        """
        self._to_client.clear()
        if not replies_only:
            self._to_server.clear()

    def stall_after(self, count: int) -> None:
        """Forward so many bytes of the server's, of all connections together, and then stall, most often in a frame."""
        self._left = count

    @property
    def stalled(self) -> bool:
        return not self._to_client.is_set()

    def resume(self) -> None:
        """End a stall; what was held back is forwarded."""
        self._left = None
        self._to_server.set()
        self._to_client.set()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._forward(reader, writer)
        finally:
            self._tasks.discard(task)
            await self._abort(writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            return
        self._writers.add(server_writer)
        pumps = [
            asyncio.create_task(self._pump(reader, server_writer, self._to_server, delayed=False)),
            asyncio.create_task(self._pump(server_reader, writer, self._to_client, delayed=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await self._abort(server_writer)

    async def _abort(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event, *, delayed: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(self.chunk_bytes):
                if delayed and self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if delayed and self._left is not None:
                    now, data = data[: self._left], data[self._left :]
                    self._left -= len(now)
                    self.answered_bytes += len(now)
                    writer.write(now)
                    if data:
                        self.stall()
                await flowing.wait()
                if delayed:
                    self.answered_bytes += len(data)
                writer.write(data)
                await writer.drain()
