"""aio-pika and FastStream as consumers: each parses the JSON, does nothing with it, and acknowledges."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue


class AioPikaConsumer:
    """aio-pika with a callback, which it runs in a task for each message."""

    async def consume(self, url: str, queue: str, count: int, prefetch: int) -> None:
        """Consume that many messages, each acknowledged, and disconnect."""
        done, left = asyncio.Event(), count

        async def handle(message: AbstractIncomingMessage) -> None:
            nonlocal left
            json.loads(message.body)
            await message.ack()
            left -= 1
            if not left:
                done.set()

        connection = await aio_pika.connect_robust(url)
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=prefetch)
        await (await channel.get_queue(queue)).consume(handle)
        await done.wait()
        await connection.close()


class FastStreamConsumer:
    """FastStream's RabbitBroker with a handler that takes the JSON as a dict; it acknowledges by itself."""

    async def consume(self, url: str, queue: str, count: int, prefetch: int) -> None:
        """Consume that many messages, each acknowledged, and disconnect."""
        done, left = asyncio.Event(), count
        broker = RabbitBroker(url, logger=None)

        async def handle(event: dict[str, Any]) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        place = RabbitQueue(queue, durable=True, declare=False)
        broker.subscriber(place, channel=Channel(prefetch_count=prefetch))(handle)
        await broker.start()
        await done.wait()
        await broker.stop()
