"""The index of causes: ids and edges. A store knows no bodies and no broker.

The walk over the graph stands here once, without input or output: a backend answers its requests, from a
connection or inside a thread, and gets the same graph as every other backend. It works on ids of 16 bytes and on
rows as backends keep them: bytes sort as UUIDs do, and making UUIDs, times and nodes costs more than the walk
itself, so that `assemble` makes each of them once, for what stands in the answer. What there is thousands of is a
named tuple: it takes a third of the time of a frozen dataclass to make.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, Protocol, Self, runtime_checkable
from uuid import UUID

from bloodbank.stores.order import topological_order

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Below this (the year 2106) a float of seconds tells microseconds apart, and makes a time in half the time.
_EXACT = 2**32 * 1_000_000


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
    happened_at, accepted_at: microseconds since 1970, UTC.
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
        return cls(event_id, children_total, None, "", "", 0, 0, b"")


class Expand(NamedTuple):
    """A walk asks for rows and, of each, the neighbours in one direction.

    The answer maps each id to its row and its neighbours in ascending order, the first `neighbour_limit` of
    them. An id that the store does not know at all is left out.

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
    """One direction of a walk: the level that is asked next, what was asked or will be, what the answers named.

    What was seen is kept for each direction, since an event of a circle lies both ways and is asked both ways.
    """

    direction: Direction
    level: list[bytes]
    seen: set[bytes]
    named: list[tuple[bytes, Sequence[bytes]]]


def walk(focus: UUID, direction: Direction, *, max_depth: int, limit: int) -> Walk:
    """Walk breadth first, level by level; both directions take turns at each distance.

    A generator without input or output: it yields `Expand`, takes the answer and returns the trail, or None
    when the focus is unknown. It asks once for each level and direction.
    """
    start = focus.bytes
    ways = [Direction.ANCESTORS, Direction.DESCENDANTS] if direction is Direction.BOTH else [direction]
    sides = [_Side(way, [start], {start}, []) for way in ways]
    depths = {start: 0}
    rows: dict[bytes, Row] = {}
    hit_depth = hit_limit = False
    hops = 0
    active = sides
    while active:
        for side in active:
            answer = yield Expand(side.level, side.direction, limit + 1, max_depth - hops, limit - len(depths))
            found: set[bytes] = set()
            for event_id in side.level:
                row, next_ids = answer.get(event_id, _UNKNOWN)
                if row is None:
                    if hops == 0:
                        return None
                    row = Row.unseen(event_id, 0)
                rows[event_id] = row
                if next_ids:
                    side.named.append((event_id, next_ids))
                    found.update(next_ids)
            found = found - side.seen  # in place it would go through all that was seen
            new = sorted([event_id for event_id in found if event_id not in depths])
            if hops == max_depth:
                hit_depth = hit_depth or bool(new)
                found.clear()
                new = []
            elif len(new) > limit - len(depths):
                hit_limit = True
                found.difference_update(new[limit - len(depths) :])
                new = new[: limit - len(depths)]
            depths.update(dict.fromkeys(new, -(hops + 1) if side.direction is Direction.ANCESTORS else hops + 1))
            side.seen |= found
            side.level = new if len(new) == len(found) else sorted(found)
        hops += 1
        active = [side for side in active if side.level]
    frontier: tuple[UUID, ...] = ()
    if hit_depth or hit_limit:
        named = (pair for side in sides for pair in side.named)
        open_ends = {event_id for event_id, next_ids in named if any(n not in depths for n in next_ids)}
        frontier = tuple([UUID(bytes=event_id) for event_id in depths if event_id in open_ends])
    return Trail(start, direction, depths, rows, Truncation(hit_depth, hit_limit, frontier))


_UNKNOWN: tuple[None, Sequence[bytes]] = (None, ())


def parents_of(row: Row, limit: int) -> Sequence[bytes]:
    """Return the first parents of a row in ascending order, each once: its neighbours towards the ancestors."""
    parents = row.parents or ()
    return sorted(set(parents))[:limit] if len(parents) > 1 else parents[:limit]


def assemble(trail: Trail) -> Graph:
    """Put what a walk found into topological order, with all edges among it.

    Some microseconds an event: for thousands of them this belongs into a thread.
    """
    with _collector_paused():
        return _assembled(trail)


def _assembled(trail: Trail) -> Graph:
    depths = trail.depths
    uuids = {event_id: UUID(bytes=event_id) for event_id in depths}
    rows = sorted([trail.rows[event_id] for event_id in depths], key=_rank)
    place = {row.event_id: number for number, row in enumerate(rows)}
    children: list[list[int]] = [[] for _ in rows]
    edges: list[tuple[UUID, UUID]] = []
    for event_id in depths:
        parents = trail.rows[event_id].parents
        for parent in parents or ():
            if parent in depths:
                children[place[parent]].append(place[event_id])
                edges.append((uuids[parent], uuids[event_id]))
    order, cycle = topological_order(children)
    nodes = [to_node(rows[number], uuids) for number in order]
    return Graph(
        focus=uuids[trail.focus],
        direction=trail.direction,
        steps=tuple([Step(node, depths[rows[number].event_id]) for node, number in zip(nodes, order, strict=True)]),
        edges=tuple(edges),
        roots=tuple([node.event_id for node in nodes if node.link is not None and not node.link.parents]),
        missing=tuple([node.event_id for node in nodes if node.link is None]),
        cycle=cycle,
        truncated=trail.truncated,
    )


@contextmanager
def _collector_paused() -> Generator[None]:
    """Keep the garbage collector from looking again and again through what is being made and all still needed.

    That took a third of the time of large graphs. Where several threads do this at once, the first to end lets it run.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def to_node(row: Row, uuids: Mapping[bytes, UUID]) -> Node:
    """Make the node of a row. uuids: those that exist already, so that an id is one object within a graph."""
    packed_id, children_total, parents, event_type, source, happened_at, accepted_at, digest = row
    event_id = uuids[packed_id] if packed_id in uuids else UUID(bytes=packed_id)
    if parents is None:
        return Node(event_id, None, children_total)
    parent_ids = tuple([uuids[parent] if parent in uuids else UUID(bytes=parent) for parent in parents])
    link = Link(event_id, parent_ids, event_type, moment(happened_at), source, moment(accepted_at), digest)
    return Node(event_id, link, children_total)


def to_nodes(rows: Iterable[Row]) -> dict[UUID, Node]:
    """Make the nodes of some rows, by their ids."""
    return {(node := to_node(row, {})).event_id: node for row in rows}


def split_ids(packed: bytes) -> tuple[bytes, ...]:
    """Return the ids that lie end to end, 16 bytes each."""
    if len(packed) == 16:
        return (packed,)
    return tuple([packed[start : start + 16] for start in range(0, len(packed), 16)])


def microseconds(time: datetime) -> int:
    """Return an aware time as whole microseconds since 1970, UTC."""
    return (time - _EPOCH) // _MICROSECOND


def moment(microseconds_since_1970: int) -> datetime:
    """Return an aware time, UTC. Raises OverflowError outside the years 1 to 9999."""
    if -_EXACT < microseconds_since_1970 < _EXACT:
        return datetime.fromtimestamp(microseconds_since_1970 / 1_000_000, UTC)
    return _EPOCH + timedelta(microseconds=microseconds_since_1970)


def _rank(row: Row) -> tuple[float, bytes]:
    # A parent that was never seen has no time; it goes before what it caused.
    return (_NEVER if row.parents is None else row.happened_at, row.event_id)


_NEVER = float("-inf")
