"""What happens when RabbitMQ is away, frozen, full, or the wire breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from uuid import uuid4

import pytest
from anyio.to_thread import run_sync

from bloodbank import ids
from bloodbank.errors import (
    NotOpen,
    PublishUnknown,
    TransportUnavailable,
)
from bloodbank.transports.base import Delivery, Message, Receipt
from tests.integration.rabbit_bus import (
    PATIENCE_SECONDS,
    eventually,
    logged,
    message,
    next_of,
    publish_until_it_works,
    through,
    transport_at,
)
from tests.servers.proxy import TcpProxy
from tests.servers.rabbit import RabbitServer

pytestmark = pytest.mark.rabbit


@pytest.fixture
def exchange() -> str:
    return f"test{uuid4().hex[:12]}.events.v1"


async def test_a_broker_that_is_down_at_start_is_found_when_it_comes(
    rabbit_server: RabbitServer, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="bloodbank")
    await run_sync(rabbit_server.kill)
    async with transport_at(rabbit_server.url, exchange) as transport:
        started = time.monotonic()
        with pytest.raises(TransportUnavailable, match="reach RabbitMQ"):
            await transport.publish(message(), timeout_seconds=20)
        assert time.monotonic() - started < 5, "the last attempt failed, so this one need not wait"
        async with transport.subscribe("#", group="workers", prefetch=10) as deliveries:
            waiting = asyncio.create_task(next_of(deliveries))
            await run_sync(rabbit_server.start)
            event = message()
            await publish_until_it_works(transport, event)
            assert event in await logged(transport)
            while not waiting.done():
                await transport.publish(event, timeout_seconds=5)
                await asyncio.wait({waiting}, timeout=0.1)
            assert (await waiting).message == event
    said = [record.getMessage() for record in caplog.records if "publishing" in record.getMessage()]
    assert len(said) == 2, said
    assert "guest:" not in caplog.text


async def test_every_receipt_is_in_the_log_although_the_broker_was_killed(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    accepted: list[Message] = []

    async with transport_at(rabbit_server.url, exchange) as transport:

        async def publish_batches() -> None:
            while True:
                batch = [message(number) for number in range(20)]
                answers = await transport.publish_many(batch, timeout_seconds=2)
                accepted.extend(one for one, answer in zip(batch, answers, strict=True) if isinstance(answer, Receipt))
                await asyncio.sleep(0 if isinstance(answers[0], Receipt) else 0.05)

        publishing = asyncio.create_task(publish_batches())
        await eventually(lambda: len(accepted) > 600)
        await run_sync(rabbit_server.kill)
        at_kill = len(accepted)
        await run_sync(rabbit_server.start)
        await eventually(lambda: len(accepted) > at_kill + 200)
        publishing.cancel()
        await asyncio.wait({publishing})
        in_log = {event.event_id for event in await logged(transport)}
    assert {event.event_id for event in accepted} <= in_log


async def test_a_frozen_broker_hangs_nothing(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange, query_timeout_seconds=1) as transport:
        await transport.publish(message(), timeout_seconds=5)
        assert len(await logged(transport)) == 1
        rabbit_server.freeze()
        try:
            started = time.monotonic()
            with pytest.raises(PublishUnknown, match=r"did not confirm within 0\.5 s") as caught:
                await transport.publish(message(), timeout_seconds=0.5)
            assert caught.value.reason == "timed_out"
            answers = await transport.publish_many([message(), message()], timeout_seconds=0.5)
            assert [type(answer) for answer in answers] == [PublishUnknown, PublishUnknown]
            with pytest.raises(TransportUnavailable, match="did not answer"):
                await transport.check(timeout_seconds=0.5)
            with pytest.raises(TransportUnavailable):
                await logged(transport)
            with pytest.raises(TransportUnavailable):
                await transport.get(uuid4())
            await transport.__aexit__(None, None, None)
            assert time.monotonic() - started < 20
        finally:
            rabbit_server.thaw()


async def test_heartbeats_find_a_frozen_broker(rabbit_server: RabbitServer, exchange: str) -> None:
    url = rabbit_server.url + "?heartbeat=1"
    async with transport_at(url, exchange, connect_timeout_seconds=1) as transport:
        rabbit_server.freeze()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    [answer] = await transport.publish_many([message()], timeout_seconds=0.3)
                    if isinstance(answer, TransportUnavailable):
                        break
        finally:
            rabbit_server.thaw()
        await publish_until_it_works(transport, message())


async def test_a_frozen_broker_at_the_start_does_not_hang_the_start(rabbit_server: RabbitServer, exchange: str) -> None:
    rabbit_server.freeze()
    try:
        started = time.monotonic()
        async with transport_at(rabbit_server.url, exchange, connect_timeout_seconds=0.5) as transport:
            with pytest.raises(TransportUnavailable, match=r"did not answer within 0\.5 s"):
                await transport.publish(message(), timeout_seconds=5)
        assert time.monotonic() - started < 5
    finally:
        rabbit_server.thaw()


async def test_a_publish_whose_confirm_was_lost_is_unknown_and_safe_to_repeat(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    async with (
        TcpProxy(rabbit_server.port) as proxy,
        transport_at(through(proxy), exchange) as transport,
    ):
        await transport.publish(message(), timeout_seconds=5)
        event = message()
        proxy.stall(replies_only=True)
        publishing = asyncio.create_task(transport.publish(event, timeout_seconds=20))
        async with transport_at(rabbit_server.url, exchange) as other:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while event not in await logged(other):
                    await asyncio.sleep(0.02)
            proxy.cut()
            with pytest.raises(PublishUnknown, match="same id again is safe") as caught:
                await publishing
            assert caught.value.reason == "lost"
            proxy.resume()
            await publish_until_it_works(transport, event)
            assert await transport.get(event.event_id) == event


async def test_a_confirm_is_waited_for_and_many_wait_together(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        TcpProxy(rabbit_server.port, delay_seconds=0.2) as proxy,
        transport_at(through(proxy), exchange) as transport,
    ):
        await transport.publish(message(), timeout_seconds=10)
        started = time.monotonic()
        await transport.publish(message(), timeout_seconds=10)
        assert time.monotonic() - started >= 0.2
        started = time.monotonic()
        answers = await transport.publish_many([message(n) for n in range(500)], timeout_seconds=20)
        assert time.monotonic() - started < 10
        assert {type(answer) for answer in answers} == {Receipt}


async def test_closing_ends_a_publish_that_waits(rabbit_server: RabbitServer, exchange: str) -> None:
    async with TcpProxy(rabbit_server.port) as proxy:
        transport = transport_at(through(proxy), exchange)
        async with transport:
            await transport.publish(message(), timeout_seconds=5)
            proxy.stall()
            publishing = asyncio.create_task(transport.publish(message(), timeout_seconds=60))
            await asyncio.sleep(0)
            started = time.monotonic()
        assert time.monotonic() - started < 10
        with pytest.raises(PublishUnknown):
            await publishing
        await transport.__aexit__(None, None, None)
        with pytest.raises(NotOpen):
            await transport.publish(message(), timeout_seconds=1)


async def test_a_check_that_outlives_the_connection_to_a_frozen_broker_says_so_in_words(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        await transport.check(timeout_seconds=30)
        rabbit_server.freeze()
        try:
            with pytest.raises(TransportUnavailable) as caught:
                await transport.check(timeout_seconds=60)
        finally:
            rabbit_server.thaw()
    assert "connection to RabbitMQ was lost" in str(caught.value) or "the connection was lost" in str(caught.value)


async def test_a_cancelled_publish_leaves_the_channel_in_order(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        TcpProxy(rabbit_server.port) as proxy,
        transport_at(through(proxy), exchange) as transport,
    ):
        await transport.publish(message(), timeout_seconds=5)
        proxy.stall()
        publishing = asyncio.create_task(transport.publish(message(), timeout_seconds=60))
        await asyncio.sleep(0)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        proxy.resume()
        answers = await transport.publish_many([message(n) for n in range(50)], timeout_seconds=10)
        assert {type(answer) for answer in answers} == {Receipt}


async def test_a_memory_alarm_ends_publishes_in_time_and_passes(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        await transport.publish(message(), timeout_seconds=5)
        await run_sync(lambda: rabbit_server.ctl("set_vm_memory_high_watermark", "0.0000001"))
        try:
            with pytest.raises(PublishUnknown, match="short of memory"):
                await transport.publish(message(), timeout_seconds=1)
            with pytest.raises(TransportUnavailable, match="short of memory"):
                await transport.check(timeout_seconds=1)
            assert len(await logged(transport)) >= 1, "readers go on"
        finally:
            await run_sync(lambda: rabbit_server.ctl("set_vm_memory_high_watermark", "0.4"))
        await publish_until_it_works(transport, message())


async def test_what_a_broker_does_not_take_is_neither_kept_nor_sent_later(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    async with (
        TcpProxy(rabbit_server.port) as proxy,
        transport_at(through(proxy), exchange) as transport,
    ):
        await transport.publish(message(), timeout_seconds=5)
        proxy.stall()
        large = [Message(ids.new_event_id(), "llm.prompt", b"x" * 100_000) for _ in range(100)]
        first = await transport.publish_many(large, timeout_seconds=0.5)
        sent = sum(isinstance(answer, PublishUnknown) for answer in first)
        assert 0 < sent < len(large), "what the socket has room for"
        assert sum(isinstance(answer, TransportUnavailable) for answer in first) == len(large) - sent
        for _ in range(3):
            later = await transport.publish_many([message(n) for n in range(50)], timeout_seconds=0.2)
            assert {type(answer) for answer in later} == {TransportUnavailable}
        proxy.resume()
        await publish_until_it_works(transport, message())
        sizes = [len(event.body) for event in await logged(transport)]
        assert sizes.count(100_000) == sent, "what was answered as not sent was not sent"
        assert len(sizes) <= sent + 10


@pytest.mark.parametrize("group", ["workers", None])
async def test_a_subscription_misses_nothing_over_a_lost_connection(
    rabbit_server: RabbitServer, exchange: str, group: str | None
) -> None:
    async with (
        TcpProxy(rabbit_server.port) as proxy,
        transport_at(rabbit_server.url, exchange) as publisher,
        transport_at(through(proxy), exchange) as transport,
        transport.subscribe("#", group=group, prefetch=10) as deliveries,
    ):
        held = message(0)
        await publisher.publish(held, timeout_seconds=5)
        delivery = await next_of(deliveries)
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: proxy.connections == 0)
        missed = message(1)
        await publisher.publish(missed, timeout_seconds=5)
        with pytest.raises(TransportUnavailable, match="comes again"):
            await delivery.ack()
        await proxy.accept()
        again = [await next_of(deliveries), await next_of(deliveries)]
        assert {one.message for one in again} == {held, missed}
        assert {one.message: one.attempt for one in again} == {held: 2, missed: 1}
        for one in again:
            await one.ack()


async def test_a_subscription_whose_connection_breaks_at_any_point_of_its_beginning_misses_nothing(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    async with (
        TcpProxy(rabbit_server.port) as proxy,
        transport_at(rabbit_server.url, exchange) as publisher,
        transport_at(through(proxy), exchange) as transport,
        transport.subscribe("#", group="workers", prefetch=10) as deliveries,
    ):
        # Both connections are made again, and one declares the queue once more.
        for point in range(0, proxy.answered_bytes * 4 // 5, 150):
            held, missed = message(point), message(point)
            await publisher.publish(held, timeout_seconds=10)
            assert (await next_of(deliveries)).message == held
            settling = asyncio.create_task(_settle(deliveries, {held, missed}))
            proxy.stall_after(point)
            proxy.cut()
            await eventually(lambda: proxy.stalled)
            proxy.cut()
            proxy.resume()
            await publisher.publish(missed, timeout_seconds=10)
            await settling


async def _settle(deliveries: AsyncIterator[Delivery], expected: set[Message]) -> None:
    settled: set[Message] = set()
    while settled != expected:
        delivery = await next_of(deliveries)
        with contextlib.suppress(TransportUnavailable):
            await delivery.ack()
            settled.add(delivery.message)


@pytest.mark.parametrize("bytes_before_it_is_made", [130, 100, 70, 40])
async def test_closing_ends_whenever_a_connection_that_is_being_made_breaks(
    rabbit_server: RabbitServer, exchange: str, bytes_before_it_is_made: int
) -> None:
    # At how many turns of the loop after the break does not matter; it is tried at several.
    for turns in range(0, 26, 2):
        async with (
            TcpProxy(rabbit_server.port) as proxy,
            transport_at(through(proxy), exchange) as transport,
        ):
            proxy.stall_after(proxy.answered_bytes - bytes_before_it_is_made)
            proxy.cut()
            await eventually(lambda proxy=proxy: proxy.stalled)
            proxy.cut()
            for _ in range(turns):
                await asyncio.sleep(0)
            started = time.monotonic()
            await transport.__aexit__(None, None, None)
            assert time.monotonic() - started < 10


async def test_a_group_goes_on_after_the_broker_was_killed(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("#", group="workers", prefetch=10) as deliveries,
    ):
        event = message()
        await transport.publish(event, timeout_seconds=5)
        await run_sync(rabbit_server.kill)
        await run_sync(rabbit_server.start)
        delivery = await next_of(deliveries)
        assert delivery.message == event
        await delivery.ack()
        last = message(1)
        await publish_until_it_works(transport, last)
        delivery = await next_of(deliveries)
        while delivery.message == event:
            delivery = await next_of(deliveries)
        assert delivery.message == last


async def test_following_the_log_survives_a_lost_connection(rabbit_server: RabbitServer, exchange: str) -> None:
    events = [message(n) for n in range(6)]
    async with (
        TcpProxy(rabbit_server.port) as proxy,
        transport_at(rabbit_server.url, exchange) as publisher,
        transport_at(through(proxy), exchange) as transport,
        aclosing(transport.read_log(after=-1, follow=True)) as entries,
        asyncio.timeout(PATIENCE_SECONDS),
    ):
        await publisher.publish_many(events[:3], timeout_seconds=5)
        assert (await anext(entries)).message == events[2]
        proxy.cut()
        await publisher.publish_many(events[3:], timeout_seconds=5)
        assert [(await anext(entries)).message for _ in range(3)] == events[3:]


async def test_a_search_that_takes_too_long_says_so(rabbit_server: RabbitServer, exchange: str) -> None:
    async with TcpProxy(rabbit_server.port) as proxy:
        url = through(proxy)
        async with transport_at(url, exchange, query_timeout_seconds=0.5) as transport:
            event = message()
            await transport.publish(event, timeout_seconds=5)
            assert await transport.get(event.event_id) == event
            proxy.stall()
            with pytest.raises(TransportUnavailable, match=r"within 0\.5 s|did not answer in time"):
                await transport.get(event.event_id)
            proxy.resume()
