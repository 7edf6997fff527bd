"""Publishing on RabbitMQ with confirms: throughput, CPU and latency, against the broker's limit and other clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from pamqp.commands import Basic

from bench import _events
from bench._bus import CLASSIC, QUORUM, SINGLES, USERS, Broker, Topology, broker, latency, timed
from bench._harness import Options, Rounds, Row, main, paired, row_of
from bench._ours import BATCH, Ours, OursInBatches
from bench.peers.amqp import AioPika, Aiormq, FastStream, Kombu
from bench.peers.base import Client
from bench.peers.blaster import Blaster
from tests.servers.proxy import TcpProxy

PACKAGES = ("aiormq", "aio-pika", "faststream", "kombu", "pamqp", "pydantic", "orjson")
REPLY_DELAY_SECONDS = 0.2
CLOSE_SECONDS = 10.0
"""Longest wait for a client's connection to end."""

OURS, BATCHES, LIMIT = "publish", f"publish_many of {BATCH}", "limit"
SLOW = "kombu"
# Floors of the throughput of ours, by topology: (contestant, versus, ratio).
TARGETS: Mapping[str, tuple[tuple[str, str, float], ...]] = {
    "classic": ((OURS, LIMIT, 0.72), (OURS, "aio-pika", 2.1), (OURS, "FastStream", 3), (BATCHES, LIMIT, 0.9)),
    "quorum": ((OURS, "aio-pika", 3.5), (OURS, "FastStream", 5), (BATCHES, "aio-pika", 4)),
    "users": ((OURS, "aio-pika", 3.5), (BATCHES, "aio-pika", 4)),
}


SHARE = 3
"""The classic queue gets all events of a run, since the limit there falls with its length; the others this part."""
SLOW_SHARE = 6
"""kombu, which waits for each confirm, and ours beside it, get this part."""


async def measure(options: Options) -> list[Row]:
    """Run all topologies on one broker."""
    fewer = replace(options, count=options.count // SHARE)
    async with broker() as bus:
        rows = [Row("RabbitMQ", bus.version, "version")]
        for topology in (CLASSIC, QUORUM, USERS):
            await bus.declare(topology)
        rows += await _proofs(bus)
        rows += await _throughput(bus, CLASSIC, options)
        for topology in (QUORUM, USERS):
            rows += await _throughput(bus, topology, fewer)
        rows += await _without_window(bus, replace(options, count=options.count // SLOW_SHARE))
        return rows + await _one_by_one(bus, options)


def clients(body_bytes: int = _events.BODY_BYTES) -> dict[str, Client]:
    """Return all clients, not connected, that publish events of a size."""
    values = _events.payload(body_bytes)
    event = _events.ready_dict(values)
    key = _events.EVENT_TYPE
    return {
        LIMIT: Blaster(_events.build(values).model_dump_json().encode(), _safe_properties(), key),
        OURS: Ours(values),
        BATCHES: OursInBatches(values),
        "aiormq": Aiormq(event, key),
        "aio-pika": AioPika(event, key),
        "FastStream": FastStream(event, key),
        SLOW: Kombu(event, key),
    }


async def _throughput(bus: Broker, topology: Topology, options: Options) -> list[Row]:
    contestants = {
        name: partial(timed, client, bus, topology, options.count) for name, client in clients().items() if name != SLOW
    }
    rounds = await paired(contestants, options.rounds)
    return [*_ratio_rows(rounds, topology), *_rate_rows(rounds, topology), *_cpu_rows(rounds, topology)]


async def _without_window(bus: Broker, options: Options) -> list[Row]:
    chosen = clients()
    rounds = await paired(
        {name: partial(timed, chosen[name], bus, CLASSIC, options.count) for name in (OURS, SLOW)}, options.rounds
    )
    return [
        rounds.row(f"{OURS}, classic, {options.count:,} events", OURS, "rate", "events/s", versus=SLOW),
        rounds.row(f"{SLOW}, classic, {options.count:,} events", SLOW, "rate", "events/s"),
        rounds.row(f"client CPU of {SLOW}, classic", SLOW, "cpu", "µs/event"),
    ]


def _ratio_rows(rounds: Rounds, topology: Topology) -> list[Row]:
    floors = {(ours, versus): f"ratio >= {ratio:g}" for ours, versus, ratio in TARGETS[topology.name]}
    peers = [name for name in rounds.samples if name not in (OURS, BATCHES)]
    return [
        rounds.row(
            f"{ours}, {topology.name}", ours, "rate", "events/s", versus=versus, target=floors.get((ours, versus))
        )
        for ours in (OURS, BATCHES)
        for versus in peers
    ]


def _rate_rows(rounds: Rounds, topology: Topology) -> list[Row]:
    peers = [name for name in rounds.samples if name not in (OURS, BATCHES)]
    return [rounds.row(f"{name}, {topology.name}", name, "rate", "events/s") for name in peers]


def _cpu_rows(rounds: Rounds, topology: Topology) -> list[Row]:
    rows = [
        rounds.row(f"client CPU of {ours}, {topology.name}", ours, "cpu", "µs/event", versus="aio-pika", target=target)
        for ours, target in ((OURS, "ratio <= 0.25"), (BATCHES, None))
    ]
    peers = [name for name in rounds.samples if name not in (OURS, BATCHES)]
    return rows + [rounds.row(f"client CPU of {name}, {topology.name}", name, "cpu", "µs/event") for name in peers]


async def _one_by_one(bus: Broker, options: Options) -> list[Row]:
    """Await each publish before the next, on the classic queue; report the middle one of each round."""
    chosen = {name: client for name, client in clients().items() if name in (OURS, "aio-pika", "aiormq", SLOW)}
    for client in chosen.values():
        await client.open(bus.url, CLASSIC.exchange)
        await client.send(SINGLES // 4)
    contestants = {name: partial(latency, client) for name, client in chosen.items()}
    rounds = await paired(contestants, options.rounds)
    for client in chosen.values():
        await client.close()
    await bus.drain(CLASSIC)
    target = "ratio <= 1.05"
    rows = [rounds.row("publish one by one, p50", OURS, "p50", "ms", versus="aio-pika", target=target)]
    return rows + [rounds.row(f"{name} one by one, p50", name, "p50", "ms") for name in chosen if name != OURS]


async def _proofs(bus: Broker) -> list[Row]:
    """Show for each client that it waits for the confirm: one publish while the broker's replies come late."""
    rows: list[Row] = []
    for name, client in clients().items():
        async with TcpProxy(bus.port) as proxy:
            await client.open(f"amqp://guest:guest@127.0.0.1:{proxy.port}/", CLASSIC.exchange)
            await client.send(1)
            proxy.delay_seconds = REPLY_DELAY_SECONDS
            begun = time.perf_counter()
            await client.send(1)
            waited = time.perf_counter() - begun
            proxy.delay_seconds = 0.0
            await client.close()
            async with asyncio.timeout(CLOSE_SECONDS):
                while proxy.connections:
                    await asyncio.sleep(0.01)
        if waited < REPLY_DELAY_SECONDS:
            raise RuntimeError(f"{name} returned after {waited:.3f} s: it does not wait for the confirm.")
        rows.append(row_of(f"{name} with replies {REPLY_DELAY_SECONDS} s late", [waited], "s"))
    await bus.drain(CLASSIC)
    return rows


def _safe_properties() -> Basic.Properties:
    """Return the properties that Bloodbank sets, so that the limit carries the same bytes."""
    return Basic.Properties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={"bloodbank-version": "2.0.0", "bloodbank-published-ms": 1_700_000_000_000},
        delivery_mode=2,
        message_id=str(uuid4()),
        timestamp=datetime.now(UTC),
        message_type=_events.EVENT_TYPE,
        app_id="bench",
    )


if __name__ == "__main__":
    main(measure, count=12_000, packages=PACKAGES)
