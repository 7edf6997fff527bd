"""Rebuilding the index goes on over outages, and tells where to go on when one lasts too long."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from uuid import UUID

import anyio
import pytest

from bloodbank import CorrelationTracker, Publisher, Settings, create_envelope
from bloodbank._sqlite import Database
from bloodbank.cli.events import parse_time
from bloodbank.errors import StoreUnavailable, TransportUnavailable
from bloodbank.events.registry import utc_now
from bloodbank.ids import new_event_id
from bloodbank.reindex import Progress, reindex
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.transports.base import LogEntry, Message
from bloodbank.transports.embedded import EmbeddedTransport
from tests.conformance.backends import DATABASE_FILE, Bus, embedded_bus, rabbit_bus, redis_index
from tests.servers.process import Server
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer
from tests.unit.faulty_store import FaultyStore

DEADLINE_SECONDS = 110.0
SETTINGS = Settings(_env_file=None, tracker_batch_limit=50, reindex_patience_seconds=100)
IMPATIENT = SETTINGS.model_copy(update={"reindex_patience_seconds": 0})


async def _publish_chain(bus: Bus, length: int) -> list[UUID]:
    """Publish events, each caused by the one before; return their ids."""
    ids = [new_event_id() for _ in range(length)]
    events = [
        create_envelope("note.written", {"number": number}, correlation_ids=ids[number - 1 : number], event_id=event_id)
        for number, event_id in enumerate(ids)
    ]
    async with bus.transport() as transport, Publisher(SETTINGS, transport=transport) as publisher:
        results = await publisher.publish_many(events)
    assert [result for result in results if isinstance(result, Exception)] == []
    return ids


async def _assert_complete(tracker: CorrelationTracker, ids: list[UUID]) -> None:
    assert await tracker.get_correlation_chain(ids[-1], max_depth=len(ids)) == ids


class _KillOnce:
    """Kills a server after the first batch, and starts it again when the run waits for it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._killed_at: int | None = None
        self.waited = asyncio.Event()

    def see(self, progress: Progress) -> None:
        if self._killed_at is None:
            self._killed_at = progress.entries
            self._server.kill()
        if progress.waiting is not None:
            self.waited.set()

    @asynccontextmanager
    async def mending(self) -> AsyncIterator[None]:
        async def mend() -> None:
            await self.waited.wait()
            await anyio.to_thread.run_sync(self._server.start)

        async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(mend())
            yield


class _BreaksOnce(EmbeddedTransport):
    """A log that breaks off at the tenth entry, once; by then it has grown."""

    grown = False

    async def read_log(
        self, *, after: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[LogEntry]:
        async for entry in super().read_log(after=after, since=since, follow=follow):
            if entry.position == 10 and not self.grown:
                self.grown = True
                for _ in range(5):
                    await self.publish(Message(new_event_id(), "late.message", b"?"), timeout_seconds=10)
                raise TransportUnavailable("The log is gone for a moment.")
            yield entry


async def test_after_an_outage_the_run_still_ends_where_the_log_ended_when_it_began(tmp_path: Path) -> None:
    ids = await _publish_chain(embedded_bus(tmp_path), 60)
    database = Database(tmp_path / DATABASE_FILE)
    broken = _BreaksOnce(database, retention_seconds=86_400, lease_seconds=30, poll_seconds=0.02)
    async with broken as transport, _sqlite_tracker(tmp_path) as tracker:
        result = await reindex(transport, tracker, SETTINGS)
        await _assert_complete(tracker, ids)
    assert (broken.grown, result.entries, result.position, result.last_position) == (True, 60, 60, 60)


@pytest.mark.rabbit
async def test_a_broker_that_is_killed_meanwhile_is_waited_for(rabbit_server: RabbitServer, tmp_path: Path) -> None:
    bus = rabbit_bus(rabbit_server)
    ids = await _publish_chain(bus, 3000)
    fault = _KillOnce(rabbit_server)
    async with bus.transport() as transport, _sqlite_tracker(tmp_path) as tracker:
        async with fault.mending():
            result = await reindex(transport, tracker, SETTINGS, on_progress=fault.see)
        await _assert_complete(tracker, ids)
    assert (result.entries, result.recorded, result.waiting) == (3000, 3000, None)


@pytest.mark.redis
async def test_a_store_that_is_killed_meanwhile_is_waited_for(redis_server: RedisServer, tmp_path: Path) -> None:
    bus = embedded_bus(tmp_path)
    ids = await _publish_chain(bus, 500)
    fault = _KillOnce(redis_server)
    async with bus.transport() as transport, CorrelationTracker(redis_index(redis_server).store()) as tracker:
        async with fault.mending():
            result = await reindex(transport, tracker, SETTINGS, on_progress=fault.see)
        await _assert_complete(tracker, ids)
    assert (result.entries, result.recorded, result.waiting) == (500, 500, None)


@pytest.mark.redis
async def test_a_store_that_is_down_at_first_is_waited_for(redis_server: RedisServer, tmp_path: Path) -> None:
    bus = embedded_bus(tmp_path)
    ids = await _publish_chain(bus, 100)
    await anyio.to_thread.run_sync(redis_server.stop)
    waited: list[str] = []
    async with bus.transport() as transport, CorrelationTracker(redis_index(redis_server).store()) as tracker:
        run = asyncio.create_task(reindex(transport, tracker, SETTINGS, on_progress=_noting(waited)))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not waited:
                await asyncio.sleep(0.02)
            await anyio.to_thread.run_sync(redis_server.start)
            await run
        await _assert_complete(tracker, ids)


@pytest.mark.rabbit
async def test_a_broker_that_stays_away_ends_the_run(rabbit_server: RabbitServer, tmp_path: Path) -> None:
    bus = rabbit_bus(rabbit_server)
    async with bus.transport() as transport, _sqlite_tracker(tmp_path) as tracker:
        await anyio.to_thread.run_sync(rabbit_server.stop)
        with pytest.raises(TransportUnavailable, match="Begin again with: bb reindex"):
            await reindex(transport, tracker, IMPATIENT)
        await anyio.to_thread.run_sync(rabbit_server.start)


async def test_a_store_that_stays_away_ends_the_run_with_the_time_to_go_on_from(tmp_path: Path) -> None:
    bus = embedded_bus(tmp_path)
    ids = await _publish_chain(bus, 300)
    _spread_over_hours(tmp_path)
    store = FaultyStore(SqliteStore(Database(tmp_path / "index.db")))

    def break_off(progress: Progress) -> None:
        if progress.recorded == 150:
            store.mode = "down"

    async with bus.transport() as transport, CorrelationTracker(store) as tracker:
        with pytest.raises(StoreUnavailable, match="Go on with") as stopped:
            await reindex(transport, tracker, IMPATIENT, on_progress=break_off)
        store.mode = "up"
        since = re.search(r"--since (\S+)", str(stopped.value))
        assert since is not None
        rest = await reindex(transport, tracker, SETTINGS, since=parse_time(since[1], utc_now()))
        await _assert_complete(tracker, ids)
    # What was recorded for certain is read again for the length of one batch and of a difference of clocks, no more.
    assert 150 < rest.entries <= 250


def _noting(reasons: list[str]) -> Callable[[Progress], None]:
    def note(progress: Progress) -> None:
        if progress.waiting is not None:
            reasons.append(progress.waiting)

    return note


@asynccontextmanager
async def _sqlite_tracker(folder: Path) -> AsyncIterator[CorrelationTracker]:
    async with CorrelationTracker(SqliteStore(Database(folder / "index.db"))) as tracker:
        yield tracker


def _spread_over_hours(folder: Path) -> None:
    """Let the entries of the log be two minutes apart."""
    with sqlite3.connect(folder / DATABASE_FILE) as connection:
        connection.execute("UPDATE log SET logged_at = logged_at - (300 - position) * 120000000")
    connection.close()
