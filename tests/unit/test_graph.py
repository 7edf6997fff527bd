"""The walk over the graph of causes, without a store: against networkx, within limits, through circles."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodbank.stores import base
from bloodbank.stores.assembly import assemble, moments, uuids_of
from bloodbank.stores.base import Direction, Expand, Graph, Link, Row, microseconds, walk
from bloodbank.stores.order import components, topological_order

START = datetime(2026, 1, 1, tzinfo=UTC)
EVERYTHING = 10_000


class Index:
    """Answers a walk from two dicts. An event is unknown when only its name is known."""

    def __init__(self, parents: Mapping[int, Sequence[int]], *, times: Mapping[int, int] | None = None) -> None:
        self.links = {
            child: Link(
                UUID(int=child),
                tuple(UUID(int=parent) for parent in ids),
                "a.b",
                START + timedelta(seconds=(times or {}).get(child, child)),
                "test",
                START,
            )
            for child, ids in parents.items()
        }
        self.children: dict[int, list[int]] = {}
        for child, ids in parents.items():
            for parent in dict.fromkeys(ids):
                self.children.setdefault(parent, []).append(child)
        self.asked: list[Expand] = []
        self.reads_ahead = False

    def answer(self, request: Expand) -> dict[bytes, tuple[Row, Sequence[bytes]]]:
        self.asked.append(request)
        answer: dict[bytes, tuple[Row, Sequence[bytes]]] = {}
        asked = request.event_ids
        if self.reads_ahead:
            asked = [number.to_bytes(16) for number in {*self.links, *self.children}]
        for event_id in asked:
            number = int.from_bytes(event_id)
            link, children = self.links.get(number), sorted(self.children.get(number, ()))
            if link is None and not children:
                continue
            row = Row.of(link, len(children)) if link else Row.unseen(event_id, len(children))
            up = request.direction is Direction.ANCESTORS
            few = [child.to_bytes(16) for child in children][: request.neighbour_limit]
            answer[event_id] = (row, base.parents_of(row, request.neighbour_limit) if up else few)
        return answer

    def walk(
        self, focus: int, direction: Direction, *, max_depth: int = EVERYTHING, limit: int = EVERYTHING
    ) -> Graph | None:
        steps = walk(UUID(int=focus), direction, max_depth=max_depth, limit=limit)
        request = next(steps)
        while True:
            try:
                request = steps.send(self.answer(request))
            except StopIteration as stop:
                return assemble(stop.value) if stop.value else None

    def graph(self, focus: int, direction: Direction, *, max_depth: int = EVERYTHING, limit: int = EVERYTHING) -> Graph:
        found = self.walk(focus, direction, max_depth=max_depth, limit=limit)
        assert found is not None
        return found


def ints(ids: Sequence[UUID]) -> list[int]:
    return [event_id.int for event_id in ids]


def depths(graph: Graph) -> dict[int, int]:
    return {step.node.event_id.int: step.depth for step in graph.steps}


@st.composite
def parents_of(draw: st.DrawFn, *, circles: bool = False) -> dict[int, list[int]]:
    """Random causes among up to twelve events; without circles a parent has the smaller number.

    Some events are only named, never seen.
    """
    size, density = draw(st.integers(1, 12)), draw(st.sampled_from([0.1, 0.2, 0.4]))
    # From one number, since drawing each edge takes longer than all that is tested with it.
    chance = random.Random(draw(st.integers(0, 2**32)))
    found: dict[int, list[int]] = {}
    for child in range(1, size + 1):
        candidates = range(1, size + 1) if circles else range(1, child)
        parents = [parent for parent in candidates if chance.random() < density]
        if chance.random() < 0.9:
            found[child] = chance.sample(parents, len(parents))
    return found or {1: []}


def reference(parents: Mapping[int, Sequence[int]]) -> nx.DiGraph:
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(parents)
    graph.add_edges_from((parent, child) for child, ids in parents.items() for parent in ids)
    return graph


def distances(graph: nx.DiGraph, focus: int, direction: Direction) -> dict[int, int]:
    """Fewest hops by networkx, negative towards ancestors; both ways: the nearer, the ancestor when equal."""
    up = nx.single_source_shortest_path_length(graph.reverse(), focus)
    down = nx.single_source_shortest_path_length(graph, focus)
    ancestors = {node: -hops for node, hops in up.items()}
    if direction is Direction.ANCESTORS:
        return ancestors
    if direction is Direction.DESCENDANTS:
        return dict(down)
    nearer = {node: hops for node, hops in down.items() if node not in up or hops < up[node]}
    return ancestors | nearer


DIRECTIONS = st.sampled_from(Direction)


@given(parents_of(), DIRECTIONS, st.data())
def test_a_walk_is_what_networkx_finds(
    parents: dict[int, list[int]], direction: Direction, data: st.DataObject
) -> None:
    expected = reference(parents)
    focus = data.draw(st.sampled_from(sorted(expected)))
    graph = Index(parents).graph(focus, direction)
    found = distances(expected, focus, direction)
    assert depths(graph) == found
    assert {(p.int, c.int) for p, c in graph.edges} == set(expected.subgraph(found).edges)
    assert len(graph.edges) == len(set(graph.edges))
    assert set(ints(graph.missing)) == found.keys() - parents.keys()
    assert set(ints(graph.roots)) == {node for node in found if node in parents and not parents[node]}
    assert not graph.cycle
    assert graph.truncated.frontier == ()
    assert not graph.truncated.depth
    assert not graph.truncated.limit


@given(parents_of(circles=True), DIRECTIONS, st.data())
def test_circles_end_and_hide_nothing(parents: dict[int, list[int]], direction: Direction, data: st.DataObject) -> None:
    expected = reference(parents)
    focus = data.draw(st.sampled_from(sorted(expected)))
    graph = Index(parents).graph(focus, direction)
    found = distances(expected, focus, direction)
    assert depths(graph) == found
    assert graph.cycle is not nx.is_directed_acyclic_graph(expected.subgraph(found))


@given(parents_of(), st.permutations(range(13)), st.data())
def test_parents_come_first_and_ties_go_by_time_then_id(
    parents: dict[int, list[int]], order: list[int], data: st.DataObject
) -> None:
    times = {event: time // 3 for event, time in enumerate(order)}
    expected = reference(parents)
    focus = data.draw(st.sampled_from(sorted(expected)))
    graph = Index(parents, times=times).graph(focus, Direction.BOTH)
    part = expected.subgraph(distances(expected, focus, Direction.BOTH))
    # An event that was never seen has no time and goes before what it caused.
    by_rank = nx.lexicographical_topological_sort(part, key=lambda n: (times[n] if n in parents else -1, n))
    assert ints(graph.ids) == list(by_rank)


@given(parents_of(), DIRECTIONS, st.integers(1, 4), st.data())
def test_max_depth_cuts_by_hops_and_says_where(
    parents: dict[int, list[int]], direction: Direction, max_depth: int, data: st.DataObject
) -> None:
    expected = reference(parents)
    focus = data.draw(st.sampled_from(sorted(expected)))
    everything = distances(expected, focus, direction)
    graph = Index(parents).graph(focus, direction, max_depth=max_depth)
    assert depths(graph) == {node: hops for node, hops in everything.items() if abs(hops) <= max_depth}
    assert graph.truncated.depth is (len(graph.steps) < len(everything))
    assert not graph.truncated.limit
    assert set(ints(graph.truncated.frontier)) == open_ends(expected, graph, direction)


@given(parents_of(), st.sampled_from([Direction.ANCESTORS, Direction.DESCENDANTS]), st.integers(1, 6), st.data())
def test_limit_keeps_what_is_nearest_and_of_that_the_smaller_ids(
    parents: dict[int, list[int]], direction: Direction, limit: int, data: st.DataObject
) -> None:
    expected = reference(parents)
    focus = data.draw(st.sampled_from(sorted(expected)))
    everything = distances(expected, focus, direction)
    nearest = sorted(everything, key=lambda node: (abs(everything[node]), node))[:limit]
    graph = Index(parents).graph(focus, direction, limit=limit)
    assert depths(graph) == {node: everything[node] for node in nearest}
    assert graph.truncated.limit is (len(everything) > limit)
    assert set(ints(graph.truncated.frontier)) == open_ends(expected, graph, direction)


@given(parents_of(), st.integers(1, 6), st.data())
def test_limit_holds_in_both_directions_together(
    parents: dict[int, list[int]], limit: int, data: st.DataObject
) -> None:
    expected = reference(parents)
    focus = data.draw(st.sampled_from(sorted(expected)))
    everything = distances(expected, focus, Direction.BOTH)
    graph = Index(parents).graph(focus, Direction.BOTH, limit=limit)
    assert len(graph.steps) == min(limit, len(everything))
    assert depths(graph).items() <= everything.items()
    nearer_ones_left_out = {n for n, hops in everything.items() if n not in depths(graph)}
    furthest = max(abs(hops) for hops in depths(graph).values())
    assert all(abs(everything[node]) >= furthest for node in nearer_ones_left_out)


def open_ends(expected: nx.DiGraph, graph: Graph, direction: Direction) -> set[int]:
    """Events of an answer with neighbours that are not in it, on the side that was asked."""
    inside = depths(graph)
    ends: set[int] = set()
    for node, depth in inside.items():
        up = direction is not Direction.DESCENDANTS and depth <= 0
        down = direction is not Direction.ANCESTORS and depth >= 0
        neighbours = {*(expected.predecessors(node) if up else ()), *(expected.successors(node) if down else ())}
        if neighbours - inside.keys():
            ends.add(node)
    return ends


@given(parents_of(), st.sampled_from([Direction.ANCESTORS, Direction.DESCENDANTS]), st.integers(1, 3), st.data())
def test_asking_the_frontier_yields_the_rest(
    parents: dict[int, list[int]], direction: Direction, max_depth: int, data: st.DataObject
) -> None:
    expected = reference(parents)
    focus = data.draw(st.sampled_from(sorted(expected)))
    index = Index(parents)
    found: set[int] = set()
    asked: set[int] = set()
    to_ask = [focus]
    while to_ask:
        event = to_ask.pop()
        if event not in asked:
            asked.add(event)
            graph = index.graph(event, direction, max_depth=max_depth)
            found.update(ints(graph.ids))
            to_ask += ints(graph.truncated.frontier)
    assert found == distances(expected, focus, direction).keys()


def test_an_event_that_nobody_named_is_no_graph() -> None:
    assert Index({1: []}).walk(2, Direction.BOTH) is None


def test_an_event_that_was_only_named_is_a_graph_of_its_effects() -> None:
    graph = Index({2: [1]}).graph(1, Direction.DESCENDANTS)
    assert ints(graph.ids) == [1, 2]
    assert ints(graph.missing) == [1]
    assert graph.roots == ()


def test_a_diamond_has_each_event_once_and_every_edge() -> None:
    graph = Index({1: [], 2: [1], 3: [1], 4: [2, 3]}).graph(4, Direction.ANCESTORS)
    assert depths(graph) == {4: 0, 2: -1, 3: -1, 1: -2}
    assert len(graph.edges) == 4


def test_an_event_of_a_circle_is_asked_both_ways() -> None:
    graph = Index({1: [2], 2: [1], 3: [2]}).graph(1, Direction.BOTH)
    assert depths(graph) == {1: 0, 2: -1, 3: 2}
    assert graph.cycle


def test_causes_come_first_where_clocks_disagree() -> None:
    graph = Index({1: [], 2: [1]}, times={1: 100, 2: 0}).graph(2, Direction.ANCESTORS)
    assert ints(graph.ids) == [1, 2]


def test_a_walk_asks_once_for_each_level_and_direction() -> None:
    index = Index({child: [child - 1] for child in range(2, 6)} | {1: []})
    index.graph(3, Direction.BOTH)
    assert [([*map(int.from_bytes, ask.event_ids)], ask.direction) for ask in index.asked] == [
        ([3], Direction.ANCESTORS),
        ([3], Direction.DESCENDANTS),
        ([2], Direction.ANCESTORS),
        ([4], Direction.DESCENDANTS),
        ([1], Direction.ANCESTORS),
        ([5], Direction.DESCENDANTS),
    ]


@given(parents_of(circles=True), DIRECTIONS, st.integers(0, 12), st.integers(1, 13), st.data())
def test_what_was_read_ahead_changes_no_answer(
    parents: dict[int, list[int]], direction: Direction, max_depth: int, limit: int, data: st.DataObject
) -> None:
    focus = data.draw(st.sampled_from(sorted(reference(parents))))
    by_levels, ahead = Index(parents), Index(parents)
    ahead.reads_ahead = True
    expected = by_levels.graph(focus, direction, max_depth=max_depth, limit=limit)
    assert ahead.graph(focus, direction, max_depth=max_depth, limit=limit) == expected
    assert len(ahead.asked) <= (2 if direction is Direction.BOTH else 1)


@pytest.mark.parametrize(("max_depth", "limit"), [(EVERYTHING, 40), (39, EVERYTHING), (39, 40), (EVERYTHING, 41)])
def test_a_chain_that_was_read_ahead_is_cut_where_it_should_be(max_depth: int, limit: int) -> None:
    index = Index({child: [child - 1] for child in range(2, 101)} | {1: []})
    index.reads_ahead = True
    graph = index.graph(100, Direction.ANCESTORS, max_depth=max_depth, limit=limit)
    first = 101 - min(limit, max_depth + 1)
    assert ints(graph.ids) == list(range(first, 101))
    assert depths(graph)[first] == first - 100
    assert ints(graph.truncated.frontier) == [first]
    # The depth is what stopped it where both would have.
    assert (graph.truncated.depth, graph.truncated.limit) == (max_depth < limit, max_depth >= limit)


def test_a_walk_says_how_much_further_it_can_go() -> None:
    index = Index({child: [child - 1] for child in range(2, 6)} | {1: []})
    index.graph(5, Direction.ANCESTORS, max_depth=3, limit=3)
    assert [(ask.hops_left, ask.room) for ask in index.asked] == [(3, 2), (2, 1), (1, 0)]


def test_what_a_circle_led_to_comes_after_it_though_clocks_disagree() -> None:
    # 2 and 3 cause each other; 4 follows from 3, and its clock is far behind.
    graph = Index({1: [], 2: [1, 3], 3: [2], 4: [3]}, times={1: 40, 2: 30, 3: 20, 4: 10}).graph(
        1, Direction.DESCENDANTS
    )
    assert ints(graph.ids) == [1, 3, 2, 4]
    assert graph.cycle


@given(parents_of(circles=True), st.permutations(range(13)))
def test_circles_stand_together_in_the_order_of_the_condensed_graph(
    parents: dict[int, list[int]], rank: list[int]
) -> None:
    numbered = nx.relabel_nodes(reference(parents), {node: rank[node] for node in reference(parents)})
    numbers = {node: number for number, node in enumerate(sorted(numbered))}
    graph = nx.relabel_nodes(numbered, numbers)
    children = [sorted(graph.successors(node)) for node in range(len(graph))]
    condensed = nx.condensation(graph)
    smallest = {number: min(condensed.nodes[number]["members"]) for number in condensed}
    expected = [
        node
        for number in nx.lexicographical_topological_sort(condensed, key=smallest.__getitem__)
        for node in sorted(condensed.nodes[number]["members"])
    ]
    assert topological_order(children) == (expected, not nx.is_directed_acyclic_graph(graph))
    assert components(children) == sorted(sorted(members) for members in nx.strongly_connected_components(graph))


@given(st.integers(-62_000_000_000_000_000, 250_000_000_000_000_000))
def test_a_time_comes_back_to_the_microsecond(value: int) -> None:
    assert [microseconds(one) for one in moments([value])] == [value]


def test_times_far_apart_come_back_together() -> None:
    values = [-62_000_000_000_000_000, 0, 1_790_000_000_123_457, 250_000_000_000_000_000]
    assert [microseconds(one) for one in moments(values)] == values
    assert moments([]) == []


@given(st.lists(st.uuids()))
def test_ids_become_what_the_constructor_makes_of_them(several: list[UUID]) -> None:
    made = uuids_of([one.bytes for one in several])
    assert made == several
    assert {*made} == {*several}
    for found, expected in zip(made, several, strict=True):
        assert (str(found), found.is_safe, found.version) == (str(expected), expected.is_safe, expected.version)
        assert pickle.loads(pickle.dumps(found)) == copy.copy(found) == expected
