"""RabbitMQ: a durable topic exchange, a stream that keeps every event, and a quorum queue a group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import UUID

from aiormq.connection import Connection

from bloodbank import ids
from bloodbank.config import Settings
from bloodbank.errors import (
    BloodbankError,
    ConfigurationError,
    EventNotFound,
    InvalidQuery,
    NotOpen,
    TransportUnavailable,
)
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._amqp import is_blocked, scratch_channel, translated
from bloodbank.transports._rabbit_dead_letters import DeadLetters, no_group
from bloodbank.transports._rabbit_deliveries import Limits, Subscription
from bloodbank.transports._rabbit_groups import Groups
from bloodbank.transports._rabbit_link import Link
from bloodbank.transports._rabbit_log import CLOCK_SKEW, RabbitLog, Start
from bloodbank.transports._rabbit_publishing import Outlet
from bloodbank.transports._rabbit_sending import BATCH, send_all
from bloodbank.transports.base import (
    DeadLetter,
    Delivery,
    Features,
    GroupState,
    LogEntry,
    Message,
    Receipt,
    require_patterns,
)
from bloodbank.transports.base import Start as BusStart

PUBLISHING_HEARTBEAT_SECONDS = 4
"""A frozen broker is noticed within this and SILENCE_MARGIN_SECONDS: somebody waits for a confirm."""
CONSUMING_HEARTBEAT_SECONDS = 10
"""Longer, since the broker gives a client up as well, after two of them, whose handlers hold up the event loop."""


class RabbitTransport:
    """A bus on RabbitMQ; see `Transport`. What it puts on the broker stands in `_rabbit_wire`.

    Two connections: when the broker is short of memory it blocks those that publish, and consumers go on.
    Both are made again for ever, each at the next of the nodes in RABBIT_URL. Raises ConfigurationError when that is
    not set.
    """

    features = Features(
        ordered=True,
        competing_groups=True,
        replay=True,
        survives_restart=True,
        multi_process=True,
        detects_duplicates=False,
        forgets_untried=False,
    )

    def __init__(self, settings: Settings) -> None:
        if settings.rabbit_url is None:
            raise ConfigurationError("RABBIT_URL is not set, and the RabbitMQ transport needs it.")
        self._names = wire.Names(settings.exchange_name)
        self._settings = settings
        url = settings.rabbit_url.get_secret_value()
        self._publishing = self._link(url, "publishing", PUBLISHING_HEARTBEAT_SECONDS)
        self._consuming = self._link(url, "consuming", CONSUMING_HEARTBEAT_SECONDS)
        # Each tells the other that the broker is back.
        self._publishing.on_up = self._consuming.wake
        self._consuming.on_up = self._is_up
        self._outlet = Outlet(self._publishing, self._names.exchange, self._declare)
        self._log = self._stream(self._names.log)
        self._dead_letters = DeadLetters(
            self._consuming,
            self._outlet,
            self._names,
            self._stream(self._names.dead_letters),
            settings.publish_timeout_seconds,
        )
        self._groups = Groups(
            self._consuming,
            self._outlet,
            self._names,
            self._stream(self._names.groups),
            settings.publish_timeout_seconds,
        )
        self._open = False

    async def __aenter__(self) -> Self:
        """Make one attempt to connect, and go on in the background when it fails."""
        self._publishing.start()
        self._open = True
        try:
            await self._publishing.first_attempt()
        except asyncio.CancelledError:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both connections. Publishes that wait for their confirm end as PublishUnknown."""
        self._open = False
        await self._groups.close()
        await asyncio.gather(self._consuming.close(), self._publishing.close())

    async def check(self, *, timeout_seconds: float) -> None:
        """Publish to a queue of this connection's own, confirmed, and fetch it. Raises TransportUnavailable."""
        self._require_open()
        connection: Connection | None = None
        address = self._publishing.address
        with translated(f"use RabbitMQ at {address}"):
            try:
                async with asyncio.timeout(timeout_seconds):
                    connection = await self._publishing.connection()
                    await _round_trip(connection)
            except TimeoutError as error:
                blocked = connection is not None and await is_blocked(connection)
                raise TransportUnavailable(
                    f"RabbitMQ at {address} did not answer within {timeout_seconds:g} s"
                    + (": it is short of memory or disk and takes nothing from publishers." if blocked else ".")
                ) from error

    async def publish(self, message: Message, *, timeout_seconds: float) -> Receipt:
        """Publish an event and return when the broker has confirmed it; see `Transport.publish`."""
        if not self._open:
            self._require_open()
        await self._outlet.send(message, timeout_seconds=timeout_seconds)
        return Receipt(message.event_id)

    async def publish_many(
        self, messages: Sequence[Message], *, timeout_seconds: float
    ) -> list[Receipt | BloodbankError]:
        """Publish several at the same time; `timeout_seconds` is for all of them together."""
        self._require_open()
        outcomes = await self._outlet.send_many(messages, timeout_seconds=timeout_seconds)
        return [error or Receipt(message.event_id) for message, error in zip(messages, outcomes, strict=True)]

    def subscribe(
        self, pattern: str | Sequence[str], *, group: str | None, prefetch: int, start: BusStart = "now"
    ) -> AbstractAsyncContextManager[AsyncIterator[Delivery]]:
        """Deliver what fits a pattern; see `Transport.subscribe`.

        Raises InvalidQuery for a pattern, group, prefetch or start that cannot be.
        """
        patterns = require_patterns(pattern)
        limits = Limits(self._settings.connect_timeout_seconds, self._settings.publish_timeout_seconds)
        return self._subscribed(
            Subscription(
                self._consuming, self._outlet, self._log, self._names, limits, patterns, group, prefetch, start
            )
        )

    async def read_log(
        self,
        *,
        after: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
        patient: bool = True,
    ) -> AsyncGenerator[LogEntry]:
        """Read the stream; positions are its offsets, which may have gaps. See `Transport.read_log`."""
        self._require_open()
        start = Start(after, since)
        async with aclosing(self._log.follow(start, patient=patient) if follow else self._log.read(start)) as entries:
            async for entry in entries:
                yield entry

    async def get(self, event_id: UUID, *, near: datetime | None = None) -> Message:
        """Find an event in the stream: behind `near` or the time in its id, then in the whole of it.

        Raises EventNotFound; TransportUnavailable also when it was not found within the query timeout.
        """
        self._require_open()
        since = near or ids.time_of(event_id)
        timeout_seconds = self._settings.query_timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                message = await self._find(event_id, Start(since=since - CLOCK_SKEW)) if since else None
                message = message or await self._find(event_id, Start())
        except TimeoutError as error:
            raise TransportUnavailable(
                f"Event {event_id} was not found within {timeout_seconds:g} s, and the log was not read to its end. "
                "It may be there: try again with a longer BLOODBANK_QUERY_TIMEOUT_SECONDS."
            ) from error
        if message is None:
            raise EventNotFound(f"Event {event_id} is not in the log. It was never published, or retention removed it.")
        return message

    async def dead_letters(self, *, group: str | None = None, after: int | None = None) -> AsyncGenerator[DeadLetter]:
        """Read the stream of dead letters, twice; see `Transport.dead_letters`."""
        self._require_open()
        async with aclosing(self._dead_letters.read(group, after)) as letters:
            async for letter in letters:
                yield letter

    async def dead_letter_count(self) -> int:
        """Count by what has come into the stream of dead letters since; see `Transport.dead_letter_count`.

        The first time all of it is read. When that is broken off, the next time goes on from there.
        """
        self._require_open()
        return await self._dead_letters.count()

    async def groups(self) -> list[GroupState]:
        """Ask the queues of all groups that have made themselves known; see `Transport.groups`.

        What consumers have in hand, and what waits for a retry, is not counted.
        """
        self._require_open()
        return await self._groups.states()

    async def redeliver(self, numbers: Sequence[int]) -> int:
        """Put dead letters back to their groups; see `Transport.redeliver`."""
        self._require_open()
        return await self._dead_letters.redeliver(numbers)

    async def discard(self, numbers: Sequence[int]) -> int:
        """Take dead letters off the list; see `Transport.discard`."""
        self._require_open()
        return await self._dead_letters.discard(numbers)

    async def replay(self, messages: Sequence[Message], *, group: str | None) -> None:
        """Send messages to a queue, or to all whose bindings fit; see `Transport.replay`.

        Groups whose consumers are all of version 0.2 are not bound to what is sent to all.
        """
        self._require_open()
        queue = None if group is None else self._names.group(group)
        timeout_seconds = self._settings.publish_timeout_seconds
        if queue is not None:
            with translated("replay events"):
                async with asyncio.timeout(timeout_seconds):
                    if not await wire.exists(await self._consuming.connection(), queue):
                        raise InvalidQuery(no_group(group or ""))
        for at in range(0, len(messages), BATCH):
            outgoing = [wire.replayed(message, queue, self._names.replays) for message in messages[at : at + BATCH]]
            await send_all(self._outlet, outgoing, "replay events", timeout_seconds=timeout_seconds)

    def _stream(self, queue: str) -> RabbitLog:
        return RabbitLog(self._consuming, self._outlet, queue, timeout_seconds=self._settings.query_timeout_seconds)

    def _link(self, url: str, purpose: str, heartbeat_seconds: int) -> Link:
        return Link(
            url,
            name=f"{self._settings.service_name} {purpose}",
            connect_timeout_seconds=self._settings.connect_timeout_seconds,
            heartbeat_seconds=heartbeat_seconds,
            prepare=self._declare,
        )

    async def _declare(self, connection: Connection) -> None:
        await wire.declare_topology(connection, self._names, retention_days=self._settings.log_retention_days)

    @asynccontextmanager
    async def _subscribed(self, subscription: Subscription) -> AsyncGenerator[AsyncIterator[Delivery]]:
        self._require_open()
        try:
            await subscription.open()
            if subscription.group is not None:
                self._groups.announce(subscription.group, subscription.patterns)
            yield subscription
        finally:
            await subscription.close()

    def _is_up(self) -> None:
        self._publishing.wake()
        self._groups.look_again()

    async def _find(self, event_id: UUID, start: Start) -> Message | None:
        async with aclosing(self._log.read(start)) as entries:
            async for entry in entries:
                if entry.message.event_id == event_id:
                    return entry.message
        return None

    def _require_open(self) -> None:
        if not self._open:
            raise NotOpen("The RabbitMQ transport is not open. Use it in `async with`. Nothing was sent.")


async def _round_trip(connection: Connection) -> None:
    async with scratch_channel(connection, confirms=True) as channel:
        queue = (await channel.queue_declare(exclusive=True, auto_delete=True)).queue or ""
        await channel.basic_publish(b"check", routing_key=queue, wait=False)
        fetched = await channel.basic_get(queue, no_ack=True)
        await channel.queue_delete(queue)
    if fetched.body != b"check":
        raise TransportUnavailable("RabbitMQ confirmed a message and did not deliver it.")
