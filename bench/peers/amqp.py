"""aiormq, aio-pika, FastStream and kombu: each is given the same dict, writes it as JSON, and waits for confirms."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aio_pika
import aiormq
import kombu
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange
from pamqp.commands import Basic

from bench._harness import in_flight
from bench.peers.base import WINDOW


class Aiormq:
    """aiormq with `wait=False`: a publish does not wait for its bytes to leave, only for its confirm."""

    def __init__(self, event: dict[str, Any], routing_key: str) -> None:
        self._event, self._routing_key = event, routing_key
        self._exchange = ""

    async def open(self, url: str, exchange: str) -> None:
        """Connect and open a channel; confirms are on by default."""
        self._exchange = exchange
        self._connection = await aiormq.connect(url)
        self._channel = await self._connection.channel(publisher_confirms=True)

    async def send(self, count: int) -> None:
        """Publish from as many tasks as there may be in flight."""
        await in_flight(self.publish, count, limit=WINDOW)

    async def publish(self) -> None:
        """Publish one event, confirmed."""
        properties = Basic.Properties(content_type="application/json", delivery_mode=2)
        await self._channel.basic_publish(
            json.dumps(self._event).encode(),
            exchange=self._exchange,
            routing_key=self._routing_key,
            properties=properties,
            wait=False,
        )

    async def close(self) -> None:
        """Disconnect."""
        await self._connection.close()


class AioPika:
    """aio-pika with its robust connection."""

    def __init__(self, event: dict[str, Any], routing_key: str) -> None:
        self._event, self._routing_key = event, routing_key

    async def open(self, url: str, exchange: str) -> None:
        """Connect and open a channel with confirms."""
        self._connection = await aio_pika.connect_robust(url)
        channel = await self._connection.channel(publisher_confirms=True)
        self._exchange = await channel.get_exchange(exchange)

    async def send(self, count: int) -> None:
        """Publish from as many tasks as there may be in flight."""
        await in_flight(self.publish, count, limit=WINDOW)

    async def publish(self) -> None:
        """Publish one event, confirmed."""
        message = aio_pika.Message(
            json.dumps(self._event).encode(),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await self._exchange.publish(message, routing_key=self._routing_key)

    async def close(self) -> None:
        """Disconnect."""
        await self._connection.close()


class FastStream:
    """FastStream's RabbitBroker; it writes the dict as JSON itself."""

    def __init__(self, event: dict[str, Any], routing_key: str) -> None:
        self._event, self._routing_key = event, routing_key

    async def open(self, url: str, exchange: str) -> None:
        """Connect; confirms are on by default."""
        self._broker = RabbitBroker(url)
        await self._broker.connect()
        self._exchange = RabbitExchange(exchange, type=ExchangeType.TOPIC, durable=True, declare=False)

    async def send(self, count: int) -> None:
        """Publish from as many tasks as there may be in flight."""
        await in_flight(self.publish, count, limit=WINDOW)

    async def publish(self) -> None:
        """Publish one event, confirmed."""
        await self._broker.publish(self._event, exchange=self._exchange, routing_key=self._routing_key, persist=True)

    async def close(self) -> None:
        """Disconnect."""
        await self._broker.stop()


class Kombu:
    """kombu over py-amqp, which waits for each confirm before the next publish; it has no window.

    The URL says pyamqp: with librabbitmq installed, `amqp://` takes that one, and it ignores `confirm_publish`
    in silence.
    """

    def __init__(self, event: dict[str, Any], routing_key: str) -> None:
        self._event, self._routing_key = event, routing_key

    async def open(self, url: str, exchange: str) -> None:
        """Connect and open a channel with confirms."""
        await asyncio.to_thread(self._open, url, exchange)

    async def send(self, count: int) -> None:
        """Publish one after the other."""
        await asyncio.to_thread(self._send, count)

    async def close(self) -> None:
        """Disconnect."""
        await asyncio.to_thread(self._connection.close)

    def _open(self, url: str, exchange: str) -> None:
        self._connection = kombu.Connection(
            url.replace("amqp://", "pyamqp://"), transport_options={"confirm_publish": True}
        )
        self._producer = self._connection.Producer(
            exchange=kombu.Exchange(exchange, type="topic", durable=True, no_declare=True), auto_declare=False
        )

    def _send(self, count: int) -> None:
        for _ in range(count):
            self._producer.publish(
                self._event, routing_key=self._routing_key, serializer="json", delivery_mode=2, retry=False
            )
