"""Consumers on every bus: who is called with what, how often, and what is published meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bloodbank import (
    Attempt,
    BlockingPublisher,
    Consumer,
    EventEnvelope,
    Publisher,
    Retry,
    Settings,
    create_envelope,
)
from bloodbank.causation import caused_by, current_parents
from bloodbank.codec import encode
from bloodbank.errors import ConfigurationError, InvalidQuery
from tests.conformance.backends import Bus
from tests.conformance.consumers import Order, events_of, eventually, order

SOON = Retry(attempts=3, first_seconds=0.01, jitter=0)


async def test_a_handler_gets_what_its_annotations_ask_for(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: dict[str, object] = {}

    @consumer.on("shop.#", "typed")
    async def typed(attempt: Attempt, event: EventEnvelope[Order], publisher: Publisher) -> None:
        seen["typed"] = (attempt.number, attempt.event_id, event.payload, publisher)

    @consumer.on("shop.#", "payload")
    async def payload(placed: Order) -> None:
        seen["payload"] = placed

    @consumer.on("shop.#", "object")
    async def as_object(content: dict[str, Any]) -> None:
        seen["object"] = content

    @consumer.on("shop.#", "bare")
    async def bare(event) -> None:  # type: ignore[no-untyped-def]
        seen["bare"] = event.payload

    sent = order(7)
    async with consumer.running():
        await publisher.publish(sent)
        await eventually(lambda: len(seen) == 4)
    assert seen == {
        "typed": (1, sent.event_id, Order(number=7), publisher),
        "payload": Order(number=7),
        "object": {"number": 7, "key": "a"},
        "bare": {"number": 7, "key": "a"},
    }


async def test_an_envelope_without_a_class_has_the_payload_that_its_type_is_registered_for(
    publisher: Publisher,
) -> None:
    consumer = Consumer("llm", publisher=publisher)
    seen: list[object] = []

    @consumer.on("llm.prompt")
    async def handle(event: EventEnvelope) -> None:  # type: ignore[type-arg]
        seen.append(event.payload)

    prompt = create_envelope("llm.prompt", {"provider": "anthropic", "prompt": "Hello"})
    async with consumer.running():
        await publisher.publish(prompt)
        await eventually(lambda: seen)
    assert seen == [prompt.payload]
    assert type(seen[0]) is type(prompt.payload)


async def test_what_a_handler_publishes_has_its_event_as_the_parent(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    done = asyncio.Event()

    @consumer.on("shop.order.placed")
    async def bill(event: EventEnvelope[Order], publisher: Publisher) -> None:
        await publisher.publish(create_envelope("shop.bill.written", {}))
        await publisher.publish("shop.bill.sent", {"to": "them"})

    @consumer.on("shop.bill.sent", "mail")
    async def mail(event: EventEnvelope[Any], publisher: Publisher) -> None:
        await publisher.publish(create_envelope("shop.mail.sent", {}))
        done.set()

    sent = order()
    with caused_by(order()):
        # The consumer's own surroundings are no cause of what its handlers do.
        async with consumer.running():
            with caused_by():
                await publisher.publish(sent)
            await asyncio.wait_for(done.wait(), 60)
    [written], [bill_sent] = (
        await events_of(publisher, "shop.bill.written"),
        await events_of(publisher, "shop.bill.sent"),
    )
    [mailed] = await events_of(publisher, "shop.mail.sent")
    assert written.correlation_ids == bill_sent.correlation_ids == [sent.event_id]
    assert mailed.correlation_ids == [bill_sent.event_id]
    chain = await publisher.get_correlation_chain(mailed.event_id)
    assert chain[-3:] == [sent.event_id, bill_sent.event_id, mailed.event_id]


async def test_a_plain_function_runs_in_a_thread_and_publishes_from_there(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    threads: list[int] = []

    @consumer.on("shop.order.placed")
    def bill(event: EventEnvelope[Order], publisher: BlockingPublisher) -> None:
        threads.append(threading.get_ident())
        publisher.publish(create_envelope("shop.bill.written", {}))
        publisher.publish_many([create_envelope("shop.bill.sent", {}) for _ in range(2)])

    sent = order()
    async with consumer.running():
        await publisher.publish(sent)
        await eventually(lambda: threads)
    written = [*await events_of(publisher, "shop.bill.written"), *await events_of(publisher, "shop.bill.sent")]
    assert threads != [threading.get_ident()]
    assert [event.correlation_ids for event in written] == [[sent.event_id]] * 3


async def test_a_group_begins_where_it_is_told_to(publisher: Publisher) -> None:
    before, late = order(1), order(2)
    await publisher.publish(before)
    await asyncio.to_thread(_wait_for_the_clock)
    since = datetime.now(UTC)
    await publisher.publish(late)
    consumer = Consumer("shop", publisher=publisher)
    seen: dict[str, list[int]] = {"now": [], "beginning": [], "time": []}

    @consumer.on("shop.order.placed", "now")
    async def from_now(placed: Order) -> None:
        seen["now"].append(placed.number)

    @consumer.on("shop.order.placed", "beginning", start="beginning")
    async def from_the_beginning(placed: Order) -> None:
        seen["beginning"].append(placed.number)

    @consumer.on("shop.order.placed", "time", start=since)
    async def from_a_time(placed: Order) -> None:
        seen["time"].append(placed.number)

    async with consumer.running():
        await publisher.publish(order(3))
        await eventually(lambda: all(3 in numbers for numbers in seen.values()) and 1 in seen["beginning"])
        await eventually(lambda: len(seen["beginning"]) == 3 and len(seen["time"]) == 2)
    assert {name: sorted(numbers) for name, numbers in seen.items()} == {
        "now": [3],
        "beginning": [1, 2, 3],
        "time": [2, 3],
    }


async def test_a_group_of_several_handlers_begins_at_the_earliest_and_with_what_all_of_them_want(
    publisher: Publisher,
) -> None:
    for event_type in ["shop.order.placed", "shop.bill.paid", "shop.bill.sent"] * 3:
        await publisher.publish(create_envelope(event_type, {}))
    consumer = Consumer("shop", publisher=publisher)
    seen: list[str] = []

    @consumer.on("shop.order.placed")
    async def orders(event: EventEnvelope[Any]) -> None:
        seen.append(event.event_type)

    @consumer.on("shop.bill.paid", start="beginning")
    async def payments(event: EventEnvelope[Any]) -> None:
        seen.append(event.event_type)

    @consumer.on("shop.bill.sent", start=datetime.now(UTC))
    async def bills(event: EventEnvelope[Any]) -> None:
        seen.append(event.event_type)

    async with consumer.running():
        await eventually(lambda: len(seen) >= 9)
    assert sorted(seen) == ["shop.bill.paid"] * 3 + ["shop.bill.sent"] * 3 + ["shop.order.placed"] * 3


def _wait_for_the_clock() -> None:
    """Until it is a later second, since a stream tells times in chunks."""
    end = datetime.now(UTC) + timedelta(seconds=1.1)
    while datetime.now(UTC) < end:
        threading.Event().wait(0.05)


async def test_what_comes_while_a_consumer_is_away_is_handled_when_it_is_back(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[int] = []

    @consumer.on("shop.order.placed")
    async def handle(placed: Order) -> None:
        seen.append(placed.number)

    async with consumer.running():
        await publisher.publish(order(1))
        await eventually(lambda: seen == [1])
    await publisher.publish(order(2))
    async with consumer.running():
        await eventually(lambda: len(seen) == 2)
    assert seen == [1, 2]


async def test_handlers_of_one_group_get_their_own_events_alone(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[tuple[str, str]] = []

    @consumer.on("shop.order.*", "shop")
    async def orders(event: EventEnvelope[Any]) -> None:
        seen.append(("orders", event.event_type))

    @consumer.on("shop.*.paid", "shop")
    async def payments(event: EventEnvelope[Any]) -> None:
        seen.append(("payments", event.event_type))

    types = ["shop.order.placed", "shop.bill.paid", "shop.order.paid"] * 5
    async with consumer.running():
        for event_type in types:
            await publisher.publish(create_envelope(event_type, {}))
        await eventually(lambda: len(seen) == len(types))
    # The first whose pattern fits, where several do.
    expected = [("payments" if event_type == "shop.bill.paid" else "orders", event_type) for event_type in types]
    assert sorted(seen) == sorted(expected)


async def test_consumers_of_one_group_share_its_events(bus: Bus, publisher: Publisher) -> None:
    shares: list[list[int]] = [[], []]

    def consumer(share: list[int]) -> Consumer:
        made = Consumer("shop", publisher=publisher)

        @made.on("shop.order.placed", prefetch=1)
        async def handle(placed: Order) -> None:
            share.append(placed.number)
            # Until the other has something too, so that neither takes them all.
            await eventually(lambda: all(shares))

        return made

    async with consumer(shares[0]).running(), consumer(shares[1]).running():
        for number in range(10):
            await publisher.publish(order(number))
        await eventually(lambda: sum(map(len, shares)) == 10)
    assert sorted(shares[0] + shares[1]) == list(range(10))


async def test_an_event_that_is_published_three_times_is_handled_once(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[int] = []
    each_seen: list[int] = []

    @consumer.on("shop.order.placed", "once", concurrency=5)
    async def once(placed: Order) -> None:
        seen.append(placed.number)

    @consumer.on("shop.order.placed", "each", once=False)
    async def each(placed: Order) -> None:
        each_seen.append(placed.number)

    transport = publisher.transport
    copies = 1 if transport.features.detects_duplicates else 3
    async with consumer.running():
        for message in [encode(order(1))] * 3 + [encode(order(2))]:
            await transport.publish(message, timeout_seconds=30)
        await eventually(lambda: 2 in seen and len(each_seen) == copies + 1)
    assert (sorted(seen), sorted(each_seen)) == ([1, 2], [*[1] * copies, 2])


async def test_a_replayed_event_is_handled_again_and_says_so(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[bool] = []

    @consumer.on("shop.order.placed")
    async def handle(attempt: Attempt) -> None:
        seen.append(attempt.replayed)

    message = encode(order())
    async with consumer.running():
        await publisher.transport.publish(message, timeout_seconds=30)
        await eventually(lambda: seen)
        await publisher.transport.replay([message], group="shop")
        await eventually(lambda: len(seen) == 2)
    assert seen == [False, True]


async def test_a_handler_that_outlives_the_stop_timeout_is_ended_and_its_event_comes_again(
    publisher: Publisher,
) -> None:
    settings = publisher.settings.model_copy(update={"stop_timeout_seconds": 0.1})
    consumer = Consumer("shop", settings, publisher=publisher)
    started: list[int] = []
    ended: list[str] = []
    hang = True

    @consumer.on("shop.order.placed")
    async def handle(attempt: Attempt) -> None:
        started.append(attempt.number)
        try:
            if hang:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("done")

    async with consumer.running():
        await publisher.publish(order())
        await eventually(lambda: started)
    assert ended == ["cancelled"]
    hang = False
    async with consumer.running():
        await eventually(lambda: "done" in ended)
    assert started == [1, 2]


async def test_at_the_end_what_is_under_way_is_finished_and_nothing_new_is_begun(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    begun: list[int] = []
    finished: list[int] = []
    go_on = asyncio.Event()

    @consumer.on("shop.order.placed", concurrency=2)
    async def handle(placed: Order) -> None:
        begun.append(placed.number)
        await go_on.wait()
        finished.append(placed.number)

    async with asyncio.TaskGroup() as tasks:
        async with consumer.running():
            for number in range(5):
                await publisher.publish(order(number))
            await eventually(lambda: len(begun) == 2)
            tasks.create_task(_set_later(go_on))
        assert len(begun) == len(finished) == 2
    async with consumer.running():
        await eventually(lambda: len(finished) == 5)
    assert sorted(finished) == [0, 1, 2, 3, 4]


async def _set_later(event: asyncio.Event) -> None:
    for _ in range(20):
        await asyncio.sleep(0.01)
    event.set()


async def test_events_of_one_key_are_handled_one_after_the_other_and_keys_at_the_same_time(
    publisher: Publisher,
) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    running: set[str] = set()
    most = 0
    failed = False

    @consumer.on("shop.order.placed", concurrency=3, ordered_by=lambda event: event.payload.key, retry=SOON)
    async def handle(event: EventEnvelope[Order], attempt: Attempt) -> None:
        nonlocal most, failed
        key = event.payload.key
        assert key not in running
        running.add(key)
        most = max(most, len(running))
        try:
            if most < 3:
                await eventually(lambda: most == 3)
            await asyncio.sleep(0)
            if key == "b" and event.payload.number == 4 and attempt.number < 3:
                failed = True
                raise ValueError("later")
            seen[key].append(event.payload.number)
        finally:
            running.discard(key)

    async with consumer.running():
        for number in range(10):
            await publisher.publish_many([order(number, key) for key in seen])
        await eventually(lambda: sum(map(len, seen.values())) == 30)
    assert failed
    assert most == 3
    # A slice of a batch may be confirmed in any order on RabbitMQ, but not one key's.
    assert {key: numbers == sorted(numbers) for key, numbers in seen.items()} == dict.fromkeys(seen, True)


async def test_only_so_many_run_at_a_time(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    running = most = done = 0

    @consumer.on("shop.order.placed", concurrency=3, prefetch=10)
    async def handle(placed: Order) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        if done < 3:
            await eventually(lambda: most == 3)
        await asyncio.sleep(0)
        running -= 1
        done += 1

    async with consumer.running():
        await publisher.publish_many([order(number) for number in range(20)])
        await eventually(lambda: done == 20)
    assert most == 3


async def test_concurrent_handlers_do_not_see_each_others_parents(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    both = asyncio.Barrier(2)
    seen: dict[Any, Any] = {}

    @consumer.on("shop.order.placed", concurrency=2)
    async def handle(event: EventEnvelope[Any]) -> None:
        await both.wait()
        seen[event.event_id] = current_parents()
        await both.wait()

    async with consumer.running():
        await publisher.publish_many([order(1), order(2)])
        await eventually(lambda: len(seen) == 2)
    assert seen == {event_id: (event_id,) for event_id in seen}


async def test_a_consumer_opens_a_bus_of_its_own_with_the_index(tmp_path: Path) -> None:
    consumer = Consumer("shop", Settings(_env_file=None, data_dir=tmp_path))
    done = asyncio.Event()

    @consumer.on("shop.order.placed", start="beginning")
    async def handle(placed: Order, publisher: Publisher) -> None:
        await publisher.publish(create_envelope("shop.bill.written", {}))
        done.set()

    sent = order()
    async with Publisher(Settings(_env_file=None, data_dir=tmp_path), enable_correlation_tracking=True) as publisher:
        await publisher.publish(sent)
        async with consumer.running():
            await asyncio.wait_for(done.wait(), 60)
        assert len(await publisher.get_correlation_chain(sent.event_id, "descendants")) == 2


def test_what_cannot_be_is_refused_at_once() -> None:
    consumer = Consumer("shop")
    with pytest.raises(InvalidQuery):
        consumer.on("shop..placed")
    with pytest.raises(InvalidQuery):
        consumer.on("shop.#", start=datetime(2026, 1, 1))  # noqa: DTZ001, refused because of it
    for wrong in ({"concurrency": 0}, {"prefetch": 0}, {"timeout_seconds": 0}):
        with pytest.raises(ConfigurationError):
            consumer.on("shop.#", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="name"):
        Consumer("")


async def test_a_consumer_without_handlers_or_that_runs_already_does_not_start(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    with pytest.raises(ConfigurationError, match="no handlers"):
        async with consumer.running():
            pass

    @consumer.on("shop.#")
    async def handle(payload: dict[str, Any]) -> None: ...

    async with consumer.running():
        with pytest.raises(ConfigurationError, match="already"):
            async with consumer.running():
                pass


async def test_stop_ends_run(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)

    @consumer.on("shop.#")
    async def handle(payload: dict[str, Any]) -> None:
        consumer.stop()

    run = asyncio.create_task(consumer.run())
    # Until the group is there, nothing is kept for it.
    while not run.done():
        await publisher.publish(order())
        await asyncio.sleep(0.01)
    assert run.exception() is None


async def test_a_new_group_begins_with_all_its_handlers_where_one_of_them_says(publisher: Publisher) -> None:
    await publisher.publish_many([order(1), create_envelope("shop.bill.written", {}), order(2)])
    consumer = Consumer("shop", publisher=publisher)
    seen: list[str] = []

    @consumer.on("shop.note.written")
    async def first(event: EventEnvelope) -> None:
        seen.append(event.event_type)

    @consumer.on("shop.order.placed", start="beginning")
    async def second(event: EventEnvelope) -> None:
        seen.append(event.event_type)

    @consumer.on("shop.bill.written")
    async def third(event: EventEnvelope) -> None:
        seen.append(event.event_type)

    async with consumer.running():
        await publisher.publish(create_envelope("shop.note.written", {}))
        await eventually(lambda: len(seen) == 4)
    assert sorted(seen) == ["shop.bill.written", "shop.note.written", "shop.order.placed", "shop.order.placed"]


@pytest.mark.parametrize("earlier", ["shop.order.placed", "shop.*.placed", "#"])
def test_a_handler_that_another_one_leaves_no_event_is_refused(earlier: str) -> None:
    consumer = Consumer("shop")
    consumer.on(earlier)(_nothing)
    with pytest.raises(ConfigurationError, match=r"would get no event: shop\._nothing takes .* group='shop-_nothing'"):
        consumer.on("shop.order.placed")(_nothing)
    consumer.on("shop.order.placed", "another")(_nothing)


def test_a_wider_pattern_after_a_narrower_one_gets_the_rest() -> None:
    consumer = Consumer("shop")
    consumer.on("shop.order.placed")(_nothing)
    consumer.on("shop.#")(_nothing)
    assert [handler.pattern for handler in consumer.handlers] == ["shop.order.placed", "shop.#"]


@pytest.mark.parametrize("pattern", ["Shop.Order", "shop.ord*", "shop order.placed", "shop..placed", ""])
def test_a_pattern_that_no_event_type_fits_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidQuery):
        Consumer("shop").on(pattern)


def test_what_is_given_in_place_of_a_pattern_or_retry_is_told() -> None:
    consumer: Any = Consumer("shop")
    with pytest.raises(ConfigurationError, match=r"write @consumer\.on\('llm\.prompt'\)"):
        consumer.on(_nothing)
    with pytest.raises(ConfigurationError, match=r"Retry\(attempts=3\)"):
        consumer.on("shop.order.placed", retry=3)


def test_a_generator_is_no_handler() -> None:
    async def handle(payload: dict[str, Any]) -> AsyncGenerator[int]:
        yield len(payload)

    with pytest.raises(ConfigurationError, match="The handler handle is a generator"):
        Consumer("shop").on("shop.order.placed")(handle)


async def _nothing(payload: dict[str, Any]) -> None:
    """Stand for a handler."""


@pytest.mark.parametrize("group", ["", "my group", "log", "a..b", "x.filling"])
def test_a_group_that_one_of_the_buses_could_not_have_is_refused_on_all(group: str) -> None:
    with pytest.raises(InvalidQuery, match="cannot be the name of a group"):
        Consumer("shop").on("shop.order.placed", group)
