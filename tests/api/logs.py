"""A log that can be away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx

from bloodbank.errors import TransportUnavailable
from bloodbank.transports.base import LogEntry
from tests.api.http_app import bus_of


class Away:
    """A log that can be away, in place of the transport's own reading."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.transport = bus_of(client).publisher.transport
        self.is_away = asyncio.Event()
        self._read = self.transport.read_log
        self.transport.read_log = self.read_log  # type: ignore[method-assign]

    async def read_log(self, **arguments: Any) -> AsyncIterator[LogEntry]:
        self._require()
        leaving = asyncio.create_task(self.is_away.wait())
        entries = self._read(**arguments)
        coming: asyncio.Future[LogEntry | None] = asyncio.get_running_loop().create_future()
        try:
            while True:
                coming = asyncio.ensure_future(anext(entries, None))
                await asyncio.wait([coming, leaving], return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    await asyncio.wait([coming])
                    self._require()
                if (entry := coming.result()) is None:
                    return
                yield entry
        finally:
            for waiting in (leaving, coming):
                waiting.cancel()
            await asyncio.wait([leaving, coming])
            await entries.aclose()

    def _require(self) -> None:
        if self.is_away.is_set():
            raise TransportUnavailable("The log is on holiday.")
