"""How fast causes are asked: a deep chain and a whole graph, on Redis and on SQLite, against hop by hop."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import anyio
from redis.asyncio import Redis

from bench._harness import Options, Row, Sample, main, measured, paired, row_of
from bench._version_2 import ancestors_of_a_chain
from bench._version_2 import record as record_version_2
from bloodbank import Direction, Graph, Settings, new_event_id
from bloodbank._sqlite import Database
from bloodbank.stores.base import CorrelationStore, Link
from bloodbank.stores.redis import RedisStore
from bloodbank.stores.sqlite import SqliteStore
from tests.servers.redis import RedisServer

CHAIN = 1000
BATCH = 500
EVERYTHING = 100_000
TTL_SECONDS = 86_400
WINDOW = 200
"""A parent is one of so many events before."""


async def measure(options: Options) -> list[Row]:
    """Write the same chain and graph to every store, then ask them in turn."""
    server = RedisServer(appendonly="no")
    try:
        await anyio.to_thread.run_sync(server.start)
        with TemporaryDirectory(prefix="bloodbank-bench-") as folder:
            async with AsyncExitStack() as stack:
                settings = Settings(_env_file=None, redis_url=server.url)  # pyright: ignore
                redis = await stack.enter_async_context(RedisStore(settings))
                by_levels = await stack.enter_async_context(RedisStore(settings, read_by_levels=True))
                sqlite = await stack.enter_async_context(SqliteStore(Database(Path(folder) / "bench.db")))
                client = await stack.enter_async_context(Redis.from_url(server.url))
                return await _measure(options, client, redis, by_levels, sqlite)
    finally:
        await anyio.to_thread.run_sync(server.close)


async def _measure(
    options: Options, client: Redis, redis: CorrelationStore, by_levels: CorrelationStore, sqlite: CorrelationStore
) -> list[Row]:
    chain = [new_event_id() for _ in range(CHAIN)]
    graph = [new_event_id() for _ in range(options.count)]
    links = _links(graph)
    deep_links = [_link(chain[0]), *(_link(child, [parent]) for parent, child in itertools.pairwise(chain))]
    for store in (redis, sqlite):
        await _record(store, deep_links)
        await _record(store, links)
    await record_version_2(client, deep_links, TTL_SECONDS)
    up, down = (chain[-1], Direction.ANCESTORS, CHAIN), (graph[0], Direction.DESCENDANTS, len(graph))
    rounds = await paired(
        {
            "chain, Redis": partial(_timed, partial(_walk, redis, *up)),
            "chain, Redis by levels": partial(_timed, partial(_walk, by_levels, *up)),
            "chain, version 2 hop by hop": partial(_timed, partial(_hop_by_hop, client, chain[-1])),
            "chain, SQLite": partial(_timed, partial(_walk, sqlite, *up)),
            "graph, Redis": partial(_timed, partial(_walk, redis, *down)),
            "graph, Redis by levels": partial(_timed, partial(_walk, by_levels, *down)),
            "graph, SQLite": partial(_timed, partial(_walk, sqlite, *down)),
        },
        options.rounds,
    )
    deep = f"ancestors of a chain of {CHAIN:,}"
    whole = f"whole graph of {len(graph):,} events and {sum(len(link.parents) for link in links):,} edges"
    hops = "version 2 hop by hop"
    return [
        rounds.row(f"{deep}, Redis", "chain, Redis", "ms", "ms", target="value <= 5"),
        _speed_up(
            f"{deep}, Redis, times faster", rounds.ratios("chain, version 2 hop by hop", "chain, Redis", "ms"), hops
        ),
        rounds.row(f"{deep}, Redis by levels", "chain, Redis by levels", "ms", "ms", versus="chain, Redis"),
        rounds.row(f"{deep}, {hops}", "chain, version 2 hop by hop", "ms", "ms"),
        rounds.row(f"{deep}, SQLite", "chain, SQLite", "ms", "ms", target="value <= 10"),
        rounds.row(f"{whole}, Redis", "graph, Redis", "ms", "ms", target="value <= 150"),
        rounds.row(f"{whole}, Redis by levels", "graph, Redis by levels", "ms", "ms", versus="graph, Redis"),
        rounds.row(f"{whole}, SQLite", "graph, SQLite", "ms", "ms", target="value <= 150"),
    ]


def _speed_up(name: str, ratios: Sequence[float], versus: str) -> Row:
    return row_of(name, ratios, "x", versus=versus, ratios=ratios, target="ratio >= 30")


async def _timed(question: Callable[[], Awaitable[None]]) -> Sample:
    with measured() as watch:
        await question()
    return {"ms": watch.seconds * 1000}


async def _walk(store: CorrelationStore, focus: UUID, direction: Direction, expected: int) -> None:
    graph: Graph = await store.walk(focus, direction, max_depth=EVERYTHING, limit=EVERYTHING)
    if len(graph.steps) != expected:
        raise RuntimeError(f"{len(graph.steps)} events were found, and {expected} were recorded.")


async def _hop_by_hop(client: Redis, focus: UUID) -> None:
    if await ancestors_of_a_chain(client, focus) != CHAIN:
        raise RuntimeError("The chain in the layout of version 2 is not whole.")


def _links(ids: Sequence[UUID]) -> list[Link]:
    """Return events of which each but the first has two parents, one of them near enough that all hang together."""
    chance = random.Random(1)  # noqa: S311, no secret
    links = [_link(ids[0])]
    for place in range(1, len(ids)):
        parents = {place - 1 - chance.randrange(min(place, WINDOW)) for _ in range(2)}
        while len(parents) < min(2, place):
            parents.add(place - 1 - chance.randrange(min(place, WINDOW)))
        links.append(_link(ids[place], [ids[parent] for parent in sorted(parents)], place))
    return links


def _link(event_id: UUID, parents: Sequence[UUID] = (), milliseconds: int = 0) -> Link:
    time = START + timedelta(milliseconds=milliseconds)
    return Link(event_id, tuple(parents), "llm.response", time, "bench", time, b"0123456789abcdef")


async def _record(store: CorrelationStore, links: Sequence[Link]) -> None:
    for first in range(0, len(links), BATCH):
        await store.record(links[first : first + BATCH])


START = datetime.now(UTC)


if __name__ == "__main__":
    main(measure, count=10_000, packages=("redis",))
