"""What outages cost: accepting while the broker is away, forwarding when it is back, publishing while Redis hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import redis

from bench import _events
from bench._harness import Options, Row, in_flight, main, measured, row_of
from bench.peers.base import WINDOW
from bloodbank import Lineage, Publisher, Settings, Status
from bloodbank.breaker import BreakerState
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

CALLERS = 100
"""Publishes that wait at a time while Redis hangs."""
PUBLISH_TIMEOUT_SECONDS = 2.0
DEADLINE_SECONDS = 60.0


async def measure(options: Options) -> list[Row]:
    """Start both servers, and let one of them hang at a time."""
    store, broker = RedisServer(appendfsync="everysec"), RabbitServer()
    with TemporaryDirectory(prefix="bloodbank-bench-") as folder:
        try:
            await anyio.to_thread.run_sync(store.start)
            await anyio.to_thread.run_sync(broker.start)
            settings = Settings(
                _env_file=None,
                rabbit_url=broker.url,
                redis_url=store.url,
                data_dir=Path(folder),
                publish_timeout_seconds=PUBLISH_TIMEOUT_SECONDS,
                breaker_reset_seconds=60.0,
            )
            async with Publisher(settings, enable_correlation_tracking=True) as publisher:
                load = _Load(publisher)
                await load.publish(options.count)
                rows = [Row("Redis", _version(store), "version")]
                rows += await _broker_hangs(load, broker, options)
            rows += await _redis_hangs(settings, store, options)
            return rows
        finally:
            await anyio.to_thread.run_sync(store.close)
            await anyio.to_thread.run_sync(broker.close)


class _Load:
    """Publishes chained events from many tasks, and keeps how long each waited and what it was answered."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.statuses: set[Status] = set()
        self.lineages: set[Lineage] = set()
        self.waits: list[float] = []
        self._values: dict[str, Any] = _events.payload()
        self._parents: tuple[Any, ...] = ()

    async def publish(self, count: int, *, limit: int = WINDOW) -> None:
        """Publish so many, `limit` at a time."""
        self.statuses, self.lineages, self.waits = set(), set(), []
        await in_flight(self._publish_one, count, limit=limit)

    async def _publish_one(self) -> None:
        event = _events.build(self._values, self._parents)
        self._parents = (event.event_id,)
        begun = time.perf_counter()
        result = await self.publisher.publish(event)
        self.waits.append(time.perf_counter() - begun)
        self.statuses.add(result.status)
        self.lineages.add(result.lineage)


async def _broker_hangs(load: _Load, broker: RabbitServer, options: Options) -> list[Row]:
    normal: list[float] = []
    accepted: list[float] = []
    forwarded: list[float] = []
    for _ in range(options.rounds):
        with measured() as watch:
            await load.publish(options.count)
        _require(load.statuses, [Status.PUBLISHED])
        normal.append(options.count / watch.seconds)
        broker.freeze()
        try:
            await load.publish(1)  # the one that waits
            with measured() as watch:
                await load.publish(options.count)
            _require(load.statuses, [Status.QUEUED])
            accepted.append(options.count / watch.seconds)
        finally:
            broker.thaw()
        with measured() as watch:
            await _emptied(load.publisher)
        forwarded.append(options.count / watch.seconds)
        await _recovered(load)
    ratios = [ours / theirs for ours, theirs in zip(forwarded, normal, strict=True)]
    return [
        row_of("broker away: accepted by the outbox", accepted, "events/s", target="value >= 5000"),
        row_of(
            "broker back: forwarded from the outbox",
            forwarded,
            "events/s",
            versus="publishing",
            ratios=ratios,
            target="ratio >= 0.5",
        ),
    ]


async def _redis_hangs(settings: Settings, store: RedisServer, options: Options) -> list[Row]:
    before: list[float] = []
    after: list[float] = []
    longest: list[float] = []
    for _ in range(options.rounds):
        # A publisher each round: its breaker begins closed, and stays open while it is measured.
        async with Publisher(settings, enable_correlation_tracking=True) as publisher:
            load = _Load(publisher)
            await load.publish(options.count // 2, limit=CALLERS)
            _require(load.lineages, [Lineage.RECORDED])
            before.append(_p99(load.waits))
            store.freeze()
            try:
                await load.publish(5 * CALLERS, limit=CALLERS)
                longest.append(max(load.waits))
                if publisher.tracker.breaker_state is not BreakerState.OPEN:
                    raise RuntimeError("Redis hung, and the breaker did not open.")
                await load.publish(options.count // 2, limit=CALLERS)
                _require(load.lineages, [Lineage.DEFERRED])
                after.append(_p99(load.waits))
            finally:
                store.thaw()
    ratios = [ours / theirs for ours, theirs in zip(after, before, strict=True)]
    return [
        row_of("Redis hangs: longest publish", longest, "s", target="value <= 1.0"),
        row_of(
            "Redis hangs: p99, breaker open",
            [1000 * seconds for seconds in after],
            "ms",
            versus="before",
            ratios=ratios,
            target="ratio <= 1.2",
        ),
    ]


async def _emptied(publisher: Publisher) -> None:
    assert publisher.outbox is not None
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await publisher.outbox.has_due():
            await asyncio.sleep(0.02)


async def _recovered(load: _Load) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while load.statuses != {Status.PUBLISHED}:
            await load.publish(1)
            await asyncio.sleep(0.02)


def _require(found: Iterable[object], expected: Sequence[object]) -> None:
    if set(found) != set(expected):
        raise RuntimeError(f"Events were {sorted(map(str, found))} where {expected[0]} was to be measured.")


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) * 99 // 100]


def _version(server: RedisServer) -> str:
    with redis.Redis.from_url(server.url) as client:
        return str(client.info("server")["redis_version"])


if __name__ == "__main__":
    main(measure, count=10_000, packages=("redis", "aiormq"))
