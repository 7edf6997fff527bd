"""What the tests of the RabbitMQ transport share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import aiormq
import pytest
from pamqp import frame
from pamqp.commands import Basic

from bloodbank import ids
from bloodbank.config import Settings
from bloodbank.errors import PublishUnknown, TransportUnavailable
from bloodbank.transports.base import Delivery, Message
from bloodbank.transports.rabbit import RabbitTransport
from tests.servers.proxy import TcpProxy

PATIENCE_SECONDS = 60.0
NO_TEXT = "a.TORN"
"""What `publish_of_bytes` makes bytes of that are no UTF-8, which RabbitMQ passes on."""


def transport_at(url: str, exchange: str, **settings: Any) -> RabbitTransport:
    return RabbitTransport(Settings(_env_file=None, rabbit_url=url, exchange_name=exchange, **settings))


def through(proxy: TcpProxy) -> str:
    return f"amqp://guest:guest@127.0.0.1:{proxy.port}/"


def message(number: int = 0, routing_key: str = "llm.prompt", **fields: Any) -> Message:
    return Message(ids.new_event_id(), routing_key, b'{"number": %d}' % number, **fields)


async def logged(transport: RabbitTransport) -> list[Message]:
    return [entry.message async for entry in transport.read_log()]


async def eventually(condition: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def publish_until_it_works(transport: RabbitTransport, event: Message) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await transport.publish(event, timeout_seconds=5)
            except (TransportUnavailable, PublishUnknown):
                await asyncio.sleep(0.05)
            else:
                return


async def next_of(deliveries: AsyncIterator[Delivery]) -> Delivery:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await anext(deliveries)


@asynccontextmanager
async def plain_client(url: str) -> AsyncGenerator[aiormq.Channel]:
    connection = await aiormq.connect(url)
    try:
        yield cast("aiormq.Channel", await connection.channel())
    finally:
        await connection.close()


async def publish_of_bytes(
    client: aiormq.Channel, body: bytes, exchange: str, routing_key: str, **properties: Any
) -> None:
    """Publish as a program does that takes any bytes for a text, such as NO_TEXT; return when that is confirmed."""

    def of_bytes(value: frame.FrameTypes, channel: int) -> bytes:
        return marshal(value, channel).replace(b"TORN", 4 * b"\xff")

    marshal = frame.marshal
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(frame, "marshal", of_bytes)
        await client.basic_publish(
            body, exchange=exchange, routing_key=routing_key, properties=Basic.Properties(**properties)
        )
