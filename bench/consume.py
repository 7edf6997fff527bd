"""Consuming from RabbitMQ: each event acknowledged after a handler that does nothing, against other clients."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Protocol

from bench import _events
from bench._bus import Broker, broker
from bench._harness import Options, Row, Sample, main, measured, paired, rate
from bench.peers.consumers import AioPikaConsumer, FastStreamConsumer
from bloodbank import Settings, codec
from bloodbank.transports.base import Receipt
from bloodbank.transports.rabbit import RabbitTransport

PACKAGES = ("aiormq", "aio-pika", "faststream", "pamqp", "pydantic", "orjson")
PREFETCH = 500
BATCH = 500
EXCHANGE, GROUP, QUEUE = "consume.events.v1", "work", "consume.work"
SETTLE_SECONDS = 30.0
"""Longest wait until the broker has counted what was acknowledged."""

OURS = "subscribe"
TARGETS = {"FastStream": "ratio >= 1.6", "aio-pika": "ratio >= 1"}


class Consumer(Protocol):
    """Consumes from a queue that is there."""

    async def consume(self, url: str, queue: str, count: int, prefetch: int) -> None:
        """Connect, consume that many events, each acknowledged, and disconnect."""
        ...


class Ours:
    """The transport's subscription; the envelope is read and validated."""

    async def consume(self, url: str, queue: str, count: int, prefetch: int) -> None:
        """Consume that many events; see `Consumer`."""
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


async def measure(options: Options) -> list[Row]:
    """Run all contestants on one broker and one quorum queue, which holds the same events for each."""
    consumers: dict[str, Consumer] = {
        OURS: Ours(),
        "aio-pika": AioPikaConsumer(),
        "FastStream": FastStreamConsumer(),
    }
    async with broker() as bus:
        async with _transport(bus.url) as transport, transport.subscribe("#", group=GROUP, prefetch=1):
            pass
        contestants = {name: partial(_timed, one, bus, options.count) for name, one in consumers.items()}
        rounds = await paired(contestants, options.rounds)
        rows = [Row("RabbitMQ", bus.version, "version")]
        for peer in ("FastStream", "aio-pika"):
            name = f"consume by {OURS}, prefetch {PREFETCH}"
            rows.append(rounds.row(name, OURS, "rate", "events/s", versus=peer, target=TARGETS[peer]))
        rows += [rounds.row(f"consume by {name}", name, "rate", "events/s") for name in consumers if name != OURS]
        return rows + [rounds.row(f"client CPU of {name}, consuming", name, "cpu", "µs/event") for name in consumers]


async def _timed(consumer: Consumer, bus: Broker, count: int) -> Sample:
    """Fill the queue and time how long it takes to empty it; nothing may be left there, acknowledged or not."""
    await _fill(bus.url, count)
    with measured() as watch:
        await consumer.consume(bus.url, QUEUE, count, PREFETCH)
    async with asyncio.timeout(SETTLE_SECONDS):
        while await bus.left_in(QUEUE):
            await asyncio.sleep(0.05)
    return rate(watch, count)


async def _fill(url: str, count: int) -> None:
    values = _events.payload()
    async with _transport(url) as transport:
        for at in range(0, count, BATCH):
            messages = [codec.encode(_events.build(values)) for _ in range(min(BATCH, count - at))]
            for outcome in await transport.publish_many(messages, timeout_seconds=SETTLE_SECONDS):
                if not isinstance(outcome, Receipt):
                    raise outcome


def _transport(url: str) -> RabbitTransport:
    return RabbitTransport(Settings(_env_file=None, rabbit_url=url, exchange_name=EXCHANGE))


if __name__ == "__main__":
    main(measure, count=12_000, packages=PACKAGES)
