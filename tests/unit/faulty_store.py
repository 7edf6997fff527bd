"""A real store with a switch: it can be unreachable, hang, or fail in a way that nobody foresaw."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Self
from uuid import UUID

from bloodbank.errors import StoreFormatError, StoreUnavailable
from bloodbank.stores.base import Claimed, CorrelationStore, Direction, Graph, Link, Node


class FaultyStore:
    """Passes everything on to a store while `mode` is "up"; counts the calls that reach it."""

    def __init__(self, store: CorrelationStore, mode: str = "up") -> None:
        self.store = store
        self.mode = mode
        self.batches: list[int] = []
        self.calls = 0

    async def _gate(self) -> None:
        self.calls += 1
        if self.mode == "down":
            raise StoreUnavailable("Connection refused. Start the store.")
        if self.mode == "hang":
            await asyncio.Event().wait()
        if self.mode == "unreadable":
            raise StoreFormatError("The index has another format.")
        if self.mode == "bug":
            raise ZeroDivisionError("a bug in a store")

    async def __aenter__(self) -> Self:
        await self._gate()
        await self.store.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.__aexit__(None, None, None)

    async def check(self) -> None:
        await self._gate()
        await self.store.check()

    async def record(self, links: Sequence[Link]) -> None:
        await self._gate()
        self.batches.append(len(links))
        await self.store.record(links)

    async def claim(self, wanted: Sequence[tuple[UUID, bytes]], *, owner: bytes, lease_seconds: float) -> list[Claimed]:
        await self._gate()
        return await self.store.claim(wanted, owner=owner, lease_seconds=lease_seconds)

    async def release(self, event_ids: Sequence[UUID], *, owner: bytes) -> None:
        await self._gate()
        await self.store.release(event_ids, owner=owner)

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        await self._gate()
        return await self.store.nodes(event_ids)

    async def walk(self, event_id: UUID, direction: Direction, *, max_depth: int, limit: int) -> Graph:
        await self._gate()
        return await self.store.walk(event_id, direction, max_depth=max_depth, limit=limit)

    async def purge(self, *, before: datetime) -> int:
        await self._gate()
        return await self.store.purge(before=before)
