"""What every transport does: publish, read back, refuse, open and close."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from bloodbank.errors import EventConflict, EventNotFound, InvalidQuery, NotOpen, PublishRejected
from bloodbank.ids import new_event_id
from bloodbank.transports.base import Message, Receipt, Transport
from tests.conformance.backends import Bus
from tests.conformance.messages import TIMEOUT_SECONDS, ids, message, messages, publish, soon, whole_log

BODIES = {
    "empty": b"",
    "one byte": b"x",
    "NUL bytes": b"\x00a\x00\x00",
    "every byte": bytes(range(256)),
    "1 MB": bytes(range(256)) * 4096,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_a_body_comes_back_byte_for_byte(transport: Transport, body: bytes) -> None:
    sent = message(body=body)
    await publish(transport, sent)
    assert (await transport.get(sent.event_id)).body == body


async def test_all_properties_come_back(transport: Transport) -> None:
    sent = Message(
        new_event_id(),
        "llm.response",
        b'{"a":1}',
        digest=b"0123456789abcdef",
        correlation_id=uuid4(),
        app_id="agent é",
        headers={"bloodbank-version": "2.0.0", "other": "ü"},
    )
    await publish(transport, sent)
    (entry,) = await whole_log(transport)
    assert entry.message == sent
    assert entry.message.correlation_id == sent.correlation_id
    assert entry.message.app_id == sent.app_id
    assert dict(entry.message.headers) == dict(sent.headers)


@pytest.mark.parametrize("key", ["a", "a." + "b" * 253], ids=["1 byte", "255 bytes"])
async def test_routing_keys_of_every_length_come_back(transport: Transport, key: str) -> None:
    sent = message(key)
    async with transport.subscribe("#", group=None, prefetch=1) as deliveries:
        await publish(transport, sent)
        (delivery,) = [await soon(anext(deliveries))]
        await delivery.ack()
    assert delivery.message.routing_key == key
    assert (await transport.get(sent.event_id)).routing_key == key


async def test_a_routing_key_over_255_bytes_is_rejected(transport: Transport) -> None:
    with pytest.raises(PublishRejected):
        await transport.publish(message("a." + "é" * 127), timeout_seconds=TIMEOUT_SECONDS)
    assert await whole_log(transport) == []


async def test_publish_answers_with_the_id(transport: Transport) -> None:
    sent = message()
    receipt = await transport.publish(sent, timeout_seconds=TIMEOUT_SECONDS)
    assert (receipt.event_id, receipt.duplicate) == (sent.event_id, False)


async def test_publish_many_keeps_the_order(transport: Transport) -> None:
    sent = messages(300)
    receipts = await publish(transport, *sent)
    assert [receipt.event_id for receipt in receipts] == ids(sent)
    assert ids(await whole_log(transport)) == ids(sent)


async def test_publish_many_answers_for_each_message(transport: Transport) -> None:
    first, last = messages(2)
    refused = message("k" * 256)
    outcomes = await transport.publish_many([first, refused, last], timeout_seconds=TIMEOUT_SECONDS)
    assert [type(outcome) for outcome in outcomes] == [Receipt, PublishRejected, Receipt]
    assert ids(await whole_log(transport)) == ids([first, last])


async def test_publish_many_of_nothing_is_nothing(transport: Transport) -> None:
    assert await transport.publish_many([], timeout_seconds=TIMEOUT_SECONDS) == []


async def test_a_thousand_concurrent_publishes_are_each_in_the_log_once(transport: Transport) -> None:
    sent = messages(1000)
    receipts = await asyncio.gather(*(transport.publish(one, timeout_seconds=TIMEOUT_SECONDS) for one in sent))
    assert [receipt.event_id for receipt in receipts] == ids(sent)
    logged = ids(await whole_log(transport))
    assert len(logged) == 1000
    assert set(logged) == set(ids(sent))


async def test_the_same_event_again_is_safe(transport: Transport) -> None:
    sent = message(body=b"first")
    await publish(transport, sent)
    again = Message(sent.event_id, sent.routing_key, b"same meaning, other bytes", digest=sent.digest)
    receipt = await transport.publish(again, timeout_seconds=TIMEOUT_SECONDS)
    if transport.features.detects_duplicates:
        assert receipt.duplicate
        assert len(await whole_log(transport)) == 1
    assert (await transport.get(sent.event_id)).body == b"first"


async def test_the_same_id_with_another_body_is_a_conflict_where_it_is_detected(transport: Transport) -> None:
    sent = message(body=b"first")
    other = message(body=b"second", event_id=sent.event_id)
    await publish(transport, sent)
    (outcome,) = await transport.publish_many([other], timeout_seconds=TIMEOUT_SECONDS)
    assert isinstance(outcome, EventConflict if transport.features.detects_duplicates else Receipt)
    assert (await transport.get(sent.event_id)).body == b"first"


async def test_duplicates_within_one_batch_are_detected_like_others(transport: Transport) -> None:
    sent = message()
    outcomes = await publish(transport, sent, sent)
    assert [outcome.duplicate for outcome in outcomes] == [False, transport.features.detects_duplicates]


async def test_after_a_cancelled_publish_the_same_id_again_is_safe(transport: Transport) -> None:
    sent = message()
    task = asyncio.create_task(transport.publish(sent, timeout_seconds=TIMEOUT_SECONDS))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await publish(transport, sent)
    assert set(ids(await whole_log(transport))) == {sent.event_id}


async def test_check_leaves_nothing_behind(transport: Transport) -> None:
    async with transport.subscribe("#", group=None, prefetch=1) as deliveries:
        await transport.check(timeout_seconds=TIMEOUT_SECONDS)
        sent = message()
        await publish(transport, sent)
        assert (await soon(anext(deliveries))).message.event_id == sent.event_id
    assert ids(await whole_log(transport)) == [sent.event_id]


async def test_an_empty_log_has_no_entries(transport: Transport) -> None:
    assert await whole_log(transport) == []


async def test_positions_grow_and_times_are_aware(transport: Transport) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    await publish(transport, *messages(5))
    entries = await whole_log(transport)
    positions = [entry.position for entry in entries]
    assert positions == sorted(set(positions))
    assert all(before <= entry.logged_at <= datetime.now(UTC) + timedelta(seconds=1) for entry in entries)


async def test_the_log_is_read_behind_a_position(transport: Transport) -> None:
    sent = messages(10)
    await publish(transport, *sent)
    entries = await whole_log(transport)
    assert ids([entry async for entry in transport.read_log(after=entries[3].position)]) == ids(sent[4:])
    assert [entry async for entry in transport.read_log(after=entries[-1].position)] == []


@pytest.mark.parametrize(("back", "count"), [(-1, 1), (-3, 3), (-10, 10), (-50, 10)])
async def test_a_negative_position_begins_before_the_end(transport: Transport, back: int, count: int) -> None:
    sent = messages(10)
    await publish(transport, *sent)
    read = ids([entry async for entry in transport.read_log(after=back)])
    assert read == ids(sent[-count:])


async def test_since_begins_at_or_before_the_first_entry_of_that_time(transport: Transport) -> None:
    sent = messages(20)
    for one in sent:
        await publish(transport, one)
    entries = await whole_log(transport)
    read = ids([entry async for entry in transport.read_log(since=entries[12].logged_at)])
    assert read == ids(sent)[-len(read) :]
    assert set(ids(sent[12:])) <= set(read)


async def test_since_the_future_ends(transport: Transport) -> None:
    sent = messages(3)
    await publish(transport, *sent)

    async def read() -> list[Message]:
        future = datetime.now(UTC) + timedelta(hours=1)
        return [entry.message async for entry in transport.read_log(since=future)]

    # Earlier ones may come along; what matters is that it ends.
    assert set(ids(await soon(read()))) <= set(ids(sent))


async def test_following_the_log_goes_on_with_what_comes_later(transport: Transport) -> None:
    early, late = messages(2)
    await publish(transport, early)
    entries = transport.read_log(follow=True)
    assert (await soon(anext(entries))).message == early
    following = asyncio.ensure_future(anext(entries))
    await publish(transport, late)
    assert (await soon(following)).message == late
    await entries.aclose()


async def test_a_log_longer_than_a_page_is_read_whole(transport: Transport) -> None:
    sent = messages(1700)
    await publish(transport, *sent)
    assert ids(await whole_log(transport)) == ids(sent)


async def test_get_finds_an_event_with_and_without_its_time(transport: Transport) -> None:
    sent = messages(30)
    await publish(transport, *sent)
    entry = (await whole_log(transport))[17]
    assert await transport.get(sent[17].event_id) == sent[17]
    assert await transport.get(sent[17].event_id, near=entry.logged_at) == sent[17]


async def test_get_of_an_event_that_never_was_says_so(transport: Transport) -> None:
    await publish(transport, message())
    with pytest.raises(EventNotFound):
        await transport.get(new_event_id(), near=datetime.now(UTC))
    with pytest.raises(EventNotFound):
        await transport.get(uuid4())


async def test_closing_twice_is_closing_once(bus: Bus) -> None:
    transport = bus.transport()
    await transport.__aenter__()
    await transport.__aexit__(None, None, None)
    await transport.__aexit__(None, None, None)
    with pytest.raises(NotOpen):
        await publish(transport, message())


@pytest.mark.parametrize("was_open", [False, True], ids=["before opening", "after closing"])
async def test_use_of_what_is_not_open_says_so(bus: Bus, *, was_open: bool) -> None:
    transport = bus.transport()
    if was_open:
        async with transport:
            pass
    with pytest.raises(NotOpen):
        await transport.publish(message(), timeout_seconds=1)
    with pytest.raises(NotOpen):
        await transport.publish_many([message()], timeout_seconds=1)
    with pytest.raises(NotOpen):
        await transport.get(new_event_id())
    with pytest.raises(NotOpen):
        await transport.check(timeout_seconds=1)
    with pytest.raises(NotOpen):
        await anext(transport.read_log())
    with pytest.raises(NotOpen):
        async with transport.subscribe("#", group=None, prefetch=1):
            pass


async def test_two_transports_share_one_bus(bus: Bus, transport: Transport) -> None:
    sent = message()
    async with bus.transport() as other:
        await publish(other, sent)
        assert await transport.get(sent.event_id) == sent


@pytest.mark.parametrize("pattern", ["", "a..b", ".", "a.", "x" * 256])
async def test_a_pattern_that_is_none_is_refused(transport: Transport, pattern: str) -> None:
    with pytest.raises(InvalidQuery):
        async with transport.subscribe(pattern, group=None, prefetch=1):
            pass


async def test_a_prefetch_below_one_is_refused(transport: Transport) -> None:
    with pytest.raises(InvalidQuery):
        async with transport.subscribe("#", group=None, prefetch=0):
            pass
