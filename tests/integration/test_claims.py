"""What claims leave behind in Redis and in the SQLite file, and what becomes of them when these go away."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import pytest
from redis.asyncio import Redis

from bloodbank._sqlite import Database
from bloodbank.config import Settings
from bloodbank.errors import StoreFormatError
from bloodbank.ids import new_event_id
from bloodbank.stores._sqlite_claims import EXPIRED_A_WRITE
from bloodbank.stores.base import ClaimState, CorrelationStore, Link
from bloodbank.stores.redis import RedisStore
from bloodbank.stores.sqlite import SqliteStore
from tests.servers.redis import RedisServer

NOW = datetime.now(UTC)
LEASE_SECONDS = 600.0
DEADLINE_SECONDS = 45.0


@pytest.fixture
def prefix() -> str:
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as opened:
        yield opened


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server of this test alone, not started, that forgets everything when it ends."""
    server = RedisServer(appendonly="no")
    yield server
    server.close()


def redis_store(server: RedisServer, prefix: str = "bb") -> RedisStore:
    return RedisStore(Settings(_env_file=None, redis_url=server.url, redis_prefix=prefix))  # pyright: ignore


async def state(store: CorrelationStore, event_id: UUID, owner: bytes, *, seconds: float = LEASE_SECONDS) -> ClaimState:
    [claimed] = await store.claim([(event_id, b"")], owner=owner, lease_seconds=seconds)
    return claimed.state


@pytest.mark.redis
async def test_claims_outlive_a_restart_of_redis_with_what_is_left_of_their_lease(
    redis_server: RedisServer, prefix: str
) -> None:
    event_id = new_event_id()
    async with redis_store(redis_server, prefix) as store:
        assert await state(store, event_id, b"one") is ClaimState.GRANTED
        await anyio.to_thread.run_sync(redis_server.restart)
        [held] = await store.claim([(event_id, b"")], owner=b"other", lease_seconds=LEASE_SECONDS)
        assert held.state is ClaimState.HELD
        assert 0 < held.seconds_left <= LEASE_SECONDS


@pytest.mark.redis
async def test_claims_are_gone_when_redis_comes_back_empty(own_server: RedisServer) -> None:
    await anyio.to_thread.run_sync(own_server.start)
    event_id = new_event_id()
    async with redis_store(own_server) as store:
        assert await state(store, event_id, b"one") is ClaimState.GRANTED
        await anyio.to_thread.run_sync(own_server.kill)
        await anyio.to_thread.run_sync(own_server.start)
        assert await state(store, event_id, b"other") is ClaimState.GRANTED


@pytest.mark.redis
async def test_a_claim_in_redis_is_one_key_that_expires(redis_server: RedisServer, client: Redis, prefix: str) -> None:
    event_id = new_event_id()
    async with redis_store(redis_server, prefix) as store:
        await state(store, event_id, b"one")
        keys = [key async for key in client.scan_iter(match=f"{prefix}:*", count=10_000)]
        assert keys == [f"{prefix}:claim:".encode() + event_id.bytes]
        assert 0 < await client.pttl(keys[0]) <= LEASE_SECONDS * 1000
        await store.release([event_id], owner=b"one")
        assert not await client.exists(*keys)


@pytest.mark.redis
async def test_claims_in_an_index_of_another_format_are_refused(
    redis_server: RedisServer, client: Redis, prefix: str
) -> None:
    async with redis_store(redis_server, prefix) as store:
        await client.set(f"{prefix}:format", "9", ex=60)
        with pytest.raises(StoreFormatError, match="format 9"):
            await state(store, new_event_id(), b"one")
        assert [key async for key in client.scan_iter(match=f"{prefix}:*")] == [f"{prefix}:format".encode()]


@pytest.mark.redis
async def test_a_purge_takes_no_id_for_a_bucket_whatever_its_bytes_are(redis_server: RedisServer, prefix: str) -> None:
    # The bytes of such an id look like the middle of a bucket's name.
    claimed, many_parents, mother = (UUID(bytes=b":e:" + new_event_id().bytes[3:]) for _ in range(3))
    then = NOW - timedelta(days=2)
    links = [Link(new_event_id(), (mother,), "a.b", then, "", then) for _ in range(9)]
    links.append(Link(many_parents, tuple(link.event_id for link in links), "a.b", then, "", then))
    async with redis_store(redis_server, prefix) as store:
        await state(store, claimed, b"one")
        await store.record(links)
        assert await store.purge(before=NOW - timedelta(days=1)) == len(links)
        assert await state(store, claimed, b"other") is ClaimState.HELD


async def test_claims_whose_lease_ended_are_removed_from_the_file_while_others_claim(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    async with SqliteStore(Database(path)) as store:
        many = [(new_event_id(), b"") for _ in range(EXPIRED_A_WRITE + 100)]
        await store.claim(many, owner=b"one", lease_seconds=0.001)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while _rows(path) > 1:
                await state(store, new_event_id(), b"one", seconds=0.001)
        assert _rows(path) == 1, "the last one that was made"


async def test_claims_in_a_file_outlive_who_made_them(tmp_path: Path) -> None:
    path, event_id = tmp_path / "bus.db", new_event_id()
    async with SqliteStore(Database(path)) as store:
        assert await state(store, event_id, b"one") is ClaimState.GRANTED
    async with SqliteStore(Database(path)) as store:
        assert await state(store, event_id, b"other") is ClaimState.HELD


async def test_claims_of_another_format_in_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    async with SqliteStore(Database(path)):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE format SET version = 9 WHERE part = 'claims'")
    connection.close()
    with pytest.raises(StoreFormatError, match="format 9 of the claims"):
        await SqliteStore(Database(path)).__aenter__()


def _rows(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM claim").fetchone()[0])
    finally:
        connection.close()
