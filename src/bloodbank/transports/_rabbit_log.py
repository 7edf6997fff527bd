"""Reading the log and other streams, over AMQP 0-9-1.

A stream tells consumers neither where it ends nor that it is empty. This finds the end: a consumer that
begins at the last chunk is sent all of it in one go, and the broker works through what comes on one channel
in order. So when a request that was sent after the first delivery is answered, everything that the stream
held has been delivered, as far as the window reaches; acknowledging and asking again brings the rest.
(Seen with RabbitMQ 3.10, where the `message_count` of a stream is always 0.)

What is delivered is read beside the driver, which ends the connection at a text that is no UTF-8: whoever publishes
to the exchange could keep everybody from all that stands behind such a message.

An empty stream delivers nothing. A reader that hears nothing puts one marker into it, which is no event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.connection import Connection
from pamqp.commands import Basic

from bloodbank.errors import PublishError, TransportUnavailable
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._amqp import FIRST_BACKOFF_SECONDS, close_channel, on_close, open_channel, translated
from bloodbank.transports._rabbit_frames import outgoing_with
from bloodbank.transports._rabbit_link import Link
from bloodbank.transports._rabbit_publishing import Outlet
from bloodbank.transports._rabbit_received import Properties, Received, never
from bloodbank.transports.base import CLOCK_SKEW, LogEntry

logger = logging.getLogger(__name__)

WINDOW = 500
"""Most entries that the broker sends ahead of the reader."""
EMPTY_SECONDS = 0.5
"""After this much silence a reader takes the log for empty, and marks it."""

_Arrived = asyncio.Queue[Received | None]
"""What came in. None: the channel has closed."""
_BEGINNING = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin; see `Transport.read_log`."""

    after: int | None = None
    since: datetime | None = None

    def lowest(self, end: int) -> int:
        """Return the first position that is wanted, when `end` is the last one there is."""
        if self.after is None:
            return 0
        return self.after + 1 if self.after >= 0 else max(0, end + 1 + self.after)


class RabbitLog:
    """Reads a stream of a bus.

    queue: its name. timeout_seconds: longest silence of the broker while it owes an answer or entries.
    """

    def __init__(self, link: Link, outlet: Outlet, queue: str, *, timeout_seconds: float) -> None:
        self._link = link
        self._outlet = outlet
        self._queue = queue
        self._timeout_seconds = timeout_seconds

    async def read(self, start: Start) -> AsyncGenerator[LogEntry]:
        """Yield the entries from `start` to where the log ends now. Raises TransportUnavailable."""
        entry_of = _Entries()
        async with aclosing(self._read(start)) as found:
            async for _, one in found:
                yield entry_of(one)

    async def read_as_delivered(self, start: Start) -> AsyncGenerator[DeliveredMessage]:
        """Yield what the broker delivers, markers apart, from `start` to where the stream ends now.

        Raises TransportUnavailable.
        """
        async with aclosing(self._read(start)) as found:
            async for channel, one in found:
                yield one.received.delivered(channel)

    async def follow(self, start: Start, *, patient: bool) -> AsyncGenerator[LogEntry]:
        """Yield the entries from `start`, and later ones as they come; a patient reader's over reconnects.

        Raises TransportUnavailable when the log cannot be read to begin with, and without patience also later;
        NotOpen when the transport closes.
        """
        connection = await self._link.connection()
        begun = False
        entry_of = _Entries()
        while True:
            try:
                async with self._channel(connection) as (channel, arrivals):
                    lowest = start.lowest(await self._end(channel, arrivals))
                    arrived = await self._begin(channel, arrivals, start, lowest)
                    begun = True
                    if start.since is None:
                        # "So many before the end" means the end of now, also after a reconnect.
                        start = Start(after=lowest - 1 if lowest else None)
                    async with aclosing(self._deliveries(channel, arrived, lowest, None)) as deliveries:
                        async for one in deliveries:
                            start = Start(after=one.position)
                            if not one.is_marker:
                                yield entry_of(one)
            except TransportUnavailable as error:
                if not begun or not patient:
                    raise
                logger.info("%s Following the log again when it works.", error)
                await asyncio.sleep(FIRST_BACKOFF_SECONDS)
            connection = await self._link.connection(patient=True)

    async def _read(self, start: Start) -> AsyncGenerator[tuple[Channel, _Found]]:
        async with self._channel(await self._link.connection()) as (channel, arrivals):
            end = await self._end(channel, arrivals)
            lowest = start.lowest(end)
            if lowest > end:
                return
            arrived = await self._begin(channel, arrivals, start, lowest)
            if start.since is not None and not await self._is_anything_due(channel, arrivals, arrived):
                return
            async with aclosing(self._deliveries(channel, arrived, lowest, self._timeout_seconds)) as deliveries:
                async for one in deliveries:
                    if one.position <= end and not one.is_marker:
                        yield channel, one
                    if one.position >= end:
                        return

    @asynccontextmanager
    async def _channel(self, connection: Connection) -> AsyncGenerator[tuple[Channel, _Arrivals]]:
        with translated("read the log"):
            async with asyncio.timeout(self._timeout_seconds):
                channel = await open_channel(connection)
        socket, number, arrivals = self._link.wire_of(connection), channel.number, _Arrivals()

        def end() -> None:
            socket.stop_receiving(number)
            arrivals.end()

        # Not before it is closed: what comes meanwhile may be what the driver cannot read.
        on_close(channel, end)
        socket.receive(number, arrivals)
        try:
            yield channel, arrivals
        finally:
            await close_channel(channel)

    async def _end(self, channel: Channel, arrivals: _Arrivals) -> int:
        """Return the position of the last entry, markers included."""
        with translated("find the end of the log"):
            async with asyncio.timeout(self._timeout_seconds):
                await channel.basic_qos(prefetch_count=WINDOW)
                consumer, arrived = await self._consume(channel, arrivals, "last")
                latest = await self._first_of(arrived)
                while True:
                    while not arrived.empty():
                        latest = _present(arrived.get_nowait())
                    await channel.basic_ack(latest.tag, multiple=True, wait=False)
                    await channel.basic_qos(prefetch_count=WINDOW)
                    if arrived.empty():
                        break
                await channel.basic_cancel(consumer)
        return _found(latest).position

    async def _first_of(self, arrived: _Arrived) -> Received:
        try:
            async with asyncio.timeout(EMPTY_SECONDS):
                return _present(await arrived.get())
        except TimeoutError:
            await self._mark()
            return _present(await arrived.get())

    async def _mark(self) -> None:
        properties = Basic.Properties(delivery_mode=2, message_id=uuid4().hex, headers={wire.MARKER_HEADER: True})
        try:
            marker = outgoing_with(properties, b"", exchange="", routing_key=self._queue)
            await self._outlet.send(marker, timeout_seconds=self._timeout_seconds)
        except PublishError as error:
            raise TransportUnavailable("The log seems to be empty, and cannot be marked to make sure.") from error

    async def _begin(self, channel: Channel, arrivals: _Arrivals, start: Start, lowest: int) -> _Arrived:
        with translated("read the log"):
            async with asyncio.timeout(self._timeout_seconds):
                # AMQP knows no time before 1970.
                offset = lowest if start.since is None else max(start.since, _BEGINNING + CLOCK_SKEW) - CLOCK_SKEW
                return (await self._consume(channel, arrivals, offset))[1]

    async def _is_anything_due(self, channel: Channel, arrivals: _Arrivals, arrived: _Arrived) -> bool:
        """Say whether a consumer that began at a time gets anything of what the log holds now.

        The broker serves the consumers of a channel together: when one at the end has got its first entry,
        the other one has got its own.
        """
        with translated("read the log"):
            async with asyncio.timeout(self._timeout_seconds):
                consumer, fence = await self._consume(channel, arrivals, "last")
                _present(await fence.get())
                await channel.basic_cancel(consumer)
        return not arrived.empty()

    async def _consume(
        self, channel: Channel, arrivals: _Arrivals, offset: int | datetime | str
    ) -> tuple[str, _Arrived]:
        """Begin to consume; return the consumer's tag and a queue that ends with None when the channel closes."""
        consumer, arrived = arrivals.of_another()
        # When the stream is deleted, or its node leaves the cluster.
        channel.on_consumer_cancel_callbacks.add(lambda _: arrived.put_nowait(None))
        await channel.basic_consume(self._queue, never, consumer_tag=consumer, arguments={"x-stream-offset": offset})
        return consumer, arrived

    async def _deliveries(
        self, channel: Channel, arrived: _Arrived, lowest: int, timeout_seconds: float | None
    ) -> AsyncGenerator[_Found]:
        """Yield what is there from a position on, and acknowledge half a window at a time."""
        unacknowledged = 0
        while True:
            with translated("read the log"):
                if arrived.empty():
                    async with asyncio.timeout(timeout_seconds):
                        received = _present(await arrived.get())
                else:
                    received = _present(arrived.get_nowait())
                unacknowledged += 1
                if unacknowledged >= WINDOW // 2:
                    await channel.basic_ack(received.tag, multiple=True, wait=False)
                    unacknowledged = 0
            one = _found(received)
            if one.position >= lowest:
                yield one


class _Arrivals:
    """Sorts what comes in on one channel by its consumers."""

    def __init__(self) -> None:
        self._by_consumer: dict[bytes, _Arrived] = {}
        self._has_ended = False

    def of_another(self) -> tuple[str, _Arrived]:
        """Return the tag for one more consumer and the queue that gets its deliveries."""
        consumer = f"reader-{len(self._by_consumer)}"
        arrived = self._by_consumer[consumer.encode()] = _Arrived()
        if self._has_ended:
            arrived.put_nowait(None)
        return consumer, arrived

    def arrived(self, received: Received) -> None:
        """Keep a delivery; see `Receiver`."""
        self._by_consumer[received.consumer].put_nowait(received)

    def end(self) -> None:
        """Say that nothing more comes."""
        self._has_ended = True
        for arrived in self._by_consumer.values():
            arrived.put_nowait(None)


class _Found(NamedTuple):
    """What stands in the stream at a position."""

    position: int
    received: Received
    properties: Properties

    @property
    def is_marker(self) -> bool:
        return wire.is_marker(self.received.exchange, self.properties.headers)


class _Entries:
    """Makes entries of deliveries that come in order."""

    def __init__(self) -> None:
        self._logged_at = _BEGINNING

    def __call__(self, one: _Found) -> LogEntry:
        position, received, properties = one
        # What says no time came after the entry before it.
        self._logged_at = properties.published_at or self._logged_at
        return LogEntry(position, self._logged_at, received.message(properties))


def _found(received: Received) -> _Found:
    properties = received.properties()
    return _Found(wire.offset_from(properties.headers), received, properties)


def _present(received: Received | None) -> Received:
    if received is None:
        raise TransportUnavailable("The connection to RabbitMQ was lost while the log was read.")
    return received
