"""What an event costs in Redis: our layout beside that of version 2."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
from redis.asyncio import Redis

from bench._harness import Options, Row, Sample, main, paired
from bench._version_2 import record as record_version_2
from bloodbank import Settings, new_event_id
from bloodbank.stores.base import Link
from bloodbank.stores.redis import RedisStore
from tests.servers.redis import RedisServer

BATCH = 500
TTL_SECONDS = 30 * 86_400
TYPES = ("fireflies.transcript.ready", "llm.prompt", "llm.response", "artifact.created", "agent.thinking")
SOURCES = ("transcriber", "planner", "coder", "reviewer")


async def measure(options: Options) -> list[Row]:
    """Start one server; each run begins with it empty."""
    server = RedisServer(appendonly="no")
    try:
        await anyio.to_thread.run_sync(server.start)
        contestants = {
            "ours": partial(_cost, server.url, options.count, ours=True),
            "version 2": partial(_cost, server.url, options.count, ours=False),
        }
        rounds = await paired(contestants, options.rounds)
    finally:
        await anyio.to_thread.run_sync(server.close)
    name = f"memory in Redis, one parent an event, {options.count:,} events"
    return [
        rounds.row(name, "ours", "bytes", "bytes/event", versus="version 2", target="value <= 140"),
        rounds.row(f"{name}, version 2's layout", "version 2", "bytes", "bytes/event"),
    ]


async def _cost(url: str, count: int, *, ours: bool) -> Sample:
    async with Redis.from_url(url) as client:
        await client.flushall()
        before = await _used(client)
        await (_record_ours(url, count) if ours else _record_version_2(client, count))
        used = await _used(client) - before
        await client.flushall()
        return {"bytes": used / count}


async def _record_ours(url: str, count: int) -> None:
    settings = Settings(_env_file=None, redis_url=url, correlation_ttl_days=TTL_SECONDS / 86_400)  # pyright: ignore
    async with RedisStore(settings) as store:
        for batch in _batches(count):
            await store.record(batch)


async def _record_version_2(client: Redis, count: int) -> None:
    for batch in _batches(count):
        await record_version_2(client, batch, TTL_SECONDS)


def _batches(count: int) -> Iterator[Sequence[Link]]:
    """Yield events of which each but the first has one parent, among the last 200; the same shape each time."""
    chance = random.Random(1)  # noqa: S311, no secret
    start = datetime.now(UTC)
    ids = [new_event_id() for _ in range(count)]
    links = [
        Link(
            event_id,
            (ids[place - 1 - chance.randrange(min(place, 200))],) if place else (),
            chance.choice(TYPES),
            start + timedelta(milliseconds=place),
            chance.choice(SOURCES),
            start + timedelta(milliseconds=place + chance.randrange(50)),
            chance.randbytes(16),
        )
        for place, event_id in enumerate(ids)
    ]
    for first in range(0, count, BATCH):
        yield links[first : first + BATCH]


async def _used(client: Redis) -> float:
    return float((await client.info("memory"))["used_memory"])


if __name__ == "__main__":
    main(measure, count=200_000, packages=("redis",))
