"""Dead letters and replay above the transports: the same on every bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bloodbank import DeadLetters, Publisher, Replay, Settings, create_envelope
from bloodbank.errors import DeadLetterNotFound, EventNotFound, InvalidQuery, TrackingDisabled, TransportUnavailable
from bloodbank.progress import Progress
from bloodbank.transports.base import Failure, LogEntry, Message, Transport
from tests.conformance.messages import (
    FAILURE,
    ids,
    listed,
    message,
    messages,
    publish,
    set_aside,
    soon,
    take,
    take_and_ack,
    take_until,
)

OTHER = Failure("timed out", "TimeoutError", "", "billing.post")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path, query_timeout_seconds=60)


async def _next_millisecond() -> datetime:
    """Return a time, in whole milliseconds as some buses keep it, after all that was published before."""
    begun = datetime.now(UTC)
    while (now := datetime.now(UTC)) - begun < timedelta(milliseconds=2):
        await asyncio.sleep(0)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


async def test_groups_tell_consumer_and_error_apart_and_count(transport: Transport, settings: Settings) -> None:
    await set_aside(transport, *messages(3))
    await set_aside(transport, message(body=b'{"last":1}'), failure=OTHER)
    await set_aside(transport, *messages(2), group="others", failure=FAILURE)
    letters = await listed(transport)
    page = await DeadLetters(transport, settings).groups()
    assert page.next is None
    assert [(group.group, group.consumer, group.error, group.count) for group in page.items] == [
        ("workers", "billing.post", "ValueError", 3),
        ("workers", "billing.post", "TimeoutError", 1),
        ("others", "billing.post", "ValueError", 2),
    ]
    first = page.items[0]
    assert (first.first_at, first.last_at) == (letters[0].dead_at, letters[2].dead_at)
    assert (first.sample.number, first.sample.failure, first.sample.message.body) == (letters[2].number, FAILURE, b"")
    assert len({group.key for group in page.items}) == 3


async def test_lists_and_groups_are_read_in_bounded_parts(transport: Transport, settings: Settings) -> None:
    for number in range(6):
        failure = Failure("no", f"Error{number % 3}", "", "c")
        await set_aside(transport, message(), failure=failure)
    numbers = [letter.number for letter in await listed(transport)]
    letters = DeadLetters(transport, settings)
    (key,) = [group.key for group in (await letters.groups()).items if group.error == "Error1"]

    found: list[int] = []
    after: int | None = None
    for size in (4, 2):
        page = await letters.page(after=after, limit=4)
        assert len(page.items) == size
        found += [letter.number for letter in page.items]
        after = page.next
    assert (found, after) == (numbers, None)
    of_one = await letters.page(key=key, group="workers")
    assert [letter.number for letter in of_one.items] == [numbers[1], numbers[4]]

    few = DeadLetters(transport, settings.model_copy(update={"scan_limit": 5, "dead_letter_group_limit": 2}))
    short = await few.page(key=key)
    assert ([letter.number for letter in short.items], short.next) == ([numbers[1], numbers[4]], numbers[4])
    part = await few.groups()
    assert ([group.error for group in part.items], part.next) == (["Error0", "Error1"], numbers[1])
    with pytest.raises(InvalidQuery, match="limit"):
        await letters.page(limit=settings.page_limit + 1)


async def test_a_list_that_takes_too_long_says_which_setting_bounds_it(
    transport: Transport, settings: Settings
) -> None:
    await set_aside(transport, message())
    letters = DeadLetters(transport, settings.model_copy(update={"dead_letter_timeout_seconds": 1e-9}))
    for question in (letters.page, letters.groups):
        with pytest.raises(TransportUnavailable, match="BLOODBANK_DEAD_LETTER_TIMEOUT_SECONDS"):
            await question()


async def test_one_is_read_given_back_and_discarded_by_its_number(transport: Transport, settings: Settings) -> None:
    sent = [message(body=b'{"a":1}'), message()]
    await set_aside(transport, message(), group=None)
    await set_aside(transport, *sent)
    nobodys, one, two = [letter.number for letter in await listed(transport)]
    letters = DeadLetters(transport, settings)
    assert (await letters.get(one)).message.body == b'{"a":1}'
    await letters.retry(one)
    await letters.discard(two)
    for number in (one, two, two + 1000):
        for settle in (letters.get, letters.retry, letters.discard):
            with pytest.raises(DeadLetterNotFound, match=str(number)):
                await settle(number)
    with pytest.raises(InvalidQuery, match="without a group"):
        await letters.retry(nobodys)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        assert await take_and_ack(deliveries, 1) == [sent[0]]


async def test_a_group_goes_back_to_its_consumers_and_says_how_far_it_is(
    transport: Transport, settings: Settings
) -> None:
    sent = messages(450)
    await set_aside(transport, *sent)
    await set_aside(transport, other := message(), failure=OTHER)
    letters = DeadLetters(transport, settings)
    (key, other_key) = [group.key for group in (await letters.groups()).items]
    told: list[Progress] = []
    assert await soon(letters.retry_group(key, told.append)) == Progress(450, 450)
    assert told == [Progress(450, 0), Progress(450, 200), Progress(450, 400), Progress(450, 450)]
    async with transport.subscribe("#", group="workers", prefetch=100) as deliveries:
        assert ids(await take_and_ack(deliveries, 450)) == ids(sent)
    assert [letter.message for letter in await listed(transport)] == [other]
    with pytest.raises(DeadLetterNotFound, match=key):
        await letters.retry_group(key)
    assert await letters.discard_group(other_key) == Progress(1, 1)
    assert await listed(transport) == []


async def test_what_cannot_be_given_back_is_skipped_and_stays(transport: Transport, settings: Settings) -> None:
    await set_aside(transport, *messages(2), group=None)
    letters = DeadLetters(transport, settings)
    (group,) = (await letters.groups()).items
    assert await letters.retry_group(group.key) == Progress(2, 0, 2)
    assert len(await listed(transport)) == 2


async def test_a_replay_is_of_a_type_and_a_time_and_ends_where_the_log_ended(
    transport: Transport, settings: Settings
) -> None:
    early, late = messages(3, "llm.prompt"), messages(600, "llm.prompt")
    await publish(transport, *early, message("other.thing"))
    since = await _next_millisecond()
    await publish(transport, *late, message("other.thing"))
    replay = Replay(transport, None, settings)
    everything = await replay.select(pattern="llm.*")
    assert everything.count == 603
    assert (await replay.select(pattern="llm.*", until=since)).count == 3
    assert (await replay.select(since=since + timedelta(hours=1))).count == 0
    selected = await replay.select(pattern="llm.*", since=since)
    async with transport.subscribe("none.of.these", group="rag", prefetch=200) as deliveries:
        # Not among what was counted.
        await publish(transport, *messages(2, "llm.prompt"))
        told: list[Progress] = []
        assert await soon(replay.send(selected, to="rag", on_progress=told.append)) == Progress(600, 600)
        assert told == [Progress(600, 0), Progress(600, 500), Progress(600, 600)]
        first = await soon(anext(deliveries))
        assert first.replayed
        await first.ack()
        assert [first.message, *await take_and_ack(deliveries, 599)] == late
        await publish(transport, marker := message("none.of.these"))
        assert await take_until(deliveries, marker) == []


async def test_a_replay_to_a_group_that_is_not_there_sends_nothing(transport: Transport, settings: Settings) -> None:
    await publish(transport, message())
    replay = Replay(transport, None, settings)
    told: list[Progress] = []
    with pytest.raises(InvalidQuery, match="no group 'nobody'"):
        await replay.send(await replay.select(), to="nobody", on_progress=told.append)
    assert told == []
    with pytest.raises(InvalidQuery, match="pattern"):
        await replay.select(pattern="")
    with pytest.raises(InvalidQuery, match="offset"):
        await replay.select(since=datetime(2026, 1, 1))  # noqa: DTZ001, that is the point


async def test_a_replay_that_is_broken_off_reads_the_log_no_further(
    transport: Transport, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(transport, *messages(600))
    replay = Replay(transport, None, settings)
    selected = await replay.select()
    read_log, send = transport.read_log, transport.replay
    readings: list[AsyncGenerator[LogEntry]] = []

    def read(**asked: Any) -> AsyncGenerator[LogEntry]:
        readings.append(read_log(**asked))
        return readings[-1]

    async def broken(several: Sequence[Message], *, group: str | None) -> None:
        if several:
            raise TransportUnavailable("cut")
        await send(several, group=group)

    monkeypatch.setattr(transport, "read_log", read)
    monkeypatch.setattr(transport, "replay", broken)
    try:
        await replay.send(selected, to=None)
    except TransportUnavailable:
        # As long as the error is looked at, nothing is collected by itself.
        [reading] = readings
        with pytest.raises(StopAsyncIteration):
            await anext(reading)
    else:
        pytest.fail("the replay was broken off")


async def test_one_event_is_replayed_alone_or_with_all_that_it_led_to(publisher: Publisher, settings: Settings) -> None:
    cause = create_envelope("chain.step", {"n": 0})
    await publisher.publish(create_envelope("chain.step", {"n": -1}))
    await publisher.publish(cause)
    chain = [cause]
    for number in (1, 2):
        chain.append(create_envelope("chain.step", {"n": number}, correlation_ids=[chain[-1].event_id]))
        await publisher.publish(chain[-1])
    transport = publisher.transport
    replay = Replay(transport, publisher.tracker, settings)
    async with transport.subscribe("chain.*", group="rag", prefetch=20) as deliveries:
        assert await replay.send(await replay.select_event(cause.event_id), to="rag") == Progress(1, 1)
        assert ids(await take_and_ack(deliveries, 1)) == [cause.event_id]
        whole = await replay.select_event(cause.event_id, descendants=True)
        assert (whole.count, whole.missing) == (3, 0)
        assert await replay.send(whole, to=None) == Progress(3, 3)
        taken = await take(deliveries, 3)
        assert [delivery.message.event_id for delivery in taken] == [event.event_id for event in chain]
        assert all(delivery.replayed for delivery in taken)
        for delivery in taken:
            await delivery.ack()


async def test_descendants_that_cannot_all_be_told_are_not_replayed(publisher: Publisher, settings: Settings) -> None:
    cause = create_envelope("chain.step", {})
    await publisher.publish(cause)
    await publisher.publish(create_envelope("chain.step", {}, correlation_ids=[cause.event_id]))
    transport = publisher.transport
    with pytest.raises(TrackingDisabled):
        await Replay(transport, None, settings).select_event(cause.event_id, descendants=True)
    narrow = settings.model_copy(update={"lineage_node_limit": 1})
    with pytest.raises(InvalidQuery, match="more than"):
        await Replay(transport, publisher.tracker, narrow).select_event(cause.event_id, descendants=True)
    replay = Replay(transport, publisher.tracker, settings)
    for descendants in (False, True):
        with pytest.raises(EventNotFound):
            await replay.select_event(uuid4(), descendants=descendants)


async def test_a_second_copy_of_an_event_is_replayed_once(transport: Transport, settings: Settings) -> None:
    sent: list[Message] = messages(2)
    await publish(transport, *sent, sent[0])
    replay = Replay(transport, None, settings)
    selected = await replay.select()
    assert selected.count == 2
    async with transport.subscribe("nothing.here", group="rag", prefetch=5) as deliveries:
        assert await replay.send(selected, to="rag") == Progress(2, 2)
        assert await take_and_ack(deliveries, 2) == sent
        await publish(transport, marker := message("nothing.here"))
        assert await take_until(deliveries, marker) == []
