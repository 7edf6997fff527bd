"""The shards of an index in a Redis Cluster: where an event lies, and how a walk reads them, level by level.

Each shard is an index of its own under keys of one slot, so that scripts run in it; docs/redis-layout.md has the keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from zlib import crc32

from redis.crc import key_slot

from bloodbank.stores._redis_nodes import Call, Nodes
from bloodbank.stores._redis_reading import (
    CHILDREN_PER_ROUND_TRIP,
    EVENTS_PER_ROUND_TRIP,
    Command,
    Keys,
    ScriptReader,
    answer_of,
    children_found,
    parents_found,
    read_arguments,
)
from bloodbank.stores._redis_scripts import READ, Script
from bloodbank.stores.assembly import collector_paused
from bloodbank.stores.base import Direction, Expand, Expansion, Row

SHARDS = 64
"""Part of the layout: an index with another number of shards is another format."""
SLOTS = 16384
"""Slots of a cluster. Source: the Redis Cluster specification."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the index. keys: its names for them, with a hash tag. slot: where the cluster has them."""

    number: int
    keys: Keys
    slot: int

    def call(self, script: Script, arguments: Command) -> Call:
        """Return a call that runs a script in it."""
        return Call(self.slot, ("EVALSHA", script.sha, *arguments), script)


def shards(prefix: str) -> tuple[Shard, ...]:
    """Return the shards of an index. prefix: without its colon."""
    made: list[Shard] = []
    for number, tag in enumerate(_tags()):
        keys = Keys(f"{prefix}:{{{tag}}}:".encode())
        made.append(Shard(number, keys, key_slot(keys.format)))
    return tuple(made)


def number_of(event_id: bytes) -> int:
    """Return the number of the shard of an event: of all its bytes, since some kinds of ids vary in few of them."""
    return crc32(event_id) % SHARDS


def by_shard(event_ids: Sequence[bytes]) -> dict[int, list[bytes]]:
    """Return ids by the number of their shard."""
    found: defaultdict[int, list[bytes]] = defaultdict(list)
    for event_id in event_ids:
        found[number_of(event_id)].append(event_id)
    return found


@cache
def _tags() -> tuple[int, ...]:
    """Return the hash tag of each shard: the smallest number whose slot lies in the shard's part of all slots.

    So the shards are spread evenly over the slots, and with them over the nodes.
    """
    tags: dict[int, int] = {}
    tag = 0
    while len(tags) < SHARDS:
        tags.setdefault(key_slot(b"%d" % tag) * SHARDS // SLOTS, tag)
        tag += 1
    return tuple(tags[number] for number in range(SHARDS))


class ShardReader:
    """Reads by one script a shard, of all shards at once: one round trip a level, more for a large one."""

    def __init__(self, nodes: Nodes, parts: Sequence[Shard], refuse_format: Callable[[bytes | None], None]) -> None:
        self._nodes = nodes
        self._shards = parts
        self._refuse_format = refuse_format

    async def expand(self, request: Expand) -> Expansion:
        """Answer one request of a walk."""
        limit, down = request.neighbour_limit, request.direction is Direction.DESCENDANTS
        most = min(limit, CHILDREN_PER_ROUND_TRIP) if down else 0
        found: dict[bytes, tuple[Row, Sequence[bytes]]] = {}
        waiting = by_shard(request.event_ids)
        while waiting:
            asked = [(self._shards[number], ids[:EVENTS_PER_ROUND_TRIP]) for number, ids in waiting.items()]
            calls = [shard.call(READ, read_arguments(shard.keys, ids, down=down, most=most)) for shard, ids in asked]
            answers = await self._nodes.run(calls)
            for (shard, _), raw in zip(asked, answers, strict=True):
                version, answer = answer_of(raw)
                self._refuse_format(version)
                with collector_paused():
                    new = children_found(answer) if down else parents_found(answer, limit)
                if down:
                    await self._complete(shard, new, most, limit)
                found.update(new)
                waiting[shard.number] = waiting[shard.number][answer.looked_at :]
            waiting = {number: ids for number, ids in waiting.items() if ids}
        return found

    async def _complete(
        self, shard: Shard, new: dict[bytes, tuple[Row, Sequence[bytes]]], most: int, limit: int
    ) -> None:
        """Read the children that one answer had no room for."""

        async def run(commands: Sequence[Command]) -> list[object]:
            return await self._nodes.run([shard.call(READ, arguments) for arguments in commands])

        await ScriptReader(run, shard.keys, self._refuse_format).complete(new, most, limit)
