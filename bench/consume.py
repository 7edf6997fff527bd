"""Consuming from RabbitMQ: each event acknowledged after a handler that does nothing, against other clients.

The `Consumer` is measured as its users run it: the envelope decoded, its payload checked against its model, the event
made the current cause, a semaphore for its concurrency, an ack after success; with the inbox in Redis, which is asked
before the handler runs and told before the ack, and without. The peers parse the JSON and acknowledge.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol
from uuid import uuid4

import anyio
import redis.asyncio as redis

from bench import _events
from bench._bus import Broker, broker
from bench._harness import Options, Row, Sample, main, measured, paired, rate
from bench.peers.consumers import AioPikaConsumer, FastStreamConsumer
from bloodbank import Consumer, EventEnvelope, Settings, codec
from bloodbank.transports.base import Receipt
from bloodbank.transports.rabbit import RabbitTransport
from tests.servers.redis import RedisServer

PACKAGES = ("aiormq", "aio-pika", "faststream", "pamqp", "pydantic", "orjson", "redis")
PREFETCH = 500
BATCH = 500
EXCHANGE, GROUP, QUEUE = "consume.events.v1", "work", "consume.work"
FILL_SECONDS = 30.0
"""Longest wait for the confirms of a batch."""

SUBSCRIBE, ONCE, EACH = "subscribe", "Consumer, inbox in Redis", "Consumer, once=False"
OURS = (ONCE, EACH, SUBSCRIBE)
TARGETS = {"FastStream": "ratio >= 1.6", "aio-pika": "ratio >= 1"}


class Contestant(Protocol):
    """Consumes from a queue that is there."""

    async def consume(self, url: str, queue: str, count: int, prefetch: int) -> None:
        """Connect, consume that many events, each acknowledged, and disconnect."""
        ...


class Subscribing:
    """The transport's subscription; the envelope is read and validated."""

    async def consume(self, url: str, queue: str, count: int, prefetch: int) -> None:
        """Consume that many events; see `Contestant`."""
        async with (
            _transport(url) as transport,
            transport.subscribe("#", group=GROUP, prefetch=prefetch) as deliveries,
        ):
            left = count
            async for delivery in deliveries:
                codec.decode(delivery.message.body)
                await delivery.ack()
                left -= 1
                if not left:
                    return


class Handling:
    """The whole Consumer with a handler that does nothing. once: whether the inbox keeps it from handling twice."""

    def __init__(self, folder: Path, store: str, *, once: bool) -> None:
        self._folder = folder
        self._store = store
        self._once = once

    async def consume(self, url: str, queue: str, count: int, prefetch: int) -> None:
        """Consume that many events; see `Contestant`. Raises RuntimeError when the inbox did not note each."""
        prefix, done, left = uuid4().hex, asyncio.Event(), count
        settings = Settings(
            _env_file=None,
            rabbit_url=url,
            exchange_name=EXCHANGE,
            redis_url=self._store,
            redis_prefix=prefix,
            data_dir=self._folder,
        )
        consumer = Consumer(GROUP, settings)

        @consumer.on("#", prefetch=prefetch, once=self._once)
        async def handle(event: EventEnvelope) -> None:  # type: ignore[type-arg]
            nonlocal left
            left -= 1
            if not left:
                done.set()

        async with consumer.running():
            await done.wait()
        async with redis.from_url(self._store) as client:
            noted = sum([1 async for _ in client.scan_iter(f"{prefix}:inbox:*", count=1000)])
        if bool(noted) != self._once or noted < count * self._once:
            raise RuntimeError(f"{count} events were handled, and the inbox has {noted} of them.")


async def measure(options: Options) -> list[Row]:
    """Run all contestants on one broker and one quorum queue, which holds the same events for each."""
    store = RedisServer(appendfsync="everysec")
    with TemporaryDirectory(prefix="bloodbank-bench-") as folder:
        try:
            await anyio.to_thread.run_sync(store.start)
            async with broker() as bus:
                contestants: dict[str, Contestant] = {
                    ONCE: Handling(Path(folder), store.url, once=True),
                    EACH: Handling(Path(folder), store.url, once=False),
                    SUBSCRIBE: Subscribing(),
                    "aio-pika": AioPikaConsumer(),
                    "FastStream": FastStreamConsumer(),
                }
                rows = await _compare(contestants, bus, options)
            async with redis.from_url(store.url) as client:
                server = await client.info("server")
            return [Row("RabbitMQ", bus.version, "version"), Row("Redis", server["redis_version"], "version"), *rows]
        finally:
            await anyio.to_thread.run_sync(store.close)


async def _compare(contestants: dict[str, Contestant], bus: Broker, options: Options) -> list[Row]:
    async with _transport(bus.url) as transport, transport.subscribe("#", group=GROUP, prefetch=1):
        pass
    timed = {name: partial(_timed, one, bus, options.count) for name, one in contestants.items()}
    rounds = await paired(timed, options.rounds)
    rows = [
        rounds.row(f"consume by {name}, prefetch {PREFETCH}", name, "rate", "events/s", versus=peer, target=target)
        for name in OURS
        for peer, target in TARGETS.items()
    ]
    rows += [rounds.row(f"consume by {peer}", peer, "rate", "events/s") for peer in TARGETS]
    return rows + [rounds.row(f"client CPU of {name}, consuming", name, "cpu", "µs/event") for name in contestants]


async def _timed(consumer: Contestant, bus: Broker, count: int) -> Sample:
    """Fill the queue and time how long it takes to empty it.

    What the broker had not done with the last acks when the channel closed lies in the queue again, and at most the
    prefetch of it: RabbitMQ 3.10 holds acks of a quorum queue back that come faster than it writes them.
    """
    await bus.purge(QUEUE)
    await _fill(bus.url, count)
    with measured() as watch:
        await consumer.consume(bus.url, QUEUE, count, PREFETCH)
    if (left := await bus.purge(QUEUE)) > PREFETCH:
        raise RuntimeError(f"{type(consumer).__name__} consumed {count} events and left {left} behind.")
    return rate(watch, count)


async def _fill(url: str, count: int) -> None:
    values = _events.payload()
    async with _transport(url) as transport:
        for at in range(0, count, BATCH):
            messages = [codec.encode(_events.build(values)) for _ in range(min(BATCH, count - at))]
            for outcome in await transport.publish_many(messages, timeout_seconds=FILL_SECONDS):
                if not isinstance(outcome, Receipt):
                    raise outcome


def _transport(url: str) -> RabbitTransport:
    return RabbitTransport(Settings(_env_file=None, rabbit_url=url, exchange_name=EXCHANGE))


if __name__ == "__main__":
    main(measure, count=12_000, packages=PACKAGES)
