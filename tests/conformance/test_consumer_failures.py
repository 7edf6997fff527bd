"""Handlers that fail, on every bus: they are tried again, given up, and their failures are events in the graph."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import model_serializer

from bloodbank import (
    Attempt,
    Consumer,
    EventEnvelope,
    FailurePayload,
    InvalidEvent,
    Publisher,
    PublishUnknown,
    Retry,
    Settings,
    create_envelope,
)
from bloodbank.causation import current_parents
from bloodbank.codec import encode
from bloodbank.events import FirefliesTranscriptFailedPayload
from bloodbank.ids import new_event_id
from bloodbank.transports.base import Message, Transport
from tests.conformance.consumers import (
    Order,
    dead_letters,
    events_of,
    eventually,
    eventually_dead,
    order,
)
from tests.conformance.messages import soon

SOON = Retry(attempts=3, first_seconds=0.01, jitter=0)


class Busy(Exception):
    """Something that passes."""


async def test_a_handler_that_fails_is_tried_again_and_knows_which_attempt_it_is(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    attempts: list[tuple[int, bool]] = []
    parents: list[Any] = []

    @consumer.on("shop.order.placed", retry=SOON)
    async def handle(attempt: Attempt) -> None:
        attempts.append((attempt.number, attempt.is_last))
        parents.append(current_parents())
        if attempt.number < 3:
            raise Busy

    sent = order()
    async with consumer.running():
        await publisher.publish(sent)
        await eventually(lambda: len(attempts) == 3)
    assert attempts == [(1, False), (2, False), (3, True)]
    assert parents == [(sent.event_id,)] * 3
    assert await dead_letters(publisher, "shop") == []
    assert await events_of(publisher, "shop.order.failed") == []


async def test_while_an_event_waits_for_its_next_attempt_others_are_handled(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[int] = []

    @consumer.on("shop.order.placed", retry=Retry(first_seconds=3600, longest_seconds=3600))
    async def handle(placed: Order) -> None:
        seen.append(placed.number)
        if placed.number == 0:
            raise Busy

    async with consumer.running():
        for number in range(5):
            await publisher.publish(order(number))
        await eventually(lambda: len(seen) == 5)
    assert seen == [0, 1, 2, 3, 4]


async def test_an_event_that_fails_for_good_is_a_dead_letter_and_an_event(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)

    @consumer.on("shop.order.placed", "billing", retry=SOON)
    async def bill(placed: Order) -> None:
        raise Busy(f"no printer for {placed.number}\nor ink")

    sent = order(7)
    async with consumer.running():
        await publisher.publish(sent)
        [letter] = await eventually_dead(publisher, "billing")
    assert letter.message.event_id == sent.event_id
    assert (letter.group, letter.attempts) == ("billing", 3)
    failure = letter.failure
    assert (failure.reason, failure.error, failure.consumer) == ("no printer for 7 or ink", "Busy", "shop.bill")
    assert failure.traceback.rstrip().endswith("or ink")
    assert "in bill" in failure.traceback
    assert letter.first_at is not None
    assert letter.first_at <= letter.dead_at
    [told] = await events_of(publisher, "shop.order.failed")
    assert told.correlation_ids == [sent.event_id]
    assert told.payload == {
        "error_message": "no printer for 7 or ink",
        "error_code": "Busy",
        "retry_count": 2,
        "is_retryable": False,
    }
    assert await publisher.get_correlation_chain(sent.event_id, "descendants") == [sent.event_id, told.event_id]


async def test_a_failure_whose_type_has_a_model_of_its_own_is_valid_by_it(publisher: Publisher) -> None:
    consumer = Consumer("rag", publisher=publisher)
    told: list[FirefliesTranscriptFailedPayload] = []

    @consumer.on("fireflies.transcript.upload", retry=Retry(attempts=1))
    async def ingest(event: EventEnvelope[Any]) -> None:
        raise Busy("no room")

    @consumer.on("fireflies.transcript.failed", "watch")
    async def watch(failure: FirefliesTranscriptFailedPayload) -> None:
        told.append(failure)

    upload = {"media_file": "call.mp3", "media_duration_seconds": 60, "media_type": "audio/mpeg"}
    async with consumer.running():
        await publisher.publish(create_envelope("fireflies.transcript.upload", upload))
        # No envelope at all: nothing is known but the type.
        torn = Message(new_event_id(), "fireflies.transcript.ready", b"\x00")
        async with publisher.transport.subscribe("fireflies.transcript.ready", group="rag", prefetch=1):
            await publisher.transport.publish(torn, timeout_seconds=30)
        await eventually(lambda: len(told) == 2)
    by_code = {failure.error_code: failure for failure in told}
    busy, poison = by_code["Busy"], by_code["poison"]
    assert (busy.failed_stage, busy.media_file, busy.is_retryable) == ("upload", "call.mp3", False)
    assert (poison.failed_stage, poison.transcript_id) == ("processing", None)
    for event in await events_of(publisher, "fireflies.transcript.failed"):
        publisher.registry.validate(event.event_type, event.payload)


async def test_a_model_that_cannot_tell_of_a_handler_does_not_lose_the_failure(publisher: Publisher) -> None:
    class Wants(FailurePayload):
        more: int

    class Fails(FailurePayload):
        @classmethod
        def of_handler(cls, common: Mapping[str, Any], event_type: str, payload: Mapping[str, Any]) -> Self:
            return cls(**common, error_code=payload["no such field"])

    consumer = Consumer("shop", publisher=publisher)
    publisher.registry.register("shop.order.failed", Wants)
    publisher.registry.register("shop.bill.failed", Fails)

    @consumer.on("shop.*.placed", retry=Retry(attempts=1))
    async def handle(payload: dict[str, Any]) -> None:
        raise Busy("no")

    async with consumer.running():
        await publisher.publish(order())
        await publisher.publish(create_envelope("shop.bill.placed", {}))
        await eventually_dead(publisher, "shop", 2)
    for failed in ("shop.order.failed", "shop.bill.failed"):
        [told] = await events_of(publisher, failed)
        assert told.payload["error_code"] == "Busy"


async def test_an_exception_without_words_is_a_failure_like_any_other(publisher: Publisher) -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    class Mute(Order):
        @model_serializer
        def dump(self) -> dict[str, Any]:
            raise Speechless

    consumer = Consumer("shop", publisher=publisher)

    @consumer.on("shop.order.placed", retry=Retry(attempts=2, first_seconds=0))
    async def handle(placed: Mute) -> None:
        raise Speechless

    async with consumer.running():
        await publisher.publish(order())
        [letter] = await eventually_dead(publisher, "shop")
    assert (letter.failure.error, letter.attempts) == ("Speechless", 2)
    assert "Speechless" in letter.failure.reason
    assert len(await events_of(publisher, "shop.order.failed")) == 1


async def test_exceptions_decide_whether_there_is_another_attempt(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    attempts: dict[int, int] = {}
    errors: dict[int, Exception] = {0: Busy("busy"), 1: ValueError("wrong"), 2: InvalidEvent("invalid")}

    @consumer.on("shop.order.placed", retry=Retry(attempts=2, first_seconds=0.01, on=(Busy, InvalidEvent)))
    async def handle(placed: Order) -> None:
        attempts[placed.number] = attempts.get(placed.number, 0) + 1
        raise errors[placed.number]

    async with consumer.running():
        for number in errors:
            await publisher.publish(order(number))
        letters = await eventually_dead(publisher, "shop", 3)
    assert attempts == {0: 2, 1: 1, 2: 1}
    assert sorted(letter.failure.error for letter in letters) == ["Busy", "InvalidEvent", "ValueError"]


async def test_what_takes_too_long_has_failed(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)

    @consumer.on("shop.order.placed", retry=Retry(attempts=1), timeout_seconds=0.05)
    async def handle(placed: Order) -> None:
        await asyncio.Event().wait()

    async with consumer.running():
        await publisher.publish(order())
        [letter] = await eventually_dead(publisher, "shop")
    assert letter.failure.error == "TimeoutError"


async def test_a_cancellation_from_within_is_a_failure_and_not_an_end(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[int] = []

    @consumer.on("shop.order.placed", retry=Retry(attempts=1))
    async def handle(placed: Order) -> None:
        seen.append(placed.number)
        if placed.number == 0:
            inner = asyncio.create_task(asyncio.Event().wait())
            inner.cancel()
            await inner

    async with consumer.running():
        await publisher.publish(order(0))
        await publisher.publish(order(1))
        [letter] = await eventually_dead(publisher, "shop")
        await eventually(lambda: len(seen) == 2)
    assert (letter.failure.error, letter.attempts) == ("RuntimeError", 1)


async def test_a_handler_that_cancels_its_own_task_ends_the_consumer_and_its_event_comes_again(
    publisher: Publisher,
) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[int] = []

    await publisher.publish(order(0))
    await publisher.publish(order(1))

    @consumer.on("shop.order.placed", start="beginning", ordered_by=lambda event: event.payload["key"])
    async def handle(event: EventEnvelope[dict[str, Any]], attempt: Attempt) -> None:
        number = event.payload["number"]
        seen.append(number)
        if number == 0 and attempt.number == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    # Otherwise neither it nor those behind it would be settled, and nobody would know.
    with pytest.raises(RuntimeError, match="cancelled its own task"):
        await asyncio.wait_for(consumer.run(), 60)
    async with consumer.running():
        await eventually(lambda: sorted(seen) == [0, 0, 1])


async def test_a_timeout_that_leaves_its_cancellation_behind_keeps_no_later_event(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[int] = []
    both_are_there = asyncio.Event()

    @consumer.on("shop.order.placed", ordered_by=lambda event: event.payload["key"], retry=Retry(attempts=1))
    async def handle(event: EventEnvelope[dict[str, Any]]) -> None:
        number = event.payload["number"]
        seen.append(number)
        if number == 0:
            await both_are_there.wait()
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            with suppress(asyncio.CancelledError):
                # As libraries of before Python 3.11 do it: without `uncancel`.
                await asyncio.sleep(0)
        else:
            inner = asyncio.create_task(asyncio.Event().wait())
            inner.cancel()
            await inner

    async with consumer.running():
        await publisher.publish(order(0))
        await eventually(lambda: seen)
        async with publisher.transport.subscribe("shop.order.placed", group="witness", prefetch=1) as witness:
            await publisher.publish(order(1))
            await soon(anext(witness))
        both_are_there.set()
        [letter] = await eventually_dead(publisher, "shop")
    assert (seen, letter.failure.error) == ([0, 1], "RuntimeError")


async def test_poison_is_set_aside_at_once_and_is_in_the_graph(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[int] = []

    @consumer.on("shop.#", retry=SOON)
    async def handle(event: EventEnvelope[Order]) -> None:
        seen.append(event.payload.number)

    no_envelope = Message(new_event_id(), "shop.order.placed", b"\x00 no JSON")
    wrong_payload = create_envelope("shop.order.placed", {"number": "many"})
    no_type = Message(new_event_id(), "shop", b"{}")
    async with consumer.running():
        await publisher.transport.publish(no_envelope, timeout_seconds=30)
        await publisher.publish(wrong_payload)
        await publisher.transport.publish(no_type, timeout_seconds=30)
        await publisher.publish(order(1))
        letters = await eventually_dead(publisher, "shop", 3)
        await eventually(lambda: seen == [1])
    assert {(letter.failure.error, letter.attempts) for letter in letters} == {("poison", 1)}
    assert {letter.message.event_id for letter in letters} == {
        no_envelope.event_id,
        wrong_payload.event_id,
        no_type.event_id,
    }
    told = await events_of(publisher, "shop.order.failed")
    assert {event.correlation_ids[0] for event in told} == {no_envelope.event_id, wrong_payload.event_id}
    [unnamed] = await events_of(publisher, "shop.failed")
    assert unnamed.correlation_ids == [no_type.event_id]


async def test_a_handler_that_fails_on_failures_too_comes_to_an_end(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    retry = Retry(attempts=1)

    @consumer.on("shop.order.*", "one", retry=retry)
    async def one(event: EventEnvelope[Any]) -> None:
        raise Busy("one")

    @consumer.on("shop.order.*", "two", retry=retry)
    async def two(event: EventEnvelope[Any]) -> None:
        raise Busy("two")

    async with consumer.running():
        await publisher.publish(order())
        # The event itself, and what the other group said of it.
        letters = [*await eventually_dead(publisher, "one", 2), *await eventually_dead(publisher, "two", 2)]
    assert len(letters) == 4
    assert len(await events_of(publisher, "shop.order.failed")) == 2


async def test_a_group_that_asks_for_failures_by_name_gets_its_own_too(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    told: list[Any] = []

    @consumer.on("shop.order.placed", "shop", retry=Retry(attempts=1))
    async def handle(placed: Order) -> None:
        raise Busy("no")

    @consumer.on("*.*.failed", "shop")
    async def tell(event: EventEnvelope[Any]) -> None:
        told.append(event.payload["error_code"])

    async with consumer.running():
        await publisher.publish(order())
        await eventually(lambda: told)
    assert told == ["Busy"]


async def test_failing_again_after_it_was_put_back_makes_no_second_failure_event(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    attempts: list[int] = []
    broken = True

    @consumer.on("shop.order.placed", retry=Retry(attempts=1))
    async def handle(attempt: Attempt) -> None:
        attempts.append(attempt.number)
        if broken:
            raise Busy("no")

    async with consumer.running():
        await publisher.publish(order())
        [letter] = await eventually_dead(publisher, "shop")
        assert await publisher.transport.redeliver([letter.number]) == 1
        await eventually(lambda: len(attempts) == 2)
        [again] = await eventually_dead(publisher, "shop")
        broken = False
        await publisher.transport.redeliver([again.number])
        await eventually(lambda: len(attempts) == 3)
    assert attempts == [1, 1, 1]
    assert len({event.event_id for event in await events_of(publisher, "shop.order.failed")}) == 1
    assert await dead_letters(publisher, "shop") == []


async def test_attempts_that_were_made_one_after_the_other_for_the_sake_of_order_count(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)

    @consumer.on("shop.order.placed", retry=SOON, ordered_by=lambda event: event.payload["key"])
    async def handle(event: EventEnvelope[dict[str, Any]]) -> None:
        raise Busy("no")

    async with consumer.running():
        await publisher.publish(order())
        [letter] = await eventually_dead(publisher, "shop")
    [told] = await events_of(publisher, "shop.order.failed")
    assert (letter.attempts, told.payload["retry_count"]) == (3, 2)


async def test_a_replay_that_failed_is_handled_when_it_is_put_back(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    seen: list[bool] = []
    broken = False

    @consumer.on("shop.order.placed", retry=Retry(attempts=1))
    async def handle(attempt: Attempt) -> None:
        seen.append(attempt.replayed)
        if broken:
            raise Busy("no")

    message = encode(order())
    async with consumer.running():
        await publisher.transport.publish(message, timeout_seconds=30)
        # From then on the inbox knows it.
        await eventually(lambda: seen)
        broken = True
        await publisher.transport.replay([message], group="shop")
        [letter] = await eventually_dead(publisher, "shop")
        broken = False
        await publisher.transport.redeliver([letter.number])
        await eventually(lambda: len(seen) == 3)
    assert seen == [False, True, True]


async def test_what_a_group_has_no_handler_for_any_more_is_set_aside(publisher: Publisher) -> None:
    before = Consumer("shop", publisher=publisher)

    @before.on("shop.#", "shop")
    async def everything(payload: dict[str, Any]) -> None: ...

    async with before.running():
        pass
    now = Consumer("shop", publisher=publisher)
    seen: list[int] = []

    @now.on("shop.order.placed", "shop")
    async def orders(placed: Order) -> None:
        seen.append(placed.number)

    async with now.running():
        await publisher.publish(create_envelope("shop.bill.written", {}))
        await publisher.publish(order(1))
        [letter] = await eventually_dead(publisher, "shop")
        await eventually(lambda: seen == [1])
    assert (letter.message.routing_key, letter.failure.error) == ("shop.bill.written", "no_handler")


async def test_an_event_whose_handler_never_comes_to_an_end_is_set_aside_in_the_end(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    runs: list[int] = []

    @consumer.on("shop.order.placed", retry=Retry(attempts=1, deliveries=2))
    async def handle(attempt: Attempt) -> None:
        runs.append(attempt.number)

    # Processes that died with it, as far as anybody can tell.
    for last in (False, True):
        async with publisher.transport.subscribe("shop.order.placed", group="shop", prefetch=1) as deliveries:
            if not last:
                await publisher.publish(order(0))
            assert (await soon(anext(deliveries))).attempt == 1 + last
    async with consumer.running():
        await publisher.publish(order(1))
        [letter] = await eventually_dead(publisher, "shop")
        await eventually(lambda: runs)
    assert (letter.failure.error, letter.attempts, runs) == ("crashed", 3, [1])


async def test_a_failure_event_says_the_same_when_a_process_died_while_it_was_told(publisher: Publisher) -> None:
    """Otherwise the second one would wait until it is clear what became of the first, which had other content."""
    consumer = Consumer("shop", publisher=publisher)

    @consumer.on("shop.order.placed", retry=Retry(attempts=1))
    async def handle(placed: Order) -> None:
        raise Busy("no")

    async with publisher.transport.subscribe("shop.order.placed", group="shop", prefetch=1) as deliveries:
        await publisher.publish(order())
        assert (await soon(anext(deliveries))).attempt == 1
    async with consumer.running():
        [letter] = await eventually_dead(publisher, "shop")
    [told] = await events_of(publisher, "shop.order.failed")
    assert (letter.attempts, told.payload["retry_count"]) == (2, 0)


class Hesitant(Publisher):
    """Does not know at first what became of a failure event, and notes what is dead when it is published."""

    dead: list[int]

    async def publish(self, *arguments: Any, **named: Any) -> Any:
        event = arguments[0]
        if isinstance(event, EventEnvelope) and event.event_type.endswith(".failed"):
            self.dead.append(len(await dead_letters(self, "shop")))
            if len(self.dead) == 1:
                raise PublishUnknown("lost")
        return await super().publish(*arguments, **named)


async def test_a_failure_is_told_before_its_event_is_set_aside(transport: Transport, tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, inbox_timeout_seconds=60)
    async with Hesitant(settings, transport=transport) as publisher:
        publisher.dead = []
        consumer = Consumer("shop", publisher=publisher)

        @consumer.on("shop.order.placed", retry=Retry(attempts=1))
        async def handle(placed: Order) -> None:
            raise Busy("no")

        async with consumer.running():
            await publisher.publish(order())
            await eventually_dead(publisher, "shop")
        assert len(await events_of(publisher, "shop.order.failed")) == 1
    assert publisher.dead == [0, 0]


@pytest.mark.parametrize("ordered", [False, True], ids=["unordered", "ordered"])
async def test_what_was_not_begun_at_an_orderly_end_is_no_attempt_where_the_bus_can_tell(
    publisher: Publisher, ordered: bool
) -> None:
    begun: list[tuple[int, int]] = []

    def a_consumer(may_end: asyncio.Event) -> Consumer:
        consumer = Consumer("shop", publisher=publisher)
        ordered_by = (lambda event: event.payload.key) if ordered else None

        @consumer.on("shop.order.placed", concurrency=1, prefetch=10, start="beginning", ordered_by=ordered_by)
        async def handle(placed: Order, attempt: Attempt) -> None:
            begun.append((placed.number, attempt.number))
            await may_end.wait()

        return consumer

    for number in range(4):
        await publisher.publish(order(number))
    for ends in range(1, 4):
        may_end = asyncio.Event()
        consumer = a_consumer(may_end)
        async with consumer.running():
            await eventually(lambda ends=ends: len(begun) == ends)
            consumer.stop()
            may_end.set()
    may_end = asyncio.Event()
    may_end.set()
    async with a_consumer(may_end).running():
        await eventually(lambda: len(begun) == 4)
    assert sorted(number for number, _ in begun) == list(range(4))
    attempts = [attempt for _, attempt in begun]
    if publisher.transport.features.forgets_untried:
        assert attempts == [1] * 4
    # The others had been given to each of the consumers before.
    assert max(attempts) <= 4
