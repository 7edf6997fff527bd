"""Questions about several events, without a store: circles, names that were never seen, and what is bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from uuid import UUID

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from bloodbank.kinship import Common, CommonCauses, impact_of, no_path, path_between, path_in
from bloodbank.stores.base import Direction, Graph, Truncation
from tests.unit.test_graph import Index, ints, parents_of, reference

UP, DOWN = Direction.ANCESTORS, Direction.DESCENDANTS


def ancestors(parents: Mapping[int, Sequence[int]], focus: int) -> Graph:
    return Index(parents).graph(focus, UP)


def common(parents: Mapping[int, Sequence[int]], *events: int) -> CommonCauses:
    first, *others = (ancestors(parents, event) for event in events)
    found = Common(first, limit=100)
    for graph in others:
        found.add(graph)
    return found.lowest()


def lowest(parents: Mapping[int, Sequence[int]], *events: int) -> list[int]:
    return ints([step.node.event_id for step in common(parents, *events).steps])


@given(st.booleans().flatmap(lambda circles: parents_of(circles=circles)), st.data())
def test_a_path_in_a_graph_is_as_short_as_that_of_networkx(parents: dict[int, list[int]], data: st.DataObject) -> None:
    expected = reference(parents)
    focus, start, end = (data.draw(st.sampled_from(sorted(expected))) for _ in range(3))
    graph = Index(parents).graph(focus, Direction.BOTH)
    within = expected.subgraph(ints(graph.ids))
    path = path_in(graph, UUID(int=start), UUID(int=end))
    if start not in within or end not in within or not nx.has_path(within, start, end):
        assert path is None
    else:
        assert path is not None
        assert len(path) - 1 == nx.shortest_path_length(within, start, end)
        assert all(within.has_edge(parent, child) for parent, child in pairwise(ints(path)))


def test_in_a_circle_the_shorter_way_counts() -> None:
    circle = {1: [5], 2: [1], 3: [2], 4: [3], 5: [4]}
    graph = ancestors(circle, 1)
    ways = {}
    for start, end in ((1, 3), (3, 1), (1, 2), (2, 1)):
        path = path_between(graph, UUID(int=start), UUID(int=end))
        assert path is not None
        ways[start, end] = (path.direction, ints([step.node.event_id for step in path.steps]))
    assert ways == {(1, 3): (DOWN, [1, 2, 3]), (3, 1): (UP, [3, 2, 1]), (1, 2): (DOWN, [1, 2]), (2, 1): (UP, [2, 1])}


def test_of_two_ways_as_short_the_one_to_the_descendants_counts() -> None:
    path = path_between(ancestors({1: [2], 2: [1]}, 1), UUID(int=2), UUID(int=1))
    assert path is not None
    assert path.direction is DOWN


def test_a_path_may_lead_from_a_name_that_was_never_seen() -> None:
    path = path_between(ancestors({2: [1], 3: [2]}, 3), UUID(int=1), UUID(int=3))
    assert path is not None
    assert ([step.node.known for step in path.steps], ints(path.missing)) == ([False, True, True], [1])


def test_without_a_path_it_is_said_what_was_looked_through() -> None:
    graphs = [ancestors({2: [1], 3: []}, focus) for focus in (2, 3)]
    none = no_path(UUID(int=2), UUID(int=3), graphs, limit=10)
    assert (none.found, ints(none.missing), none.truncated) == (False, [1], Truncation())
    frontier = tuple(UUID(int=number) for number in range(20))
    cut = [replace(graphs[0], truncated=Truncation(depth=True, frontier=frontier)), graphs[1]]
    unknown = no_path(UUID(int=2), UUID(int=3), cut, limit=10)
    assert (unknown.found, unknown.truncated) == (None, Truncation(depth=True, frontier=frontier[:10]))


def test_the_lowest_common_causes_led_to_no_other() -> None:
    #   1 → 2 → 4, 5 and 3 → 4, 5
    both = {1: [], 2: [1], 3: [], 4: [2, 3], 5: [3, 2]}
    assert lowest(both, 4, 5) == [2, 3]
    assert lowest(both, 4, 2) == [2]
    assert lowest(both, 4, 5, 3) == [3]
    assert lowest(both, 1, 3) == []


def test_of_a_circle_of_common_causes_all_count_or_none() -> None:
    circle = {1: [], 2: [1, 3], 3: [2], 5: [2], 6: [3]}
    assert lowest(circle, 5, 6) == [2, 3]
    assert lowest({**circle, 4: [2], 5: [4], 6: [4]}, 5, 6) == [4]


def test_a_name_that_was_never_seen_can_be_a_common_cause() -> None:
    found = common({2: [1], 3: [1]}, 2, 3)
    assert (ints([step.node.event_id for step in found.steps]), found.complete, ints(found.missing)) == ([1], True, [1])


def test_what_is_named_beside_common_causes_is_bounded() -> None:
    frontier = tuple(UUID(int=number) for number in range(100, 120))
    graph = replace(ancestors({2: [1]}, 2), truncated=Truncation(limit=True, frontier=frontier), missing=frontier)
    found = Common(graph, limit=15)
    found.add(graph)
    answer = found.lowest()
    assert (answer.complete, answer.truncated) == (False, Truncation(limit=True, frontier=frontier[:15]))
    assert answer.missing == frontier[:15]


def test_impact_ranks_by_number_and_leaves_the_event_out() -> None:
    index = Index({1: [], 2: [1], 3: [1], 4: [2, 3]})
    types = {1: "x.first", 2: "b.done", 3: "a.failed", 4: "a.failed"}
    for number, event_type in types.items():
        index.links[number] = index.links[number]._replace(event_type=event_type, source=f"s{number % 2}")
    impact = impact_of(index.graph(1, DOWN))
    assert (impact.descendants, impact.ok, impact.failed, impact.unknown) == (3, 1, 2, 0)
    assert list(impact.by_type.items()) == [("a.failed", 2), ("b.done", 1)]
    assert list(impact.by_source.items()) == [("s0", 2), ("s1", 1)]
    assert (impact.first, impact.last) == (index.links[2].timestamp, index.links[4].timestamp)


def test_an_event_that_led_to_itself_is_not_counted() -> None:
    assert impact_of(Index({1: [2], 2: [1]}).graph(1, DOWN)).descendants == 1
