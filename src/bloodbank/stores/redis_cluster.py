"""The index of causes in a Redis Cluster: shards of one slot each, in the layout of one server.

A script cannot reach beyond its slot, so an event and its edges, which lie with the parents, are written one after
the other: the edges first. Whoever finds the event recorded can rely on its edges; a crash in between leaves edges to
an event that is not there yet, and recording it again adds nothing twice. docs/redis-layout.md says what is and what
is not kept when a master is lost.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from bloodbank._redis_url import Servers, redis_servers
from bloodbank.config import Settings, redact_url
from bloodbank.errors import ConfigurationError
from bloodbank.stores import base
from bloodbank.stores._redis_calls import (
    LINKS_PER_SCRIPT,
    accepted_before,
    claim_arguments,
    claimed,
    packed_events,
    parts,
    refuse_format,
    release_arguments,
    walked,
)
from bloodbank.stores._redis_nodes import Call, Nodes
from bloodbank.stores._redis_reading import IDS_PER_ROUND_TRIP
from bloodbank.stores._redis_scripts import CLAIM, FORGET, FORGET_EDGES, RECORD_EDGES, RECORD_EVENTS, RELEASE
from bloodbank.stores._redis_shards import SHARDS, Shard, ShardReader, by_shard, number_of, shards
from bloodbank.stores._redis_values import parents_in
from bloodbank.stores.assembly import to_nodes
from bloodbank.stores.base import Claimed, Direction, Expand, Graph, Link, Node, Row

FORMAT = b"2/%d" % SHARDS
"""The layout of one server in so many shards."""
KEYS_PER_SCAN = 50
"""Keys looked at in one step of a purge."""

Edges = dict[bytes, list[bytes]]
"""Children by their parent."""


class RedisClusterStore:
    """A CorrelationStore in a Redis Cluster; see `stores.base` for what its methods promise.

    `record` takes two round trips for events with parents, one for others; what it returned for has reached
    BLOODBANK_REDIS_REPLICAS replicas. `record` is not all or nothing here: see the module.

    Looking at the cluster is bounded by `connect_timeout_seconds`, each round trip by `query_timeout_seconds`.

    Raises ConfigurationError when REDIS_URL names no cluster, or has an option that nobody knows.
    """

    def __init__(self, settings: Settings) -> None:
        address = settings.redis_address()
        servers = redis_servers(address) if address is not None else None
        if address is None or servers is None or servers.kind is not Servers.CLUSTER:
            raise ConfigurationError("No Redis Cluster is set. Set REDIS_URL to redis+cluster://host:port,….")
        self._address = redact_url(address)
        self._prefix = settings.redis_prefix
        self._shards = shards(settings.redis_prefix)
        self._ttl_milliseconds = max(1, round(settings.correlation_ttl_days * 86_400_000))
        try:
            self._nodes = Nodes(
                servers,
                self._address,
                connect_timeout_seconds=settings.connect_timeout_seconds,
                query_timeout_seconds=settings.query_timeout_seconds,
                replicas=settings.redis_replicas,
                replica_seconds=settings.redis_replica_seconds,
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"REDIS_URL: {error}. Correct it and start again.") from None

    async def __aenter__(self) -> Self:
        """Look at the cluster and at the format of each shard. May be called again, also while it is open.

        Raises StoreUnavailable, StoreFormatError.
        """
        opened_here = not self._nodes.is_open
        try:
            await self._nodes.open()
            await self.check()
        except BaseException:
            if opened_here:
                await self._nodes.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        await self._nodes.close()

    async def check(self) -> None:
        """Make one round trip to every shard. Raises StoreUnavailable, StoreFormatError."""
        for found in await self._nodes.run([Call(shard.slot, ("GET", shard.keys.format)) for shard in self._shards]):
            self._refuse_format(found)

    async def record(self, links: Sequence[Link]) -> None:
        """Record edges, then the events that they lead to. Raises StoreUnavailable, StoreFormatError."""
        first: dict[UUID, Link] = {}
        for link in links:
            first.setdefault(link.event_id, link)
        await self._record_edges(first.values())
        superseded = await self._record_events(first.values())
        if superseded:
            await self._forget_edges(superseded)

    async def claim(self, wanted: Sequence[tuple[UUID, bytes]], *, owner: bytes, lease_seconds: float) -> list[Claimed]:
        """Claim events by a script in their shards; leases end by the clocks of the nodes.

        Raises StoreUnavailable, StoreFormatError.
        """
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, (event_id, _) in enumerate(wanted):
            places[number_of(event_id.bytes)].append(place)
        calls: list[Call] = []
        asked: list[Sequence[int]] = []
        for number, of_shard in places.items():
            shard = self._shards[number]
            for part in parts(of_shard):
                some = [wanted[place] for place in part]
                calls.append(shard.call(CLAIM, claim_arguments(shard.keys, FORMAT, some, owner, lease_seconds)))
                asked.append(part)
        answers: dict[int, Claimed] = {}
        for part, (found, *several) in zip(asked, await self._nodes.run(calls), strict=True):
            self._refuse_format(found)
            for place, answer in zip(part, several, strict=True):
                answers[place] = claimed(wanted[place][0], answer)
        return [answers[place] for place in range(len(wanted))]

    async def release(self, event_ids: Sequence[UUID], *, owner: bytes) -> None:
        """Give back what this owner has claimed. Raises StoreUnavailable."""
        calls: list[Call] = []
        for number, ids in by_shard([event_id.bytes for event_id in event_ids]).items():
            shard = self._shards[number]
            some = [UUID(bytes=event_id) for event_id in ids]
            calls += [shard.call(RELEASE, release_arguments(shard.keys, part, owner)) for part in parts(some)]
        await self._nodes.run(calls)

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return what is known of some events; one round trip for each IDS_PER_ROUND_TRIP of them."""
        ids = [event_id.bytes for event_id in dict.fromkeys(event_ids)]
        reader = self._reader()
        rows: list[Row] = []
        for start in range(0, len(ids), IDS_PER_ROUND_TRIP):
            part = Expand(ids[start : start + IDS_PER_ROUND_TRIP], Direction.ANCESTORS, 0, hops_left=0, room=0)
            rows += [row for row, _ in (await reader.expand(part)).values()]
        return to_nodes(rows)

    async def walk(self, event_id: UUID, direction: Direction, *, max_depth: int, limit: int) -> Graph:
        """Return the graph around an event, a round trip a level. Raises EventNotFound, StoreUnavailable."""
        return await walked(event_id, direction, self._reader(), max_depth=max_depth, limit=limit)

    async def purge(self, *, before: datetime) -> int:
        """Forget the events accepted before a time; return how many.

        The slow path, as in `RedisStore.purge`, on one master after the other.
        """
        await self.check()
        moment = base.microseconds(before)
        by_prefix = {shard.keys.prefix: shard for shard in self._shards}
        forgotten = 0
        for name in self._nodes.masters():
            cursor = 0
            while True:
                # Keys of other types may end in an id, which may look like anything.
                pattern = re.sub(rb"([*?\[\]\\^])", rb"\\\1", self._prefix.encode()) + b":{*}:*:e:*"
                scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", KEYS_PER_SCAN, "TYPE", "hash")
                cursor, found = await self._nodes.ask_master(name, scan)
                cursor = int(cursor)
                buckets = [one for one in found if one.partition(b"}:")[0] + b"}:" in by_prefix]
                older = await accepted_before(moment, buckets, self._nodes.ask)
                for part in parts(older):
                    forgotten += await self._forget(part, by_prefix)
                if cursor == 0:
                    break
        return forgotten

    def _reader(self) -> ShardReader:
        return ShardReader(self._nodes, self._shards, self._refuse_format)

    async def _record_edges(self, links: Iterable[Link]) -> None:
        edges: defaultdict[int, Edges] = defaultdict(dict)
        for link in links:
            for parent in dict.fromkeys(link.parents):
                edges[number_of(parent.bytes)].setdefault(parent.bytes, []).append(link.event_id.bytes)
        calls = [
            self._shards[number].call(RECORD_EDGES, (*self._head(self._shards[number]), argument))
            for number, families in edges.items()
            for argument in _packed_families(families)
        ]
        for found in await self._nodes.run(calls, durable=True):
            self._refuse_format(found)

    async def _record_events(self, links: Iterable[Link]) -> list[tuple[bytes, bytes]]:
        """Record events; return the edges, parent and child, of those that were recorded with other parents before."""
        own: defaultdict[int, list[Link]] = defaultdict(list)
        for link in links:
            own[number_of(link.event_id.bytes)].append(link)
        calls: list[Call] = []
        for number, several in own.items():
            for part in parts(several):
                events, names = packed_events(part)
                shard = self._shards[number]
                calls.append(shard.call(RECORD_EVENTS, (*self._head(shard), events, *names)))
        superseded: list[tuple[bytes, bytes]] = []
        by_id = {link.event_id.bytes: link for several in own.values() for link in several}
        for answer in await self._nodes.run(calls, durable=True):
            if not isinstance(answer, list):
                self._refuse_format(answer)
                continue
            _, *others = cast("list[Any]", answer)
            for event_id, value in zip(others[::2], others[1::2], strict=True):
                recorded = set(parents_in(event_id, value))
                given = {parent.bytes for parent in by_id[event_id].parents}
                superseded += [(parent, event_id) for parent in given - recorded]
        return superseded

    async def _forget(self, events: Sequence[tuple[bytes, Row]], by_prefix: dict[bytes, Shard]) -> int:
        """Forget events, in the opposite order of recording them; return how many there were."""
        await self._forget_edges([(parent, row.event_id) for _, row in events for parent in row.parents or ()])
        own: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for bucket, row in events:
            # Their edges lie elsewhere, and are gone.
            own[bucket.partition(b"}:")[0] + b"}:"] += [bucket, row.event_id, b""]
        calls = [
            by_prefix[prefix].call(FORGET, (1, by_prefix[prefix].keys.generations, prefix, *several))
            for prefix, several in own.items()
        ]
        return sum(await self._nodes.run(calls, durable=True))

    async def _forget_edges(self, edges: Sequence[tuple[bytes, bytes]]) -> None:
        own: defaultdict[int, list[bytes]] = defaultdict(list)
        for parent, child in edges:
            own[number_of(parent)].append(parent + child)
        calls: list[Call] = []
        for number, several in own.items():
            keys = self._shards[number].keys
            for part in parts(several):
                arguments = (1, keys.generations, keys.prefix, b"".join(part))
                calls.append(self._shards[number].call(FORGET_EDGES, arguments))
        await self._nodes.run(calls, durable=True)

    def _head(self, shard: Shard) -> tuple[str | bytes | int, ...]:
        keys = shard.keys
        return (2, keys.format, keys.generations, FORMAT, self._ttl_milliseconds, keys.prefix)

    def _refuse_format(self, found: bytes | None) -> None:
        refuse_format(found, FORMAT, f"{self._prefix}:".encode(), self._address)


def _packed_families(families: Edges) -> list[bytes]:
    """Return parents with their children as record_edges.lua takes them, some LINKS_PER_SCRIPT edges at a time."""
    packed: list[bytes] = []
    some: list[bytes] = []
    count = 0
    for parent, children in families.items():
        for part in parts(children):
            some += [parent, len(part).to_bytes(2), *part]
            count += len(part)
            if count >= LINKS_PER_SCRIPT:
                packed.append(b"".join(some))
                some, count = [], 0
    return [*packed, b"".join(some)] if some else packed
