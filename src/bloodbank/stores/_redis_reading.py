"""Two ways to answer a walk over the index in Redis: a script that goes ahead, and plain reads level by level.

A reader lives for one question: it remembers what it has read, which generations there are and what their names
mean, so that a level costs no more than what is new in it. docs/redis-layout.md has the keys.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from bloodbank.stores import base
from bloodbank.stores._redis_values import Group, Kind, Kinds, children_of, kind_of, rows_of, unpack
from bloodbank.stores.assembly import collector_paused
from bloodbank.stores.base import Direction, Expand, Expansion, Row, split_ids

IDS_PER_ROUND_TRIP = 1000
"""Most events of one round trip that reads nothing ahead."""
EVENTS_PER_ROUND_TRIP = 2000
"""Most events that the script returns, those read ahead included; it may stop sooner, after some milliseconds."""
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

    def claim(self, event_id: bytes) -> bytes:
        """Key of the claim on an event."""
        return self.prefix + b"claim:" + event_id


class Reader(Protocol):
    """Answers what one question needs."""

    async def expand(self, request: Expand) -> Expansion:
        """Answer one request of a walk; the answer may hold more than was asked."""
        ...


class Answer(NamedTuple):
    """What read.lua returned.

    looked_at: of the ids asked, those from the first on that it had the time for. open: ids that come next.
    """

    groups: Sequence[Group]
    kinds: Sequence[Kind]
    looked_at: int
    open: Sequence[bytes]


@dataclass(slots=True)
class _Way:
    """What a question has read in one direction.

    absent: ids that the index does not know. recent: ids that were read last, end to end.
    open: what comes next, the nearest first, as far as it is known.
    """

    read: dict[bytes, tuple[Row, Sequence[bytes]]] = field(default_factory=dict[bytes, tuple[Row, Sequence[bytes]]])
    absent: set[bytes] = field(default_factory=set[bytes])
    recent: bytes = b""
    open: Sequence[bytes] = ()

    def missing(self, event_ids: Sequence[bytes]) -> list[bytes]:
        """Return those that were not asked yet."""
        read, absent = self.read, self.absent
        return [one for one in event_ids if one not in read and one not in absent]


class ScriptReader:
    """Reads by a script on the server, which goes on to the neighbours while there is room.

    run: as Ask, for calls of the script read.lua without its name.
    """

    def __init__(self, run: Ask, keys: Keys, refuse_format: Callable[[bytes | None], None]) -> None:
        self._run = run
        self._keys = keys
        self._refuse_format = refuse_format
        self._ways: dict[Direction, _Way] = {Direction.ANCESTORS: _Way(), Direction.DESCENDANTS: _Way()}

    async def expand(self, request: Expand) -> Expansion:
        """Answer one request of a walk, of what was read ahead as far as that goes."""
        way = self._ways[request.direction]
        missing = way.missing(request.event_ids)
        at = 0
        while at < len(missing):
            at += await self._read(way, missing[at : at + EVENTS_PER_ROUND_TRIP], request)
        return way.read

    async def _read(self, way: _Way, missing: Sequence[bytes], request: Expand) -> int:
        """Read what is missing, and what comes next as far as there is room.

        Return how many of the missing ones there was time for.
        """
        limit, down = request.neighbour_limit, request.direction is Direction.DESCENDANTS
        ahead = min(request.room, EVENTS_PER_ROUND_TRIP - len(missing)) if request.hops_left else 0
        # Without what is open the script would begin again where it stopped, with the few ids that are missing.
        ids = list(dict.fromkeys([*missing, *way.missing(way.open)])) if ahead else missing
        asked, later = ids[: len(missing) + ahead], ids[len(missing) + ahead :]
        room = len(missing) + ahead - len(asked)
        most = min(limit, CHILDREN_PER_ROUND_TRIP) if down else 0
        hops, known = (request.hops_left, way.recent) if ahead else (0, b"")
        answer = await self._call(asked, down=down, most=most, room=room, hops=hops, known=known)
        with collector_paused():
            new = children_found(answer) if down else parents_found(answer, limit)
        if down:
            await self.complete(new, most, limit)
        way.read.update(new)
        way.absent.update([one for one in asked[: answer.looked_at] if one not in new])
        way.recent = (way.recent + b"".join(new))[-16 * IDS_SENT_BACK :]
        way.open = [*asked[answer.looked_at :], *later, *answer.open] if ahead else answer.open
        return min(answer.looked_at, len(missing))

    async def complete(self, new: dict[bytes, tuple[Row, Sequence[bytes]]], most: int, limit: int) -> None:
        """Read the children that one answer had no room for, and leave those away that are too many."""
        for event_id, (row, some) in new.items():
            if len(some) <= limit and (most == limit or len(some) >= min(limit, row.children_total)):
                continue
            children = [*some, *await self._further_children(event_id, limit)] if most < limit else some
            new[event_id] = (row, children if len(children) <= limit else sorted(children)[:limit])

    async def _further_children(self, event_id: bytes, limit: int) -> Sequence[bytes]:
        """Return the children that one answer had no room for, a part a round trip."""
        further: list[bytes] = []
        for skip in range(CHILDREN_PER_ROUND_TRIP, limit, CHILDREN_PER_ROUND_TRIP):
            most = min(CHILDREN_PER_ROUND_TRIP, limit - skip)
            answer = await self._call([event_id], down=True, most=most, skip=skip)
            # It may have expired meanwhile.
            part = [child for _, children in children_found(answer).values() for child in children]
            if not part:
                break
            further += part
        return further

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
    ) -> Answer:
        arguments = read_arguments(self._keys, ids, down=down, most=most, room=room, hops=hops, known=known, skip=skip)
        [raw] = await self._run([arguments])
        version, answer = answer_of(raw)
        self._refuse_format(version)
        return answer


def read_arguments(
    keys: Keys,
    ids: Sequence[bytes],
    *,
    down: bool,
    most: int,
    room: int = 0,
    hops: int = 0,
    known: bytes = b"",
    skip: int = 0,
) -> Command:
    """Return the arguments of read.lua, which describes them; without room and hops it reads what is asked alone."""
    head = (2, keys.format, keys.generations, keys.prefix)
    return (*head, "down" if down else "up", most, room, hops, b"".join(ids), known, skip)


def answer_of(raw: Sequence[Any]) -> tuple[bytes | None, Answer]:
    """Return what read.lua returned: the format that it found, None for no index, and the rest."""
    version, kinds, groups, looked_at, following = raw
    return version, Answer(
        [Group(*group) for group in zip(*[iter(groups)] * 5, strict=True)],
        [Kind(name.decode(), source.decode(), bool(own)) for name, source, own in zip(*[iter(kinds)] * 3, strict=True)],
        looked_at,
        split_ids(following),
    )


def parents_found(answer: Answer, limit: int) -> dict[bytes, tuple[Row, Sequence[bytes]]]:
    """Return the rows of an answer with their parents, at most so many."""
    found: dict[bytes, tuple[Row, Sequence[bytes]]] = {}
    for group in answer.groups:
        rows = rows_of(group, answer.kinds)
        if group.parents <= limit:
            neighbours = [row[2] or () for row in rows]
        else:
            neighbours = [base.parents_of(row, limit) for row in rows]
        found.update(zip([row[0] for row in rows], zip(rows, neighbours, strict=True), strict=True))
    return found


def children_found(answer: Answer) -> dict[bytes, tuple[Row, Sequence[bytes]]]:
    """Return the rows of an answer with the children that are listed of each."""
    found: dict[bytes, tuple[Row, Sequence[bytes]]] = {}
    for group in answer.groups:
        rows = rows_of(group, answer.kinds)
        found.update(zip([row[0] for row in rows], zip(rows, children_of(group), strict=True), strict=True))
    return found


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
                children = split_ids(found.children) if found.children else ()
                few = children if len(children) <= limit else sorted(children)[:limit]
                answer[row.event_id] = (row, few if down else base.parents_of(row, limit))
        return answer

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
