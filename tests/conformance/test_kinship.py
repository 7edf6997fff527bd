"""Questions about several events on random causes: every store's answers agree with networkx."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from uuid import UUID

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloodbank import CorrelationTracker, EventNotFound, InvalidQuery
from bloodbank.correlation_tracker import LARGE
from bloodbank.ids import new_event_id
from bloodbank.kinship import MOST_EVENTS, CausalPath
from bloodbank.stores.base import CorrelationStore, Direction, Truncation
from tests.conformance.backends import Index
from tests.conformance.graphs import Causes, Oracle, causes, link, new_ids

# The store is shared by the examples of a test; each example has ids of its own.
sharing = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ANY_CAUSES = st.booleans().flatmap(lambda circles: causes(circles=circles))
CHOSEN = st.integers(0, 13)


@pytest.fixture
async def tracker(index: Index) -> AsyncIterator[CorrelationTracker]:
    """A tracker on the index, which opens and closes a store of its own."""
    async with CorrelationTracker(index.store()) as opened:
        yield opened


@sharing
@given(drawn=ANY_CAUSES, chosen=st.tuples(CHOSEN, CHOSEN))
async def test_a_path_is_as_short_as_that_of_networkx(
    store: CorrelationStore, tracker: CorrelationTracker, drawn: Causes, chosen: tuple[int, int]
) -> None:
    oracle = await _recorded(store, drawn)
    start, end = (oracle.ids[one % len(oracle.ids)] for one in chosen)
    path = await tracker.path(start, end)
    down, up = _hops(oracle, start, end), _hops(oracle, end, start)
    assert path.found is (down is not None or up is not None)
    if path.found:
        _assert_is_a_path(path, oracle)
        assert len(path.edges) == min(hops for hops in (down, up) if hops is not None)
    else:
        assert (path.direction, path.steps, path.edges) == (None, (), ())
        assert path.truncated == Truncation()


@sharing
@given(drawn=ANY_CAUSES, chosen=st.tuples(CHOSEN, CHOSEN), max_depth=st.integers(1, 4), limit=st.integers(1, 8))
async def test_that_there_is_no_path_is_said_only_when_nothing_was_cut_short(
    store: CorrelationStore,
    tracker: CorrelationTracker,
    drawn: Causes,
    chosen: tuple[int, int],
    max_depth: int,
    limit: int,
) -> None:
    oracle = await _recorded(store, drawn)
    start, end = (oracle.ids[one % len(oracle.ids)] for one in chosen)
    path = await tracker.path(start, end, max_depth=max_depth, limit=limit)
    there_is_one = _hops(oracle, start, end) is not None or _hops(oracle, end, start) is not None
    if path.found:
        _assert_is_a_path(path, oracle)
        assert len(path.edges) <= max_depth
        if nx.is_directed_acyclic_graph(oracle.graph()):
            ends = (start, end) if path.direction is not Direction.ANCESTORS else (end, start)
            assert len(path.edges) == _hops(oracle, *ends)
    elif path.found is False:
        assert not there_is_one
        assert path.truncated == Truncation()
    else:
        assert path.truncated.depth or path.truncated.limit
        assert path.truncated.frontier
    assert len(path.truncated.frontier) <= limit
    assert len(path.missing) <= limit


@sharing
@given(drawn=ANY_CAUSES, chosen=st.lists(CHOSEN, min_size=2, max_size=5))
async def test_common_causes_are_those_that_networkx_finds(
    store: CorrelationStore, tracker: CorrelationTracker, drawn: Causes, chosen: list[int]
) -> None:
    oracle = await _recorded(store, drawn)
    ids = list(dict.fromkeys(oracle.ids[one % len(oracle.ids)] for one in chosen))
    if len(ids) < 2:
        return
    common = await tracker.common_causes(ids)
    assert common.complete
    assert {step.node.event_id for step in common.steps} == _lowest_common(oracle, ids)
    for step in common.steps:
        assert step.node == oracle.node(step.node.event_id)
        assert step.depth == -nx.shortest_path_length(oracle.graph(), step.node.event_id, ids[0])


@sharing
@given(
    drawn=ANY_CAUSES,
    chosen=st.lists(CHOSEN, min_size=2, max_size=5),
    max_depth=st.integers(1, 4),
    limit=st.integers(1, 8),
)
async def test_common_causes_that_were_cut_short_are_common_and_say_so(
    store: CorrelationStore, tracker: CorrelationTracker, drawn: Causes, chosen: list[int], max_depth: int, limit: int
) -> None:
    oracle = await _recorded(store, drawn)
    ids = list(dict.fromkeys(oracle.ids[one % len(oracle.ids)] for one in chosen))
    if len(ids) < 2:
        return
    common = await tracker.common_causes(ids, max_depth=max_depth, limit=limit)
    found = {step.node.event_id for step in common.steps}
    assert found <= _common(oracle, ids)
    assert common.complete is not (common.truncated.depth or common.truncated.limit)
    assert len(common.truncated.frontier) <= limit
    if common.complete:
        assert found == _lowest_common(oracle, ids)
    else:
        assert common.truncated.frontier


@sharing
@given(drawn=ANY_CAUSES, chosen=CHOSEN, limit=st.integers(1, 20))
async def test_impact_counts_the_descendants(
    store: CorrelationStore, tracker: CorrelationTracker, drawn: Causes, chosen: int, limit: int
) -> None:
    oracle = await _recorded(store, drawn)
    focus = oracle.ids[chosen % len(oracle.ids)]
    descendants = nx.descendants(oracle.graph(), focus)
    impact = await tracker.impact(focus)
    links = [oracle.links[one] for one in descendants if one in oracle.links]
    times = [one.timestamp for one in links]
    assert impact.descendants == len(descendants)
    assert impact.by_type == Counter(one.event_type for one in links)
    assert impact.by_source == Counter(one.source for one in links)
    assert (impact.ok, impact.failed, impact.unknown) == (len(links), 0, len(descendants) - len(links))
    assert (impact.first, impact.last) == (min(times, default=None), max(times, default=None))
    assert impact.truncated == Truncation()
    few = await tracker.impact(focus, limit=limit)
    assert few.descendants == min(limit - 1, len(descendants))
    assert few.truncated.limit is (len(descendants) > limit - 1)


async def test_what_nobody_knows_has_no_kin(store: CorrelationStore, tracker: CorrelationTracker) -> None:
    known, unknown = new_event_id(), new_event_id()
    await store.record([link(known)])
    for question in (
        tracker.path(known, unknown),
        tracker.path(unknown, known),
        tracker.common_causes([known, unknown]),
        tracker.impact(unknown),
    ):
        with pytest.raises(EventNotFound, match=str(unknown)):
            await question


async def test_questions_out_of_bounds_are_refused(store: CorrelationStore, tracker: CorrelationTracker) -> None:
    one, other = new_event_id(), new_event_id()
    await store.record([link(one), link(other)])
    for question in (
        tracker.path(one, other, max_depth=0),
        tracker.path(one, other, limit=0),
        tracker.common_causes([one, other], limit=0),
        tracker.common_causes([]),
        tracker.common_causes([one, one]),
        tracker.common_causes(new_ids(MOST_EVENTS + 1)),
        tracker.impact(one, max_depth=0),
    ):
        with pytest.raises(InvalidQuery):
            await question


async def test_a_path_is_found_from_the_side_that_has_fewer_events(
    store: CorrelationStore, tracker: CorrelationTracker
) -> None:
    # The child has very many causes and one that is asked for; that one has a single effect.
    cause, child, *others = new_ids(102)
    await store.record([link(cause), *map(link, others), link(child, *others[:50], cause, *others[50:])])
    assert (await tracker.path(cause, child, limit=10)).found
    assert (await tracker.path(child, cause, limit=10)).direction is Direction.ANCESTORS
    # That neither led to the other is known as well, since the cause of nothing has no effects.
    alone = new_event_id()
    await store.record([link(alone)])
    assert (await tracker.path(alone, child, limit=10)).found is False


async def test_a_path_of_thousands_of_hops(store: CorrelationStore, tracker: CorrelationTracker) -> None:
    ids = new_ids(LARGE + 500)
    links = [link(ids[0]), *(link(child, parent) for parent, child in pairwise(ids))]
    for start in range(0, len(links), 1000):
        await store.record(links[start : start + 1000])
    path = await tracker.path(ids[0], ids[-1])
    assert [step.node.event_id for step in path.steps] == ids
    assert (await tracker.path(ids[0], ids[-1], max_depth=1000)).found is None
    common = await tracker.common_causes([ids[-1], ids[2100]])
    assert [step.node.event_id for step in common.steps] == [ids[2100]]
    assert (await tracker.impact(ids[0])).descendants == len(ids) - 1


async def _recorded(store: CorrelationStore, drawn: Causes) -> Oracle:
    links = drawn.links()
    await store.record(links)
    return Oracle(links)


def _hops(oracle: Oracle, start: UUID, end: UUID) -> int | None:
    try:
        return int(nx.shortest_path_length(oracle.graph(), start, end))
    except nx.NetworkXNoPath:
        return None


def _assert_is_a_path(path: CausalPath, oracle: Oracle) -> None:
    """Assert that each edge was recorded and that all of them lead from the start to the end."""
    ids = [step.node.event_id for step in path.steps]
    assert (ids[0], ids[-1]) == (path.start, path.end)
    sign = -1 if path.direction is Direction.ANCESTORS else 1
    assert [edge[::sign] for edge in path.edges] == list(pairwise(ids))
    assert all(oracle.graph().has_edge(*edge) for edge in path.edges)
    assert [step.depth for step in path.steps] == [sign * hops for hops in range(len(ids))]
    assert [step.node for step in path.steps] == [oracle.node(event_id) for event_id in ids]
    assert (path.direction is None) is (path.start == path.end)


def _common(oracle: Oracle, ids: list[UUID]) -> set[UUID]:
    graph = oracle.graph()
    return set.intersection(*(nx.ancestors(graph, one) | {one} for one in ids))


def _lowest_common(oracle: Oracle, ids: list[UUID]) -> set[UUID]:
    """Of all common ancestors those that led to no other, but for those that led back to them."""
    graph, common = oracle.graph(), _common(oracle, ids)
    below = {one: nx.descendants(graph, one) & common for one in common}
    return {one for one in common if all(one in below[other] for other in below[one])}
