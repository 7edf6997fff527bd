"""Subscriptions: deliveries that come again until they are settled, over reconnects."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.connection import Connection

from bloodbank.errors import BloodbankError, InvalidQuery, NotOpen, PublishError, TransportUnavailable
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._amqp import (
    CLOSE_SECONDS,
    DRIVER_ERRORS,
    FIRST_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    close_channel,
    explain,
    on_close,
    open_channel,
    scratch_channel,
    translated,
)
from bloodbank.transports._rabbit_acks import Acks
from bloodbank.transports._rabbit_dead_letters import dead_headers
from bloodbank.transports._rabbit_filling import Filler
from bloodbank.transports._rabbit_frames import outgoing_with
from bloodbank.transports._rabbit_link import Link
from bloodbank.transports._rabbit_log import RabbitLog
from bloodbank.transports._rabbit_publishing import Outlet
from bloodbank.transports._rabbit_received import Arrivals, Received, never
from bloodbank.transports.base import Delivery, Failure, Message, Start, require_start

logger = logging.getLogger(__name__)

PREFETCH_LIMIT = 65_535
HEADER_MARGIN_BYTES = 64
"""What a frame of headers holds beside the properties, at most."""
BRIEF = 200
"""To how many characters the texts of a failure are cut, and the traceback left out, where a message has so many
headers of its own that they would not fit beside them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a subscription waits: for its queue to be declared, and for what it sends on."""

    connect_timeout_seconds: float
    publish_timeout_seconds: float


class Subscription:
    """A consumer of one queue, which it declares, and declares again after each reconnect."""

    def __init__(
        self,
        link: Link,
        outlet: Outlet,
        log: RabbitLog,
        names: wire.Names,
        limits: Limits,
        patterns: Sequence[str],
        group: str | None,
        prefetch: int,
        start: Start,
    ) -> None:
        require_start(start)
        if not 1 <= prefetch <= PREFETCH_LIMIT:
            raise InvalidQuery(f"prefetch must be between 1 and {PREFETCH_LIMIT}, not {prefetch}.")
        self.names = names
        self.queue = names.private() if group is None else names.group(group)
        self.group = group
        self._link = link
        self._outlet = outlet
        self._limits = limits
        self.patterns = patterns
        self._prefetch = prefetch
        self._start: Start = start
        self._filler = Filler(link, outlet, log, self.queue, limits.publish_timeout_seconds)
        self._channel: Channel | None = None
        self._ended = False
        self._arrived = Arrivals()
        self._acks: Acks | None = None

    async def open(self) -> None:
        """Begin to consume. When the broker is away the subscription begins when it is back."""
        try:
            await self._attach(await self._link.connection())
        except TransportUnavailable as error:
            logger.warning("%s Subscribing when it works.", error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        """Return the next delivery. Ends when the subscription does; raises NotOpen when the transport is closed."""
        while not self._ended:
            channel = self._channel
            if channel is None or channel.is_closed:
                await self._attach_again()
                continue
            received = await self._arrived.get()
            if received is not None and self._acks is not None and not channel.is_closed and not self._ended:
                return RabbitDelivery(self, channel, self._acks, received)
            # What waited here belongs to the lost channel; the broker delivers it again.
            self._channel = None
            await close_channel(channel)
        raise StopAsyncIteration

    async def close(self) -> None:
        """End the subscription; what is not settled goes back. A queue without a group is deleted."""
        self._ended = True
        # For a task that still waits for a delivery.
        self._arrived.put_nowait(None)
        if self._acks is not None:
            self._acks.write()
        await self._filler.close()
        channel, self._channel = self._channel, None
        if channel is None or channel.is_closed:
            return
        await close_channel(channel)
        if self.group is None:
            try:
                async with asyncio.timeout(CLOSE_SECONDS), scratch_channel(await self._link.connection()) as scratch:
                    await scratch.queue_delete(self.queue)
            except (TimeoutError, BloodbankError, *DRIVER_ERRORS) as error:
                logger.debug("The queue %s is left to expire: %s", self.queue, explain(error), exc_info=True)

    async def send_on(self, delivered: DeliveredMessage, queue: str, headers: Mapping[str, str | int]) -> None:
        """Put a copy of a delivery into a queue, confirmed. Raises TransportUnavailable."""
        headers = {wire.ROUTING_KEY_HEADER: wire.routing_key_of(delivered), **headers}
        try:
            properties = wire.properties_again(delivered, headers)
            await self._outlet.send(
                outgoing_with(properties, delivered.body, exchange="", routing_key=queue),
                timeout_seconds=self._limits.publish_timeout_seconds,
            )
        except PublishError as error:
            raise TransportUnavailable(f"The delivery could not be put into {queue}; it comes again.") from error

    async def declare_retry(self, delay_seconds: float) -> str:
        """Declare the queue that delays messages of this subscription, and return its name."""
        with translated("delay a delivery"):
            async with asyncio.timeout(self._limits.connect_timeout_seconds):
                return await wire.declare_retry(await self._link.connection(), self.queue, delay_seconds)

    async def _attach(self, connection: Connection) -> None:
        with translated(f"subscribe to {', '.join(self.patterns)}"):
            async with asyncio.timeout(self._limits.connect_timeout_seconds):
                if self.group is None:
                    await wire.declare_private(connection, self.names, self.queue, self.patterns)
                    self._filler.begin(self.patterns, self._start)
                else:
                    await self._filler.order(connection, self.patterns, self._start)
                    await wire.declare_group(connection, self.names, self.queue, self.patterns)
                    await self._filler.begin_if_ordered(connection)
                channel = await open_channel(connection)
                try:
                    self._arrived, self._acks = await self._consume(connection, channel)
                except BaseException:
                    await close_channel(channel)
                    raise
                self._channel = channel

    async def _consume(self, connection: Connection, channel: Channel) -> tuple[Arrivals, Acks]:
        arrived, socket, number = Arrivals(), self._link.wire_of(connection), channel.number

        def end() -> None:
            socket.stop_receiving(number)
            arrived.put_nowait(None)

        on_close(channel, end)
        channel.on_consumer_cancel_callbacks.add(lambda _: arrived.put_nowait(None))
        await channel.basic_qos(prefetch_count=self._prefetch)
        # Before the first delivery can come in.
        socket.receive(number, arrived)
        await channel.basic_consume(self.queue, never)
        return arrived, Acks(socket, number)

    async def _attach_again(self) -> None:
        backoff_seconds = FIRST_BACKOFF_SECONDS
        said = False
        while not self._ended:
            try:
                await self._attach(await self._link.connection(patient=True))
            except TransportUnavailable as error:
                if not said:
                    logger.warning("%s Trying again until it works.", error)
                    said = True
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, LONGEST_BACKOFF_SECONDS)
            else:
                break
        if self._ended:
            await self.close()


class RabbitDelivery:
    """A message from a queue, to be settled once; see `transports.base.Delivery`."""

    __slots__ = (
        "_acks",
        "_begun_at",
        "_channel",
        "_headers",
        "_received",
        "_settled",
        "_subscription",
        "attempt",
        "message",
    )

    def __init__(self, subscription: Subscription, channel: Channel, acks: Acks, received: Received) -> None:
        properties = received.properties()
        self.message: Message = received.message(properties)
        self.attempt: int = wire.attempt_from(properties.headers, redelivered=received.redelivered)
        self._headers = properties.headers
        self._subscription = subscription
        self._channel = channel
        self._acks = acks
        self._received = received
        self._settled = False
        self._begun_at = time.time()

    @property
    def first_attempt_at(self) -> datetime | None:
        """When the first try began; None for what came back without having been retried."""
        first_ms = self._first_ms
        return None if first_ms is None else wire.time_from(first_ms)

    @property
    def replayed(self) -> bool:
        """Whether it was there before, and somebody had it delivered again."""
        return wire.REPLAYED_HEADER in self._headers

    async def ack(self) -> None:
        """The work is done. Raises TransportUnavailable when the connection was lost, NotOpen when settled."""
        self._begin_to_settle()
        self._acks.ack(self._received.tag)

    async def retry(self, delay_seconds: float) -> None:
        """Deliver it to its group again after the delay, rounded up by at most a fifth.

        Raises TransportUnavailable (it comes again at once), NotOpen when settled, InvalidQuery for the delay.
        """
        wire.retry_bucket_ms(delay_seconds)
        self._begin_to_settle()
        async with _ReturnedOnError(self):
            queue = await self._subscription.declare_retry(delay_seconds)
            headers: dict[str, str | int] = {wire.ATTEMPTS_HEADER: self.attempt}
            if self._first_ms is not None:
                headers[wire.FIRST_HEADER] = self._first_ms
            await self._subscription.send_on(self._received.delivered(self._channel), queue, headers)
        self._remove()

    async def dead_letter(self, failure: Failure | str, *, attempts: int | None = None) -> None:
        """Set it aside among the dead letters. Raises TransportUnavailable (it comes again), NotOpen when settled."""
        if isinstance(failure, str):
            failure = Failure(failure)
        self._begin_to_settle()
        delivered = self._received.delivered(self._channel)
        tries = self.attempt if attempts is None else attempts
        headers = self._dead_headers(failure, tries)
        if wire.headers_bytes(delivered, headers) > self._channel.max_content_size - HEADER_MARGIN_BYTES:
            # All headers travel in one frame, and those of the message are there already.
            reason, error, consumer = (text[:BRIEF] for text in (failure.reason, failure.error, failure.consumer))
            headers = self._dead_headers(Failure(reason, error, "", consumer), tries)
        async with _ReturnedOnError(self):
            await self._subscription.send_on(delivered, self._subscription.names.dead_letters, headers)
        self._remove()

    def leave_untried(self) -> None:
        """Nothing: the broker counts whatever comes back, and it does when the channel is closed."""

    def give_back(self) -> None:
        """Let the broker deliver it again now; without a connection it does so anyway."""
        if not self._channel.is_closed:
            self._acks.give_back(self._received.tag)

    def _dead_headers(self, failure: Failure, attempts: int) -> dict[str, str | int]:
        group = self._subscription.group or ""
        return dead_headers(failure, group=group, attempts=attempts, first_ms=self._first_ms)

    @property
    def _first_ms(self) -> int | None:
        first_ms = self._headers.get(wire.FIRST_HEADER)
        if isinstance(first_ms, int):
            return first_ms
        return int(self._begun_at * 1000) if self.attempt == 1 else None

    def _remove(self) -> None:
        if self._channel.is_closed:
            raise TransportUnavailable("The connection to RabbitMQ was lost; the delivery comes again.")
        self._acks.ack(self._received.tag)

    def _begin_to_settle(self) -> None:
        if self._settled:
            raise NotOpen("This delivery was settled already.")
        self._settled = True
        if self._channel.is_closed:
            raise TransportUnavailable("The connection to RabbitMQ was lost; the delivery comes again.")


class _ReturnedOnError:
    """Gives a delivery back when it could not be sent on."""

    def __init__(self, delivery: RabbitDelivery) -> None:
        self._delivery = delivery

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            self._delivery.give_back()
