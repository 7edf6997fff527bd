"""Publishing on one channel with confirms, many at a time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from aiormq.channel import Channel
from aiormq.connection import Connection
from pamqp.commands import Basic

from bloodbank.errors import BloodbankError, PublishRejected, PublishUnknown, TransportUnavailable
from bloodbank.transports._amqp import (
    DRIVER_ERRORS,
    Link,
    Meaning,
    explain,
    is_blocked,
    meaning_of,
    open_channel,
    was_cancelled,
)

IN_FLIGHT_LIMIT = 1000
"""Most publishes that wait for their confirm; further ones wait for their turn, within their timeout."""

_REFUSED_TOPIC = re.compile(r"access to topic '(.*?)' in exchange")
_TOO_LARGE = re.compile(r"message size \d+ .*?(\d+)")
_SAME_ID_IS_SAFE = "It may be stored; publishing the same id again is safe."


class Outlet:
    """Publishes with confirms over a link. The channel is opened again when the broker closes it.

    prepare: awaited before each new channel; declares what is published to.
    """

    def __init__(self, link: Link, prepare: Callable[[Connection], Awaitable[None]]) -> None:
        self._link = link
        self._prepare = prepare
        self._opening = asyncio.Lock()
        self._turns = asyncio.Semaphore(IN_FLIGHT_LIMIT)
        self._channel: _OpenChannel | None = None

    async def send(
        self, body: bytes, *, exchange: str, routing_key: str, properties: Basic.Properties, timeout_seconds: float
    ) -> None:
        """Publish one message and return when the broker has confirmed it.

        Raises TransportUnavailable (not sent), PublishRejected, PublishUnknown, NotOpen.

        A nack is PublishUnknown: RabbitMQ sends it when any one of the queues behind the exchange did not take
        the message, and says nothing of the others.
        """
        channel: _OpenChannel | None = None
        try:
            async with asyncio.timeout(timeout_seconds), self._turns:
                open_channel = await self._open()
                channel = open_channel
                await channel.publish(body, exchange=exchange, routing_key=routing_key, properties=properties)
        except TimeoutError as error:
            raise await self._too_late(timeout_seconds, channel) from error
        except asyncio.CancelledError as error:
            if was_cancelled():
                raise
            raise _lost(channel, "the connection to RabbitMQ was lost") from error
        except DRIVER_ERRORS as error:
            raise _failure(error, channel, routing_key, body) from error

    async def _open(self) -> _OpenChannel:
        connection = await self._link.connection()
        async with self._opening:
            if self._channel is None or self._channel.is_closed or self._channel.connection is not connection:
                if self._channel is not None and self._channel.connection is connection:
                    # Perhaps what we publish to was deleted.
                    await self._prepare(connection)
                self._channel = _OpenChannel(connection, await open_channel(connection, confirms=True))
            return self._channel

    async def _too_late(self, timeout_seconds: float, channel: _OpenChannel | None) -> BloodbankError:
        what = f"RabbitMQ at {self._link.address} did not confirm within {timeout_seconds:g} s"
        if channel is None:
            return TransportUnavailable(f"{what}, and the event was not sent. Try again.")
        if await is_blocked(channel.connection):
            what += ": it is short of memory or disk and takes nothing from publishers"
        return PublishUnknown(f"{what}. {_SAME_ID_IS_SAFE}")


class _OpenChannel:
    """A channel with confirms, and what is in flight on it."""

    def __init__(self, connection: Connection, channel: Channel) -> None:
        self.connection = connection
        self._channel = channel
        self._in_flight = 0
        self.in_flight_at_end: int | None = None

    @property
    def is_closed(self) -> bool:
        return self._channel.is_closed

    async def publish(self, body: bytes, *, exchange: str, routing_key: str, properties: Basic.Properties) -> None:
        self._in_flight += 1
        try:
            # Without `wait` the driver does not wait for the socket's buffer, which could take for ever.
            await self._channel.basic_publish(
                body, exchange=exchange, routing_key=routing_key, properties=properties, wait=False
            )
        finally:
            if self.in_flight_at_end is None and self._channel.is_closed:
                self.in_flight_at_end = self._in_flight
            self._in_flight -= 1


def _failure(error: Exception, channel: _OpenChannel | None, routing_key: str, body: bytes) -> BloodbankError:
    meaning = meaning_of(error)
    if channel is None or meaning is Meaning.NOT_SENT:
        return TransportUnavailable(f"The event was not sent: {explain(error)}. Try again.")
    if meaning is Meaning.REFUSED and _is_refused(str(error), routing_key, body, channel.in_flight_at_end == 1):
        return PublishRejected(f"RabbitMQ refused the event, and it is not stored: {explain(error)}.")
    if meaning is Meaning.NOT_CONFIRMED:
        return PublishUnknown(f"RabbitMQ did not confirm the event: {explain(error)}. {_SAME_ID_IS_SAFE}")
    return _lost(channel, explain(error))


def _is_refused(reason: str, routing_key: str, body: bytes, alone: bool) -> bool:
    """Say whether the broker, which closed the channel for `reason`, meant this message.

    It names no message. Others that were in flight on the channel may be stored, or may have been thrown away.
    """
    if topic := _REFUSED_TOPIC.search(reason):
        return topic[1] == routing_key
    if limit := _TOO_LARGE.search(reason):
        return len(body) > int(limit[1])
    return alone


def _lost(channel: _OpenChannel | None, why: str) -> BloodbankError:
    if channel is None:
        return TransportUnavailable(f"The event was not sent: {why}. Try again.")
    return PublishUnknown(f"The event was sent, and then {why}. {_SAME_ID_IS_SAFE}")
