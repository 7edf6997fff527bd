"""What recording causes on Redis costs a publish: latency and throughput, against the same without."""

from __future__ import annotations

from functools import partial

import anyio
import redis

from bench import _events
from bench._bus import CLASSIC, QUORUM, Broker, Topology, broker, latency, timed
from bench._harness import Options, Row, main, paired
from bench._ours import Ours
from tests.servers.redis import RedisServer

WITH, WITHOUT = "with tracking", "without tracking"


async def measure(options: Options) -> list[Row]:
    """Start both servers and measure on a classic and on a quorum queue."""
    # Written to disk once a second, as most run it; the tests' own setting waits for the disk at each command.
    server = RedisServer(appendfsync="everysec")
    try:
        await anyio.to_thread.run_sync(server.start)
        async with broker() as bus:
            rows = [Row("RabbitMQ", bus.version, "version"), Row("Redis", _version(server), "version")]
            for topology in (CLASSIC, QUORUM):
                await bus.declare(topology)
                rows += await _measure_on(bus, topology, server.url, options)
            return rows
    finally:
        await anyio.to_thread.run_sync(server.close)


async def _measure_on(bus: Broker, topology: Topology, redis_url: str, options: Options) -> list[Row]:
    values = _events.payload()
    clients = {
        WITHOUT: Ours(values, chained=True),
        WITH: Ours(values, chained=True, tracking=True, redis_url=redis_url),
    }
    runs = {name: partial(timed, client, bus, topology, options.count) for name, client in clients.items()}
    rates = await paired(runs, options.rounds)
    for client in clients.values():
        await client.open(bus.url, topology.exchange)
        await latency(client)
    singles = await paired({name: partial(latency, client) for name, client in clients.items()}, options.rounds)
    for client in clients.values():
        await client.close()
    await bus.drain(topology)
    name = f"publish {WITH} on Redis, {topology.name}"
    return [
        rates.row(f"{name}, in flight", WITH, "rate", "events/s", versus=WITHOUT, target="ratio >= 0.8"),
        rates.row(f"{name}, client CPU", WITH, "cpu", "µs/event", versus=WITHOUT),
        singles.row(f"{name}, one by one, p50", WITH, "p50", "ms", versus=WITHOUT, target="ratio <= 1.3"),
    ]


def _version(server: RedisServer) -> str:
    with redis.Redis.from_url(server.url) as client:
        return str(client.info("server")["redis_version"])


if __name__ == "__main__":
    main(measure, count=2000, packages=("redis", "aiormq", "pydantic"))
