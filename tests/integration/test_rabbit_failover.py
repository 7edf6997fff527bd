"""RABBIT_URL with several addresses: the next one is tried at once, and one that says nothing is left.

The addresses are proxies in front of one broker, so that each can be broken by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from anyio.to_thread import run_sync

from bloodbank.errors import PublishUnknown, TransportUnavailable
from bloodbank.transports.base import Receipt
from tests.integration.rabbit_bus import (
    PATIENCE_SECONDS,
    eventually,
    logged,
    message,
    next_of,
    publish_until_it_works,
    transport_at,
)
from tests.servers.process import free_port
from tests.servers.proxy import TcpProxy
from tests.servers.rabbit import RabbitServer

pytestmark = [pytest.mark.rabbit, pytest.mark.timeout(600)]


PATIENT: Any = {"connect_timeout_seconds": 60.0, "query_timeout_seconds": 60.0}
"""A busy machine is no reason to leave an address."""


@pytest.fixture
def exchange() -> str:
    return f"test{uuid4().hex[:12]}.events.v1"


@pytest.fixture
async def proxies(rabbit_server: RabbitServer) -> AsyncGenerator[list[TcpProxy]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(TcpProxy(rabbit_server.port)) for _ in range(3)]


def url_of(proxies: list[TcpProxy], query: str = "") -> str:
    return f"amqp://guest:guest@{','.join(f'127.0.0.1:{proxy.port}' for proxy in proxies)}/{query}"


async def test_a_lost_connection_goes_on_at_an_address_that_works(proxies: list[TcpProxy], exchange: str) -> None:
    async with transport_at(url_of(proxies), exchange, **PATIENT) as transport:
        await transport.publish(message(), timeout_seconds=60)
        for _ in range(3):
            [used] = [proxy for proxy in proxies if proxy.connections]
            await used.refuse()
            used.cut()
            await eventually(lambda used=used: used.connections == 0)
            # Not one call fails: it waits for the round to end.
            assert isinstance(await transport.publish(message(), timeout_seconds=60), Receipt)
            await used.accept()


async def test_no_address_that_works_is_one_error_that_names_all(exchange: str) -> None:
    ports = [free_port() for _ in range(3)]
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    async with transport_at(f"amqp://guest:secret@{addresses}/v", exchange, **PATIENT) as transport:
        with pytest.raises(TransportUnavailable, match="None of the nodes") as caught:
            await transport.publish(message(), timeout_seconds=60)
        assert f"amqp://{addresses}/v" in str(caught.value)
        assert "secret" not in str(caught.value)


async def test_an_address_that_does_not_greet_costs_its_share_of_the_time(
    proxies: list[TcpProxy], exchange: str
) -> None:
    for proxy in proxies[:2]:
        proxy.stall()
    started = time.monotonic()
    async with transport_at(url_of(proxies), exchange, connect_timeout_seconds=45) as transport:
        await transport.publish(message(), timeout_seconds=120)
    assert time.monotonic() - started < 45, "two of three shares at most"


async def test_a_connection_that_became_silent_is_left_for_another_address(
    proxies: list[TcpProxy], exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with transport_at(url_of(proxies, "?heartbeat=5"), exchange, **PATIENT) as transport:
        await transport.publish(message(), timeout_seconds=60)
        [used] = [proxy for proxy in proxies if proxy.connections]
        used.stall()
        in_flight = [asyncio.create_task(transport.publish(message(n), timeout_seconds=120)) for n in range(20)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            outcomes = await asyncio.gather(*in_flight, return_exceptions=True)
        assert [isinstance(one, PublishUnknown) and one.reason for one in outcomes] == ["lost"] * 20
        await publish_until_it_works(transport, message())
    assert "not even a heartbeat" in caplog.text


async def test_a_broker_that_takes_nothing_is_no_reason_to_leave(
    rabbit_server: RabbitServer, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Heartbeats come while the broker is short of memory, for longer than silence would be borne."""
    # The driver's logger, which a server in this process silences.
    caplog.set_level(logging.WARNING, logger="aiormq")
    async with transport_at(f"{rabbit_server.url}?heartbeat=5", exchange, **PATIENT) as transport:
        await transport.publish(message(), timeout_seconds=60)
        await run_sync(lambda: rabbit_server.ctl("set_vm_memory_high_watermark", "0.0000001"))
        try:
            with pytest.raises(PublishUnknown, match="short of memory"):
                await transport.publish(message(), timeout_seconds=15)
        finally:
            await run_sync(lambda: rabbit_server.ctl("set_vm_memory_high_watermark", "0.4"))
        await publish_until_it_works(transport, message())
    assert "was blocked" in caplog.text
    assert "was lost" not in caplog.text


async def test_a_consumer_and_a_reader_go_on_at_another_address(
    rabbit_server: RabbitServer, proxies: list[TcpProxy], exchange: str
) -> None:
    async with (
        transport_at(rabbit_server.url, exchange, **PATIENT) as publisher,
        transport_at(url_of(proxies), exchange, **PATIENT) as transport,
        transport.subscribe("#", group="workers", prefetch=10) as deliveries,
    ):
        for number in range(3):
            event = message(number)
            await publisher.publish(event, timeout_seconds=60)
            # The ack of the one before may be lost with the connection, so that it comes again.
            while (delivery := await next_of(deliveries)).message != event:
                await delivery.ack()
            await delivery.ack()
            assert event in await logged(transport)
            for proxy in proxies:
                proxy.cut()
