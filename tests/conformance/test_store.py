"""What every correlation store does: record, ask, walk, forget, go away and come back."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta, timezone

import pytest

from bloodbank.errors import EventNotFound, NotOpen, StoreUnavailable
from bloodbank.stores.base import CorrelationStore, Direction, Link, Node
from tests.conformance.backends import Index
from tests.conformance.graphs import EVERYTHING, NOW, link, new_ids

DEADLINE_SECONDS = 90.0


async def test_what_was_recorded_is_known_with_all_its_fields(store: CorrelationStore) -> None:
    parent, other, child = new_ids(3)
    recorded = Link(
        child,
        (other, parent),
        "fireflies.transcript.ready",
        datetime(2026, 3, 1, 12, 30, 15, 123457, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        "agent é",
        datetime(2026, 3, 1, 7, 0, 16, 999999, tzinfo=UTC),
        bytes(range(16)),
    )
    await store.record([recorded])
    known = await store.nodes([child])
    assert known == {child: Node(child, recorded, 0)}
    assert known[child].parents == (other, parent)


async def test_an_event_without_parents_digest_or_old_time_is_kept(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    recorded = Link(event, (), "a.b", datetime(1, 1, 2, tzinfo=UTC), "", NOW)
    await store.record([recorded])
    assert (await store.nodes([event]))[event].link == recorded


async def test_what_was_never_seen_nor_named_is_absent(store: CorrelationStore) -> None:
    known, unknown = new_ids(2)
    await store.record([link(known)])
    assert await store.nodes([unknown]) == {}
    assert set(await store.nodes([known, unknown])) == {known}
    assert await store.nodes([]) == {}


async def test_a_named_parent_is_a_node_that_was_never_seen(store: CorrelationStore) -> None:
    parent, child = new_ids(2)
    await store.record([link(child, parent)])
    node = (await store.nodes([parent]))[parent]
    assert (node.known, node.children_total) == (False, 1)


async def test_recording_nothing_is_nothing(store: CorrelationStore) -> None:
    await store.record([])
    [event_id] = new_ids(1)
    await store.record([link(event_id)])
    await store.record([])
    assert set(await store.nodes([event_id])) == {event_id}


async def test_children_may_come_before_their_parents(store: CorrelationStore) -> None:
    grandparent, parent, child = new_ids(3)
    await store.record([link(child, parent)])
    await store.record([link(parent, grandparent)])
    await store.record([link(grandparent)])
    graph = await store.walk(child, Direction.ANCESTORS, max_depth=EVERYTHING, limit=EVERYTHING)
    assert graph.ids == (grandparent, parent, child)
    assert graph.missing == ()
    assert (await store.nodes([parent]))[parent].children_total == 1


async def test_an_event_has_many_parents(store: CorrelationStore) -> None:
    *parents, child = new_ids(65)
    await store.record([link(child, *reversed(parents)), *map(link, parents)])
    graph = await store.walk(child, Direction.ANCESTORS, max_depth=1, limit=EVERYTHING)
    assert set(graph.ids) == {*parents, child}
    assert set(graph.edges) == {(parent, child) for parent in parents}
    assert (await store.nodes([child]))[child].parents == tuple(reversed(parents))


async def test_recording_again_changes_nothing(store: CorrelationStore) -> None:
    parent, child = new_ids(2)
    await store.record([link(parent), link(child, parent)])
    before = await store.nodes([parent, child])
    await store.record([link(child, parent), link(parent), link(child, parent)])
    assert await store.nodes([parent, child]) == before


async def test_the_first_recording_wins(store: CorrelationStore) -> None:
    parent, other, child = new_ids(3)
    await store.record([link(child, parent)])
    await store.record([link(child, other, seconds=99)])
    assert (await store.nodes([child]))[child].link == link(child, parent)
    assert await store.nodes([other]) == {}


async def test_the_first_of_one_batch_wins(store: CorrelationStore) -> None:
    parent, other, child = new_ids(3)
    await store.record([link(child, parent), link(child, other)])
    assert (await store.nodes([child]))[child].parents == (parent,)
    assert await store.nodes([other]) == {}


async def test_concurrent_recordings_lose_nothing(index: Index, store: CorrelationStore) -> None:
    root, *children = new_ids(301)
    async with index.store() as other:
        stores = [store, other]
        await asyncio.gather(*(stores[n % 2].record([link(child, root)]) for n, child in enumerate(children)))
        # The same ones again, from both sides.
        await asyncio.gather(*(one.record([link(child, root) for child in children[:50]]) for one in stores))
    graph = await store.walk(root, Direction.DESCENDANTS, max_depth=1, limit=EVERYTHING)
    assert set(graph.ids) == {root, *children}
    assert (await store.nodes([root]))[root].children_total == 300


async def test_a_diamond_has_each_event_once_and_all_edges(store: CorrelationStore) -> None:
    top, left, right, bottom = new_ids(4)
    await store.record([link(top), link(left, top), link(right, top), link(bottom, left, right)])
    for focus, direction in ((bottom, Direction.ANCESTORS), (top, Direction.DESCENDANTS)):
        graph = await store.walk(focus, direction, max_depth=EVERYTHING, limit=EVERYTHING)
        assert graph.ids == (top, left, right, bottom)
        assert set(graph.edges) == {(top, left), (top, right), (left, bottom), (right, bottom)}
        assert graph.roots == (top,)


async def test_depth_is_the_fewest_hops(store: CorrelationStore) -> None:
    root, middle, leaf = new_ids(3)
    await store.record([link(root), link(middle, root), link(leaf, middle, root)])
    graph = await store.walk(leaf, Direction.ANCESTORS, max_depth=EVERYTHING, limit=EVERYTHING)
    assert {step.node.event_id: step.depth for step in graph.steps} == {root: -1, middle: -1, leaf: 0}


async def test_both_directions_meet_in_the_focus(store: CorrelationStore) -> None:
    root, focus, leaf, sibling = new_ids(4)
    await store.record([link(root), link(focus, root), link(leaf, focus), link(sibling, root)])
    graph = await store.walk(focus, Direction.BOTH, max_depth=EVERYTHING, limit=EVERYTHING)
    assert {step.node.event_id: step.depth for step in graph.steps} == {root: -1, focus: 0, leaf: 1}


async def test_the_depth_is_bounded_and_says_so(store: CorrelationStore) -> None:
    chain = new_ids(6)
    await store.record([link(child, *chain[n : n + 1]) for n, child in enumerate(chain[1:])] + [link(chain[0])])
    graph = await store.walk(chain[0], Direction.DESCENDANTS, max_depth=2, limit=EVERYTHING)
    assert graph.ids == tuple(chain[:3])
    assert (graph.truncated.depth, graph.truncated.limit) == (True, False)
    assert graph.truncated.frontier == (chain[2],)
    whole = await store.walk(chain[0], Direction.DESCENDANTS, max_depth=5, limit=EVERYTHING)
    assert not whole.truncated.depth


async def test_the_limit_keeps_the_smallest_ids_of_a_level(store: CorrelationStore) -> None:
    root, *children = new_ids(21)
    await store.record([link(root), *(link(child, root) for child in reversed(children))])
    graph = await store.walk(root, Direction.DESCENDANTS, max_depth=EVERYTHING, limit=8)
    assert set(graph.ids) == {root, *children[:7]}
    assert (graph.truncated.depth, graph.truncated.limit) == (False, True)
    assert graph.truncated.frontier == (root,)
    assert {step.node.event_id: step.node.children_total for step in graph.steps}[root] == 20


async def test_a_circle_ends_and_is_reported(store: CorrelationStore) -> None:
    one, two, three = new_ids(3)
    await store.record([link(one, three), link(two, one), link(three, two)])
    for direction in Direction:
        graph = await store.walk(one, direction, max_depth=EVERYTHING, limit=EVERYTHING)
        assert sorted(graph.ids) == [one, two, three]
        assert graph.cycle


async def test_a_parent_that_was_never_seen_is_missing_until_it_comes(store: CorrelationStore) -> None:
    parent, child = new_ids(2)
    await store.record([link(child, parent)])
    before = await store.walk(child, Direction.ANCESTORS, max_depth=EVERYTHING, limit=EVERYTHING)
    assert (before.ids, before.missing, before.roots) == ((parent, child), (parent,), ())
    await store.record([link(parent)])
    after = await store.walk(child, Direction.ANCESTORS, max_depth=EVERYTHING, limit=EVERYTHING)
    assert (after.ids, after.missing, after.roots) == ((parent, child), (), (parent,))


async def test_a_walk_begins_at_a_parent_that_was_never_seen(store: CorrelationStore) -> None:
    parent, child = new_ids(2)
    await store.record([link(child, parent)])
    graph = await store.walk(parent, Direction.DESCENDANTS, max_depth=EVERYTHING, limit=EVERYTHING)
    assert (graph.ids, graph.missing) == ((parent, child), (parent,))


@pytest.mark.parametrize("direction", Direction)
async def test_an_unknown_focus_is_not_found(store: CorrelationStore, direction: Direction) -> None:
    known, unknown = new_ids(2)
    await store.record([link(known)])
    with pytest.raises(EventNotFound):
        await store.walk(unknown, direction, max_depth=EVERYTHING, limit=EVERYTHING)


async def test_a_chain_of_10000_is_answered_whole_and_in_order(store: CorrelationStore) -> None:
    chain = new_ids(10_000)
    links = [link(chain[0]), *(link(child, parent) for parent, child in itertools.pairwise(chain))]
    for start in range(0, len(links), 1000):
        await store.record(links[start : start + 1000])
    up = await store.walk(chain[-1], Direction.ANCESTORS, max_depth=EVERYTHING, limit=EVERYTHING)
    assert up.ids == tuple(chain)
    assert up.steps[0].depth == -9999
    down = await store.walk(chain[0], Direction.DESCENDANTS, max_depth=EVERYTHING, limit=EVERYTHING)
    assert down.ids == tuple(chain)
    assert down.truncated.frontier == ()


async def test_10000_children_are_answered_whole_and_in_order(store: CorrelationStore) -> None:
    root, *children = new_ids(10_001)
    links = [link(root, seconds=-1), *(link(child, root) for child in children)]
    for start in range(0, len(links), 1000):
        await store.record(links[start : start + 1000])
    graph = await store.walk(root, Direction.DESCENDANTS, max_depth=EVERYTHING, limit=EVERYTHING)
    assert graph.ids == (root, *children)
    assert (await store.nodes([root]))[root].children_total == 10_000
    assert len(await store.nodes(children)) == 10_000


async def test_purging_forgets_what_was_accepted_before(store: CorrelationStore) -> None:
    old, middle, new = new_ids(3)
    yesterday = NOW - timedelta(days=1)
    await store.record(
        [link(old, accepted_at=yesterday), link(middle, old, accepted_at=yesterday), link(new, middle, accepted_at=NOW)]
    )
    assert await store.purge(before=NOW - timedelta(hours=1)) == 2
    assert await store.nodes([old]) == {}
    assert (await store.nodes([middle]))[middle] == Node(middle, None, 1)
    graph = await store.walk(new, Direction.BOTH, max_depth=EVERYTHING, limit=EVERYTHING)
    assert (graph.ids, graph.missing) == ((middle, new), (middle,))


async def test_purging_twice_is_purging_once(store: CorrelationStore) -> None:
    events = new_ids(1200)
    await store.record([link(one, accepted_at=NOW - timedelta(days=2)) for one in events])
    assert await store.purge(before=NOW - timedelta(days=1)) == 1200
    assert await store.purge(before=NOW - timedelta(days=1)) == 0


async def test_purging_keeps_what_was_accepted_at_that_time_and_later(store: CorrelationStore) -> None:
    first, second = new_ids(2)
    await store.record([link(first, accepted_at=NOW), link(second, first, accepted_at=NOW + timedelta(seconds=1))])
    assert await store.purge(before=NOW) == 0
    assert (await store.nodes([first]))[first].children_total == 1


async def test_what_was_purged_can_be_recorded_again(store: CorrelationStore) -> None:
    parent, child = new_ids(2)
    links = [link(parent, accepted_at=NOW - timedelta(days=2)), link(child, parent, accepted_at=NOW)]
    await store.record(links)
    await store.purge(before=NOW - timedelta(days=1))
    await store.record(links)
    assert await store.nodes([parent, child]) == {parent: Node(parent, links[0], 1), child: Node(child, links[1], 0)}


async def test_another_store_of_the_index_sees_what_was_recorded(index: Index, store: CorrelationStore) -> None:
    parent, child = new_ids(2)
    await store.record([link(parent), link(child, parent)])
    async with index.store() as other:
        assert await other.nodes([parent, child]) == await store.nodes([parent, child])


async def test_closing_and_opening_keeps_everything(index: Index) -> None:
    parent, child = new_ids(2)
    async with index.store() as first:
        await first.record([link(parent), link(child, parent)])
        before = await first.walk(child, Direction.ANCESTORS, max_depth=EVERYTHING, limit=EVERYTHING)
    async with index.store() as second:
        assert await second.walk(child, Direction.ANCESTORS, max_depth=EVERYTHING, limit=EVERYTHING) == before


async def test_a_store_that_cannot_be_reached_says_so_and_is_found_again(index: Index, store: CorrelationStore) -> None:
    before, during = new_ids(2)
    await store.record([link(before)])
    async with index.service.outage():
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await store.record([link(during)])
    await _until_reachable(store)
    await store.record([link(during)])
    assert set(await store.nodes([before, during])) == {before, during}


async def test_check_of_a_store_that_works_says_nothing(store: CorrelationStore) -> None:
    await store.check()


async def test_closing_a_store_twice_is_closing_it_once(index: Index) -> None:
    store = index.store()
    await store.__aenter__()
    await store.__aexit__(None, None, None)
    await store.__aexit__(None, None, None)
    async with store:
        assert await store.nodes(new_ids(1)) == {}, "it can be opened again"


@pytest.mark.parametrize("was_open", [False, True], ids=["before opening", "after closing"])
async def test_use_of_a_store_that_is_not_open_says_so(index: Index, *, was_open: bool) -> None:
    store = index.store()
    if was_open:
        async with store:
            pass
    (event,) = new_ids(1)
    with pytest.raises(NotOpen):
        await store.check()
    with pytest.raises(NotOpen):
        await store.record([link(event)])
    with pytest.raises(NotOpen):
        await store.nodes([event])
    with pytest.raises(NotOpen):
        await store.walk(event, Direction.BOTH, max_depth=1, limit=1)
    with pytest.raises(NotOpen):
        await store.purge(before=NOW)


async def _until_reachable(store: CorrelationStore) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                await store.check()
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            else:
                return
