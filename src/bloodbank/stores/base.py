"""The index of causes: ids and edges. A store knows no bodies and no broker.

The walk over the graph stands here once, without input or output: a backend answers its requests, from a
connection or inside a thread, and gets the same graph as every other backend. It works on ids of 16 bytes and on
rows as backends keep them: bytes sort as UUIDs do, and making UUIDs, times and nodes costs more than the walk
itself, so that `stores.assembly` makes each of them once, for what stands in the answer. What there is thousands of
is a named tuple: it takes a third of the time of a frozen dataclass to make.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
NEVER = -(1 << 64)
"""Before all times."""


class Direction(StrEnum):
    """Which way to walk: to the causes, to the effects, or both ways."""

    ANCESTORS = "ancestors"
    DESCENDANTS = "descendants"
    BOTH = "both"


class Link(NamedTuple):
    """What the index keeps of an accepted event.

    parents: ids of the events that caused it, in the order of the envelope.
    source: application, or host where no application is named.
    timestamp, accepted_at: aware, UTC; the event's own time, and when the bus accepted it.
    digest: 16 bytes that tell whether two bodies say the same.
    """

    event_id: UUID
    parents: tuple[UUID, ...]
    event_type: str
    timestamp: datetime
    source: str
    accepted_at: datetime
    digest: bytes = b""


class Node(NamedTuple):
    """What the index knows of an event. `link` is None for a parent that was named but never seen."""

    event_id: UUID
    link: Link | None
    children_total: int

    @property
    def known(self) -> bool:
        """Whether the event itself was recorded."""
        return self.link is not None

    @property
    def parents(self) -> tuple[UUID, ...]:
        """The parents; none where the event was never seen."""
        return self.link.parents if self.link else ()


class Step(NamedTuple):
    """A node of a graph with its distance: hops from the focus, negative towards ancestors."""

    node: Node
    depth: int


@dataclass(frozen=True, slots=True)
class Truncation:
    """Whether a walk was cut short, and where it can go on.

    frontier: events in the graph with neighbours that are not; asking them yields the rest.
    """

    depth: bool = False
    limit: bool = False
    frontier: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """The answer to a walk.

    steps: each event once, in topological order (parents first; ties by time, then id).
    edges: (parent, child), all that are among the events.
    roots: events without parents. missing: parents that were named but never seen.
    cycle: some events cause each other in a circle; each still stands once.
    """

    focus: UUID
    direction: Direction
    steps: tuple[Step, ...]
    edges: tuple[tuple[UUID, UUID], ...]
    roots: tuple[UUID, ...]
    missing: tuple[UUID, ...]
    cycle: bool
    truncated: Truncation = field(default_factory=Truncation)

    @property
    def ids(self) -> tuple[UUID, ...]:
        """Ids of the events, in topological order."""
        return tuple(step.node.event_id for step in self.steps)


class ClaimState(StrEnum):
    """What became of a claim."""

    GRANTED = "granted"
    HELD = "held"
    RECORDED = "recorded"


class Claimed(NamedTuple):
    """The answer to a claim.

    digest: of the body that the other owner named, or of what is recorded; may be empty. Empty when granted.
    seconds_left: until the lease of the other owner ends; 0 when nobody else has it.
    """

    state: ClaimState
    digest: bytes = b""
    seconds_left: float = 0.0


class CorrelationStore(Protocol):
    """An index of causes; every backend passes tests/conformance/test_store.py."""

    async def __aenter__(self) -> Self:
        """Open. Raises StoreUnavailable, StoreFormatError; opening may be tried again."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        ...

    async def check(self) -> None:
        """Make one round trip. Raises StoreUnavailable."""
        ...

    async def record(self, links: Sequence[Link]) -> None:
        """Record events and their edges, in one round trip; all of them or none that is half there.

        Idempotent: an event that is known already stays as it is. Raises StoreUnavailable.
        """
        ...

    async def claim(self, wanted: Sequence[tuple[UUID, bytes]], *, owner: bytes, lease_seconds: float) -> list[Claimed]:
        """Claim events before they are published, so that of several owners only one publishes each; one round trip.

        wanted: for each event its id and the digest of its body. owner: 1 to 255 bytes.

        The answers stand in the order asked. GRANTED: nobody has recorded the event, and no other owner has it until
        `lease_seconds` are over, by the clock of the store; who claims again what is his own renews that. HELD:
        another owner has it. RECORDED: the index has the event itself, whoever claimed it; a parent that was only
        named is not recorded. A claim ends by itself, is not durable, and binds nobody who does not claim.

        Raises StoreUnavailable, in which case some may be granted, StoreFormatError.
        """
        ...

    async def release(self, event_ids: Sequence[UUID], *, owner: bytes) -> None:
        """Give back what this owner has claimed, and nothing else; idempotent. Raises StoreUnavailable."""
        ...

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return what is known of some events; absent: never seen and never named as a parent."""
        ...

    async def walk(self, event_id: UUID, direction: Direction, *, max_depth: int, limit: int) -> Graph:
        """Return the graph around an event, breadth first.

        max_depth: most hops from the focus. limit: most events, the focus included; what is left out is
        what lies further away, and within one distance what has the larger id.

        Raises EventNotFound when the event was never seen nor named as a parent, StoreUnavailable.
        """
        ...

    async def purge(self, *, before: datetime) -> int:
        """Forget the events accepted before a time; return how many. Idempotent."""
        ...


@runtime_checkable
class Sender(Protocol):
    """A store that can also record without a task, which costs as much as a short round trip itself."""

    def send(self, links: Sequence[Link], done: Callable[[bool], None]) -> Callable[[], None] | None:
        """Send at once what `CorrelationStore.record` records; None when that cannot be done now, which is no error.

        done: called once, in the turn of the event loop that brings the end: with True when all is recorded; with
        False when it is not known, and `record` is to be tried, which says why not. Returns what gives it up;
        `done` is called then too.
        """
        ...


class Row(NamedTuple):
    """What a backend keeps of an event, in the form it is kept in.

    event_id: 16 bytes. children_total: events that name it as a parent. parents: their ids in the order of the
    envelope, or None when the event itself was never seen; what follows then says nothing.
    happened_at, accepted_at: microseconds since 1970, UTC. Of an event that was never seen the first is NEVER, so
    that it goes before what it caused.
    """

    event_id: bytes
    children_total: int
    parents: tuple[bytes, ...] | None
    event_type: str
    source: str
    happened_at: int
    accepted_at: int
    digest: bytes

    @classmethod
    def of(cls, link: Link, children_total: int = 0) -> Self:
        """Return the row of an event."""
        return cls(
            link.event_id.bytes,
            children_total,
            tuple([parent.bytes for parent in link.parents]),
            link.event_type,
            link.source,
            microseconds(link.timestamp),
            microseconds(link.accepted_at),
            link.digest,
        )

    @classmethod
    def unseen(cls, event_id: bytes, children_total: int) -> Self:
        """Return the row of an event that was only named."""
        return cls(event_id, children_total, None, "", "", NEVER, 0, b"")


class Expand(NamedTuple):
    """A walk asks for rows and, of each, the neighbours in one direction.

    The answer maps each id to its row and its neighbours: all of them in any order, or, where they are more than
    `neighbour_limit`, the first of them in ascending order. An id that the store does not know at all is left out.
    What else stands in the answer was read ahead in the same direction: the walk looks there before it asks again.

    hops_left, room: how much further the walk can go after this, in hops and in events: for backends that read
    ahead.
    """

    event_ids: Sequence[bytes]
    direction: Direction
    neighbour_limit: int
    hops_left: int
    room: int


class Trail(NamedTuple):
    """What a walk found: hops from the focus of each event (negative towards ancestors), and its row."""

    focus: bytes
    direction: Direction
    depths: Mapping[bytes, int]
    rows: Mapping[bytes, Row]
    truncated: Truncation


Expansion = Mapping[bytes, tuple[Row, Sequence[bytes]]]
Walk = Generator[Expand, Expansion, Trail | None]


@dataclass(slots=True)
class _Side:
    """One direction of a walk.

    level: what is looked at next. seen: what was looked at or will be. known: the last answer. read: the part of the
    answers that belongs to the walk.

    What was seen is kept for each direction, since an event of a circle lies both ways and is asked both ways.
    """

    direction: Direction
    level: list[bytes]
    seen: set[bytes]
    known: Expansion
    read: dict[bytes, tuple[Row, Sequence[bytes]]]

    def knows_level(self) -> bool:
        """Whether the last answer has all of the level."""
        return all(map(self.known.__contains__, self.level))

    def signed(self, hops: int) -> int:
        """Return a distance as a depth."""
        return -hops if self.direction is Direction.ANCESTORS else hops


def walk(focus: UUID, direction: Direction, *, max_depth: int, limit: int) -> Walk:
    """Walk breadth first, level by level; both directions take turns at each distance.

    A generator without input or output: it yields `Expand`, takes the answer and returns the trail, or None
    when the focus is unknown. It asks at most once for each level and direction.
    """
    start = focus.bytes
    ways = [Direction.ANCESTORS, Direction.DESCENDANTS] if direction is Direction.BOTH else [direction]
    sides = [_Side(way, [start], {start}, {}, {}) for way in ways]
    depths = {start: 0}
    hit_depth = hit_limit = False
    hops = 0
    active = sides
    while active:
        if len(active) == 1:
            hops = _straight_on(active[0], depths, hops, max_hops=max_depth, limit=limit)
        for side in active:
            if not side.knows_level():
                room = limit - len(depths)
                side.known = yield Expand(side.level, side.direction, limit + 1, max_depth - hops, room)
            found = _neighbours(side)
            if hops == 0 and start not in side.known:
                return None
            found = found - side.seen  # in place it would go through all that was seen
            new = sorted(found.difference(depths))
            if hops == max_depth:
                hit_depth = hit_depth or bool(new)
                found.clear()
                new = []
            elif len(new) > limit - len(depths):
                hit_limit = True
                found.difference_update(new[limit - len(depths) :])
                new = new[: limit - len(depths)]
            depths.update(dict.fromkeys(new, side.signed(hops + 1)))
            side.seen |= found
            side.level = new if len(new) == len(found) else sorted(found)
        hops += 1
        active = [side for side in active if side.level]
    rows = {event_id: row for side in sides for event_id, (row, _) in side.read.items()}
    frontier = _open_ends(sides, depths) if hit_depth or hit_limit else ()
    return Trail(start, direction, depths, rows, Truncation(hit_depth, hit_limit, frontier))


def _straight_on(side: _Side, depths: dict[bytes, int], hops: int, *, max_hops: int, limit: int) -> int:
    """Go on while one event has one neighbour and both are known already; return how many hops that is from the focus.

    In a chain a level would cost many times what is in it.
    """
    if len(side.level) > 1:
        return hops
    known, read, step = side.known, side.read, side.signed(1)
    [event_id] = side.level
    path: list[bytes] = []
    last = min(max_hops, hops + limit - len(depths))
    while hops < last:
        answer = known.get(event_id)
        if answer is None or len(answer[1]) != 1:
            break
        [following] = answer[1]
        if following in depths or following not in known:
            break
        hops += 1
        read[event_id] = answer
        depths[following] = hops * step
        path.append(following)
        event_id = following
    side.seen.update(path)
    side.level = [event_id]
    return hops


def _neighbours(side: _Side) -> set[bytes]:
    """Keep what the answer says of a level; return the neighbours."""
    found: set[bytes] = set()
    known, read = side.known, side.read
    for event_id in side.level:
        answer = known.get(event_id)
        if answer is None:
            # Nobody knows it any more, or it expired while the walk was under way.
            answer = (Row.unseen(event_id, 0), ())
        read[event_id] = answer
        found.update(answer[1])
    return found


def _open_ends(sides: Sequence[_Side], depths: Mapping[bytes, int]) -> tuple[UUID, ...]:
    named = [pair for side in sides for pair in side.read.items()]
    ends = {event_id for event_id, (_, next_ids) in named if any(one not in depths for one in next_ids)}
    return tuple([UUID(bytes=event_id) for event_id in depths if event_id in ends])


def parents_of(row: Row, limit: int) -> Sequence[bytes]:
    """Return the parents of a row as an answer has them: its neighbours towards the ancestors."""
    parents = row.parents or ()
    return parents if len(parents) <= limit else sorted(set(parents))[:limit]


def split_ids(packed: bytes) -> tuple[bytes, ...]:
    """Return the ids that lie end to end, 16 bytes each."""
    if len(packed) == 16:
        return (packed,)
    return tuple([event_id for (event_id,) in _ID.iter_unpack(packed)])


_ID = Struct("16s")


def microseconds(time: datetime) -> int:
    """Return an aware time as whole microseconds since 1970, UTC."""
    return (time - _EPOCH) // _MICROSECOND
