"""The Redis store behind Sentinels: the master is killed, frozen, or becomes a replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import anyio
import pytest
from redis import Redis

from bloodbank.config import Settings
from bloodbank.errors import StoreUnavailable
from bloodbank.ids import new_event_id
from bloodbank.stores.base import Direction, Link
from bloodbank.stores.clock import redis_time
from bloodbank.stores.redis import RedisStore
from bloodbank.wiring import describe
from tests.servers.redis import RedisServer
from tests.servers.redis_sentinel import RedisSentinels

pytestmark = [pytest.mark.redis, pytest.mark.timeout(600)]

NOW = datetime.now(UTC)
DEADLINE_SECONDS = 120.0
PATIENT = {"connect_timeout_seconds": 30.0, "query_timeout_seconds": 60.0, "redis_replica_seconds": 30.0}
"""A busy machine is no reason to take a server for dead."""
QUICK = {"connect_timeout_seconds": 5.0, "query_timeout_seconds": 6.0, "redis_replica_seconds": 3.0}
"""For those who try again: a server that is dead or frozen costs this."""


def settings(url: str, prefix: str, **overrides: object) -> Settings:
    return Settings(_env_file=None, redis_url=url, redis_prefix=prefix, **PATIENT | overrides)  # pyright: ignore


def link(event_id: UUID, *parents: UUID) -> Link:
    return Link(event_id, parents, "llm.prompt", NOW, "agent", NOW, b"0123456789abcdef")


@pytest.fixture
def prefix() -> str:
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
async def quick_store(redis_sentinels: RedisSentinels, prefix: str) -> AsyncIterator[RedisStore]:
    async with RedisStore(settings(redis_sentinels.url, prefix, **QUICK)) as opened:
        yield opened


async def in_thread(call: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(call)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


async def sent(store: RedisStore, one: Link, *, seconds: float = 60.0) -> bool:
    """Record without a task where that can be done now; return whether it is known to be recorded."""
    end: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    give_up = store.send([one], end.set_result)
    if give_up is None:
        return False
    await asyncio.wait([end], timeout=seconds)
    if not end.done():
        give_up()
    return await end


class Writer:
    """Records children of one event on both ways, and remembers those that were recorded."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.root = new_event_id()
        self.recorded: list[UUID] = []
        self.failures = 0

    async def write_until(self, is_over: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not is_over():
                await self._write(link(new_event_id(), self.root))

    async def _write(self, one: Link) -> None:
        if not await sent(self._store, one, seconds=QUICK["query_timeout_seconds"]):
            try:
                await self._store.record([one])
            except StoreUnavailable:
                self.failures += 1
                await asyncio.sleep(0.02)
                return
        self.recorded.append(one.event_id)

    async def lost(self, reader: RedisStore) -> set[UUID]:
        """Return what is missing: the event itself, or its edge."""
        limit = 10 * (len(self.recorded) + self.failures)
        graph = await reader.walk(self.root, Direction.DESCENDANTS, max_depth=1, limit=limit)
        return set(self.recorded) - {step.node.event_id for step in graph.steps if step.node.known}


@pytest.mark.parametrize("way", ["killed", "frozen and back"])
async def test_nothing_that_was_recorded_is_lost_when_the_master_is(
    redis_sentinels: RedisSentinels, quick_store: RedisStore, prefix: str, way: str
) -> None:
    writer = Writer(quick_store)
    await writer.write_until(lambda: len(writer.recorded) >= 200)
    master, replica = await anyio.to_thread.run_sync(lambda: (redis_sentinels.master, redis_sentinels.replica))
    await in_thread(redis_sentinels.be_quick)
    await in_thread(master.kill if way == "killed" else master.freeze)
    count = len(writer.recorded)
    # What follows is recorded by the other one, which the store finds by itself.
    await writer.write_until(lambda: len(writer.recorded) >= count + 50)
    await in_thread(redis_sentinels.be_patient)
    if way != "killed":
        await in_thread(master.thaw)
    count = len(writer.recorded)
    await writer.write_until(lambda: len(writer.recorded) >= count + 50)
    async with RedisStore(settings(redis_sentinels.url, prefix)) as reader:
        assert await writer.lost(reader) == set()
    with Redis(port=replica.port) as client:
        assert client.role()[0] == b"master"


async def test_what_no_replica_has_is_not_recorded_also_the_second_time(
    redis_sentinels: RedisSentinels, prefix: str
) -> None:
    event = link(new_event_id())
    replica = await anyio.to_thread.run_sync(lambda: redis_sentinels.replica)
    async with RedisStore(settings(redis_sentinels.url, prefix, redis_replica_seconds=0.05)) as store:
        await in_thread(replica.freeze)
        with pytest.raises(StoreUnavailable, match="BLOODBANK_REDIS_REPLICAS"):
            await store.record([event])
        with pytest.raises(StoreUnavailable, match="BLOODBANK_REDIS_REPLICAS"):
            await store.record([event])
        async with RedisStore(settings(redis_sentinels.url, prefix, redis_replicas=0)) as other:
            await other.record([event])
            assert await sent(other, event)
    await in_thread(replica.thaw)
    async with RedisStore(settings(redis_sentinels.url, prefix)) as store:
        await _recorded_at_last(store, event)


async def test_a_master_without_its_replica_takes_events_once_the_sentinels_gave_the_replica_up(
    redis_sentinels: RedisSentinels, prefix: str
) -> None:
    replica = await anyio.to_thread.run_sync(lambda: redis_sentinels.replica)
    async with RedisStore(settings(redis_sentinels.url, prefix, redis_replica_seconds=0.05)) as store:
        await in_thread(redis_sentinels.be_quick)
        await in_thread(replica.kill)

        async def is_taken_on_both_ways() -> bool:
            # It is not believed for long that there is no replica.
            await _recorded_at_last(store, link(new_event_id()))
            return await sent(store, link(new_event_id()))

        await until(is_taken_on_both_ways)


async def test_sentinels_that_are_frozen_keep_nobody_from_the_others(
    redis_sentinels: RedisSentinels, prefix: str
) -> None:
    for sentinel in redis_sentinels.sentinels[:2]:
        await in_thread(sentinel.freeze)
    async with RedisStore(settings(redis_sentinels.url, prefix)) as store:
        await store.record([link(new_event_id())])


async def test_a_name_that_no_sentinel_knows_is_told(redis_sentinels: RedisSentinels, prefix: str) -> None:
    url = f"{redis_sentinels.url}-of-somebody-else"
    with pytest.raises(StoreUnavailable, match=r"'bloodbank-of-somebody-else'.*does not know the name"):
        await RedisStore(settings(url, prefix)).__aenter__()


async def test_a_connection_to_a_master_that_became_a_replica_is_given_up(
    redis_server: RedisServer, prefix: str
) -> None:
    async with RedisStore(settings(redis_server.url, prefix)) as store:
        await store.record([link(new_event_id())])
        with Redis(port=redis_server.port) as client:
            before = {one["id"] for one in client.client_list() if one["cmd"] == "evalsha"}
            client.execute_command("REPLICAOF", "127.0.0.1", redis_server.port)
            try:
                with pytest.raises(StoreUnavailable, match="is a replica"):
                    await store.record([link(new_event_id())])

                async def is_closed() -> bool:
                    return not before & {one["id"] for one in client.client_list()}

                await until(is_closed)
            finally:
                client.execute_command("REPLICAOF", "NO", "ONE")
        await store.record([link(new_event_id())])


async def _recorded_at_last(store: RedisStore, one: Link) -> None:
    async def is_recorded() -> bool:
        try:
            await store.record([one])
        except StoreUnavailable:
            return False
        return True

    await until(is_recorded)


async def test_the_clock_and_the_name_are_told(redis_sentinels: RedisSentinels) -> None:
    assert abs((await redis_time(redis_sentinels.url, 60.0) - datetime.now(UTC)).total_seconds()) < DEADLINE_SECONDS
    given = Settings(_env_file=None, redis_url=redis_sentinels.url.replace("://", "://:s3cret@"))  # pyright: ignore
    assert describe(given, tracking=True)["store"] == f"Redis behind Sentinels at {redis_sentinels.url}"
