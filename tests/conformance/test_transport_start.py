"""Where a new group begins: with what comes, with the first entry of the log, or with a time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from bloodbank.errors import InvalidQuery
from bloodbank.transports.base import Start, Transport
from tests.conformance.backends import Bus
from tests.conformance.messages import (
    ids,
    message,
    messages,
    publish,
    publish_patiently,
    soon,
    take,
    take_and_ack,
    take_until,
)


async def a_later_time() -> datetime:
    """Return a time that is later than all that was published, by more than any transport rounds."""
    begun = datetime.now(UTC)
    async with asyncio.timeout(30):
        while (now := datetime.now(UTC)) - begun < timedelta(milliseconds=5):
            await asyncio.sleep(0)
    return now


@pytest.mark.parametrize("group", ["new", None], ids=["group", "no group"])
async def test_from_the_beginning_comes_all_that_fits_in_order_and_then_what_is_new(
    transport: Transport, group: str | None
) -> None:
    sent = messages(30, "wanted.one")
    await publish(transport, *messages(5, "other.one"), *sent, *messages(5, "other.one"))
    async with transport.subscribe("wanted.*", group=group, prefetch=7, start="beginning") as deliveries:
        assert ids(await take_and_ack(deliveries, 30)) == ids(sent)
        await publish(transport, late := message("wanted.one"))
        (delivery,) = await take(deliveries, 1)
        assert delivery.message == late
        assert (delivery.attempt, delivery.replayed) == (1, False)


@pytest.mark.parametrize("group", ["new", None], ids=["group", "no group"])
async def test_from_a_time_comes_what_was_published_since(transport: Transport, group: str | None) -> None:
    await publish(transport, *messages(5))
    start = await a_later_time()
    await publish(transport, *(late := messages(3)))
    async with transport.subscribe("#", group=group, prefetch=5, start=start) as deliveries:
        assert ids(await take_and_ack(deliveries, 3)) == ids(late)
        await publish(transport, marker := message())
        assert await take_until(deliveries, marker) == []


@pytest.mark.parametrize("start", ["beginning", datetime(1960, 1, 1, tzinfo=UTC)], ids=["beginning", "before 1970"])
async def test_of_an_empty_log_a_group_gets_what_comes(transport: Transport, start: Start) -> None:
    async with transport.subscribe("#", group="new", prefetch=5, start=start) as deliveries:
        await publish(transport, *(sent := messages(3)))
        received = {message.event_id for message in await take_and_ack(deliveries, 3)}
        assert received == set(ids(sent))


async def test_from_a_time_to_come_a_group_gets_what_is_published_from_now_on(transport: Transport) -> None:
    await publish(transport, message())
    future = datetime.now(UTC) + timedelta(days=1)
    async with transport.subscribe("#", group="new", prefetch=5, start=future) as deliveries:
        await publish(transport, late := message())
        assert ids(await take_and_ack(deliveries, 1)) == [late.event_id]


async def test_a_group_that_exists_goes_on_where_it_was(transport: Transport) -> None:
    await publish(transport, message())
    async with transport.subscribe("#", group="old", prefetch=5):
        pass
    await publish(transport, kept := message())
    async with transport.subscribe("#", group="old", prefetch=5, start="beginning") as deliveries:
        assert ids(await take_and_ack(deliveries, 1)) == [kept.event_id]
        await publish(transport, marker := message())
        assert await take_until(deliveries, marker) == []


async def test_a_group_is_filled_once(bus: Bus, transport: Transport) -> None:
    sent = messages(20)
    await publish(transport, *sent)
    async with transport.subscribe("#", group="new", prefetch=5, start="beginning") as deliveries:
        assert ids(await take_and_ack(deliveries, 20)) == ids(sent)
    async with (
        bus.transport() as other,
        other.subscribe("#", group="new", prefetch=5, start="beginning") as deliveries,
    ):
        await publish(transport, marker := message())
        assert await take_until(deliveries, marker) == []


async def test_several_consumers_that_begin_a_group_share_what_the_log_has(bus: Bus, transport: Transport) -> None:
    sent = messages(60)
    await publish(transport, *sent)
    received: set[object] = set()
    complete = asyncio.Event()

    async def work(own: Transport) -> None:
        async with own.subscribe("#", group="new", prefetch=3, start="beginning") as deliveries:
            async for delivery in deliveries:
                received.add(delivery.message.event_id)
                await delivery.ack()
                if len(received) == len(sent):
                    complete.set()

    async with bus.transport() as other:
        workers = [asyncio.create_task(work(one)) for one in (transport, other, transport)]
        await soon(complete.wait())
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    assert received == set(ids(sent))


async def test_a_group_that_begins_in_the_past_gets_it_after_a_restart(bus: Bus) -> None:
    sent = messages(20)
    async with bus.transport() as transport:
        await publish(transport, *sent)
        async with transport.subscribe("#", group="new", prefetch=1, start="beginning") as deliveries:
            received = set(ids(await take_and_ack(deliveries, 1)))
    async with bus.service.outage():
        pass
    async with bus.transport() as transport:
        await publish_patiently(transport, last := message())
        async with transport.subscribe("#", group="new", prefetch=5) as deliveries:
            while len(received) < len(sent) + 1:
                received |= set(ids(await take_and_ack(deliveries, 1)))
    assert received == {*ids(sent), last.event_id}


@pytest.mark.parametrize("start", ["yesterday", datetime(2026, 1, 1), 7, None])  # noqa: DTZ001, that is the point
async def test_what_is_no_start_is_refused(transport: Transport, start: Start) -> None:
    for group in ("new", None):
        with pytest.raises(InvalidQuery, match="no start"):
            async with transport.subscribe("#", group=group, prefetch=5, start=start):
                pass


@pytest.mark.parametrize("group", ["new", None], ids=["group", "no group"])
async def test_several_patterns_begin_together(transport: Transport, group: str | None) -> None:
    await publish(transport, *(sent := [message("one.a"), message("other.a"), message("two.a"), message("one.b")]))
    patterns = ["one.*", "two.*", "one.b"]
    async with transport.subscribe(patterns, group=group, prefetch=9, start="beginning") as deliveries:
        assert ids(await take_and_ack(deliveries, 3)) == ids([sent[0], *sent[2:]])
        await publish(transport, message("other.b"), late := message("two.b"))
        assert ids(await take_and_ack(deliveries, 1)) == ids([late])


async def test_no_pattern_at_all_is_refused(transport: Transport) -> None:
    with pytest.raises(InvalidQuery):
        async with transport.subscribe([], group="new", prefetch=1):
            pass
