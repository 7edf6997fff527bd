"""Two ways to answer a walk over the index in Redis: a script that goes ahead, and plain reads level by level.

A reader lives for one question: it remembers what it has read, which generations there are and what their names
mean, so that a level costs no more than what is new in it. docs/redis-layout.md has the keys.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

from bloodbank.stores import base
from bloodbank.stores._redis_values import Kinds, kind_of, split_answer, unpack
from bloodbank.stores.base import Direction, Expand, Expansion, Row, split_ids

IDS_PER_ROUND_TRIP = 1000
"""Most events of one round trip, those read ahead included: some milliseconds of the server's time."""
CHILDREN_PER_ROUND_TRIP = 4000
"""Most children listed of one event in a round trip; the rest takes more of them."""
IDS_SENT_BACK = 2000
"""Most ids named to the script as read already, so that it does not read again what the last one did."""

Command = tuple[str | bytes | int, ...]
Ask = Callable[[Sequence[Command]], Awaitable[list[Any]]]
"""Sends commands in one pipeline and returns an answer for each. Raises StoreUnavailable, StoreFormatError."""

_MANY = b"+"


class Found(NamedTuple):
    """What commands found of an event. generation: its number from 1; 0 for one that was only named."""

    event_id: bytes
    generation: int
    children_total: int
    value: bytes
    children: bytes


_GENERATION = re.compile(rb"\d+ (\d+) \d+ (\d+)")


class Keys(NamedTuple):
    """Names of the keys of an index. prefix: with its colon."""

    prefix: bytes

    @property
    def format(self) -> bytes:
        """Key of the version of the layout."""
        return self.prefix + b"format"

    @property
    def generations(self) -> bytes:
        """Key of the table of generations."""
        return self.prefix + b"generations"


class Reader(Protocol):
    """Answers what one question needs."""

    def read_ahead(self, request: Expand) -> Expansion | None:
        """Answer from what was read already, or None: awaiting costs more than such a level."""
        ...

    async def expand(self, request: Expand) -> Expansion:
        """Answer one request of a walk; the answer may hold more than was asked."""
        ...


class _Answer(NamedTuple):
    """What read.lua returned. looked_at: of the ids asked, those from the first on that it had the time for."""

    events: bytes
    kinds: Kinds
    looked_at: int

    def rows(self) -> Iterator[tuple[Row, bytes]]:
        return split_answer(self.events, self.kinds)


class ScriptReader:
    """Reads by a script on the server, which goes on to the neighbours while there is room.

    run: as Ask, for calls of the script read.lua without its name.
    """

    def __init__(self, run: Ask, keys: Keys, refuse_format: Callable[[bytes | None], None]) -> None:
        self._run = run
        self._keys = keys
        self._refuse_format = refuse_format
        self._read: dict[Direction, dict[bytes, tuple[Row, Sequence[bytes]]]] = {
            Direction.ANCESTORS: {},
            Direction.DESCENDANTS: {},
        }
        # What was named by what was read, and not read itself: what is asked next.
        self._named: dict[Direction, set[bytes]] = {way: set() for way in self._read}

    def read_ahead(self, request: Expand) -> Expansion | None:
        """Answer from what was read already, if that is all of it."""
        read = self._read[request.direction]
        for event_id in request.event_ids:
            if event_id not in read:
                return None
        return read

    async def expand(self, request: Expand) -> Expansion:
        """Answer one request of a walk, of what was read ahead as far as that goes."""
        read = self._read[request.direction]
        named = self._named[request.direction]
        missing = [event_id for event_id in request.event_ids if event_id not in read]
        named.difference_update(missing)
        if request.hops_left:
            # Without these the script would stop where the last one did, a level further down.
            missing += islice(named, max(0, min(request.room, IDS_PER_ROUND_TRIP - len(missing))))
        down = request.direction is Direction.DESCENDANTS
        limit = request.neighbour_limit
        while missing:
            ids = missing[:IDS_PER_ROUND_TRIP]
            room = min(request.room, IDS_PER_ROUND_TRIP - len(ids))
            known = b"".join(islice(reversed(read), IDS_SENT_BACK))
            most = min(limit, CHILDREN_PER_ROUND_TRIP) if down else 0
            answer = await self._call(ids, down=down, most=most, room=room, hops=request.hops_left, known=known)
            missing = missing[answer.looked_at :]
            for row, packed in answer.rows():
                if not down:
                    neighbours = base.parents_of(row, limit)
                elif most < limit and len(packed) < 16 * min(limit, row.children_total):
                    whole = packed + await self._further_children(row.event_id, limit)
                    neighbours = sorted(split_ids(whole))[:limit]
                else:
                    neighbours = sorted(split_ids(packed))[:limit] if packed else ()
                read[row.event_id] = (row, neighbours)
                named.discard(row.event_id)
                named.update([one for one in neighbours if one not in read])
        return read

    async def _further_children(self, event_id: bytes, limit: int) -> bytes:
        """Return the children that one answer had no room for, a part a round trip."""
        parts: list[bytes] = []
        for skip in range(CHILDREN_PER_ROUND_TRIP, limit, CHILDREN_PER_ROUND_TRIP):
            most = min(CHILDREN_PER_ROUND_TRIP, limit - skip)
            answer = await self._call([event_id], down=True, most=most, skip=skip)
            # It may have expired meanwhile.
            parts += [children for _, children in answer.rows()]
            if not parts or not parts[-1]:
                break
        return b"".join(parts)

    async def _call(
        self,
        ids: Sequence[bytes],
        *,
        down: bool,
        most: int,
        room: int = 0,
        hops: int = 0,
        known: bytes = b"",
        skip: int = 0,
    ) -> _Answer:
        keys = (2, self._keys.format, self._keys.generations, self._keys.prefix)
        call = (*keys, "down" if down else "up", most, room, hops, b"".join(ids), known, skip)
        [[version, kinds, events, looked_at]] = await self._run([call])
        self._refuse_format(version)
        texts = {kind: (name.decode(), source.decode()) for kind, name, source in zip(*[iter(kinds)] * 3, strict=True)}
        return _Answer(events, texts, looked_at)


class LevelReader:
    """Reads by single commands of one key each, in pipelines: at most two round trips a level."""

    def __init__(self, ask: Ask, keys: Keys, refuse_format: Callable[[bytes | None], None]) -> None:
        self._ask = ask
        self._keys = keys
        self._refuse_format = refuse_format
        self._generations: list[_Generation] | None = None
        self._kinds: dict[bytes, tuple[str, str]] = {}

    async def expand(self, request: Expand) -> Expansion:
        """Answer one request of a walk."""
        if self._generations is None:
            self._generations = await self._live_generations()
        limit = request.neighbour_limit
        down = request.direction is Direction.DESCENDANTS
        answer: dict[bytes, tuple[Row, Sequence[bytes]]] = {}
        for ids in _chunks(request.event_ids):
            for found in await self._events(ids, self._generations, limit if down else 0):
                row = _row(found, self._kinds)
                children = sorted(split_ids(found.children))[:limit] if found.children else ()
                answer[row.event_id] = (row, children if down else base.parents_of(row, limit))
        return answer

    def read_ahead(self, request: Expand) -> Expansion | None:
        """Return None: nothing is read ahead."""
        return None

    async def _live_generations(self) -> list[_Generation]:
        reads: list[Command] = [("GET", self._keys.format), ("HGETALL", self._keys.generations), ("TIME",)]
        version, table, (seconds, _) = await self._ask(reads)
        self._refuse_format(version)
        rows = [(name, _GENERATION.fullmatch(row)) for name, row in table.items()]
        live = [(name, row) for name, row in rows if row and int(row[2]) > seconds * 1000]
        return [_Generation(self._keys.prefix + name, 1 << int(row[1])) for name, row in live]

    async def _events(self, ids: Sequence[bytes], generations: Sequence[_Generation], limit: int) -> list[Found]:
        answers: dict[Command, Any] = {}

        async def ask(commands: Iterable[Command]) -> None:
            new = list(dict.fromkeys(commands))
            answers.update(zip(new, await self._ask(new), strict=True))

        await ask(read(event_id) for event_id in ids for g in generations for read in (g.value, g.children))
        await ask(command for event_id in ids for g in generations for command in g.elsewhere(event_id, limit, answers))
        found = [_put_together(event_id, generations, limit, answers) for event_id in ids]
        await self._learn_kinds([one for one in found if one.generation], generations)
        return [one for one in found if one.generation or one.children_total]

    async def _learn_kinds(self, events: Sequence[Found], generations: Sequence[_Generation]) -> None:
        used = {bytes((one.generation,)) + kind_of(one.value) for one in events}
        new = [kind for kind in used if kind not in self._kinds]
        reads = [generations[kind[0] - 1].name(kind[at : at + 2]) for kind in new for at in (1, 3)]
        texts = [text.decode() if text else "" for text in await self._ask(reads)]
        self._kinds.update(zip(new, zip(texts[::2], texts[1::2], strict=True), strict=True))


@dataclass(frozen=True, slots=True)
class _Generation:
    """Commands that read one generation. base: the first part of its keys. buckets: a power of two."""

    base: bytes
    buckets: int

    def value(self, event_id: bytes) -> Command:
        return ("HGET", self._bucket(b":e:", event_id), event_id)

    def long_value(self, event_id: bytes) -> Command:
        return ("GET", long_key(self.base, event_id))

    def children(self, event_id: bytes) -> Command:
        return ("HGET", self._bucket(b":c:", event_id), event_id)

    def many_children(self, event_id: bytes) -> Command:
        return ("ZCARD", self.base + b":k:" + event_id)

    def first_children(self, event_id: bytes, limit: int) -> Command:
        return ("ZRANGE", self.base + b":k:" + event_id, 0, limit - 1)

    def name(self, number: bytes) -> Command:
        return ("HGET", self.base + b":n", b"n%d" % int.from_bytes(number))

    def elsewhere(self, event_id: bytes, limit: int, answers: Mapping[Command, Any]) -> Iterator[Command]:
        """Return what is left to read, where the buckets say that it lies in a key of its own."""
        if answers[self.value(event_id)] == b"":
            yield self.long_value(event_id)
        if answers[self.children(event_id)] == _MANY:
            yield self.many_children(event_id)
            if limit:
                yield self.first_children(event_id, limit)

    def _bucket(self, kind: bytes, event_id: bytes) -> bytes:
        return self.base + kind + b"%x" % (int.from_bytes(event_id[12:]) % self.buckets)


def long_key(generation: bytes, event_id: bytes) -> bytes:
    """Return the key of a value that is too long for its bucket. generation: the first part of its keys."""
    return generation + b":v:" + event_id


def _put_together(
    event_id: bytes, generations: Sequence[_Generation], limit: int, answers: Mapping[Command, Any]
) -> Found:
    number, value, total = 0, b"", 0
    children: list[bytes] = []
    for place, generation in enumerate(generations, start=1):
        kept = answers[generation.value(event_id)]
        if kept == b"":
            kept = answers[generation.long_value(event_id)]
        if kept is not None and not number:
            number, value = place, kept
        few = answers[generation.children(event_id)]
        if few == _MANY:
            total += answers[generation.many_children(event_id)]
            children += answers[generation.first_children(event_id, limit)] if limit else []
        elif few is not None:
            total += len(few) // 16
            children.append(few)
    return Found(event_id, number, total, value, b"".join(children) if limit else b"")


def _row(found: Found, kinds: Kinds) -> Row:
    if not found.generation:
        return Row.unseen(found.event_id, found.children_total)
    return unpack(found.event_id, found.children_total, found.value, bytes((found.generation,)), kinds)


def _chunks(ids: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(ids), IDS_PER_ROUND_TRIP):
        yield ids[start : start + IDS_PER_ROUND_TRIP]
