"""Delivering on RabbitMQ where it differs: frames beside the driver, acknowledgements of many, what others left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import pytest
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from bloodbank.errors import InvalidQuery
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._rabbit_acks import WRITE_AT, Acks
from bloodbank.transports._rabbit_confirms import ConfirmingProtocol
from bloodbank.transports._rabbit_received import Incoming, Received
from bloodbank.transports.base import DeadLetter, Failure, Message
from bloodbank.transports.rabbit import RabbitTransport
from tests.integration.rabbit_bus import (
    NO_TEXT,
    message,
    next_of,
    plain_client,
    publish_of_bytes,
    through,
    transport_at,
)
from tests.servers.proxy import TcpProxy
from tests.servers.rabbit import RabbitServer

PATIENCE_SECONDS = 30.0

SHORT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
HEADERS = st.dictionaries(
    st.sampled_from(["a", "é", "x-death", "x-delivery-count", wire.ATTEMPTS_HEADER, wire.ROUTING_KEY_HEADER, "n"]),
    st.one_of(
        SHORT,
        st.integers(-(2**40), 2**40),
        st.booleans(),
        st.none(),
        st.lists(st.integers(0, 5), max_size=2),
        st.binary(max_size=4).map(bytearray),
    ),
    max_size=5,
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": SHORT,
        "content_encoding": SHORT,
        "headers": HEADERS,
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 9),
        "correlation_id": st.uuids().map(str) | SHORT,
        "reply_to": SHORT,
        "expiration": st.just("1000"),
        "message_id": st.uuids().map(str) | SHORT,
        "timestamp": st.just(datetime(2026, 1, 2, tzinfo=UTC)),
        "message_type": SHORT,
        "user_id": SHORT,
        "app_id": SHORT,
    },
)


@pytest.fixture
def exchange() -> str:
    return f"test{uuid4().hex[:12]}.events.v1"


class Kept:
    """A receiver that keeps what comes."""

    def __init__(self) -> None:
        self.received: list[Received] = []

    def arrived(self, received: Received) -> None:
        self.received.append(received)


def frames_of(tag: int, properties: dict[str, Any], body: bytes, *, redelivered: bool, piece: int) -> list[bytes]:
    deliver = Basic.Deliver("consumer", tag, redelivered, "exchange", "some.key")
    header = ContentHeader(body_size=len(body), properties=Basic.Properties(**properties))
    bodies = [body[at : at + piece] for at in range(0, len(body), piece)]
    pieces = [b"\x03\x00\x07" + len(one).to_bytes(4, "big") + one + b"\xce" for one in bodies]
    return [marshal(deliver, 7), marshal(header, 7), *pieces]


@given(PROPERTIES, st.binary(max_size=50), st.booleans(), st.integers(1, 60), st.integers(1, 40))
def test_a_delivery_is_read_as_the_driver_reads_it(
    properties: dict[str, Any], body: bytes, redelivered: bool, piece: int, chunk: int
) -> None:
    async def come_in() -> list[Received]:
        loop, kept = asyncio.get_running_loop(), Kept()
        protocol = ConfirmingProtocol(asyncio.StreamReader(loop=loop), loop)
        protocol.receive(7, kept)
        sent = [frames_of(tag, properties, body, redelivered=redelivered, piece=piece) for tag in (1, 2)]
        data = b"".join(frame for frames in sent for frame in frames)
        for at in range(0, len(data), chunk):
            protocol.data_received(data[at : at + chunk])
        return kept.received

    received = asyncio.run(come_in())
    assert [one.tag for one in received] == [1, 2]
    ours = received[1]
    theirs = ours.delivered(cast("Channel", None))
    message, read = ours.message(ours.properties()), wire.message_of(theirs)
    assert message == read
    assert (message[4:6], dict(message.headers)) == (read[4:6], dict(read.headers))
    assert ours.body == theirs.body == body
    found = theirs.header.properties.headers or {}
    assert dict(ours.properties().headers) == dict(found)
    assert (theirs.redelivered, theirs.exchange, theirs.delivery_tag) == (redelivered, "exchange", 2)


def test_content_of_something_else_than_a_delivery_is_left_to_the_driver() -> None:
    incoming = Incoming(Kept())
    header = marshal(ContentHeader(body_size=1, properties=Basic.Properties()), 7)
    assert not incoming.content(2, header, 0, len(header))


class Written(asyncio.Transport):
    """A socket that keeps what is written, as (method, tag, bits)."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[str, int, bool]] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = bytes(data)
        while rest:
            method, tag, bits = rest[10], int.from_bytes(rest[11:19], "big"), rest[19]
            assert len(rest) >= 21
            assert (rest[:7], rest[20]) == (b"\x01\x00\x07\x00\x00\x00\x0d", 0xCE)
            self.frames.append(("ack" if method == 80 else "give back", tag, bool(bits)))
            rest = rest[21:]

    def is_closing(self) -> bool:
        return False


@given(st.permutations(range(1, 13)), st.sets(st.integers(1, 12)), st.lists(st.integers(0, 4), max_size=12))
def test_acknowledgements_of_many_are_about_what_was_acknowledged_alone(
    order: list[int], returned: set[int], pauses: list[int]
) -> None:
    """As a broker with 12 deliveries outstanding understands them, after each turn of the loop."""

    async def settle() -> None:
        loop, socket = asyncio.get_running_loop(), Written()
        protocol = ConfirmingProtocol(asyncio.StreamReader(loop=loop), loop)
        protocol.transport = socket
        acks = Acks(protocol, 7)
        outstanding, acked, given_back = set(range(1, 13)), set[int](), set[int]()
        for place, tag in enumerate(order):
            (acks.give_back if tag in returned else acks.ack)(tag)
            if place < len(pauses) and pauses[place]:
                continue
            acks.write()
            for kind, about, multiple in socket.frames:
                assert about in outstanding, "the broker closes the channel"
                if kind == "ack":
                    taken = {one for one in outstanding if one <= about} if multiple else {about}
                    acked |= taken
                else:
                    taken = {about}
                    given_back.add(about)
                outstanding -= taken
            socket.frames.clear()
            settled = set(order[: place + 1])
            assert acked == settled - returned
            assert given_back == settled & returned

    asyncio.run(settle())


def test_what_is_acknowledged_in_order_needs_one_frame() -> None:
    async def settle() -> list[tuple[str, int, bool]]:
        loop, socket = asyncio.get_running_loop(), Written()
        protocol = ConfirmingProtocol(asyncio.StreamReader(loop=loop), loop)
        protocol.transport = socket
        acks = Acks(protocol, 7)
        for tag in range(1, WRITE_AT + 11):
            acks.ack(tag)
        await asyncio.sleep(0)
        return socket.frames

    assert asyncio.run(settle()) == [("ack", WRITE_AT, True), ("ack", WRITE_AT + 10, True)]


async def listed(transport: RabbitTransport) -> list[DeadLetter]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [letter async for letter in transport.dead_letters()]


@pytest.mark.rabbit
async def test_what_version_0_2_set_aside_is_listed_once_and_can_be_put_back(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    event = message(app_id="shop", headers={"a": "b"})
    queue = exchange.removesuffix(".events.v1") + ".dead"
    async with transport_at(rabbit_server.url, exchange) as transport:
        async with transport.subscribe("#", group="billing", prefetch=1):
            pass
        async with plain_client(rabbit_server.url) as channel:
            headers: dict[str, Any] = {
                "a": "b",
                "bloodbank-routing-key": "llm.prompt",
                "bloodbank-attempts": 3,
                "bloodbank-group": "billing",
                "bloodbank-reason": "no number",
                "bloodbank-dead-ms": 1_767_312_000_123,
            }
            properties = Basic.Properties(
                message_id=str(event.event_id), headers=headers, delivery_mode=2, app_id="shop"
            )
            await channel.basic_publish(event.body, routing_key=queue, properties=properties)
        (letter,) = await listed(transport)
        assert [letter] == await listed(transport)
        assert (letter.message, letter.group, letter.attempts) == (event, "billing", 3)
        assert (letter.failure, letter.first_at) == (Failure("no number"), None)
        assert letter.dead_at.isoformat(timespec="milliseconds") == "2026-01-02T00:00:00.123+00:00"
        assert await transport.redeliver([letter.number]) == 1
        async with transport.subscribe("#", group="billing", prefetch=1) as deliveries:
            again = await next_of(deliveries)
            assert (again.message, again.attempt) == (event, 1)
            assert (dict(again.message.headers), again.message.app_id) == ({"a": "b"}, "shop")
            await again.ack()
        assert await listed(transport) == []


@pytest.mark.rabbit
async def test_what_rabbitmq_gave_up_itself_is_listed_with_its_group(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    event = message()
    async with transport_at(rabbit_server.url, exchange) as transport:
        async with transport.subscribe("#", group="billing", prefetch=1):
            await asyncio.sleep(0)
        await transport.publish(event, timeout_seconds=PATIENCE_SECONDS)
        async with plain_client(rabbit_server.url) as channel:
            queue = exchange.removesuffix(".events.v1") + ".billing"
            taken = await channel.basic_get(queue)
            await channel.basic_reject(taken.delivery_tag or 0, requeue=False)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (letters := await listed(transport)):
                    await asyncio.sleep(0.02)
        (letter,) = letters
        assert (letter.message, letter.group, letter.failure.error) == (event, "billing", "rejected")
        assert await transport.discard([letter.number]) == 1
        assert await listed(transport) == []


@pytest.mark.rabbit
async def test_a_filling_that_was_cut_off_is_done_by_who_comes_next(rabbit_server: RabbitServer, exchange: str) -> None:
    events = [message(number) for number in range(1500)]
    received: set[Any] = set()
    async with transport_at(rabbit_server.url, exchange) as transport:
        await transport.publish_many(events, timeout_seconds=PATIENCE_SECONDS)
        async with transport.subscribe("#", group="new", prefetch=5, start="beginning") as deliveries:
            received.add((await next_of(deliveries)).message.event_id)
        # Closed at once: most of it was not there yet.
        assert await has_queue(rabbit_server, exchange, ".new.filling")
        async with transport.subscribe("#", group="new", prefetch=500) as deliveries:
            while len(received) < len(events):
                delivery = await next_of(deliveries)
                received.add(delivery.message.event_id)
                await delivery.ack()
            # What the first one had done comes twice, perhaps later than the rest.
            async with asyncio.timeout(PATIENCE_SECONDS):
                while await has_queue(rabbit_server, exchange, ".new.filling"):
                    await asyncio.sleep(0.05)
        assert received == {event.event_id for event in events}


@pytest.mark.rabbit
async def test_a_filling_goes_on_over_a_lost_connection(rabbit_server: RabbitServer, exchange: str) -> None:
    events = [message(number) for number in range(2000)]
    async with TcpProxy(rabbit_server.port) as proxy, transport_at(through(proxy), exchange) as transport:
        await transport.publish_many(events, timeout_seconds=PATIENCE_SECONDS)
        received: set[Any] = set()
        async with transport.subscribe("#", group="new", prefetch=100, start="beginning") as deliveries:
            async for delivery in _within(deliveries):
                if not received:
                    proxy.cut()
                received.add(delivery.message.event_id)
                try:
                    await delivery.ack()
                except ConnectionError:
                    # It comes again.
                    continue
                if len(received) == len(events):
                    break
    assert received == {event.event_id for event in events}


@pytest.mark.rabbit
async def test_dead_letters_of_a_group_whose_queue_was_deleted_stay(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        for group in ("stays", "gone"):
            async with transport.subscribe("#", group=group, prefetch=1) as deliveries:
                await transport.publish(message(), timeout_seconds=PATIENCE_SECONDS)
                await (await next_of(deliveries)).dead_letter("because")
        async with plain_client(rabbit_server.url) as channel:
            await channel.queue_delete(exchange.removesuffix(".events.v1") + ".gone")
        letters = await listed(transport)
        with pytest.raises(InvalidQuery, match="no group 'gone'"):
            await transport.redeliver([letter.number for letter in letters])
        assert await listed(transport) == letters


@pytest.mark.rabbit
async def test_a_message_whose_own_headers_fill_a_frame_is_set_aside_with_brief_texts(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    event = message(headers={"large": "h" * 125_000})
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("#", group="workers", prefetch=5) as deliveries,
    ):
        await transport.publish(event, timeout_seconds=PATIENCE_SECONDS)
        await (await next_of(deliveries)).dead_letter(Failure("r" * 4000, "ValueError", "t" * 4000, "handler"))
        (letter,) = await listed(transport)
    assert letter.message == event
    assert dict(letter.message.headers) == dict(event.headers)
    assert letter.failure == Failure("r" * 200, "ValueError", "", "handler")


@pytest.mark.rabbit
async def test_deliveries_of_large_and_empty_bodies_come_whole(rabbit_server: RabbitServer, exchange: str) -> None:
    sent = [Message(uuid4(), "a.b", body) for body in (b"", b"x" * 300_000, b"", b"y" * 131_072, b"z")]
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("#", group="big", prefetch=5) as deliveries,
    ):
        await transport.publish_many(sent, timeout_seconds=PATIENCE_SECONDS)
        assert [(await next_of(deliveries)).message for _ in sent] == sent


async def has_queue(server: RabbitServer, exchange: str, suffix: str) -> bool:
    async with plain_client(server.url) as channel:
        try:
            await channel.queue_declare(exchange.removesuffix(".events.v1") + suffix, passive=True)
        except ChannelNotFoundEntity:
            return False
    return True


async def _within(deliveries: Any) -> AsyncGenerator[Any]:
    while True:
        yield await next_of(deliveries)


@pytest.mark.parametrize(
    ("routing_key", "properties"),
    [
        (NO_TEXT, {}),
        ("a.b", {"message_id": NO_TEXT}),
        ("a.b", {"headers": {wire.FIRST_HEADER: 2**62}}),
        ("a.b", {"headers": {wire.ROUTING_KEY_HEADER: ["x"]}, "reply_to": NO_TEXT}),
    ],
    ids=["routing key", "message id", "time", "reply to"],
)
async def test_a_message_with_properties_that_cannot_be_read_keeps_nobody_behind_it(
    rabbit_server: RabbitServer,
    exchange: str,
    routing_key: str,
    properties: dict[str, Any],
) -> None:
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("a.*", group="new", prefetch=5) as deliveries,
        plain_client(rabbit_server.url) as client,
    ):
        await publish_of_bytes(client, b"torn", exchange, routing_key, **properties)
        await transport.publish(message(routing_key="a.good"), timeout_seconds=PATIENCE_SECONDS)
        torn = await next_of(deliveries)
        assert (torn.message.body, torn.attempt) == (b"torn", 1)
        assert torn.first_attempt_at is None or torn.first_attempt_at.year < 3000
        await torn.retry(0)
        good = await next_of(deliveries)
        assert good.message.routing_key == "a.good"
        await good.ack()
        again = await next_of(deliveries)
        assert again.message.body == b"torn"
        await again.dead_letter("cannot be read")
        [letter] = [letter async for letter in transport.dead_letters()]
        assert letter.message.body == b"torn"


@pytest.mark.parametrize("group", ["log", "dead", "rag.filling", "rag.retry.1190", "a b", ""])
def test_a_group_cannot_have_the_name_of_a_queue_that_is_for_something_else(group: str) -> None:
    names = wire.Names("shop.events.v1")
    with pytest.raises(InvalidQuery, match="cannot be the name of a group"):
        names.group(group)
    assert names.group("rag.retry.late") == "shop.rag.retry.late"
