"""What every transport does with what consumers set aside: it is listed, put back to its group, or discarded."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from bloodbank.errors import InvalidQuery
from bloodbank.transports.base import (
    REASON_CHARACTERS,
    TRACEBACK_CHARACTERS,
    Failure,
    Transport,
)
from tests.conformance.backends import Bus
from tests.conformance.messages import (
    FAILURE,
    ids,
    listed,
    message,
    messages,
    publish,
    publish_patiently,
    set_aside,
    soon,
    take,
    take_and_ack,
    take_until,
    whole_log,
)


async def test_without_any_the_list_is_empty(transport: Transport) -> None:
    assert await listed(transport) == []
    assert await transport.redeliver([1, 2]) == 0
    assert await transport.discard([1, 2]) == 0
    assert await listed(transport, "workers") == []


async def test_a_dead_letter_is_listed_with_all_that_is_known_of_it(transport: Transport) -> None:
    sent = message("invoice.created", b'{"number":null}')._replace(
        correlation_id=message().event_id, app_id="shop", headers={"bloodbank-version": "2.0.0"}
    )
    before = datetime.now(UTC)
    async with transport.subscribe("#", group="billing", prefetch=1) as deliveries:
        await publish(transport, sent)
        for _ in range(2):
            await (await soon(anext(deliveries))).retry(0)
        await (await soon(anext(deliveries))).dead_letter(FAILURE)
    (letter,) = await listed(transport)
    assert letter.message == sent
    assert letter.message[4:6] == sent[4:6]
    assert dict(letter.message.headers) == dict(sent.headers)
    assert (letter.group, letter.failure, letter.attempts) == ("billing", FAILURE, 3)
    assert letter.first_at is not None
    # Where a transport keeps milliseconds, a time may lie up to one before.
    assert before.timestamp() - 0.001 <= letter.first_at.timestamp() <= letter.dead_at.timestamp()
    assert letter.dead_at <= datetime.now(UTC)


@pytest.mark.parametrize("group", ["workers", None], ids=["group", "no group"])
async def test_a_reason_alone_is_enough(transport: Transport, group: str | None) -> None:
    await set_aside(transport, message(), group=group, failure="because")
    (letter,) = await listed(transport)
    assert (letter.failure, letter.group) == (Failure("because"), group or "")


async def test_of_long_texts_the_beginning_of_the_reason_and_the_end_of_the_traceback_are_kept(
    transport: Transport,
) -> None:
    long = Failure("a" + "é" * 10_000, "E" * 10_000, "…" * 10_000 + "z", "c\ud800" * 10_000)
    await set_aside(transport, message(), failure=long)
    (letter,) = await listed(transport)
    assert letter.failure.reason == "a" + "é" * (REASON_CHARACTERS - 1)
    assert letter.failure.traceback == "…" * (TRACEBACK_CHARACTERS - 1) + "z"
    assert letter.failure.error == "E" * REASON_CHARACTERS
    assert letter.failure.consumer == "c?" * (REASON_CHARACTERS // 2)


async def test_reading_takes_nothing_away_and_the_oldest_comes_first(transport: Transport) -> None:
    sent = messages(12)
    await set_aside(transport, *sent)
    first, again = await listed(transport), await listed(transport)
    assert [letter.message for letter in first] == sent
    assert again == first
    numbers = [letter.number for letter in first]
    assert numbers == sorted(set(numbers))


async def test_dead_letters_of_one_group_are_listed_alone(transport: Transport) -> None:
    one, two = messages(2)
    await set_aside(transport, one, group="one")
    await set_aside(transport, two, group="two")
    assert [letter.message for letter in await listed(transport, "two")] == [two]
    assert [letter.message for letter in await listed(transport, "three")] == []
    assert {letter.group for letter in await listed(transport)} == {"one", "two"}


async def test_a_list_goes_on_behind_a_number_and_leaves_out_what_was_settled(transport: Transport) -> None:
    await set_aside(transport, *messages(5))
    every = await listed(transport)
    numbers = [letter.number for letter in every]
    await transport.discard([numbers[3]])
    assert await listed(transport, after=numbers[1]) == [every[2], every[4]]
    assert await listed(transport, after=numbers[3]) == [every[4]]
    assert await listed(transport, "nobody", after=numbers[1]) == []
    for behind_all in (numbers[4], numbers[4] + 1000):
        assert await listed(transport, after=behind_all) == []


async def test_what_is_put_back_goes_to_its_group_alone_as_it_was_and_begins_anew(transport: Transport) -> None:
    sent = message(body=b'{"a":1}')._replace(correlation_id=message().event_id, app_id="app")
    async with transport.subscribe("#", group="other", prefetch=5) as others:
        await set_aside(transport, sent)
        await take_and_ack(others, 1)
        (letter,) = await listed(transport)
        async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
            assert await transport.redeliver([letter.number]) == 1
            (again,) = await take(deliveries, 1)
            assert again.message == sent
            assert again.message[4:6] == sent[4:6]
            assert (again.attempt, again.replayed) == (1, False)
            assert again.first_attempt_at is not None
            assert again.first_attempt_at.timestamp() >= letter.dead_at.timestamp() - 0.001
            await again.ack()
        assert await listed(transport) == []
        marker = message()
        await publish(transport, marker)
        assert await take_until(others, marker) == []
    assert ids(await whole_log(transport)) == [sent.event_id, marker.event_id]


async def test_what_is_put_back_waits_for_a_consumer_and_survives_a_restart(bus: Bus) -> None:
    sent = messages(3)
    async with bus.transport() as transport:
        await set_aside(transport, *sent)
        assert await transport.redeliver([letter.number for letter in await listed(transport)]) == 3
    async with bus.service.outage():
        pass
    async with bus.transport() as transport:
        await publish_patiently(transport, last := message())
        async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
            received = await take_and_ack(deliveries, 4)
        assert sorted(ids(received)) == sorted([*ids(sent), last.event_id])
        assert await listed(transport) == []


async def test_a_restart_keeps_the_dead_letters(bus: Bus) -> None:
    sent = messages(3)
    async with bus.transport() as transport:
        await set_aside(transport, *sent)
        before = await listed(transport)
    async with bus.service.outage():
        pass
    async with bus.transport() as transport:
        await publish_patiently(transport, message())
        assert await listed(transport) == before
        assert await transport.discard([before[1].number]) == 1
        assert await listed(transport) == [before[0], before[2]]


async def test_what_fails_again_is_a_new_dead_letter(transport: Transport) -> None:
    sent = message()
    await set_aside(transport, sent)
    (first,) = await listed(transport)
    await transport.redeliver([first.number])
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        (delivery,) = await take(deliveries, 1)
        await delivery.retry(0)
        (delivery,) = await take(deliveries, 1)
        await delivery.dead_letter("again")
    (second,) = await listed(transport)
    assert second.message == sent
    assert (second.failure, second.attempts) == (Failure("again"), 2)
    assert second.number != first.number


async def test_what_was_put_back_and_left_unsettled_comes_again(bus: Bus, transport: Transport) -> None:
    sent = message()
    await set_aside(transport, sent)
    (letter,) = await listed(transport)
    await transport.redeliver([letter.number])
    async with bus.transport() as other, other.subscribe("#", group="workers", prefetch=5) as deliveries:
        await take(deliveries, 1)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        (again,) = await take(deliveries, 1)
        assert (again.message, again.attempt) == (sent, 2)
        await again.ack()
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, marker := message())
        assert await take_until(deliveries, marker) == []


async def test_each_is_put_back_or_discarded_once(transport: Transport) -> None:
    await set_aside(transport, *messages(4))
    one, two, three, four = [letter.number for letter in await listed(transport)]
    unknown = four + 1000
    assert await transport.redeliver([one, one, unknown]) == 1
    assert await transport.redeliver([one]) == 0
    assert await transport.discard([two, two, one, unknown, 1 << 70]) == 1
    assert await transport.discard([two]) == 0
    assert await transport.redeliver([two]) == 0
    assert await transport.redeliver([]) == 0
    assert [letter.number for letter in await listed(transport)] == [three, four]
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, marker := message())
        assert len(await take_until(deliveries, marker)) == 1


async def test_those_without_a_group_cannot_be_put_back_and_can_be_discarded(transport: Transport) -> None:
    await set_aside(transport, message(), group=None)
    (letter,) = await listed(transport)
    assert await transport.redeliver([letter.number]) == 0
    assert await listed(transport) == [letter]
    assert await transport.discard([letter.number]) == 1
    assert await listed(transport) == []


async def test_many_are_put_back_and_none_is_lost(transport: Transport) -> None:
    sent = messages(700)
    await set_aside(transport, *sent)
    numbers = [letter.number for letter in await listed(transport)]
    assert len(numbers) == 700
    assert await transport.redeliver(numbers) == 700
    async with transport.subscribe("#", group="workers", prefetch=100) as deliveries:
        assert ids(await take_and_ack(deliveries, 700)) == ids(sent)
    assert await listed(transport) == []


async def test_a_replay_to_one_group_says_so_and_nobody_else_gets_it(transport: Transport) -> None:
    sent = messages(3, "llm.prompt")
    await publish(transport, *sent)
    async with (
        transport.subscribe("artifact.*", group="one", prefetch=5) as one,
        transport.subscribe("#", group="two", prefetch=5) as two,
    ):
        await transport.replay(sent, group="one")
        received = await take(one, 3)
        assert [(delivery.message, delivery.replayed, delivery.attempt) for delivery in received] == [
            (message, True, 1) for message in sent
        ]
        for delivery in received:
            await delivery.ack()
        marker = message("artifact.created")
        await publish(transport, marker)
        assert await take_until(two, marker) == []
        (live,) = await take(one, 1)
        assert live.replayed is False
        await live.ack()
    assert ids(await whole_log(transport)) == [*ids(sent), marker.event_id]


async def test_a_replay_to_all_reaches_the_groups_whose_patterns_fit(transport: Transport) -> None:
    prompt, artifact, other = message("llm.prompt"), message("artifact.created"), message("other.thing")
    await publish(transport, prompt, artifact, other)
    async with (
        transport.subscribe("llm.*", group="llm", prefetch=5),
        transport.subscribe("#", group="all", prefetch=5) as everything,
        transport.subscribe("llm.#", group="llm", prefetch=5) as llm,
        transport.subscribe("nothing.here", group="none", prefetch=5) as nothing,
    ):
        pass
    # Without anybody listening: they keep it.
    await transport.replay([prompt, artifact, other], group=None)
    async with (
        transport.subscribe("#", group="all", prefetch=5) as everything,
        transport.subscribe("llm.*", group="llm", prefetch=5) as llm,
        transport.subscribe("nothing.here", group="none", prefetch=5) as nothing,
        transport.subscribe("#", group=None, prefetch=5) as itself,
    ):
        assert ids(await take_and_ack(everything, 3)) == ids([prompt, artifact, other])
        assert ids(await take_and_ack(llm, 1)) == [prompt.event_id]
        markers = [message("llm.prompt"), message("nothing.here")]
        await publish(transport, *markers)
        assert await take_until(llm, markers[0]) == []
        assert await take_until(nothing, markers[1]) == []
        assert ids(await take_and_ack(itself, 2)) == ids(markers)


async def test_a_replay_that_nobody_wants_is_no_error(transport: Transport) -> None:
    sent = message()
    await transport.replay([sent], group=None)
    await transport.replay([], group=None)
    assert await whole_log(transport) == []
    await publish(transport, sent)
    assert ids(await whole_log(transport)) == [sent.event_id]


async def test_a_replayed_delivery_stays_one_over_retries_and_among_the_dead(transport: Transport) -> None:
    sent = message()
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await transport.replay([sent], group="workers")
        (delivery,) = await take(deliveries, 1)
        assert delivery.replayed
        await delivery.retry(0.01)
        (delivery,) = await take(deliveries, 1)
        assert (delivery.replayed, delivery.attempt) == (True, 2)
        await delivery.dead_letter("because")
    (letter,) = await listed(transport)
    assert (letter.message, letter.attempts, letter.group) == (sent, 2, "workers")


async def test_a_group_that_does_not_exist_gets_nothing(transport: Transport) -> None:
    with pytest.raises(InvalidQuery, match="no group 'nobody'"):
        await transport.replay([message()], group="nobody")
    async with transport.subscribe("#", group="nobody", prefetch=5) as deliveries:
        await publish(transport, marker := message())
        assert await take_until(deliveries, marker) == []


async def test_the_first_attempt_is_remembered(transport: Transport) -> None:
    before = datetime.now(UTC)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, message())
        (first,) = await take(deliveries, 1)
        begun = first.first_attempt_at
        assert begun is not None
        assert before.timestamp() - 0.001 <= begun.timestamp() <= datetime.now(UTC).timestamp()
        for _ in range(2):
            await first.retry(0.01)
            (first,) = await take(deliveries, 1)
            assert first.first_attempt_at is not None
            assert abs(first.first_attempt_at.timestamp() - begun.timestamp()) <= 0.001
        assert datetime.now(UTC).timestamp() > begun.timestamp() + 0.01
        await first.ack()


async def test_dead_letters_of_two_consumers_that_work_at_the_same_time_are_all_kept(
    bus: Bus, transport: Transport
) -> None:
    sent = messages(60)
    async with bus.transport() as other:
        async with (
            transport.subscribe("#", group="workers", prefetch=1) as mine,
            other.subscribe("#", group="workers", prefetch=1) as theirs,
        ):
            await publish(transport, *sent)
            done = asyncio.Event()
            left = len(sent)

            async def work(number: int) -> None:
                nonlocal left
                async for delivery in (mine, theirs)[number]:
                    await delivery.dead_letter(f"by {number}")
                    left -= 1
                    if not left:
                        done.set()

            workers = [asyncio.create_task(work(0)), asyncio.create_task(work(1))]
            await soon(done.wait())
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
        assert sorted(letter.message.event_id for letter in await listed(other)) == sorted(ids(sent))
