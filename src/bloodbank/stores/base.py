"""The index of causes: ids and edges. A store knows no bodies and no broker.

The walk over the graph stands here once, without input or output: a backend answers its requests, from a
connection or inside a thread, and gets the same graph as every other backend.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID


class Direction(StrEnum):
    """Which way to walk: to the causes, to the effects, or both ways."""

    ANCESTORS = "ancestors"
    DESCENDANTS = "descendants"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Link:
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


@dataclass(frozen=True, slots=True)
class Node:
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


@dataclass(frozen=True, slots=True)
class Step:
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


@dataclass(frozen=True, slots=True)
class Expand:
    """A walk asks for nodes and, of each, the neighbours in one direction.

    The answer maps each id to its node and its neighbours in ascending order, the first `neighbour_limit`
    of them. An id that the store does not know at all is left out.
    """

    event_ids: Sequence[UUID]
    direction: Direction
    neighbour_limit: int


Expansion = Mapping[UUID, tuple[Node, Sequence[UUID]]]
Walk = Generator[Expand, Expansion, Graph | None]


def walk(focus: UUID, direction: Direction, *, max_depth: int, limit: int) -> Walk:
    """Walk breadth first, level by level; both directions take turns at each distance.

    A generator without input or output: it yields `Expand`, takes the answer and returns the graph, or None
    when the focus is unknown. It asks once for each level and direction.
    """
    ways = [Direction.ANCESTORS, Direction.DESCENDANTS] if direction is Direction.BOTH else [direction]
    depths = {focus: 0}
    nodes: dict[UUID, Node] = {}
    neighbours: dict[tuple[UUID, Direction], Sequence[UUID]] = {}
    level: dict[Direction, list[UUID]] = {way: [focus] for way in ways}
    # For each way, since an event of a circle lies both ways and is asked both ways.
    seen: dict[Direction, set[UUID]] = {way: {focus} for way in ways}
    hit_depth = hit_limit = False
    hops = 0
    while any(level.values()):
        for way in ways:
            if not level[way]:
                continue
            answer = yield Expand(level[way], way, limit + 1)
            found: set[UUID] = set()
            for event_id in level[way]:
                node, next_ids = answer.get(event_id, (None, ()))
                if node is None:
                    if hops == 0:
                        return None
                    node, next_ids = Node(event_id, None, 0), ()
                nodes[event_id] = node
                neighbours[event_id, way] = next_ids
                found.update(next_ids)
            next_level = found - seen[way]
            new = sorted(event_id for event_id in next_level if event_id not in depths)
            if hops == max_depth:
                hit_depth = hit_depth or bool(new)
                next_level.clear()
                new = []
            elif len(new) > limit - len(depths):
                hit_limit = True
                next_level.difference_update(new[limit - len(depths) :])
                new = new[: limit - len(depths)]
            depths.update((event_id, -(hops + 1) if way is Direction.ANCESTORS else hops + 1) for event_id in new)
            seen[way].update(next_level)
            level[way] = sorted(next_level)
        hops += 1
    frontier: list[UUID] = []
    if hit_depth or hit_limit:
        open_ends = {
            event_id for (event_id, _), next_ids in neighbours.items() if any(n not in depths for n in next_ids)
        }
        frontier = [event_id for event_id in depths if event_id in open_ends]
    return assemble(focus, direction, depths, nodes, Truncation(hit_depth, hit_limit, tuple(frontier)))


def assemble(
    focus: UUID,
    direction: Direction,
    depths: Mapping[UUID, int],
    nodes: Mapping[UUID, Node],
    truncated: Truncation,
) -> Graph:
    """Put the nodes that a walk found into topological order, with all edges among them."""
    edges = tuple((parent, event_id) for event_id in depths for parent in nodes[event_id].parents if parent in depths)
    order, cycle = topological_order(nodes, edges)
    return Graph(
        focus=focus,
        direction=direction,
        steps=tuple(Step(nodes[event_id], depths[event_id]) for event_id in order),
        edges=edges,
        roots=tuple(i for i in order if nodes[i].known and not nodes[i].parents),
        missing=tuple(i for i in order if not nodes[i].known),
        cycle=cycle,
        truncated=truncated,
    )


def topological_order(nodes: Mapping[UUID, Node], edges: Iterable[tuple[UUID, UUID]]) -> tuple[list[UUID], bool]:
    """Order nodes so that parents come first; ties by time, then id. Return the order and whether it cycles.

    Source: A. B. Kahn, Topological sorting of large networks, CACM 5 (1962). Where only circles are left, the
    earliest of the remaining events goes first.
    """
    children: dict[UUID, list[UUID]] = {}
    waiting_for = dict.fromkeys(nodes, 0)
    for parent, child in edges:
        children.setdefault(parent, []).append(child)
        waiting_for[child] += 1
    ready = [_rank(node) for node in nodes.values() if not waiting_for[node.event_id]]
    heapq.heapify(ready)
    in_circles: list[tuple[float, UUID]] | None = None
    order: list[UUID] = []
    done: set[UUID] = set()
    while len(order) < len(nodes):
        if ready:
            event_id = heapq.heappop(ready)[1]
        else:
            if in_circles is None:
                in_circles = sorted((_rank(n) for n in nodes.values() if n.event_id not in done), reverse=True)
            event_id = in_circles.pop()[1]
        if event_id in done:
            continue
        done.add(event_id)
        order.append(event_id)
        for child in children.get(event_id, ()):
            waiting_for[child] -= 1
            if not waiting_for[child] and child not in done:
                heapq.heappush(ready, _rank(nodes[child]))
    return order, in_circles is not None


def _rank(node: Node) -> tuple[float, UUID]:
    # A parent that was never seen has no time; it goes before what it caused.
    return (node.link.timestamp.timestamp() if node.link else float("-inf"), node.event_id)
