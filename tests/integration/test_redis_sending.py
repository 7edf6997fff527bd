"""Recording on Redis without a task: what comes back late, in pieces, wrong, or not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from uuid import uuid4

import anyio
import pytest
from redis.asyncio import Redis

from bloodbank import CorrelationTracker, Lineage
from bloodbank.breaker import BreakerState, CircuitBreaker
from bloodbank.config import Settings
from bloodbank.errors import StoreUnavailable
from bloodbank.ids import new_event_id
from bloodbank.stores._redis_calls import LINKS_PER_SCRIPT
from bloodbank.stores.base import Direction, Sender
from bloodbank.stores.redis import RedisStore
from tests.integration.test_redis import link, new_ids, settings
from tests.servers.proxy import TcpProxy
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.redis


@pytest.fixture
def prefix() -> str:
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A running server of this test alone, that forgets everything when it ends."""
    server = RedisServer(appendonly="no")
    server.start()
    yield server
    server.close()


def through(proxy: TcpProxy, prefix: str) -> Settings:
    return settings(f"redis://127.0.0.1:{proxy.port}/0", prefix)


def tracker_on(store: RedisStore, *, timeout_seconds: float = 1.0, reset_seconds: float = 60.0) -> CorrelationTracker:
    breaker = CircuitBreaker(failure_threshold=3, reset_seconds=reset_seconds)
    return CorrelationTracker(store, timeout_seconds=timeout_seconds, breaker=breaker)


async def test_the_redis_store_sends_once_it_is_connected(redis_server: RedisServer, prefix: str) -> None:
    event_id = new_event_id()
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    async with RedisStore(settings(redis_server.url, prefix)) as store:
        assert isinstance(store, Sender)
        assert store.send([link(event_id)], ended.set_result) is None, "nothing is connected yet that records"
        await store.record([link(new_event_id())])
        assert store.send([link(event_id)], ended.set_result) is not None
        assert store.send([link(new_event_id())], lambda _: None) is None, "one at a time"
        await store.record([link(new_event_id())])
        assert await ended
        assert set(await store.nodes([event_id])) == {event_id}


async def test_what_comes_one_by_one_and_what_comes_together_is_all_recorded(
    redis_server: RedisServer, prefix: str
) -> None:
    store = RedisStore(settings(redis_server.url, prefix))
    root, *alone = new_ids(20)
    together = new_ids(5 * LINKS_PER_SCRIPT + 3)
    async with tracker_on(store) as tracker:
        for event_id in alone:
            assert await tracker.record(link(event_id, [root])) is Lineage.RECORDED
        answers = await asyncio.gather(*(tracker.record(link(event_id, [root])) for event_id in together))
        assert set(answers) == {Lineage.RECORDED}
        assert (await tracker.nodes([root]))[root].children_total == len(alone) + len(together)


async def test_a_connection_lost_between_write_and_answer_is_made_again(redis_server: RedisServer, prefix: str) -> None:
    parent, child = new_ids(2)
    async with TcpProxy(redis_server.port) as proxy, tracker_on(RedisStore(through(proxy, prefix))) as tracker:
        assert await tracker.record(link(parent)) is Lineage.RECORDED
        proxy.stall(replies_only=True)
        answer = tracker.enqueue(link(child, [parent]))
        await asyncio.sleep(0.05)
        assert not answer.done()
        proxy.resume()
        proxy.cut()
        assert await answer is Lineage.RECORDED
        assert (await tracker.nodes([parent]))[parent].children_total == 1, "recorded once, though it was sent twice"


async def test_a_server_killed_between_write_and_answer_defers_at_once(own_server: RedisServer, prefix: str) -> None:
    async with (
        TcpProxy(own_server.port) as proxy,
        tracker_on(RedisStore(through(proxy, prefix)), timeout_seconds=5) as tracker,
    ):
        assert await tracker.record(link(new_event_id())) is Lineage.RECORDED
        proxy.stall(replies_only=True)
        answer = tracker.enqueue(link(new_event_id()))
        await asyncio.sleep(0.05)
        await anyio.to_thread.run_sync(own_server.kill)
        assert not answer.done()
        began = time.monotonic()
        proxy.cut()
        assert await answer is Lineage.DEFERRED
        assert time.monotonic() - began < 1


async def test_a_server_that_restarted_empty_gets_the_script_again(own_server: RedisServer) -> None:
    before, after = new_ids(2)
    async with tracker_on(RedisStore(settings(own_server.url))) as tracker, Redis.from_url(own_server.url) as client:
        assert await tracker.record(link(before)) is Lineage.RECORDED
        await client.script_flush()
        assert await tracker.record(link(after)) is Lineage.RECORDED
        await anyio.to_thread.run_sync(own_server.restart)
        assert await tracker.record(link(before)) is Lineage.RECORDED
        assert set(await tracker.nodes([before, after])) == {before}


async def test_a_frozen_server_costs_one_bounded_wait_and_is_found_again(
    redis_server: RedisServer, prefix: str
) -> None:
    store = RedisStore(settings(redis_server.url, prefix))
    async with tracker_on(store, timeout_seconds=0.3, reset_seconds=0.05) as tracker:
        assert await tracker.record(link(new_event_id())) is Lineage.RECORDED
        redis_server.freeze()
        began = time.monotonic()
        first = tracker.enqueue(link(new_event_id()))
        await asyncio.sleep(0.1)
        behind = tracker.enqueue(link(new_event_id()))
        assert [await first, await behind] == [Lineage.DEFERRED] * 2
        assert 0.25 < time.monotonic() - began < 1
        assert tracker.breaker_state is not BreakerState.CLOSED
        assert tracker.enqueue(link(new_event_id())).done(), "deferred at once"
        redis_server.thaw()
        with anyio.fail_after(5):
            while await tracker.record(link(new_event_id())) is not Lineage.RECORDED:
                await asyncio.sleep(0.01)


async def test_an_error_in_the_answer_is_logged_and_defers(
    redis_server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with tracker_on(RedisStore(settings(redis_server.url, prefix))) as tracker:
        assert await tracker.record(link(new_event_id())) is Lineage.RECORDED
        async with Redis.from_url(redis_server.url) as client:
            await client.delete(f"{prefix}:generations")
            await client.rpush(f"{prefix}:generations", "a list of somebody else")
        assert await tracker.record(link(new_event_id())) is Lineage.DEFERRED
    assert "something else under the keys of the index" in caplog.text


async def test_another_format_in_the_answer_is_logged_and_defers(
    redis_server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with tracker_on(RedisStore(settings(redis_server.url, prefix))) as tracker:
        assert await tracker.record(link(new_event_id())) is Lineage.RECORDED
        async with Redis.from_url(redis_server.url) as client:
            await client.set(f"{prefix}:format", "9", ex=60)
        assert await tracker.record(link(new_event_id())) is Lineage.DEFERRED
    assert "has format 9" in caplog.text


async def test_answers_in_many_pieces_are_put_together(redis_server: RedisServer, prefix: str) -> None:
    root, *children = new_ids(2 * LINKS_PER_SCRIPT)
    async with TcpProxy(redis_server.port) as proxy, RedisStore(through(proxy, prefix)) as store:
        await store.record([link(child, [root]) for child in children])
        whole = await store.walk(root, Direction.DESCENDANTS, max_depth=9, limit=999)
        proxy.chunk_bytes, proxy.delay_seconds = 3, 0.001
        await store.record([link(child, [root]) for child in children])
        proxy.chunk_bytes = 1000
        assert await store.walk(root, Direction.DESCENDANTS, max_depth=9, limit=999) == whole
        assert len(whole.ids) == 2 * LINKS_PER_SCRIPT


async def test_a_password_and_a_database_number_hold_for_what_records(own_server: RedisServer) -> None:
    async with Redis.from_url(own_server.url) as client:
        await client.config_set("requirepass", "s3cret-pass")
    url = f"redis://:s3cret-pass@127.0.0.1:{own_server.port}/3"
    async with tracker_on(RedisStore(settings(url))) as tracker, Redis.from_url(url) as client:
        for event_id in new_ids(3):
            assert await tracker.record(link(event_id)) is Lineage.RECORDED
        await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await tracker.record(link(new_event_id())) is Lineage.RECORDED, "also when it is opened again"
        assert await client.dbsize() > 0
        assert set(await client.info("keyspace")) == {"db3"}


async def test_closing_while_a_batch_is_on_its_way_takes_one_bounded_wait(
    redis_server: RedisServer, prefix: str
) -> None:
    tracker = tracker_on(RedisStore(settings(redis_server.url, prefix)), timeout_seconds=0.3)
    async with tracker:
        assert await tracker.record(link(new_event_id())) is Lineage.RECORDED
        redis_server.freeze()
        answers = [tracker.enqueue(link(event_id)) for event_id in new_ids(3)]
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert [await answer for answer in answers] == [Lineage.DEFERRED] * 3
    assert tracker.deferred_total == 3


async def test_closing_records_what_waits(redis_server: RedisServer, prefix: str) -> None:
    ids = new_ids(700)
    async with tracker_on(RedisStore(settings(redis_server.url, prefix))) as tracker:
        await tracker.record(link(ids[0]))
        answers = [tracker.enqueue(link(event_id)) for event_id in ids]
    assert {await answer for answer in answers} == {Lineage.RECORDED}


async def test_who_stops_waiting_disturbs_nobody(redis_server: RedisServer, prefix: str) -> None:
    cancelled, other, last = new_ids(3)
    async with tracker_on(RedisStore(settings(redis_server.url, prefix))) as tracker:
        await tracker.record(link(new_event_id()))
        task = asyncio.create_task(tracker.record(link(cancelled)))
        answer = asyncio.create_task(tracker.record(link(other)))
        await asyncio.sleep(0)
        task.cancel()
        assert await answer is Lineage.RECORDED
        assert await tracker.record(link(last)) is Lineage.RECORDED
        assert set(await tracker.nodes([cancelled, other, last])) == {cancelled, other, last}


async def test_a_server_that_speaks_something_else_meanwhile_is_told_as_such(prefix: str) -> None:
    greeted = b"+OK\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(b"HTTP/1.1 400\r\n" if b"EVALSHA" in data else b"$-1\r\n" if b"GET" in data else greeted)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
        async with RedisStore(settings(url, prefix)) as store:
            with pytest.raises(StoreUnavailable, match="no answer as RESP has it"):
                await store.record([link(new_event_id())])
