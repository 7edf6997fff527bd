"""What graphs of causes tell of several events: the path between two, the lowest common causes, the impact of one.

Pure functions over the graphs of walks (`stores.base.Graph`). Nothing here calls itself: a chain may be 10,000 events
deep. For thousands of events this belongs into a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from uuid import UUID

from bloodbank.events.failures import is_failure
from bloodbank.stores.base import Direction, Graph, Step, Truncation
from bloodbank.stores.order import components

MOST_EVENTS = 16
"""Events whose common causes can be asked for at once."""


@dataclass(frozen=True, slots=True)
class CausalPath:
    """The shortest way by causes from one event to another.

    found: None where it is not known, because what was looked through was cut short.
    direction: DESCENDANTS when the first event led to the other, ANCESTORS when the other led to it; None without a
    path, and from an event to itself.
    steps: from `start` to `end`; the depth is hops from `start`, negative towards ancestors. Empty without a path.
    edges: (parent, child), those of the path in its order.
    missing: parents that were named but never seen, among what was looked through: nobody knows what caused them.
    """

    start: UUID
    end: UUID
    found: bool | None
    direction: Direction | None
    steps: tuple[Step, ...]
    edges: tuple[tuple[UUID, UUID], ...]
    missing: tuple[UUID, ...]
    truncated: Truncation


@dataclass(frozen=True, slots=True)
class CommonCauses:
    """The lowest common causes of several events: common ancestors that led to no other common ancestor.

    An event of the list that led to all the others is one. Of common ancestors that cause each other in a circle,
    all are or none is.

    steps: in topological order; the depth is hops from the first of the events, so zero or negative.
    complete: nothing was cut short. Otherwise each step is a common ancestor, but lower ones may have been missed.
    missing: parents that were named but never seen, among what was looked through: nobody knows what caused them.
    """

    event_ids: tuple[UUID, ...]
    steps: tuple[Step, ...]
    complete: bool
    missing: tuple[UUID, ...]
    truncated: Truncation


@dataclass(frozen=True, slots=True)
class Impact:
    """What an event led to, counted; the event itself is not.

    by_type, by_source: the most frequent first. failed: events that tell of a failure. unknown: events that were named
    but never seen. first, last: times of the events themselves, aware, UTC; None where there are none.
    """

    event_id: UUID
    descendants: int
    by_type: Mapping[str, int]
    by_source: Mapping[str, int]
    ok: int
    failed: int
    unknown: int
    first: datetime | None
    last: datetime | None
    truncated: Truncation


def path_in(graph: Graph, start: UUID, end: UUID) -> list[UUID] | None:
    """Return the events of a shortest path from one event to another, from parents to children; None without one.

    Of several as short it is always the same one.
    """
    children = _children(graph)
    if start not in children or end not in children:
        return None
    came_from: dict[UUID, UUID] = {}
    level = [start]
    seen = {start}
    while level and end not in seen:
        following: list[UUID] = []
        for parent in level:
            for child in children[parent]:
                if child not in seen:
                    seen.add(child)
                    came_from[child] = parent
                    following.append(child)
        level = following
    if end not in seen:
        return None
    path = [end]
    while path[-1] != start:
        path.append(came_from[path[-1]])
    return path[::-1]


def path_between(graph: Graph, start: UUID, end: UUID) -> CausalPath | None:
    """Return the shortest path between two events of a graph, whichever led to the other; None without one.

    In a circle each led to the other, and of two ways as short the one towards the descendants counts.
    """
    down, up = path_in(graph, start, end), path_in(graph, end, start)
    if down is not None and (up is None or len(down) <= len(up)):
        ids, sign, direction = down, 1, Direction.DESCENDANTS
    elif up is not None:
        ids, sign, direction = up[::-1], -1, Direction.ANCESTORS
    else:
        return None
    nodes = {step.node.event_id: step.node for step in graph.steps}
    return CausalPath(
        start,
        end,
        True,
        direction if len(ids) > 1 else None,
        tuple([Step(nodes[event_id], sign * hops) for hops, event_id in enumerate(ids)]),
        tuple([(one, other) if sign > 0 else (other, one) for one, other in pairwise(ids)]),
        graph.missing,
        graph.truncated,
    )


def no_path(start: UUID, end: UUID, looked_through: Sequence[Graph], limit: int) -> CausalPath:
    """Return the answer where no path was found. It is not known whether there is one where a graph was cut short.

    looked_through: what could have held it. limit: most events that `missing` and the frontier name, each.
    """
    truncated = _together(looked_through, limit)
    found = None if truncated.depth or truncated.limit else False
    return CausalPath(start, end, found, None, (), (), _missing(looked_through, limit), truncated)


class Common:
    """Finds the common causes of several events: give it the graph of each event's ancestors, one by one.

    Only what is needed further is kept of them. first: of the first event. limit: most events that `missing` and the
    frontier name, each.
    """

    def __init__(self, first: Graph, limit: int) -> None:
        self._limit = limit
        self._focuses: list[UUID] = []
        self._first = first
        self._common = set(first.ids)
        self._missing: dict[UUID, None] = {}
        self._frontier: dict[UUID, None] = {}
        self._hit_depth = self._hit_limit = False
        self.add(first)

    def add(self, graph: Graph) -> None:
        """Take the ancestors of one more event."""
        self._focuses.append(graph.focus)
        self._common.intersection_update(graph.ids)
        self._hit_depth |= graph.truncated.depth
        self._hit_limit |= graph.truncated.limit
        for several, some in ((self._missing, graph.missing), (self._frontier, graph.truncated.frontier)):
            several.update(dict.fromkeys(some[: self._limit - len(several)]))

    def lowest(self) -> CommonCauses:
        """Return the answer for the events whose ancestors were given."""
        kept = [step for step in self._first.steps if step.node.event_id in self._common]
        number = {step.node.event_id: place for place, step in enumerate(kept)}
        children: list[list[int]] = [[] for _ in kept]
        # Between two common ancestors there are common ancestors only, and all edges among them are in this graph.
        for parent, child in self._first.edges:
            if parent in number and child in number:
                children[number[parent]].append(number[child])
        lowest: list[int] = []
        for circle in components(children) if self._first.cycle else ([place] for place in range(len(kept))):
            inside = set(circle)
            if all(child in inside for member in circle for child in children[member]):
                lowest += circle
        complete = not (self._hit_depth or self._hit_limit)
        return CommonCauses(
            tuple(self._focuses),
            tuple([kept[place] for place in sorted(lowest)]),
            complete,
            tuple(self._missing),
            Truncation(self._hit_depth, self._hit_limit, tuple(self._frontier)),
        )


def impact_of(graph: Graph) -> Impact:
    """Count the events of a graph of descendants."""
    nodes = [step.node for step in graph.steps if step.node.event_id != graph.focus]
    links = [node.link for node in nodes if node.link is not None]
    types = Counter(link.event_type for link in links)
    failed = sum(count for event_type, count in types.items() if is_failure(event_type))
    times = [link.timestamp for link in links]
    return Impact(
        graph.focus,
        len(nodes),
        _ranked(types),
        _ranked(Counter(link.source for link in links)),
        len(links) - failed,
        failed,
        len(nodes) - len(links),
        min(times, default=None),
        max(times, default=None),
        graph.truncated,
    )


def _children(graph: Graph) -> dict[UUID, list[UUID]]:
    """Map each event of a graph to what it caused, in the order of the graph."""
    place = {event_id: number for number, event_id in enumerate(graph.ids)}
    children: dict[UUID, list[UUID]] = {event_id: [] for event_id in place}
    for parent, child in graph.edges:
        children[parent].append(child)
    for several in children.values():
        several.sort(key=place.__getitem__)
    return children


def _together(graphs: Iterable[Graph], limit: int) -> Truncation:
    graphs = list(graphs)
    frontier = dict.fromkeys(event_id for graph in graphs for event_id in graph.truncated.frontier)
    return Truncation(
        any(graph.truncated.depth for graph in graphs),
        any(graph.truncated.limit for graph in graphs),
        tuple(frontier)[:limit],
    )


def _missing(graphs: Iterable[Graph], limit: int) -> tuple[UUID, ...]:
    return tuple(dict.fromkeys(event_id for graph in graphs for event_id in graph.missing))[:limit]


def _ranked(counts: Counter[str]) -> dict[str, int]:
    """Return counts, the largest first, ties by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
