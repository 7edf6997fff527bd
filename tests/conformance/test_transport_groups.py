"""What every transport does for its consumers: patterns, groups, order, and what becomes of a delivery."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from uuid import UUID

import pytest

from bloodbank.errors import NotOpen, PublishUnknown, TransportUnavailable
from bloodbank.transports.base import Receipt, Transport
from tests.conformance.backends import LEASE_SECONDS, Bus
from tests.conformance.messages import (
    TIMEOUT_SECONDS,
    ids,
    message,
    messages,
    publish,
    soon,
    take,
    take_and_ack,
    take_until,
    whole_log,
)

# AMQP 0-9-1, section 3.1.3.3: `*` is one word, `#` any number of them.
KEYS = ["a", "b", "a.b", "a.c", "b.a", "a.b.c", "a.x.c", "a.b.c.d", "ab.c", "x.a.b", "a.b.a"]
FITTING = {
    "a": ["a"],
    "a.b": ["a.b"],
    "*": ["a", "b"],
    "a.*": ["a.b", "a.c"],
    "*.a": ["b.a"],
    "a.*.c": ["a.b.c", "a.x.c"],
    "*.*": ["a.b", "a.c", "b.a", "ab.c"],
    "#": KEYS,
    "a.#": ["a", "a.b", "a.c", "a.b.c", "a.x.c", "a.b.c.d", "a.b.a"],
    "#.a": ["a", "b.a", "a.b.a"],
    "a.#.c": ["a.c", "a.b.c", "a.x.c"],
    "#.b.#": ["b", "a.b", "b.a", "a.b.c", "a.b.c.d", "x.a.b", "a.b.a"],
    "*.#": KEYS,
    "#.*.*.#": [key for key in KEYS if "." in key],
}


@pytest.mark.parametrize("pattern", FITTING)
async def test_patterns_choose_as_amqp_says(transport: Transport, pattern: str) -> None:
    last = message(FITTING[pattern][0])
    async with transport.subscribe(pattern, group=None, prefetch=50) as deliveries:
        await publish(transport, *(message(key) for key in KEYS), last)
        received = await take_until(deliveries, last)
    assert [one.routing_key for one in received] == FITTING[pattern]


async def test_consumers_of_one_group_share_its_messages(bus: Bus, transport: Transport) -> None:
    sent = messages(40)
    async with (
        bus.transport() as other,
        transport.subscribe("#", group="workers", prefetch=1) as mine,
        other.subscribe("#", group="workers", prefetch=1) as theirs,
    ):
        await publish(transport, *sent)
        received: list[list[object]] = [[], []]
        both, complete = asyncio.Event(), asyncio.Event()

        async def work(number: int) -> None:
            async for delivery in (mine, theirs)[number]:
                received[number].append(delivery.message.event_id)
                if all(received):
                    both.set()
                # Otherwise the one that wakes first may have taken all of them before the other does.
                await both.wait()
                await delivery.ack()
                if sum(map(len, received)) >= len(sent):
                    complete.set()

        workers = [asyncio.create_task(work(0)), asyncio.create_task(work(1))]
        await soon(complete.wait())
        for worker in workers:
            worker.cancel()
        await asyncio.wait(workers)
    assert sorted(map(str, received[0] + received[1])) == sorted(map(str, ids(sent)))
    assert received[0]
    assert received[1]


async def test_each_group_gets_every_message(transport: Transport) -> None:
    sent = messages(10)
    async with (
        transport.subscribe("#", group="one", prefetch=5) as one,
        transport.subscribe("#", group="two", prefetch=5) as two,
    ):
        await publish(transport, *sent)
        assert ids(await take_and_ack(one, 10)) == ids(sent)
        assert ids(await take_and_ack(two, 10)) == ids(sent)


async def test_many_consumers_at_the_same_time_get_each_message_once_a_group(bus: Bus, transport: Transport) -> None:
    sent = messages(300)
    received: dict[str, list[UUID]] = {f"group{number}": [] for number in range(3)}
    received |= {f"alone{number}": [] for number in range(4)}
    joined, complete = asyncio.Semaphore(0), asyncio.Event()

    async def consume(own: Transport, name: str) -> None:
        group = name if name.startswith("group") else None
        async with own.subscribe("#", group=group, prefetch=5) as deliveries:
            joined.release()
            async for delivery in deliveries:
                received[name].append(delivery.message.event_id)
                await delivery.ack()
                if all(len(several) >= len(sent) for several in received.values()):
                    complete.set()

    async with bus.transport() as other, asyncio.TaskGroup() as tasks:
        names = [name for name in received for _ in range(8 if name.startswith("group") else 1)]
        consumers = [
            tasks.create_task(consume((transport, other)[number % 2], name)) for number, name in enumerate(names)
        ]
        for _ in consumers:
            await soon(joined.acquire())
        await publish(transport, *sent)
        await soon(complete.wait())
        for consumer in consumers:
            consumer.cancel()
    for name, several in received.items():
        assert Counter(several) == Counter(ids(sent)), name


async def test_patterns_of_one_group_add_up(transport: Transport) -> None:
    async with transport.subscribe("llm.*", group="workers", prefetch=5):
        pass
    async with transport.subscribe("artifact.#", group="workers", prefetch=5) as deliveries:
        await publish(transport, message("llm.prompt"), message("other.type"), message("artifact.created"))
        received = await take_and_ack(deliveries, 2)
    assert [one.routing_key for one in received] == ["llm.prompt", "artifact.created"]


async def test_a_new_group_begins_with_what_is_published_from_now_on(transport: Transport) -> None:
    early, late = messages(2)
    await publish(transport, early)
    async with transport.subscribe("#", group="new", prefetch=5) as deliveries:
        await publish(transport, late)
        assert ids(await take_and_ack(deliveries, 1)) == [late.event_id]


async def test_a_group_keeps_what_comes_while_nobody_listens(bus: Bus) -> None:
    sent = messages(5)
    async with bus.transport() as first, first.subscribe("#", group="workers", prefetch=5):
        pass
    async with bus.transport() as publisher:
        await publish(publisher, *sent)
    async with bus.transport() as second, second.subscribe("#", group="workers", prefetch=5) as deliveries:
        assert ids(await take_and_ack(deliveries, 5)) == ids(sent)


async def test_a_subscription_without_a_group_gets_what_comes_while_it_lasts(transport: Transport) -> None:
    before, during, between, after = messages(4)
    await publish(transport, before)
    async with transport.subscribe("#", group=None, prefetch=5) as deliveries:
        await publish(transport, during)
        assert ids(await take(deliveries, 1)) == [during.event_id]
    await publish(transport, between)
    async with transport.subscribe("#", group=None, prefetch=5) as deliveries:
        await publish(transport, after)
        assert ids(await take(deliveries, 1)) == [after.event_id]


async def test_subscriptions_without_a_group_share_nothing(transport: Transport) -> None:
    sent = messages(5)
    async with (
        transport.subscribe("#", group=None, prefetch=5) as one,
        transport.subscribe("#", group=None, prefetch=5) as two,
    ):
        await publish(transport, *sent)
        assert ids(await take_and_ack(one, 5)) == ids(sent)
        assert ids(await take_and_ack(two, 5)) == ids(sent)


@pytest.mark.parametrize("group", ["workers", None], ids=["group", "no group"])
async def test_one_consumer_gets_messages_in_order(transport: Transport, group: str | None) -> None:
    sent = messages(500)
    async with transport.subscribe("#", group=group, prefetch=50) as deliveries:
        for start in range(0, 500, 100):
            await publish(transport, *sent[start : start + 100])
        assert ids(await take_and_ack(deliveries, 500)) == ids(sent)


async def test_no_more_than_prefetch_are_unsettled(transport: Transport) -> None:
    sent = messages(6)
    async with (
        transport.subscribe("#", group="slow", prefetch=3) as slow,
        transport.subscribe("#", group="fast", prefetch=3) as fast,
    ):
        await publish(transport, *sent)
        held = await take(slow, 3)
        fourth = asyncio.ensure_future(anext(slow))
        # Another consumer has received them all, so the fourth had its time to arrive.
        await take_and_ack(fast, 6)
        assert not fourth.done()
        await held[1].ack()
        assert (await soon(fourth)).message == sent[3]


@pytest.mark.parametrize("group", ["workers", None], ids=["group", "no group"])
async def test_the_first_delivery_is_attempt_one(transport: Transport, group: str | None) -> None:
    async with transport.subscribe("#", group=group, prefetch=5) as deliveries:
        await publish(transport, message())
        (delivery,) = await take(deliveries, 1)
        assert delivery.attempt == 1


async def test_what_is_acknowledged_does_not_come_again(transport: Transport) -> None:
    sent, marker = messages(5), message()
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, *sent)
        await take_and_ack(deliveries, 5)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, marker)
        assert await take_until(deliveries, marker) == []


async def test_what_is_not_settled_comes_again_after_closing(transport: Transport) -> None:
    first, second, third = sent = messages(3)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, *sent)
        taken = await take(deliveries, 2)
        await taken[0].ack()
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        again = await take(deliveries, 2)
    assert ids(again) == [second.event_id, third.event_id]
    assert again[0].attempt > 1
    assert first.event_id not in ids(again)


async def test_another_consumer_of_the_group_takes_over_what_one_left(bus: Bus, transport: Transport) -> None:
    sent = message()
    async with bus.transport() as other, other.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, sent)
        await take(deliveries, 1)
        async with transport.subscribe("#", group="workers", prefetch=5) as survivor:
            waiting = asyncio.ensure_future(anext(survivor))
            await other.__aexit__(None, None, None)
            delivery = await soon(waiting)
            assert delivery.message == sent
            assert delivery.attempt > 1
            await delivery.ack()


async def test_what_a_living_consumer_holds_without_an_ack_is_given_to_nobody_else(
    bus: Bus, transport: Transport
) -> None:
    held, clock, marker = messages(3)
    async with bus.transport() as other, other.subscribe("#", group="workers", prefetch=1) as holding:
        await publish(transport, held)
        (delivery,) = await take(holding, 1)
        async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
            await publish(transport, clock)
            (one,) = await take(deliveries, 1)
            # Longer than a consumer that has died keeps what it held.
            await one.retry(2 * LEASE_SECONDS)
            assert ids(await take_and_ack(deliveries, 1)) == [clock.event_id]
            await delivery.ack()
            await other.__aexit__(None, None, None)
            await publish(transport, marker)
            assert await take_until(deliveries, marker) == []


@pytest.mark.parametrize("group", ["workers", None], ids=["group", "no group"])
async def test_a_retry_comes_after_its_delay_and_holds_up_nobody(transport: Transport, group: str | None) -> None:
    failing, other = messages(2)
    async with transport.subscribe("#", group=group, prefetch=1) as deliveries:
        await publish(transport, failing, other)
        (delivery,) = await take(deliveries, 1)
        asked = time.monotonic()
        await delivery.retry(0.5)
        assert ids(await take_and_ack(deliveries, 1)) == [other.event_id]
        (again,) = await take(deliveries, 1)
        assert again.message == failing
        assert again.attempt == 2
        assert time.monotonic() - asked >= 0.5
        await again.ack()


@pytest.mark.parametrize("group", ["workers", None], ids=["group", "no group"])
async def test_a_retry_without_delay_comes_again(transport: Transport, group: str | None) -> None:
    sent = message()
    async with transport.subscribe("#", group=group, prefetch=1) as deliveries:
        await publish(transport, sent)
        for attempt in (1, 2, 3):
            (delivery,) = await take(deliveries, 1)
            assert (delivery.message, delivery.attempt) == (sent, attempt)
            await delivery.retry(0)


async def test_a_retry_concerns_its_own_group_only(transport: Transport) -> None:
    sent, marker = message(), message()
    async with (
        transport.subscribe("#", group="one", prefetch=5) as one,
        transport.subscribe("#", group="two", prefetch=5) as two,
    ):
        await publish(transport, sent)
        await take_and_ack(two, 1)
        (delivery,) = await take(one, 1)
        await delivery.retry(0)
        assert ids(await take_and_ack(one, 1)) == [sent.event_id]
        await publish(transport, marker)
        assert await take_until(two, marker) == []


@pytest.mark.parametrize("group", ["workers", None], ids=["group", "no group"])
async def test_a_dead_letter_does_not_come_again(transport: Transport, group: str | None) -> None:
    poison, marker = messages(2)
    async with transport.subscribe("#", group=group, prefetch=5) as deliveries:
        await publish(transport, poison)
        (delivery,) = await take(deliveries, 1)
        await delivery.dead_letter("cannot be read: \x00 é")
        await publish(transport, marker)
        assert await take_until(deliveries, marker) == []
    assert await transport.get(poison.event_id) == poison


async def test_a_dead_letter_is_dead_for_later_consumers_too(transport: Transport) -> None:
    poison, marker = messages(2)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, poison)
        (delivery,) = await take(deliveries, 1)
        await delivery.dead_letter("poison")
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, marker)
        assert await take_until(deliveries, marker) == []


async def test_a_delivery_is_settled_once(transport: Transport) -> None:
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, message())
        (delivery,) = await take(deliveries, 1)
        await delivery.ack()
        with pytest.raises(NotOpen):
            await delivery.ack()
        with pytest.raises(NotOpen):
            await delivery.retry(0)
        with pytest.raises(NotOpen):
            await delivery.dead_letter("twice")


async def test_an_error_in_the_consumer_leaves_the_subscription_unwrapped(transport: Transport) -> None:
    with pytest.raises(ZeroDivisionError):
        async with transport.subscribe("#", group="workers", prefetch=5):
            raise ZeroDivisionError


async def test_a_large_body_reaches_a_consumer(transport: Transport) -> None:
    sent = message(body=b"\x00" * 1_048_576)
    async with transport.subscribe("#", group="workers", prefetch=2) as deliveries:
        await publish(transport, sent)
        assert (await take_and_ack(deliveries, 1))[0].body == sent.body


async def test_closing_wakes_a_consumer_that_waits(bus: Bus) -> None:
    transport = bus.transport()
    await transport.__aenter__()
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        waiting = asyncio.ensure_future(anext(deliveries))
        await publish(transport, message())
        await soon(waiting)
        waiting = asyncio.ensure_future(anext(deliveries))
        await transport.__aexit__(None, None, None)
        with pytest.raises(NotOpen):
            await soon(waiting)


@pytest.mark.parametrize("group", ["workers", None], ids=["group", "no group"])
async def test_a_subscription_that_begins_while_the_transport_closes_ends_and_holds_nothing(
    bus: Bus, transport: Transport, group: str | None
) -> None:
    async with transport.subscribe("#", group="workers", prefetch=5):
        pass
    await publish(transport, *(sent := messages(5)))
    closing = bus.transport()
    await closing.__aenter__()

    async def consume() -> None:
        async with closing.subscribe("#", group=group, prefetch=5) as deliveries:
            async for _ in deliveries:
                pass

    beginning = asyncio.create_task(consume())
    await asyncio.sleep(0)
    await closing.__aexit__(None, None, None)
    with pytest.raises(NotOpen):
        await soon(beginning)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        assert ids(await take_and_ack(deliveries, 5)) == ids(sent)


async def test_closing_while_it_publishes_and_delivers_answers_each_and_loses_nothing(
    bus: Bus, transport: Transport
) -> None:
    sent, marker = messages(500), message()
    async with transport.subscribe("#", group="workers", prefetch=5):
        pass
    busy = bus.transport()
    await busy.__aenter__()
    async with busy.subscribe("#", group="workers", prefetch=50) as deliveries:
        tasks = [asyncio.create_task(busy.publish(one, timeout_seconds=TIMEOUT_SECONDS)) for one in sent]
        await take(deliveries, 1)
        async with asyncio.timeout(20):
            await busy.__aexit__(None, None, None)
        outcomes = await soon(asyncio.gather(*tasks, return_exceptions=True))
    assert {type(one) for one in outcomes} <= {Receipt, PublishUnknown, TransportUnavailable, NotOpen}
    logged = set(ids(await whole_log(transport)))
    kinds = {one.event_id: type(outcome) for one, outcome in zip(sent, outcomes, strict=True)}
    assert {one for one, kind in kinds.items() if kind is Receipt} <= logged
    assert {kinds[one] for one in logged} <= {Receipt, PublishUnknown}, "what was not sent is not there"
    await publish(transport, marker)
    async with transport.subscribe("#", group="workers", prefetch=50) as deliveries:
        received = await take_until(deliveries, marker)
    assert set(ids(received)) == logged
