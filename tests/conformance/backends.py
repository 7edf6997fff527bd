"""The backends under test, each behind the same few verbs; the tests themselves never name one.

A bus or an index belongs to one test: its own folder, exchange or key prefix. Several transports or stores can be
opened on it, as several processes would.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from bloodbank._sqlite import Database
from bloodbank.config import Settings
from bloodbank.stores.base import CorrelationStore
from bloodbank.stores.redis import RedisStore
from bloodbank.stores.redis_cluster import RedisClusterStore
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.transports.base import Transport
from bloodbank.transports.embedded import EmbeddedTransport
from bloodbank.transports.rabbit import RabbitTransport
from tests.servers.process import Server
from tests.servers.redis_cluster import RedisCluster

LEASE_SECONDS = 1.5
OF_PROCESSES = ("embedded", pytest.param("rabbit", marks=pytest.mark.rabbit))
"""Buses that several processes share. That in memory passes the same tests, without those of other processes."""
LONGEST_OUTAGE_SECONDS = 60.0
DATABASE_FILE = "bus.db"
PATIENCE: Any = {"connect_timeout_seconds": 20.0, "query_timeout_seconds": 40.0}
"""Limits of stores on servers: a busy machine is no outage."""


class Interruptible(ABC):
    """Something that can be made unreachable for a while."""

    @abstractmethod
    async def stop(self) -> None:
        """From now on nothing can be written."""

    @abstractmethod
    async def start(self) -> None:
        """Mend it again; return when it can be reached. Idempotent."""

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Within the block it cannot be reached."""
        await self.stop()
        try:
            yield
        finally:
            await self.start()


class LockedFile(Interruptible):
    """A SQLite file has no server to stop; another program that holds the file comes nearest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / DATABASE_FILE
        self._holder: sqlite3.Connection | None = None

    async def stop(self) -> None:
        self._holder = sqlite3.connect(self.path, isolation_level=None, timeout=10)
        self._holder.execute("BEGIN IMMEDIATE")

    async def start(self) -> None:
        if self._holder is not None:
            self._holder.close()
            self._holder = None


class LockedMemory(Interruptible):
    """Memory has no other program; a writer that is held up comes nearest, and after it all is as it was."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._released: threading.Event | None = None
        self._holding: asyncio.Task[None] | None = None

    async def stop(self) -> None:
        self._released, reached = threading.Event(), threading.Event()
        self._holding = asyncio.create_task(self._database.write(lambda _, r=self._released: _hold(reached, r)))
        await anyio.to_thread.run_sync(reached.wait)

    async def start(self) -> None:
        if self._released is not None and self._holding is not None:
            self._released.set()
            await self._holding
            self._released = self._holding = None


def _hold(reached: threading.Event, released: threading.Event) -> None:
    reached.set()
    assert released.wait(LONGEST_OUTAGE_SECONDS)


class StoppedServer(Interruptible):
    def __init__(self, server: Server | RedisCluster) -> None:
        self._server = server

    async def stop(self) -> None:
        await anyio.to_thread.run_sync(self._server.stop)

    async def start(self) -> None:
        await anyio.to_thread.run_sync(self._server.start)


class Bus:
    """One bus.

    description: what `make_transport` needs, also in another process.
    service: what can be made unreachable.
    """

    def __init__(self, description: dict[str, Any], service: Interruptible) -> None:
        self.description = description
        self.service = service

    def transport(self) -> Transport:
        """Return one more transport on this bus; it is not open."""
        return make_transport(self.description)


class MemoryBus(Bus):
    """One bus in the memory of this process, for as long as the database is open."""

    def __init__(self, database: Database) -> None:
        super().__init__({"backend": "memory"}, LockedMemory(database))
        self._database = database

    def transport(self) -> Transport:
        return embedded_transport(self._database)


class Index:
    """One index. `service`: what can be made unreachable."""

    def __init__(self, description: dict[str, Any], service: Interruptible) -> None:
        self._description = description
        self.service = service

    def store(self) -> CorrelationStore:
        """Return one more store on this index; it is not open."""
        return make_store(self._description)


def embedded_bus(folder: Path) -> Bus:
    return Bus({"backend": "embedded", "path": str(folder / DATABASE_FILE)}, LockedFile(folder))


def rabbit_bus(server: Server) -> Bus:
    description = {"backend": "rabbit", "url": server.url, "exchange": f"test.{uuid4().hex}.v1"}
    return Bus(description, StoppedServer(server))


def sqlite_index(folder: Path) -> Index:
    return Index({"backend": "sqlite", "path": str(folder / DATABASE_FILE)}, LockedFile(folder))


def redis_index(server: Server, *, read_by_levels: bool = False) -> Index:
    description = {
        "backend": "redis",
        "url": server.url,
        "prefix": f"test-{uuid4().hex[:16]}",
        "read_by_levels": read_by_levels,
    }
    return Index(description, StoppedServer(server))


def redis_cluster_index(cluster: RedisCluster) -> Index:
    description = {"backend": "redis cluster", "url": cluster.url, "prefix": f"test-{uuid4().hex[:16]}"}
    return Index(description, StoppedServer(cluster))


def make_transport(description: dict[str, Any]) -> Transport:
    if description["backend"] == "rabbit":
        return RabbitTransport(
            Settings(_env_file=None, rabbit_url=description["url"], exchange_name=description["exchange"])
        )
    return embedded_transport(Database(Path(description["path"]), busy_seconds=2.0))


def embedded_transport(database: Database) -> Transport:
    return EmbeddedTransport(
        database,
        retention_seconds=86_400,
        lease_seconds=LEASE_SECONDS,
        poll_seconds=0.02,
    )


def make_store(description: dict[str, Any]) -> CorrelationStore:
    if description["backend"] == "redis":
        settings = Settings(
            _env_file=None, redis_url=description["url"], redis_prefix=description["prefix"], **PATIENCE
        )
        return RedisStore(settings, read_by_levels=description["read_by_levels"])
    if description["backend"] == "redis cluster":
        settings = Settings(
            _env_file=None,
            redis_url=description["url"],
            redis_prefix=description["prefix"],
            redis_replica_seconds=20.0,  # a busy machine is no reason to take a replica for dead
            **PATIENCE,
        )
        return RedisClusterStore(settings)
    return SqliteStore(Database(Path(description["path"]), busy_seconds=0.3))
