"""How far groups are, and how many dead letters there are, the same on every transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest

from bloodbank.errors import NotOpen, TransportUnavailable
from bloodbank.transports.base import GroupState, LogEntry, Transport
from tests.conformance.backends import Bus
from tests.conformance.messages import (
    DEADLINE_SECONDS,
    listed,
    message,
    messages,
    publish,
    publish_patiently,
    set_aside,
    soon,
    take,
    take_and_ack,
)


async def _until(transport: Transport, told: Callable[[list[GroupState]], bool]) -> list[GroupState]:
    """Ask for the groups until they are as they must become."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not told(groups := await transport.groups()):
            await asyncio.sleep(0.05)
    return groups


def _waiting(groups: list[GroupState]) -> dict[str, int]:
    return {group.name: group.waiting for group in groups}


async def test_a_bus_without_groups_has_none(transport: Transport) -> None:
    assert await transport.groups() == []
    await publish(transport, message())
    assert await transport.groups() == []


async def test_a_group_is_told_with_its_patterns_and_what_waits_for_it(transport: Transport) -> None:
    async with transport.subscribe("shop.*", group="billing", prefetch=5):
        pass
    async with transport.subscribe("mail.#", group="billing", prefetch=5):
        pass
    async with transport.subscribe("#", group="archive", prefetch=5):
        pass
    await publish(transport, *messages(7, "shop.order"), *messages(2, "mail.in"), *messages(3, "other.type"))
    groups = await _until(transport, lambda groups: _waiting(groups) == {"archive": 12, "billing": 9})
    assert [group.patterns for group in groups] == [("#",), ("mail.#", "shop.*")]
    assert not any(group.more for group in groups)


async def test_what_is_settled_waits_no_longer(transport: Transport) -> None:
    async with transport.subscribe("#", group="workers", prefetch=3) as deliveries:
        await publish(transport, *messages(10))
        await take_and_ack(deliveries, 4)
        held = await take(deliveries, 2)
        await _until(transport, lambda groups: 3 <= _waiting(groups)["workers"] <= 4)
        [group] = await transport.groups()
        if group.delivered is not None:
            assert group.delivered + group.waiting == 6
        for delivery in held:
            await delivery.ack()
        await take_and_ack(deliveries, 4)
        await _until(transport, lambda groups: _waiting(groups) == {"workers": 0})


async def test_a_subscription_without_a_group_is_none(transport: Transport) -> None:
    async with transport.subscribe("#", group=None, prefetch=5):
        await publish(transport, message())
        assert await transport.groups() == []


async def test_a_group_is_known_to_others_and_once_however_often_consumers_come(bus: Bus, transport: Transport) -> None:
    for _ in range(3):
        async with bus.transport() as other, other.subscribe("#", group="workers", prefetch=5):
            await _until(other, lambda groups: _waiting(groups) == {"workers": 0})
    await publish(transport, *messages(2))
    groups = await _until(transport, lambda groups: _waiting(groups) == {"workers": 2})
    assert groups[0].patterns == ("#",)


async def test_dead_letters_are_counted(transport: Transport) -> None:
    assert await transport.dead_letter_count() == 0
    await set_aside(transport, *messages(5))
    assert await transport.dead_letter_count() == 5
    await set_aside(transport, *messages(2), group=None)
    assert await transport.dead_letter_count() == 7
    numbers = [letter.number for letter in await listed(transport)]
    await transport.discard(numbers[:2])
    await transport.redeliver(numbers[2:4])
    assert await transport.dead_letter_count() == 3
    await transport.discard(numbers)
    assert await transport.dead_letter_count() == 0


async def test_counts_are_right_after_an_outage(bus: Bus, transport: Transport) -> None:
    await set_aside(transport, *messages(2), group="workers")
    await _until(transport, lambda groups: _waiting(groups) == {"workers": 0})
    assert await transport.dead_letter_count() == 2
    async with bus.service.outage():
        pass
    await publish_patiently(transport, message())

    async def count() -> int:
        while True:
            try:
                await transport.groups()
                return await transport.dead_letter_count()
            except TransportUnavailable:
                await asyncio.sleep(0.1)

    assert await soon(count()) == 2
    await _until(transport, lambda groups: _waiting(groups) == {"workers": 1})


async def test_counting_what_is_not_open_says_so(bus: Bus) -> None:
    transport = bus.transport()
    async with transport:
        pass
    with pytest.raises(NotOpen):
        await transport.groups()
    with pytest.raises(NotOpen):
        await transport.dead_letter_count()


async def test_an_impatient_follower_gets_all_over_an_outage_of_which_it_is_told(
    bus: Bus, transport: Transport
) -> None:
    """Where an outage cuts off who reads; a file that others hold can still be read."""
    sent = messages(40)
    received: list[LogEntry] = []

    async def follow() -> None:
        while True:
            after = received[-1].position if received else None
            try:
                async with aclosing(transport.read_log(after=after, follow=True, patient=False)) as entries:
                    async for entry in entries:
                        received.append(entry)
                        if entry.message == sent[-1]:
                            return
            except TransportUnavailable:
                await asyncio.sleep(0.1)

    following = asyncio.create_task(follow())
    for event in sent[:20]:
        await publish_patiently(transport, event)
    async with bus.service.outage():
        pass
    for event in sent[20:]:
        await publish_patiently(transport, event)
    await soon(following)
    positions = [entry.position for entry in received]
    assert positions == sorted(set(positions))
    # An event whose confirm was lost may be in the log twice.
    assert list(dict.fromkeys(entry.message for entry in received)) == sent
