"""What a slow, frozen or dead index may and may not do to publishing, and to what processes say that they recorded."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

import anyio
import pytest
from redis.asyncio import Redis

from bloodbank import CorrelationTracker, Lineage
from bloodbank._sqlite import Database
from bloodbank.breaker import BreakerState
from bloodbank.config import Settings
from bloodbank.stores.base import CorrelationStore, Link, Node
from bloodbank.stores.redis import RedisStore
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.wiring import build_journal, build_tracker
from tests.servers.redis import RedisServer
from tests.unit.faulty_store import FaultyStore
from tests.unit.test_correlation_tracking import link, quick_breaker

DEADLINE_SECONDS = 30.0


class SlowAnswers(FaultyStore):
    """Answers questions when it is let, also while it hangs for those who record."""

    def __init__(self, store: CorrelationStore) -> None:
        super().__init__(store)
        self.may_answer = asyncio.Event()

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        await self.may_answer.wait()
        return await self.store.nodes(event_ids)


async def test_an_old_question_that_is_answered_makes_no_publish_wait(tmp_path: Path) -> None:
    store = SlowAnswers(SqliteStore(Database(tmp_path / "index.db")))
    async with CorrelationTracker(store, timeout_seconds=0.5, breaker=quick_breaker(reset_seconds=60)) as tracker:
        question = asyncio.create_task(tracker.nodes([uuid4()]))
        await asyncio.sleep(0)
        store.mode = "hang"
        assert await tracker.record(link(uuid4())) is Lineage.DEFERRED
        store.may_answer.set()
        await question
        async with asyncio.timeout(5):
            assert await tracker.record(link(uuid4())) is Lineage.DEFERRED


class SlowRecords(FaultyStore):
    async def record(self, links: Sequence[Link]) -> None:
        await asyncio.sleep(0.06)
        await super().record(links)


async def test_a_burst_that_a_working_store_cannot_take_in_time_does_not_open_the_breaker(tmp_path: Path) -> None:
    store = SlowRecords(SqliteStore(Database(tmp_path / "index.db")))
    async with CorrelationTracker(store, timeout_seconds=0.2, batch_limit=1) as tracker:
        lineages = await tracker.record_many([link(uuid4()) for _ in range(10)])
        assert lineages[0] is Lineage.RECORDED
        assert lineages[-1] is Lineage.DEFERRED
        assert tracker.breaker_state is BreakerState.CLOSED


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A running server of this test alone, that forgets everything when it ends."""
    server = RedisServer(appendonly="no")
    server.start()
    yield server
    server.close()


@pytest.fixture
def tracker_on_redis(redis: RedisServer, tmp_path: Path) -> CorrelationTracker:
    settings = Settings(_env_file=None, redis_url=redis.url, breaker_reset_seconds=0.05, correlation_timeout_seconds=1)
    journal = build_journal(settings, Database(tmp_path / "outbox.db"))
    return build_tracker(settings, RedisStore(settings), journal=journal)


async def until_all_are_there(tracker: CorrelationTracker, links: Sequence[Link]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while tracker.journalled or tracker.breaker_state is not BreakerState.CLOSED:
            await asyncio.sleep(0.01)
    nodes = await tracker.nodes([one.event_id for one in links])
    assert {one.event_id: one.parents for one in links} == {event_id: node.parents for event_id, node in nodes.items()}
    assert tracker.unjournalled_total == 0


def some_links(count: int) -> list[Link]:
    return [link(uuid4(), uuid4(), uuid4()) for _ in range(count)]


class TestOnRedis:
    pytestmark = pytest.mark.redis

    async def test_what_is_deferred_while_redis_is_frozen_is_recorded_when_it_goes_on(
        self, redis: RedisServer, tracker_on_redis: CorrelationTracker
    ) -> None:
        async with tracker_on_redis as tracker:
            links = some_links(400)
            assert set(await tracker.record_many(links[:100])) == {Lineage.RECORDED}
            redis.freeze()
            began = time.monotonic()
            answers = await asyncio.gather(
                tracker.claim([(uuid4(), b"")], lease_seconds=9), *(tracker.record(one) for one in links[100:300])
            )
            # One wait of a second for all together; who waits for a connection waits five.
            assert time.monotonic() - began < 4
            assert answers == [None, *[Lineage.DEFERRED] * 200]
            assert tracker.breaker_state is not BreakerState.CLOSED
            assert await tracker.record_many(links[300:]) == [Lineage.DEFERRED] * 100
            assert tracker.journalled == 300
            redis.thaw()
            await until_all_are_there(tracker, links)

    async def test_what_is_deferred_while_redis_is_dead_is_recorded_into_the_new_one(
        self, redis: RedisServer, tracker_on_redis: CorrelationTracker
    ) -> None:
        async with tracker_on_redis as tracker:
            before = some_links(10)
            assert set(await tracker.record_many(before)) == {Lineage.RECORDED}
            await anyio.to_thread.run_sync(redis.kill)
            links = some_links(300)
            answers = [await tracker.record(one) for one in links[:100]]
            answers += await asyncio.gather(*(tracker.record(one) for one in links[100:]))
            assert set(answers) == {Lineage.DEFERRED}
            await anyio.to_thread.run_sync(redis.start)
            await until_all_are_there(tracker, links)
            assert await tracker.nodes([before[0].event_id]) == {}, "it restarted empty"

    async def test_what_is_deferred_while_redis_is_down_at_start_is_recorded_when_it_is_there(
        self, redis: RedisServer, tracker_on_redis: CorrelationTracker
    ) -> None:
        await anyio.to_thread.run_sync(redis.kill)
        async with tracker_on_redis as tracker:
            links = some_links(50)
            assert set(await tracker.record_many(links)) == {Lineage.DEFERRED}
            await anyio.to_thread.run_sync(redis.start)
            await until_all_are_there(tracker, links)

    async def test_redis_out_of_memory_sets_nothing_aside_and_is_healed_when_it_has_more(
        self, redis: RedisServer, tracker_on_redis: CorrelationTracker
    ) -> None:
        async with tracker_on_redis as tracker, Redis.from_url(redis.url) as client:
            await client.config_set("maxmemory", "1")
            links = some_links(60)
            for one in links:
                assert await tracker.record(one) is Lineage.DEFERRED
            await client.config_set("maxmemory", "0")
            await until_all_are_there(tracker, links)
            assert tracker.set_aside_total == 0


class Recording:
    """A process that records and tells what it was answered; see `journalling`."""

    def __init__(self, url: str, folder: Path) -> None:
        program = Path(__file__).parent / "journalling.py"
        self._process = subprocess.Popen(
            [sys.executable, str(program), url, "bb", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self, count: int) -> list[Told]:
        """Return so many answers, or all that are left when it ended."""
        assert self._process.stdout is not None
        lines = [line.decode().split() for line in islice(self._process.stdout, count) if line.endswith(b"\n")]
        return [Told(UUID(event_id), UUID(parent), lineage) for event_id, parent, lineage in lines]

    def kill(self) -> list[Told]:
        """End it with SIGKILL; return what it still said."""
        self._process.kill()
        return self._ended()

    def finish(self) -> list[Told]:
        """Let it close; return what it still said."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._ended()

    def _ended(self) -> list[Told]:
        rest = self.read(10_000_000)
        self._process.wait(DEADLINE_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        return rest


class Told(NamedTuple):
    event_id: UUID
    parent: UUID
    lineage: str


async def until_all_were_true(tracker: CorrelationTracker, told: Sequence[Told]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while tracker.journalled:
            await asyncio.sleep(0.01)
    for start in range(0, len(told), 500):
        nodes = await tracker.nodes([one.event_id for one in told[start : start + 500]])
        assert [one for one in told[start : start + 500] if nodes[one.event_id].parents != (one.parent,)] == []


class TestProcesses:
    pytestmark = pytest.mark.redis

    async def test_what_a_killed_process_deferred_is_recorded_by_the_next_one(
        self, redis: RedisServer, tracker_on_redis: CorrelationTracker, tmp_path: Path
    ) -> None:
        await anyio.to_thread.run_sync(redis.kill)
        process = Recording(redis.url, tmp_path)
        try:
            told = await anyio.to_thread.run_sync(process.read, 500)
        finally:
            told += await anyio.to_thread.run_sync(process.kill)
        assert len(told) >= 500
        assert {one.lineage for one in told} == {"deferred"}
        await anyio.to_thread.run_sync(redis.start)
        async with tracker_on_redis as tracker:
            await until_all_were_true(tracker, told)
            assert tracker.unjournalled_total == 0

    async def test_two_processes_share_a_journal(
        self, redis: RedisServer, tracker_on_redis: CorrelationTracker, tmp_path: Path
    ) -> None:
        await anyio.to_thread.run_sync(redis.kill)
        processes = [Recording(redis.url, tmp_path) for _ in range(2)]
        told: list[Told] = []
        try:
            for process in processes:
                told += await anyio.to_thread.run_sync(process.read, 400)
            assert {one.lineage for one in told} == {"deferred"}
            await anyio.to_thread.run_sync(redis.start)
            for process in processes:
                while told[-1].lineage != "recorded":
                    told += await anyio.to_thread.run_sync(process.read, 1)
                told += await anyio.to_thread.run_sync(process.read, 50)
        finally:
            told += await anyio.to_thread.run_sync(processes[0].kill)
            told += await anyio.to_thread.run_sync(processes[1].finish)
        async with tracker_on_redis as tracker:
            await until_all_were_true(tracker, told)
            assert tracker.unjournalled_total == 0
