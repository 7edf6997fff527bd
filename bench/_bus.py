"""The broker that the publishing benchmarks share: a private RabbitMQ, and what hangs behind the exchange."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import aiormq
import anyio

from bench._harness import Sample, measured, rate
from bench.peers.base import WINDOW, Client
from tests.servers.rabbit import RabbitServer

SINGLES = 200
"""Publishes a round that are awaited one by one."""
LOG_BYTES = 200_000_000
"""How much the stream keeps, so that long runs fill no disk."""


@dataclass(frozen=True, slots=True)
class Topology:
    """An exchange, and the queues bound to it with `#`.

    Bloodbank uses a log queue that is there already as it is; so in a topology of one queue that queue takes the
    log's name, and every client publishes to the same exchange with the same one queue behind it.
    """

    name: str
    queues: Mapping[str, Mapping[str, Any]]

    @property
    def exchange(self) -> str:
        """Name of the exchange; queue names begin with the part before its first dot."""
        return f"{self.name}.events.v1"


CLASSIC = Topology("classic", {"log": {"x-queue-type": "classic"}})
QUORUM = Topology("quorum", {"log": {"x-queue-type": "quorum"}})
USERS = Topology(
    "users",
    {
        "log": {
            "x-queue-type": "stream",
            "x-max-length-bytes": LOG_BYTES,
            "x-stream-max-segment-size-bytes": LOG_BYTES // 4,
        },
        "work": {"x-queue-type": "quorum"},
    },
)
"""What users run: the log stream beside the quorum queue of one consumer group."""


class Broker:
    """A running RabbitMQ and a connection to arrange things on it. version: as it says itself."""

    def __init__(self, server: RabbitServer, connection: aiormq.abc.AbstractConnection) -> None:
        self.port = server.port
        self.url = server.url
        self._connection = connection
        self.version = str(connection.server_properties.get("version", "unknown"))

    async def declare(self, topology: Topology) -> None:
        """Declare the exchange and its queues."""
        channel = await self._connection.channel()
        await channel.exchange_declare(topology.exchange, exchange_type="topic", durable=True)
        for queue, arguments in topology.queues.items():
            name = f"{topology.name}.{queue}"
            await channel.queue_declare(name, durable=True, arguments=dict(arguments))
            await channel.queue_bind(name, topology.exchange, "#")
        await channel.close()

    async def drain(self, topology: Topology) -> int:
        """Empty the queues, so that each run begins with the same; return how many messages there were.

        Streams cannot be emptied; theirs are bounded by size.
        """
        removed = 0
        for queue, arguments in topology.queues.items():
            if arguments.get("x-queue-type") != "stream":
                removed += await self.purge(f"{topology.name}.{queue}")
        return removed

    async def purge(self, queue: str) -> int:
        """Empty a queue; return how many messages waited there for a consumer."""
        channel = await self._connection.channel()
        try:
            return (await channel.queue_purge(queue)).message_count or 0
        finally:
            await channel.close()


@asynccontextmanager
async def broker() -> AsyncIterator[Broker]:
    """Start a private RabbitMQ; it ends with the block."""
    server = RabbitServer()
    try:
        await anyio.to_thread.run_sync(server.start)
        connection = await aiormq.connect(server.url)
        try:
            yield Broker(server, connection)
        finally:
            await connection.close()
    finally:
        await anyio.to_thread.run_sync(server.close)


async def timed(client: Client, bus: Broker, topology: Topology, count: int) -> Sample:
    """Connect, warm up, empty the queues, and time `count` events; the queue must hold them all then."""
    await client.open(bus.url, topology.exchange)
    try:
        await client.send(min(WINDOW // 2, count))
        await bus.drain(topology)
        with measured() as watch:
            await client.send(count)
        stored = await bus.drain(topology)
        if stored != count:
            raise RuntimeError(f"{count} events were confirmed, and the queue had {stored}.")
    finally:
        await client.close()
    return rate(watch, count)


async def latency(client: Client) -> Sample:
    """Publish SINGLES events, each awaited before the next; return the middle one's milliseconds."""
    seconds: list[float] = []
    for _ in range(SINGLES):
        begun = time.perf_counter()
        await client.send(1)
        seconds.append(time.perf_counter() - begun)
    return {"p50": median(seconds) * 1000}
