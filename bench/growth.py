"""How cost grows: publishing with the size of the event, questions with the size of the graph.

`python -m bench._page` draws the plot in docs/images/growth.svg from the rows.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import anyio

from bench import _events
from bench._bus import QUORUM, Broker, broker, timed
from bench._harness import Options, Row, Sample, main, paired
from bench.publish import LIMIT, OURS, clients
from bloodbank._sqlite import Database
from bloodbank.config import Settings
from bloodbank.stores.base import CorrelationStore, Direction, Link
from bloodbank.stores.redis import RedisStore
from bloodbank.stores.sqlite import SqliteStore
from tests.servers.redis import RedisServer

BODIES = {200: 1.0, 2_000: 1.0, 20_000: 0.5, 200_000: 0.05}
"""Bytes of the payload, and which share of the events a run is of that size: large ones would fill the disk."""
NODES = (100, 1_000, 10_000, 100_000)
LINKS_A_BATCH = 1000
ASKING_SECONDS = 10.0
"""About how long a graph is asked; where one round takes much of it, there are fewer rounds."""
LONGEST_SECONDS = 60.0
"""Longest wait for one answer."""


async def measure(options: Options) -> list[Row]:
    """Measure bodies on a quorum queue, then graphs on both stores."""
    async with broker() as bus:
        await bus.declare(QUORUM)
        rows = [Row("RabbitMQ", bus.version, "version")]
        for size, share in BODIES.items():
            rows += await _bodies(bus, size, max(50, int(options.count * share)), options.rounds)
    for nodes in NODES:
        rows += await _graphs(nodes, options.rounds)
    return rows


async def _bodies(bus: Broker, size: int, count: int, rounds: int) -> list[Row]:
    of_size = clients(size + _ENVELOPE_BYTES)
    runs = {name: partial(timed, of_size[name], bus, QUORUM, count) for name in (OURS, LIMIT, "aio-pika")}
    done = await paired(runs, rounds)
    name = f"publish, payload of {size:,} B"
    return [
        done.row(name, OURS, "rate", "events/s", versus=LIMIT),
        done.row(f"{LIMIT}, payload of {size:,} B", LIMIT, "rate", "events/s"),
        done.row(f"aio-pika, payload of {size:,} B", "aio-pika", "rate", "events/s"),
    ]


async def _graphs(nodes: int, rounds: int) -> list[Row]:
    links = graph(nodes)
    async with _redis() as redis, _sqlite() as sqlite:
        stores: dict[str, CorrelationStore] = {"Redis": redis, "SQLite": sqlite}
        for store in stores.values():
            for first in range(0, nodes, LINKS_A_BATCH):
                await store.record(links[first : first + LINKS_A_BATCH])
        root = links[0].event_id
        asks = {name: partial(_ask, store, root, nodes) for name, store in stores.items()}
        round_seconds = sum([(await ask())["ms"] for ask in asks.values()]) / 1000
        done = await paired(asks, max(1, min(rounds, int(ASKING_SECONDS / round_seconds))))
    return [done.row(f"graph of {nodes:,} nodes, {name}", name, "ms", "ms") for name in stores]


def graph(nodes: int) -> Sequence[Link]:
    """Return a graph whose every event descends from the first: two parents each, chosen among those before."""
    chance = random.Random(nodes)  # noqa: S311, the same graph each time
    ids = [UUID(int=chance.getrandbits(128), version=4) for _ in range(nodes)]
    begun = datetime.now(UTC)
    links: list[Link] = []
    for place, event_id in enumerate(ids):
        # The first has none, the second one; a set would lose their order.
        parents = tuple(dict.fromkeys(ids[chance.randrange(place)] for _ in range(2 * bool(place))))
        at = begun + timedelta(milliseconds=place)
        links.append(Link(event_id, parents, _events.EVENT_TYPE, at, "bench", at))
    return links


async def _ask(store: CorrelationStore, root: UUID, nodes: int) -> Sample:
    begun = time.perf_counter()
    answer = await store.walk(root, Direction.DESCENDANTS, max_depth=nodes, limit=nodes)
    seconds = time.perf_counter() - begun
    if len(answer.steps) != nodes:
        raise RuntimeError(f"The answer has {len(answer.steps)} of {nodes} events.")
    return {"ms": seconds * 1000}


@asynccontextmanager
async def _redis() -> AsyncIterator[CorrelationStore]:
    server = RedisServer(appendfsync="everysec")
    try:
        await anyio.to_thread.run_sync(server.start)
        settings = Settings(_env_file=None, redis_url=server.url, query_timeout_seconds=LONGEST_SECONDS)
        async with RedisStore(settings) as store:
            yield store
    finally:
        await anyio.to_thread.run_sync(server.close)


@asynccontextmanager
async def _sqlite() -> AsyncIterator[CorrelationStore]:
    with TemporaryDirectory(prefix="bloodbank-bench-") as folder:
        async with SqliteStore(Database(Path(folder) / "graph.db")) as store:
            yield store


_ENVELOPE_BYTES = len(_events.build(_events.payload(0)).model_dump_json()) - len(json.dumps(_events.payload(0)))


if __name__ == "__main__":
    main(measure, count=1000, packages=("aiormq", "redis", "aio-pika"))
