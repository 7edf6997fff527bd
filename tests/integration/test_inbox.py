"""The inbox in a file and in Redis: what is remembered, for how long, and what happens while it is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import anyio
import pytest

from bloodbank import Consumer, Publisher, Settings, create_envelope, new_event_id
from bloodbank._sqlite import Database
from bloodbank.breaker import CircuitBreaker
from bloodbank.consuming._inbox_redis import RedisInbox
from bloodbank.consuming._inbox_sqlite import SqliteInbox
from bloodbank.consuming.inbox import GuardedInbox, Inbox
from bloodbank.errors import StoreUnavailable
from tests.conformance.consumers import eventually
from tests.servers.redis import RedisServer

DAY = 86_400


class Where:
    """Makes inboxes that share what they remember."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self._folder = folder
        self._url = url
        self._prefix = uuid4().hex[:16]

    def inbox(self, *, keep_seconds: float = DAY) -> Inbox:
        if self._url is None:
            return SqliteInbox(Database(self._folder / "bus.db"), keep_seconds=keep_seconds)
        settings = Settings(
            _env_file=None,
            redis_url=self._url,
            redis_prefix=self._prefix,
            inbox_days=keep_seconds / DAY,
            query_timeout_seconds=40,  # a busy machine is no outage
        )
        return RedisInbox(settings)


SERVERS = {"redis": "redis_server", "redis sentinels": "redis_sentinels", "redis cluster": "redis_cluster"}
"""Fixtures by what they are."""


@pytest.fixture(
    params=[
        "sqlite",
        # The fixture is not asked for by name, so that its group of a run in several processes is told here.
        *(pytest.param(name, marks=[pytest.mark.redis, pytest.mark.xdist_group(SERVERS[name])]) for name in SERVERS),
    ]
)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    fixture = SERVERS.get(request.param)
    return Where(tmp_path, None if fixture is None else request.getfixturevalue(fixture).url)


async def test_what_a_group_has_handled_is_seen_by_its_other_consumers_alone(where: Where) -> None:
    ids = [new_event_id() for _ in range(5)]
    async with where.inbox() as one, where.inbox() as other:
        assert await other.seen("rag", ids) == set()
        await one.mark("rag", ids[:3])
        await one.mark("rag", ids[:1])
        assert await other.seen("rag", ids) == set(ids[:3])
        assert await other.seen("ra", ids) == set()
        assert await other.seen("rag", []) == set()
    async with where.inbox() as later:
        assert await later.seen("rag", ids) == set(ids[:3])


async def test_what_was_handled_long_ago_is_forgotten(where: Where) -> None:
    old, new = new_event_id(), new_event_id()
    async with where.inbox(keep_seconds=0.05) as short:
        await short.mark("rag", [old])
        async with asyncio.timeout(60):
            while await short.seen("rag", [old]):
                await asyncio.sleep(0.02)
    async with where.inbox() as inbox:
        await inbox.mark("rag", [new])
        # The file forgets with a write of whoever keeps notes for so short a time.
        assert new in await inbox.seen("rag", [old, new])


@pytest.mark.redis
async def test_a_note_that_redis_refuses_is_an_error_and_questions_go_on() -> None:
    server = RedisServer(maxmemory="1kb")
    try:
        await anyio.to_thread.run_sync(server.start)
        event_id = new_event_id()
        async with RedisInbox(Settings(_env_file=None, redis_url=server.url, query_timeout_seconds=40)) as inbox:
            with pytest.raises(StoreUnavailable, match="out of memory"):
                await inbox.mark("rag", [event_id])
            assert await inbox.seen("rag", [event_id]) == set()
    finally:
        await anyio.to_thread.run_sync(server.close)


async def test_old_notes_leave_the_file(tmp_path: Path) -> None:
    database = Database(tmp_path / "bus.db")
    async with SqliteInbox(database, keep_seconds=0.01) as inbox:
        await inbox.mark("rag", [new_event_id() for _ in range(50)])
        async with asyncio.timeout(60):
            while await _notes(database) > 1:
                await inbox.mark("rag", [new_event_id()])
                await asyncio.sleep(0.02)


async def _notes(database: Database) -> int:
    return await database.read(lambda connection: connection.execute("SELECT count(*) FROM inbox").fetchone()[0])


class Away:
    """An inbox that can be unreachable, and counts what it is asked."""

    def __init__(self) -> None:
        self.is_away = True
        self.hangs = False
        self.asked: list[list[UUID]] = []
        self._seen: set[UUID] = set()

    async def __aenter__(self) -> Self:
        self._refuse()
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def seen(self, group: str, event_ids: Sequence[UUID]) -> set[UUID]:
        await self._answer(event_ids)
        return self._seen & set(event_ids)

    async def mark(self, group: str, event_ids: Sequence[UUID]) -> None:
        await self._answer(event_ids)
        self._seen.update(event_ids)

    async def _answer(self, event_ids: Sequence[UUID]) -> None:
        self.asked.append(list(event_ids))
        if self.hangs:
            await asyncio.Event().wait()
        self._refuse()
        await asyncio.sleep(0)

    def _refuse(self) -> None:
        if self.is_away:
            raise StoreUnavailable("away")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _guarded(inbox: Any, clock: Clock, *, timeout_seconds: float = 60) -> GuardedInbox:
    breaker = CircuitBreaker(failure_threshold=1, reset_seconds=5, clock=clock)
    return GuardedInbox(inbox, timeout_seconds=timeout_seconds, breaker=breaker)


async def test_an_inbox_that_is_away_at_the_start_is_found_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bloodbank")
    away, clock, event_id = Away(), Clock(), new_event_id()
    async with _guarded(away, clock) as inbox:
        for _ in range(3):
            await inbox.mark("rag", event_id)
            assert not await inbox.has_seen("rag", event_id)
        assert away.asked == []
        away.is_away, clock.now = False, 6
        await inbox.mark("rag", event_id)
        assert await inbox.has_seen("rag", event_id)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "away" in said[0]
    assert "back" in said[1]


async def test_an_inbox_that_hangs_costs_one_wait() -> None:
    away, clock = Away(), Clock()
    away.is_away = False
    async with _guarded(away, clock, timeout_seconds=0.05) as inbox:
        away.hangs = True
        assert not await inbox.has_seen("rag", new_event_id())
        for _ in range(10):
            assert not await inbox.has_seen("rag", new_event_id())
        assert len(away.asked) == 1


async def test_who_asks_at_the_same_time_shares_a_round_trip() -> None:
    inbox_below = Away()
    inbox_below.is_away = False
    ids = [new_event_id() for _ in range(1200)]
    async with _guarded(inbox_below, Clock()) as inbox:
        await asyncio.gather(*(inbox.mark("rag", event_id) for event_id in ids))
        assert all(await asyncio.gather(*(inbox.has_seen("rag", event_id) for event_id in ids)))
    assert sorted(event_id for asked in inbox_below.asked for event_id in asked) == sorted([*ids, *ids])
    assert len(inbox_below.asked) <= 8


async def test_who_is_cancelled_takes_no_answer_from_others() -> None:
    below = Away()
    below.is_away = False
    ids = [new_event_id() for _ in range(3)]
    async with _guarded(below, Clock()) as inbox:
        marking = [asyncio.create_task(inbox.mark("rag", event_id)) for event_id in ids]
        await asyncio.sleep(0)
        marking[1].cancel()
        await asyncio.gather(marking[0], marking[2])
        assert [await inbox.has_seen("rag", event_id) for event_id in ids] == [True] * 3
    assert marking[1].cancelled()


@pytest.mark.redis
async def test_handlers_run_while_redis_is_away_and_once_again_when_it_is_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    settings = Settings(
        _env_file=None,
        data_dir=tmp_path,
        redis_url=redis_server.url,
        redis_prefix=uuid4().hex[:16],
        breaker_reset_seconds=0.1,
        inbox_timeout_seconds=2,
        correlation_tracking=False,
    )
    consumer = Consumer("shop", settings)
    seen: list[int] = []

    @consumer.on("shop.order.placed", start="beginning")
    async def handle(payload: dict[str, Any]) -> None:
        seen.append(payload["number"])

    async with Publisher(settings) as publisher, consumer.running():
        await publisher.publish(create_envelope("shop.order.placed", {"number": 1}))
        await eventually(lambda: seen == [1])
        await anyio.to_thread.run_sync(redis_server.kill)
        try:
            await publisher.publish(create_envelope("shop.order.placed", {"number": 2}))
            await eventually(lambda: seen == [1, 2])
        finally:
            await anyio.to_thread.run_sync(redis_server.start)
        await publisher.publish(create_envelope("shop.order.placed", {"number": 3}))
        await eventually(lambda: seen == [1, 2, 3])


async def test_an_event_whose_ack_was_lost_is_not_handled_again(tmp_path: Path) -> None:
    """The process dies, or is cut off, between the note and the ack."""
    settings = Settings(_env_file=None, data_dir=tmp_path, inbox_timeout_seconds=60)
    event = create_envelope("shop.order.placed", {})
    runs: list[int] = []
    async with Publisher(settings) as publisher:
        consumer = Consumer("shop", settings, publisher=publisher)

        @consumer.on("shop.order.placed", start="beginning")
        async def handle(payload: dict[str, Any]) -> None:
            runs.append(1)

        transport = publisher.transport
        # What was noted, and not settled: exactly what such a death leaves behind.
        async with transport.subscribe("shop.order.placed", group="shop", prefetch=1) as deliveries:
            await publisher.publish(event)
            await anext(deliveries)
            async with SqliteInbox(Database(tmp_path / "bloodbank.db"), keep_seconds=DAY) as inbox:
                await inbox.mark("shop", [event.event_id])
        async with consumer.running():
            await publisher.publish(create_envelope("shop.order.placed", {}))
            await eventually(lambda: runs)
    assert runs == [1]
