"""Links to record, random causes, and two oracles: the walk over a plain dict, and networkx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import networkx as nx
from hypothesis import strategies as st

from bloodbank.ids import new_event_id
from bloodbank.stores.assembly import assemble
from bloodbank.stores.base import Direction, Expand, Graph, Link, Node, Row, parents_of, walk

EVERYTHING = 50_000
NOW = datetime.now(UTC)


def link(event_id: UUID, *parents: UUID, seconds: float = 0, accepted_at: datetime = NOW) -> Link:
    return Link(
        event_id,
        parents,
        "llm.response",
        NOW + timedelta(seconds=seconds),
        "agent",
        accepted_at,
        b"0123456789abcdef",
    )


def new_ids(count: int) -> list[UUID]:
    """Return ids that ascend."""
    return [new_event_id() for _ in range(count)]


class Oracle:
    """An index in two dicts."""

    def __init__(self, links: Iterable[Link]) -> None:
        self.links: dict[UUID, Link] = {}
        for one in links:
            self.links.setdefault(one.event_id, one)
        self.children: dict[UUID, set[UUID]] = {}
        for one in self.links.values():
            for parent in one.parents:
                self.children.setdefault(parent, set()).add(one.event_id)

    @property
    def ids(self) -> list[UUID]:
        """All events that were seen or named."""
        return sorted(self.links.keys() | self.children.keys())

    def node(self, event_id: UUID) -> Node:
        return Node(event_id, self.links.get(event_id), len(self.children.get(event_id, ())))

    def walk(self, focus: UUID, direction: Direction, *, max_depth: int, limit: int) -> Graph | None:
        steps = walk(focus, direction, max_depth=max_depth, limit=limit)
        request = next(steps)
        while True:
            try:
                request = steps.send(self._expanded(request))
            except StopIteration as stop:
                return assemble(stop.value) if stop.value else None

    def graph(self) -> nx.DiGraph[UUID]:
        """The same for networkx."""
        graph: nx.DiGraph[UUID] = nx.DiGraph()
        graph.add_nodes_from(self.ids)
        graph.add_edges_from((parent, child) for parent, children in self.children.items() for child in children)
        return graph

    def _expanded(self, request: Expand) -> dict[bytes, tuple[Row, Sequence[bytes]]]:
        answer: dict[bytes, tuple[Row, Sequence[bytes]]] = {}
        for event_id in request.event_ids:
            known, children = self.links.get(UUID(bytes=event_id)), self.children.get(UUID(bytes=event_id), set())
            if known is None and not children:
                continue
            row = Row.of(known, len(children)) if known else Row.unseen(event_id, len(children))
            up = request.direction is Direction.ANCESTORS
            few = sorted(child.bytes for child in children)[: request.neighbour_limit]
            answer[event_id] = (row, parents_of(row, request.neighbour_limit) if up else few)
        return answer


@dataclass(frozen=True)
class Causes:
    """Random causes among numbered events: {child: parents}; who is missing was named and never seen.

    order: the children in the order of their recording.
    """

    parents: Mapping[int, Sequence[int]]
    order: Sequence[int]

    def links(self) -> list[Link]:
        """Return them as links with ids that no other example has, in ascending order."""
        size = 1 + max([*self.parents, *(parent for several in self.parents.values() for parent in several)])
        ids = new_ids(size)
        return [
            link(ids[child], *(ids[parent] for parent in self.parents[child]), seconds=child % 3)
            for child in self.order
        ]


@st.composite
def causes(draw: st.DrawFn, *, circles: bool) -> Causes:
    """Draw causes among up to 14 events. Without circles, a parent has the smaller number."""
    size = draw(st.integers(1, 14))
    parents: dict[int, list[int]] = {}
    for child in range(size):
        candidates = [other for other in range(size) if other < child or (circles and other != child)]
        drawn = draw(st.lists(st.sampled_from(candidates), max_size=4, unique=True)) if candidates else []
        if child == 0 or draw(st.integers(0, 6)):
            parents[child] = drawn
    return Causes(parents, draw(st.permutations(sorted(parents))))
