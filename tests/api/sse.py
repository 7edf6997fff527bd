"""A client of the event stream inside the test's process, which can be as slow as it wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import orjson
from fastapi import FastAPI

DEADLINE_SECONDS = 30.0


class Frame:
    """A block of the stream. id: as the standard keeps it, that of an earlier block where this one has none."""

    def __init__(self, text: str, last_id: str) -> None:
        fields: dict[str, list[str]] = {}
        for line in text.split("\n"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        self.comment = "\n".join(fields.get("", []))
        self.event = fields.get("event", ["message"])[-1]
        self.id = fields.get("id", [last_id])[-1]
        self.data: Any = orjson.loads("\n".join(fields["data"])) if "data" in fields else None


class Frames:
    """Cuts text into blocks as it comes; see "Server-sent events" of the HTML standard."""

    def __init__(self) -> None:
        self.last_id = ""
        self._rest = b""

    def add(self, chunk: bytes) -> list[Frame]:
        *blocks, self._rest = (self._rest + chunk).split(b"\n\n")
        found: list[Frame] = []
        for block in blocks:
            found.append(Frame(block.decode(), self.last_id))
            self.last_id = found[-1].id
        return found


class EventSource:
    """What a client has got so far. While it is held it takes nothing more, as one whose buffers are full."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.sends: list[bytes] = []
        self.ended = asyncio.Event()
        self.gone = asyncio.Event()
        self._frames = Frames()
        self._arrived: asyncio.Queue[Frame] = asyncio.Queue()
        self._free = asyncio.Event()
        self._free.set()
        self._started = asyncio.Event()

    @property
    def last_id(self) -> str:
        return self._frames.last_id

    def hold(self) -> None:
        self._free.clear()

    def go_on(self) -> None:
        self._free.set()

    async def next(self) -> Frame:
        """Return the next block."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self._arrived.get()

    async def next_of_any(self) -> Frame:
        """Return the next block, comments apart."""
        while (found := await self.next()).data is None:
            pass
        return found

    async def next_of(self, event: str) -> Frame:
        """Return the next block, comments apart, which must be of a kind."""
        found = await self.next_of_any()
        assert found.event == event, (found.event, found.data)
        return found

    async def ids(self, count: int) -> list[str]:
        """Return the ids of the next events, which nothing else comes between."""
        return [(await self.next_of("event")).data["event_id"] for _ in range(count)]

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self._free.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            self._started.set()
            return
        self.body += message.get("body", b"")
        self.sends.append(message.get("body", b""))
        for found in self._frames.add(message.get("body", b"")):
            self._arrived.put_nowait(found)
        if not message.get("more_body"):
            self.ended.set()

    async def begun(self) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self._started.wait()


@asynccontextmanager
async def event_source(
    app: FastAPI, *, headers: Mapping[str, str] | None = None, **query: str
) -> AsyncIterator[EventSource]:
    """Open `/events/stream` and yield the client; at the end it hangs up."""
    source = EventSource()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/events/stream",
        "raw_path": b"/events/stream",
        "query_string": urlencode(query).encode(),
        "headers": [
            (name.lower().encode(), value.encode()) for name, value in {"Host": "localhost", **(headers or {})}.items()
        ],
        "client": ("127.0.0.1", 50_000),
        "server": ("localhost", 80),
        "root_path": "",
    }
    asked = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await source.gone.wait()
        return {"type": "http.disconnect"}

    serving = asyncio.create_task(app(scope, receive, source.send))
    try:
        await source.begun()
        yield source
    finally:
        source.gone.set()
        source.go_on()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await serving
