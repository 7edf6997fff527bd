"""One bus and one index a test, of every backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bloodbank import CorrelationTracker, Publisher, Settings
from bloodbank._sqlite import Database
from bloodbank.stores.base import CorrelationStore
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.transports.base import Transport
from tests.conformance.backends import (
    OF_PROCESSES,
    Bus,
    Index,
    MemoryBus,
    embedded_bus,
    rabbit_bus,
    redis_cluster_index,
    redis_index,
    sqlite_index,
)


@pytest.fixture(params=[*OF_PROCESSES, "memory"])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    """A bus that nobody else uses."""
    if request.param == "rabbit":
        yield rabbit_bus(request.getfixturevalue("rabbit_server"))
    elif request.param == "embedded":
        yield embedded_bus(tmp_path)
    else:
        async with Database.in_memory() as database:
            yield MemoryBus(database)


@pytest.fixture
async def transport(bus: Bus) -> AsyncIterator[Transport]:
    """An open transport on the bus."""
    async with bus.transport() as opened:
        yield opened


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("redis by levels", marks=pytest.mark.redis),
        pytest.param("redis cluster", marks=pytest.mark.redis),
    ]
)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Index:
    """An index that nobody else uses."""
    if request.param == "redis cluster":
        return redis_cluster_index(request.getfixturevalue("redis_cluster"))
    if request.param != "sqlite":
        server = request.getfixturevalue("redis_server")
        return redis_index(server, read_by_levels=request.param == "redis by levels")
    return sqlite_index(tmp_path)


@pytest.fixture
async def store(index: Index) -> AsyncIterator[CorrelationStore]:
    """An open store on the index."""
    async with index.store() as opened:
        yield opened


@pytest.fixture
async def publisher(transport: Transport, tmp_path: Path) -> AsyncIterator[Publisher]:
    """An open publisher on the bus, with an index of causes beside it."""
    settings = Settings(_env_file=None, data_dir=tmp_path, inbox_timeout_seconds=60)
    async with (
        CorrelationTracker(SqliteStore(Database(tmp_path / "index.db"))) as tracker,
        Publisher(settings, transport=transport, tracker=tracker) as opened,
    ):
        yield opened
