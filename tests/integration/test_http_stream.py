"""The event stream of a real server: over lost connections, restarts of it and of the broker, and its end."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from anyio.to_thread import run_sync

from tests.api.sse import Frame, Frames
from tests.conformance.messages import DEADLINE_SECONDS
from tests.servers.api import ApiServer
from tests.servers.rabbit import RabbitServer

SERVE = ("-m", "bloodbank.cli.main", "serve")
END_SECONDS = 8.0
"""Much less than the 15 s that a server waits for what is under way."""


@pytest.fixture(params=["uvicorn", "bb serve"])
def server(request: pytest.FixtureRequest) -> Iterator[ApiServer]:
    server = ApiServer(SERVE if request.param == "bb serve" else ())
    server.start()
    yield server
    server.close()


@asynccontextmanager
async def _stream(server: ApiServer, cursor: str = "") -> AsyncIterator[AsyncIterator[Frame]]:
    headers = {"Last-Event-ID": cursor} if cursor else {}
    async with (
        httpx.AsyncClient(timeout=httpx.Timeout(DEADLINE_SECONDS), trust_env=False) as client,
        client.stream("GET", f"{server.url}/events/stream", headers=headers) as response,
    ):
        assert response.status_code == 200

        async def frames() -> AsyncIterator[Frame]:
            found = Frames()
            async for chunk in response.aiter_raw():
                for frame in found.add(chunk):
                    yield frame

        yield frames()


async def _publish(server: ApiServer, count: int) -> list[str]:
    async with httpx.AsyncClient(timeout=DEADLINE_SECONDS, trust_env=False) as client:
        events = [{"event_type": "call.recorded", "payload": {"n": n}} for n in range(count)]
        response = await client.post(f"{server.url}/events/batch", json=events)
        return [result["event_id"] for result in response.json()["results"]]


class _Reader:
    """Reads for ever, and connects again with its last cursor, as a browser does."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self.cursor = ""
        self.received: list[str] = []
        self.told: list[str] = []
        self.ready = asyncio.Event()
        self.connections = 0

    async def read(self, *, most_a_connection: int | None = None) -> None:
        while True:
            try:
                async with _stream(self._server, self.cursor) as frames:
                    self.connections += 1
                    count = 0
                    async for frame in frames:
                        self.cursor = frame.id
                        if frame.event == "event" and frame.data is not None:
                            self.received.append(frame.data["event_id"])
                            count += 1
                        elif frame.data is not None:
                            self.told.append(frame.event)
                            self.ready.set()
                        if count == most_a_connection:
                            break
            except (httpx.HTTPError, AssertionError):
                pass
            await asyncio.sleep(0.05)

    async def has(self, ids: list[str]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not set(ids) <= set(self.received):
                await asyncio.sleep(0.05)


@asynccontextmanager
async def _reading(server: ApiServer, *, most_a_connection: int | None = None) -> AsyncIterator[_Reader]:
    reader = _Reader(server)
    task = asyncio.create_task(reader.read(most_a_connection=most_a_connection))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await reader.ready.wait()
        yield reader
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_connections_that_break_and_a_restart_lose_nothing_and_repeat_nothing(server: ApiServer) -> None:
    async with _reading(server, most_a_connection=7) as reader:
        sent = await _publish(server, 60)
        await reader.has(sent)
        await run_sync(server.stop)
        await run_sync(server.start)
        sent += await _publish(server, 60)
        await reader.has(sent)
    assert reader.received == sent
    assert reader.connections > 10
    assert set(reader.told) == {"hello"}


async def test_a_server_that_ends_does_not_wait_for_streams(server: ApiServer) -> None:
    async with _stream(server) as frames:
        assert (await anext(frames)).event == "hello"
        began = time.monotonic()
        ending = asyncio.create_task(run_sync(server.stop))
        async for _ in frames:
            pass
        await ending
    assert time.monotonic() - began < END_SECONDS


def test_a_client_that_does_not_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """With little room in its buffers, and more sent than fits."""
    server = ApiServer(SERVE)
    server.start()
    try:
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", server.port))
            stuck.sendall(b"GET /events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert stuck.recv(1024).startswith(b"HTTP/1.1 200")
            event = {"event_type": "call.recorded", "payload": {"text": "x" * 900_000}}
            for _ in range(12):
                httpx.post(f"{server.url}/events", json=event, timeout=DEADLINE_SECONDS, trust_env=False)
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < END_SECONDS
    finally:
        server.close()


@pytest.mark.rabbit
async def test_a_broker_that_restarts_is_told_and_nothing_is_lost(rabbit_server: RabbitServer) -> None:
    server = ApiServer(SERVE, RABBIT_URL=rabbit_server.url, EXCHANGE_NAME=f"test.{time.time_ns()}.v1")
    await run_sync(server.start)
    try:
        async with _reading(server) as reader, _reading(server, most_a_connection=5) as restless:
            sent = await _publish(server, 40)
            await reader.has(sent)
            await run_sync(rabbit_server.stop)
            # Kept in the outbox, and forwarded.
            sent += await _publish(server, 5)
            await run_sync(rabbit_server.start)
            sent += await _publish(server, 40)
            for one in (reader, restless):
                await one.has(sent)
                # One that was published again after an unclear end may be in the log twice.
                assert set(one.received) == set(sent)
                assert list(dict.fromkeys(one.received))[:40] == sent[:40]
                assert "gap" not in one.told
            assert "trouble" in reader.told
            assert reader.connections == 1
    finally:
        await run_sync(server.close)


async def test_a_second_server_of_the_bus_goes_on_where_the_first_one_was(tmp_path: Path) -> None:
    servers = [ApiServer(SERVE, BLOODBANK_DATA_DIR=str(tmp_path)) for _ in range(2)]
    try:
        for server in servers:
            await run_sync(server.start)
        async with _stream(servers[0]) as frames:
            cursor = (await anext(frames)).id
            sent = await _publish(servers[1], 3)
            first = await anext(frames)
            assert first.data["event_id"] == sent[0]
        async with _stream(servers[1], first.id) as frames:
            assert (await anext(frames)).data["resumed"]
            assert [(await anext(frames)).data["event_id"] for _ in range(2)] == sent[1:]
            assert cursor != first.id
    finally:
        for server in servers:
            await run_sync(server.close)
