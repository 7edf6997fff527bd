"""Claims: of several who want to publish one event, one may, until it is recorded or the lease ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from uuid import UUID

import pytest

from bloodbank.errors import NotOpen, StoreUnavailable
from bloodbank.stores.base import Claimed, ClaimState, CorrelationStore, Link
from tests.conformance.backends import Index
from tests.conformance.graphs import NOW, link, new_ids

DEADLINE_SECONDS = 90.0
LONG = 600.0
SHORT = 0.3
ONE, OTHER = b"owner one", b"the other owner"
DIGEST, OTHER_DIGEST = bytes(range(16)), bytes(range(16, 32))
GRANTED = Claimed(ClaimState.GRANTED)


async def test_what_nobody_has_is_granted(store: CorrelationStore) -> None:
    events = new_ids(3)
    claimed = await store.claim([(event, DIGEST) for event in events], owner=ONE, lease_seconds=LONG)
    assert claimed == [GRANTED] * 3


async def test_what_another_owner_has_is_held_with_his_digest_and_the_time_left(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=LONG)
    [held] = await store.claim([(event, OTHER_DIGEST)], owner=OTHER, lease_seconds=LONG)
    assert (held.state, held.digest) == (ClaimState.HELD, DIGEST)
    assert LONG - DEADLINE_SECONDS < held.seconds_left <= LONG


async def test_an_owner_whose_name_another_name_begins_with_is_another_one(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    await store.claim([(event, DIGEST)], owner=b"\x01ab", lease_seconds=LONG)
    for other in (b"\x01a", b"\x01abc", b"\x01"):
        assert await _state(store, event, other) is ClaimState.HELD
        await store.release([event], owner=other)
    assert await _state(store, event, OTHER) is ClaimState.HELD


async def test_any_bytes_are_an_owner_and_a_digest(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    owner, digest = bytes(range(255)), b"\x00\r\n+\xff" * 100
    assert await store.claim([(event, digest)], owner=owner, lease_seconds=LONG) == [GRANTED]
    [held] = await store.claim([(event, b"")], owner=OTHER, lease_seconds=LONG)
    assert (held.state, held.digest) == (ClaimState.HELD, digest)
    await store.release([event], owner=owner)
    assert await store.claim([(event, b"")], owner=OTHER, lease_seconds=LONG) == [GRANTED]
    assert (await store.claim([(event, b"")], owner=ONE, lease_seconds=LONG))[0].digest == b""


async def test_the_same_owner_claims_again_and_renews_the_lease_and_the_digest(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    assert await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=SHORT) == [GRANTED]
    assert await store.claim([(event, OTHER_DIGEST)], owner=ONE, lease_seconds=LONG) == [GRANTED]
    [held] = await store.claim([(event, DIGEST)], owner=OTHER, lease_seconds=LONG)
    assert (held.state, held.digest) == (ClaimState.HELD, OTHER_DIGEST)
    assert held.seconds_left > SHORT


async def test_a_lease_ends_by_itself(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=SHORT)

    async def granted() -> bool:
        return await _state(store, event, OTHER) is ClaimState.GRANTED

    await _until(granted)
    assert await _state(store, event, ONE) is ClaimState.HELD


async def test_the_shortest_lease_is_one(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    assert await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=1e-9) == [GRANTED]


async def test_recorded_wins_over_a_claim_and_tells_the_digest_of_what_is_recorded(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=LONG)
    recorded = link(event)
    await store.record([recorded])
    for owner in (ONE, OTHER):
        claimed = await store.claim([(event, OTHER_DIGEST)], owner=owner, lease_seconds=LONG)
        assert claimed == [Claimed(ClaimState.RECORDED, recorded.digest)]
    # A claim says nothing to those who record.
    assert (await store.nodes([event]))[event].link == recorded


async def test_what_was_recorded_before_any_claim_is_recorded(store: CorrelationStore) -> None:
    *parents, plain, long, bare = new_ids(13)
    far = datetime(1, 1, 2, tzinfo=UTC)
    await store.record([link(plain), link(long, *parents), Link(bare, (), "a.b", far, "", NOW)])
    claimed = await store.claim([(event, DIGEST) for event in (plain, long, bare)], owner=ONE, lease_seconds=LONG)
    assert claimed == [Claimed(ClaimState.RECORDED, digest) for digest in (link(plain).digest, link(long).digest, b"")]


async def test_a_parent_that_was_only_named_is_not_recorded(store: CorrelationStore) -> None:
    parent, child = new_ids(2)
    await store.record([link(child, parent)])
    assert await store.claim([(parent, DIGEST)], owner=ONE, lease_seconds=LONG) == [GRANTED]
    assert await _state(store, parent, OTHER) is ClaimState.HELD


async def test_a_claim_makes_nothing_known(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=LONG)
    assert await store.nodes([event]) == {}
    assert await store.purge(before=NOW) == 0


async def test_what_was_released_is_granted_to_another(store: CorrelationStore) -> None:
    event, kept = new_ids(2)
    await store.claim([(event, DIGEST), (kept, DIGEST)], owner=ONE, lease_seconds=LONG)
    await store.release([event], owner=ONE)
    await store.release([event], owner=ONE)
    assert await _state(store, event, OTHER) is ClaimState.GRANTED
    assert await _state(store, kept, OTHER) is ClaimState.HELD


async def test_only_what_one_holds_oneself_is_released(store: CorrelationStore) -> None:
    event, unclaimed = new_ids(2)
    await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=LONG)
    await store.release([event, unclaimed], owner=OTHER)
    assert await _state(store, event, OTHER) is ClaimState.HELD


async def test_many_in_one_call_are_answered_in_their_order(store: CorrelationStore) -> None:
    events = new_ids(1200)
    await store.claim([(event, event.bytes) for event in events[::3]], owner=ONE, lease_seconds=LONG)
    await store.record([link(event) for event in events[1::3]])
    asked = list(reversed(events))
    claimed = await store.claim([(event, DIGEST) for event in asked], owner=OTHER, lease_seconds=LONG)
    found = dict(zip(asked, claimed, strict=True))
    assert [(found[event].state, found[event].digest) for event in events[::3]] == [
        (ClaimState.HELD, event.bytes) for event in events[::3]
    ]
    assert {found[event] for event in events[1::3]} == {Claimed(ClaimState.RECORDED, link(events[0]).digest)}
    assert {found[event] for event in events[2::3]} == {GRANTED}
    await store.release(events, owner=ONE)
    again = await store.claim([(event, DIGEST) for event in events[::3]], owner=OTHER, lease_seconds=LONG)
    assert set(again) == {GRANTED}


async def test_an_event_twice_in_one_call_is_answered_twice(store: CorrelationStore) -> None:
    (event,) = new_ids(1)
    asked = [(event, DIGEST), (event, DIGEST)]
    assert await store.claim(asked, owner=ONE, lease_seconds=LONG) == [GRANTED] * 2
    assert {one.state for one in await store.claim(asked, owner=OTHER, lease_seconds=LONG)} == {ClaimState.HELD}


async def test_nothing_asked_is_nothing_answered(store: CorrelationStore) -> None:
    assert await store.claim([], owner=ONE, lease_seconds=LONG) == []
    await store.release([], owner=ONE)


async def test_of_many_owners_at_the_same_moment_one_is_granted(index: Index) -> None:
    events = new_ids(40)
    owners = [f"owner {n}".encode() for n in range(12)]
    async with AsyncExitStack() as opened:
        stores = [await opened.enter_async_context(index.store()) for _ in range(3)]

        async def claim(n: int, event: UUID) -> Claimed:
            [claimed] = await stores[n % 3].claim([(event, owners[n])], owner=owners[n], lease_seconds=LONG)
            return claimed

        for event in events:
            answers = await asyncio.gather(*(claim(n, event) for n in range(len(owners))))
            [winner] = [n for n, answer in enumerate(answers) if answer.state is ClaimState.GRANTED]
            others = [answer for n, answer in enumerate(answers) if n != winner]
            assert {(one.state, one.digest) for one in others} == {(ClaimState.HELD, owners[winner])}


async def test_of_many_calls_with_many_events_at_once_each_event_is_granted_once(index: Index) -> None:
    events = new_ids(250)
    async with index.store() as one, index.store() as other:
        calls = [
            store.claim([(event, DIGEST) for event in order], owner=owner, lease_seconds=LONG)
            for store, owner, order in (
                (one, b"a", events),
                (other, b"b", events[::-1]),
                (one, b"c", events[100:] + events[:100]),
                (other, b"d", events),
            )
        ]
        first, second, third, fourth = await asyncio.gather(*calls)
    granted = [
        event
        for answers, order in (
            (first, events),
            (second, events[::-1]),
            (third, events[100:] + events[:100]),
            (fourth, events),
        )
        for event, answer in zip(order, answers, strict=True)
        if answer.state is ClaimState.GRANTED
    ]
    assert sorted(granted) == events


async def test_a_claim_and_a_recording_at_the_same_moment_leave_it_recorded(
    index: Index, store: CorrelationStore
) -> None:
    events = new_ids(40)
    async with index.store() as other:
        for event in events:
            await asyncio.gather(
                store.claim([(event, DIGEST)], owner=ONE, lease_seconds=LONG), other.record([link(event)])
            )
    claimed = await store.claim([(event, DIGEST) for event in events], owner=OTHER, lease_seconds=LONG)
    assert {one.state for one in claimed} == {ClaimState.RECORDED}


async def test_claims_are_kept_or_gone_after_an_outage_and_are_granted_to_one_in_any_case(
    index: Index, store: CorrelationStore
) -> None:
    (event,) = new_ids(1)
    await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=LONG)
    async with index.service.outage():
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await store.claim([(event, DIGEST)], owner=OTHER, lease_seconds=LONG)

    async def reachable() -> bool:
        try:
            await store.check()
        except StoreUnavailable:
            return False
        return True

    await _until(reachable)
    states = [await _state(store, event, owner) for owner in (ONE, OTHER)]
    assert states == [ClaimState.GRANTED, ClaimState.HELD]


async def test_claims_need_an_open_store(index: Index) -> None:
    store = index.store()
    (event,) = new_ids(1)
    with pytest.raises(NotOpen):
        await store.claim([(event, DIGEST)], owner=ONE, lease_seconds=LONG)
    with pytest.raises(NotOpen):
        await store.release([event], owner=ONE)


async def _state(store: CorrelationStore, event: UUID, owner: bytes) -> ClaimState:
    [claimed] = await store.claim([(event, DIGEST)], owner=owner, lease_seconds=LONG)
    return claimed.state


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)
