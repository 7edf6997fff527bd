"""What every transport does when the bus goes away, and with other processes that come and are killed."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from bloodbank.errors import NotOpen, PublishUnknown, TransportUnavailable
from bloodbank.transports.base import Receipt, Transport
from tests.conformance.backends import OF_PROCESSES, Bus
from tests.conformance.messages import (
    ids,
    message,
    messages,
    publish,
    publish_patiently,
    soon,
    take,
    take_and_ack,
    whole_log,
)
from tests.conformance.peer import peer, printed_id

# Without the bus in memory: no other process sees it, and its writer outlives a transport.
several_processes = pytest.mark.parametrize("bus", OF_PROCESSES, indirect=True)


async def test_a_restart_keeps_the_log(bus: Bus) -> None:
    sent = messages(50)
    async with bus.transport() as transport:
        await publish(transport, *sent)
    async with bus.transport() as transport:
        async with bus.service.outage():
            pass
        await publish_patiently(transport, extra := message())
        assert ids(await whole_log(transport)) == [*ids(sent), extra.event_id]


async def test_a_restart_keeps_a_group_and_what_it_has_not_settled(bus: Bus) -> None:
    first, second = messages(2)
    async with bus.transport() as transport, transport.subscribe("#", group="workers", prefetch=1) as deliveries:
        await publish(transport, first, second)
        await take_and_ack(deliveries, 1)
    async with bus.transport() as transport:
        async with bus.service.outage():
            pass
        await publish_patiently(transport, last := message())
        async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
            assert ids(await take_and_ack(deliveries, 2)) == [second.event_id, last.event_id]


async def test_during_an_outage_a_publish_fails_in_time_and_later_it_works(bus: Bus, transport: Transport) -> None:
    sent = message()
    loop = asyncio.get_running_loop()
    async with bus.service.outage():
        began = loop.time()
        with pytest.raises((TransportUnavailable, PublishUnknown)):
            await transport.publish(sent, timeout_seconds=0.5)
        (outcome,) = await transport.publish_many([sent], timeout_seconds=0.5)
        assert isinstance(outcome, TransportUnavailable | PublishUnknown)
        with pytest.raises(TransportUnavailable):
            await transport.check(timeout_seconds=0.5)
        assert loop.time() - began < 5
    await publish_patiently(transport, sent)
    assert set(ids(await whole_log(transport))) == {sent.event_id}


async def test_a_subscription_survives_an_outage(bus: Bus, transport: Transport) -> None:
    before, after = messages(2)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, before)
        await take_and_ack(deliveries, 1)
        waiting = asyncio.ensure_future(anext(deliveries))
        async with bus.service.outage():
            pass
        await publish_patiently(transport, after)
        assert (await soon(waiting)).message.event_id in {before.event_id, after.event_id}


async def test_a_delivery_held_over_an_outage_is_settled_or_comes_again(bus: Bus, transport: Transport) -> None:
    held, after = messages(2)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, held)
        (delivery,) = await take(deliveries, 1)
        async with bus.service.outage():
            pass
        acknowledged = True
        try:
            await delivery.ack()
        except TransportUnavailable:
            acknowledged = False
        await publish_patiently(transport, after)
        expected = {after.event_id} if acknowledged else {held.event_id, after.event_id}
        received: set[UUID] = set()
        while received != expected:
            (one,) = await take_and_ack(deliveries, 1)
            received.add(one.event_id)
            assert received <= {held.event_id, after.event_id}


@several_processes
async def test_closing_works_while_a_publish_is_blocked(bus: Bus) -> None:
    transport = bus.transport()
    await transport.__aenter__()
    async with bus.service.outage():
        blocked = asyncio.create_task(transport.publish(message(), timeout_seconds=30))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await transport.__aexit__(None, None, None)
        (outcome,) = await soon(asyncio.gather(blocked, return_exceptions=True))
    assert isinstance(outcome, TransportUnavailable | PublishUnknown | NotOpen)


@several_processes
async def test_a_publish_of_another_process_wakes_a_consumer(bus: Bus, transport: Transport) -> None:
    async with (
        transport.subscribe("peer.#", group="workers", prefetch=5) as deliveries,
        transport.subscribe("#", group=None, prefetch=5) as everything,
        peer(bus, publish=3) as process,
    ):
        received = [ids(await take_and_ack(one, 3)) for one in (deliveries, everything)]
        published = [await printed_id(process) for _ in range(3)]
    assert received == [published, published]


@several_processes
async def test_what_a_killed_process_held_is_delivered_again(bus: Bus, transport: Transport) -> None:
    sent = message()
    async with transport.subscribe("#", group="workers", prefetch=1):
        pass
    async with peer(bus, hold="workers") as process:
        await publish(transport, sent)
        assert await printed_id(process) == sent.event_id
        async with transport.subscribe("#", group="workers", prefetch=1) as deliveries:
            waiting = asyncio.ensure_future(anext(deliveries))
            process.kill()
            await process.wait()
            delivery = await soon(waiting)
            assert delivery.message == sent
            assert delivery.attempt > 1
            await delivery.ack()


@several_processes
async def test_processes_that_publish_at_the_same_time_lose_nothing(bus: Bus, transport: Transport) -> None:
    mine = messages(100)
    async with peer(bus, publish=100) as one, peer(bus, publish=100) as two:
        for sent in mine:
            await publish_patiently(transport, sent)
        theirs = [[await printed_id(process) for _ in range(100)] for process in (one, two)]
    logged = ids(await whole_log(transport))
    assert set(logged) == {*ids(mine), *theirs[0], *theirs[1]}
    for published in (ids(mine), *theirs):
        assert [one for one in dict.fromkeys(logged) if one in set(published)] == published


@several_processes
async def test_a_killed_publisher_leaves_what_was_confirmed(bus: Bus, transport: Transport) -> None:
    async with peer(bus, publish=100_000) as process:
        confirmed = [await printed_id(process) for _ in range(20)]
        process.kill()
        await process.wait()
    receipt = await publish_patiently(transport, message())
    assert isinstance(receipt, Receipt)
    assert set(confirmed) <= set(ids(await whole_log(transport)))
