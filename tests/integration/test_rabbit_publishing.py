"""Publishing on a real broker: sizes, the window, deadlines, and a connection on which nothing but confirms comes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from uuid import uuid4

import pytest

from bloodbank import ids
from bloodbank.errors import PublishRejected, PublishUnknown, TransportUnavailable
from bloodbank.transports._rabbit_publishing import IN_FLIGHT_LIMIT
from bloodbank.transports.base import Message, Receipt
from tests.integration.rabbit_bus import logged, message, publish_until_it_works, through, transport_at
from tests.servers.proxy import TcpProxy
from tests.servers.rabbit import RabbitServer

pytestmark = pytest.mark.rabbit

FRAME_BYTES = 131_072 - 8
"""What RabbitMQ lets a frame carry, unless it is configured otherwise."""


@pytest.fixture
def exchange() -> str:
    return f"test{uuid4().hex[:12]}.events.v1"


async def test_bodies_around_the_size_of_a_frame_arrive_whole(rabbit_server: RabbitServer, exchange: str) -> None:
    chance = random.Random(3)
    sizes = [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 2 * FRAME_BYTES, 2 * FRAME_BYTES + 1, 3_000_000]
    events = [Message(ids.new_event_id(), "llm.prompt", chance.randbytes(size)) for size in sizes]
    async with transport_at(rabbit_server.url, exchange) as transport:
        one_by_one = [await transport.publish(event, timeout_seconds=10) for event in events]
        together = await transport.publish_many(events, timeout_seconds=20)
        assert {type(answer) for answer in [*one_by_one, *together]} == {Receipt}
        assert await logged(transport) == [*events, *events]


async def test_no_more_than_the_window_is_on_its_way(rabbit_server: RabbitServer, exchange: str) -> None:
    async with TcpProxy(rabbit_server.port) as proxy, transport_at(through(proxy), exchange) as transport:
        await transport.publish(message(), timeout_seconds=5)
        proxy.stall()
        waiting = [message(n) for n in range(IN_FLIGHT_LIMIT + 300)]
        answers = await transport.publish_many(waiting, timeout_seconds=0.3)
        kinds = [type(answer) for answer in answers]
        assert kinds == [PublishUnknown] * IN_FLIGHT_LIMIT + [TransportUnavailable] * 300
        proxy.resume()
        await publish_until_it_works(transport, message())
        stored = {event.event_id for event in await logged(transport)}
        assert [event.event_id in stored for event in waiting] == [True] * IN_FLIGHT_LIMIT + [False] * 300


async def test_what_waits_for_its_turn_goes_in_the_order_it_came(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        events = [message(n) for n in range(3 * IN_FLIGHT_LIMIT)]
        async with asyncio.TaskGroup() as group:
            for event in events:
                group.create_task(transport.publish(event, timeout_seconds=30))
        assert await logged(transport) == events


async def test_each_publish_keeps_its_own_deadline(rabbit_server: RabbitServer, exchange: str) -> None:
    async with TcpProxy(rabbit_server.port) as proxy, transport_at(through(proxy), exchange) as transport:
        await transport.publish(message(), timeout_seconds=5)
        proxy.stall()
        ended: list[float] = []

        async def publish(timeout_seconds: float) -> None:
            with pytest.raises(PublishUnknown, match=f"within {timeout_seconds:g} s"):
                await transport.publish(message(), timeout_seconds=timeout_seconds)
            ended.append(timeout_seconds)

        begun = time.monotonic()
        patient = asyncio.create_task(transport.publish(message(), timeout_seconds=30))
        async with asyncio.TaskGroup() as group:
            for timeout_seconds in (0.9, 0.3, 0.6):
                group.create_task(publish(timeout_seconds))
        assert ended == [0.3, 0.6, 0.9]
        assert 0.9 <= time.monotonic() - begun < 10
        proxy.resume()
        assert isinstance(await patient, Receipt), "the confirm of one that was not given up is heard"


async def test_one_that_cannot_be_sent_does_not_keep_others_from_it(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        events = [message(1), Message(ids.new_event_id(), "k" * 256, b""), message(2)]
        answers = await transport.publish_many(events, timeout_seconds=10)
        assert [type(answer) for answer in answers] == [Receipt, PublishRejected, Receipt]
        assert await logged(transport) == [events[0], events[2]]


async def test_nothing_to_publish_is_no_trouble(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        assert await transport.publish_many([], timeout_seconds=10) == []


async def test_a_cancelled_batch_leaves_the_channel_in_order(rabbit_server: RabbitServer, exchange: str) -> None:
    async with TcpProxy(rabbit_server.port) as proxy, transport_at(through(proxy), exchange) as transport:
        await transport.publish(message(), timeout_seconds=5)
        proxy.stall()
        given_up = [message(n) for n in range(IN_FLIGHT_LIMIT + 100)]
        publishing = asyncio.create_task(transport.publish_many(given_up, timeout_seconds=60))
        await asyncio.sleep(0.1)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        proxy.resume()
        last = message()
        await transport.publish(last, timeout_seconds=10)
        stored = [event.event_id for event in await logged(transport)]
        assert stored[-1] == last.event_id
        assert not {event.event_id for event in given_up[IN_FLIGHT_LIMIT:]}.intersection(stored)


async def test_a_connection_on_which_only_confirms_come_is_not_taken_for_dead(
    rabbit_server: RabbitServer, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ sends no heartbeat while it sends something else, and the driver sees no confirms."""
    caplog.set_level(logging.WARNING)
    async with transport_at(f"{rabbit_server.url}?heartbeat=1", exchange) as transport:
        ends = time.monotonic() + 8
        while time.monotonic() < ends:
            await transport.publish(message(), timeout_seconds=5)
            await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == []
