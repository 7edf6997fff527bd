"""Publishing on one channel with confirms, many at a time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.connection import Connection
from aiormq.exceptions import ChannelInvalidStateError
from aiormq.exceptions import PublishError as Unroutable
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from bloodbank.errors import BloodbankError, PublishRejected, PublishUnknown, TransportUnavailable
from bloodbank.transports._amqp import (
    DRIVER_ERRORS,
    Link,
    Meaning,
    confirms_of,
    explain,
    is_blocked,
    is_open,
    meaning_of,
    on_close,
    open_channel,
    was_cancelled,
    why_closed,
    write_queue_of,
)

IN_FLIGHT_LIMIT = 1000
"""Most publishes that wait for their confirm; further ones wait for their turn, within their timeout."""
FLUSH_AGAIN_SECONDS = 0.001
"""Pause while the driver's write queue, which has ten places, or the socket takes nothing."""
UNSENT_LIMIT_BYTES = 1_048_576
"""Most bytes that may wait for the socket when more are given to it."""

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

        The broker confirms a message that no queue takes. It is asked to return it as well (`mandatory`), which
        it does before the confirm: that is TransportUnavailable. A nack is PublishUnknown: RabbitMQ sends it
        when any one of the queues behind the exchange did not take the message, and says nothing of the others.
        """
        channel: _OpenChannel | None = None
        confirm: _Confirm | None = None
        withdrawn = False
        try:
            async with asyncio.timeout(timeout_seconds), self._turns:
                channel = await self._open()
                confirm = channel.publish(body, exchange=exchange, routing_key=routing_key, properties=properties)
                try:
                    await confirm
                finally:
                    withdrawn = channel.withdraw(confirm)
        except TimeoutError as error:
            raise await self._too_late(timeout_seconds, channel, sent=confirm is not None and not withdrawn) from error
        except asyncio.CancelledError as error:
            if was_cancelled():
                raise
            raise _lost(channel, "the connection to RabbitMQ was lost") from error
        except BloodbankError:
            # TransportUnavailable is an OSError; it has its sentence already.
            raise
        except Unroutable as error:
            if channel is not None:
                channel.was_unroutable = True
            raise TransportUnavailable(
                f"The event is not stored: {explain(error)}. What is missing is declared again; try again."
            ) from error
        except DRIVER_ERRORS as error:
            raise _failure(error, channel, routing_key, body) from error

    async def _open(self) -> _OpenChannel:
        connection = await self._link.connection()
        async with self._opening:
            if self._channel is None or self._channel.is_closed or self._channel.connection is not connection:
                if self._channel is not None and self._channel.connection is connection:
                    # Perhaps what we publish to was deleted.
                    await self._prepare(connection)
                self._channel = _OpenChannel(self._link, connection, await open_channel(connection, confirms=True))
            elif self._channel.was_unroutable:
                await self._prepare(connection)
                self._channel.was_unroutable = False
            return self._channel

    async def _too_late(self, timeout_seconds: float, channel: _OpenChannel | None, *, sent: bool) -> BloodbankError:
        what = f"RabbitMQ at {self._link.address} did not confirm within {timeout_seconds:g} s"
        if channel is not None and await is_blocked(channel.connection):
            what += ": it is short of memory or disk and takes nothing from publishers"
        if not sent:
            return TransportUnavailable(f"{what}. The event was not sent. Try again.")
        return PublishUnknown(f"{what}. {_SAME_ID_IS_SAFE}")


class _Confirm(asyncio.Future[object]):
    """Done when the broker has confirmed a message."""

    message_id: str | None = None


class _TagsInFlight(dict[str, int]):
    """What the driver asks when the broker returns a message: the delivery tag of the first in flight with its id.

    Its own table knows one tag an id, and would take the return of one of several for the confirm of another.
    """

    def __init__(self, confirms: Mapping[int, asyncio.Future[object]]) -> None:
        super().__init__()
        self._confirms = confirms

    def get(self, message_id: str, default: Any = None, /) -> Any:
        for tag, confirm in self._confirms.items():
            if isinstance(confirm, _Confirm) and confirm.message_id == message_id:
                return tag
        return default


class _OpenChannel:
    """A channel with confirms, and what is in flight on it.

    The driver publishes one message a write and a few context switches. Here frames go to its write queue,
    all that were published in the same turn of the loop at once, and futures to its table of confirms.
    """

    def __init__(self, link: Link, connection: Connection, channel: Channel) -> None:
        self.connection = connection
        self.in_flight_at_end: int | None = None
        self.was_unroutable = False
        self._link = link
        self._channel = channel
        self._confirms = confirms_of(channel)
        channel.message_id_delivery_tag = _TagsInFlight(self._confirms)
        self._write_queue = write_queue_of(channel)
        # Not handed to the driver yet. The broker counts what it gets, so a tag is given then and not before.
        self._unsent: dict[_Confirm, bytes] = {}
        self._loop = asyncio.get_running_loop()
        on_close(channel, self._end)

    @property
    def is_closed(self) -> bool:
        return not is_open(self._channel)

    def publish(self, body: bytes, *, exchange: str, routing_key: str, properties: Basic.Properties) -> _Confirm:
        """Publish in this turn of the loop, or as soon as the socket takes more; return the confirm to wait for."""
        if self.is_closed:
            raise ChannelInvalidStateError("closed")
        frames = self._frames(body, exchange, routing_key, properties)
        confirm = _Confirm(loop=self._loop)
        confirm.message_id = properties.message_id
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent[confirm] = frames
        return confirm

    def withdraw(self, confirm: _Confirm) -> bool:
        """Say whether a message was not sent, and now never will be."""
        return self._unsent.pop(confirm, None) is not None

    def _frames(self, body: bytes, exchange: str, routing_key: str, properties: Basic.Properties) -> bytes:
        number, size = self._channel.number, self._channel.max_content_size
        try:
            parts = [
                _publish_frame(number, exchange, routing_key),
                marshal(ContentHeader(body_size=len(body), properties=properties), number),
            ]
        except (TypeError, ValueError) as error:
            raise PublishRejected(f"AMQP cannot carry this event, and it was not sent: {error}.") from error
        parts += [marshal(ContentBody(body[at : at + size]), number) for at in range(0, len(body), size)]
        return b"".join(parts)

    def _flush(self) -> None:
        if self.is_closed or not self._unsent:
            return
        if self._write_queue.full() or self._link.unsent_bytes > UNSENT_LIMIT_BYTES:
            self._loop.call_later(FLUSH_AGAIN_SECONDS, self._flush)
            return
        for confirm in self._unsent:
            self._channel.delivery_tag += 1
            self._confirms[self._channel.delivery_tag] = confirm
        self._write_queue.put_nowait(ChannelFrame(b"".join(self._unsent.values()), should_close=False))
        self._unsent.clear()

    def _end(self) -> None:
        waiting = [confirm for confirm in self._confirms.values() if not confirm.done()]
        self.in_flight_at_end = len(waiting)
        for confirm in waiting:
            confirm.set_exception(why_closed(self._channel))
        for confirm in self._unsent:
            if not confirm.done():
                confirm.set_exception(ChannelInvalidStateError("closed"))
        self._unsent.clear()


@lru_cache(maxsize=1024)
def _publish_frame(channel_number: int, exchange: str, routing_key: str) -> bytes:
    return marshal(Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True), channel_number)


def _failure(error: Exception, channel: _OpenChannel | None, routing_key: str, body: bytes) -> BloodbankError:
    meaning = meaning_of(error)
    if channel is None or meaning is Meaning.NOT_SENT:
        return TransportUnavailable(f"The event was not sent: {explain(error)}. Try again.")
    if meaning is Meaning.REFUSED and is_refused(str(error), routing_key, body, alone=channel.in_flight_at_end == 1):
        return PublishRejected(f"RabbitMQ refused the event, and it is not stored: {explain(error)}.")
    if meaning is Meaning.NOT_CONFIRMED:
        return PublishUnknown(f"RabbitMQ did not confirm the event: {explain(error)}. {_SAME_ID_IS_SAFE}")
    return _lost(channel, explain(error))


def is_refused(reason: str, routing_key: str, body: bytes, *, alone: bool) -> bool:
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
