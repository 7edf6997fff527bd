"""Random causes: every store answers like the plain walk over a dict, and like networkx."""

from __future__ import annotations

import itertools
from uuid import UUID

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloodbank.stores.base import CorrelationStore, Direction, Graph, Link
from tests.conformance.graphs import EVERYTHING, Causes, Oracle, causes, link, new_ids

# The store is shared by the examples of a test; each example has ids of its own.
sharing = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DIRECTIONS = st.sampled_from(Direction)


@sharing
@given(drawn=causes(circles=False), direction=DIRECTIONS, chosen=st.integers(0, 13))
async def test_a_walk_agrees_with_networkx(
    store: CorrelationStore, drawn: Causes, direction: Direction, chosen: int
) -> None:
    oracle = await _recorded(store, drawn)
    focus = oracle.ids[chosen % len(oracle.ids)]
    found = await store.walk(focus, direction, max_depth=EVERYTHING, limit=EVERYTHING)
    reference = oracle.graph()
    ancestors = nx.single_source_shortest_path_length(reference.reverse(), focus)
    descendants = nx.single_source_shortest_path_length(reference, focus)
    expected: dict[UUID, int] = {}
    if direction is not Direction.DESCENDANTS:
        expected |= {event: -hops for event, hops in ancestors.items()}
    if direction is not Direction.ANCESTORS:
        expected |= descendants
    assert {step.node.event_id: step.depth for step in found.steps} == expected
    within = reference.subgraph(expected)
    assert set(found.edges) == set(within.edges)
    assert len(found.edges) == within.number_of_edges()
    position = {event: place for place, event in enumerate(found.ids)}
    assert all(position[parent] < position[child] for parent, child in within.edges)
    assert set(found.roots) == {
        event for event in expected if event in oracle.links and not oracle.links[event].parents
    }
    assert set(found.missing) == {event for event in expected if event not in oracle.links}
    assert not found.cycle


@sharing
@given(
    drawn=st.booleans().flatmap(lambda circles: causes(circles=circles)),
    direction=DIRECTIONS,
    chosen=st.integers(0, 13),
    max_depth=st.integers(1, 8),
    limit=st.integers(1, 20),
)
async def test_a_walk_agrees_with_the_walk_over_a_dict(
    store: CorrelationStore, drawn: Causes, direction: Direction, chosen: int, max_depth: int, limit: int
) -> None:
    oracle = await _recorded(store, drawn)
    focus = oracle.ids[chosen % len(oracle.ids)]
    found = await store.walk(focus, direction, max_depth=max_depth, limit=limit)
    assert found == oracle.walk(focus, direction, max_depth=max_depth, limit=limit)


@sharing
@given(drawn=causes(circles=True))
async def test_nodes_agree_with_a_dict(store: CorrelationStore, drawn: Causes) -> None:
    oracle = await _recorded(store, drawn)
    assert await store.nodes(oracle.ids) == {event: oracle.node(event) for event in oracle.ids}


@sharing
@given(drawn=causes(circles=True), chosen=st.integers(0, 13))
async def test_circles_are_found_where_networkx_finds_them(store: CorrelationStore, drawn: Causes, chosen: int) -> None:
    oracle = await _recorded(store, drawn)
    focus = oracle.ids[chosen % len(oracle.ids)]
    found = await store.walk(focus, Direction.DESCENDANTS, max_depth=EVERYTHING, limit=EVERYTHING)
    reference = oracle.graph()
    reached = nx.descendants(reference, focus) | {focus}
    assert set(found.ids) == reached
    assert found.cycle == (not nx.is_directed_acyclic_graph(reference.subgraph(reached)))


@sharing
@given(drawn=causes(circles=False), limit=st.integers(2, 6), direction=st.sampled_from(["ancestors", "descendants"]))
async def test_asking_the_frontier_yields_the_rest_without_a_gap(
    store: CorrelationStore, drawn: Causes, limit: int, direction: str
) -> None:
    oracle = await _recorded(store, drawn)
    focus = oracle.ids[0] if direction == "descendants" else oracle.ids[-1]
    way = Direction(direction)
    whole = await store.walk(focus, way, max_depth=EVERYTHING, limit=EVERYTHING)
    seen: set[UUID] = set()
    edges: set[tuple[UUID, UUID]] = set()
    waiting = [focus]
    asked: set[UUID] = set()
    while waiting:
        # A node with more neighbours than the limit needs a larger one to be passed.
        event = waiting.pop()
        asked.add(event)
        part = await store.walk(event, way, max_depth=EVERYTHING, limit=limit + 14)
        small = await store.walk(event, way, max_depth=EVERYTHING, limit=limit)
        assert _breadth_first(small) == _breadth_first(part)[: len(small.steps)]
        part = small if len(small.steps) > 1 and event not in small.truncated.frontier else part
        seen.update(part.ids)
        edges.update(part.edges)
        waiting += [one for one in part.truncated.frontier if one not in asked and one not in waiting]
    assert seen == set(whole.ids)
    assert edges <= set(whole.edges)


@pytest.mark.parametrize("direction", [Direction.ANCESTORS, Direction.DESCENDANTS])
async def test_a_wide_and_deep_graph_is_the_same_as_over_a_dict(store: CorrelationStore, direction: Direction) -> None:
    levels = [new_ids(60) for _ in range(20)]
    links = [link(event) for event in levels[0]]
    for above, below in itertools.pairwise(levels):
        links += [
            link(event, *(above[(place * 7 + step * 13) % 60] for step in range(4)))
            for place, event in enumerate(below)
        ]
    for start in range(0, len(links), 400):
        await store.record(links[start : start + 400])
    focus = levels[-1][0] if direction is Direction.ANCESTORS else levels[0][0]
    for limit in (EVERYTHING, 700, 100):
        found = await store.walk(focus, direction, max_depth=EVERYTHING, limit=limit)
        assert found == Oracle(links).walk(focus, direction, max_depth=EVERYTHING, limit=limit)


@pytest.mark.parametrize("direction", [Direction.ANCESTORS, Direction.DESCENDANTS])
async def test_a_chain_with_knots_is_cut_where_it_is_over_a_dict(store: CorrelationStore, direction: Direction) -> None:
    # Straight for a while, then a diamond, a name that nobody recorded, a short cut; and again.
    links: list[Link] = []
    last = new_ids(1)
    for _ in range(6):
        straight, (left, right, unseen, end) = new_ids(30), new_ids(4)
        links += [link(child, parent) for parent, child in itertools.pairwise([*last, *straight])]
        links += [link(left, straight[-1]), link(right, straight[-1], unseen), link(end, right, left, straight[3])]
        last = [end]
    await store.record(links)
    oracle = Oracle(links)
    focus = links[-1].event_id if direction is Direction.ANCESTORS else links[0].parents[0]
    assert len((await store.walk(focus, direction, max_depth=EVERYTHING, limit=EVERYTHING)).steps) > 6 * 33
    for max_depth, limit in [(EVERYTHING, n) for n in (1, 2, 3, 33, 34, 35, 36, 64, 65, 66, 150)] + [
        (n, EVERYTHING) for n in (1, 2, 30, 31, 32, 33, 63, 64, 65, 150)
    ]:
        found = await store.walk(focus, direction, max_depth=max_depth, limit=limit)
        assert found == oracle.walk(focus, direction, max_depth=max_depth, limit=limit)


async def _recorded(store: CorrelationStore, drawn: Causes) -> Oracle:
    links = drawn.links()
    half = len(links) // 2
    await store.record(links[:half])
    await store.record(links[half:])
    return Oracle(links)


def _breadth_first(graph: Graph) -> list[tuple[int, UUID]]:
    return sorted((abs(step.depth), step.node.event_id) for step in graph.steps)
