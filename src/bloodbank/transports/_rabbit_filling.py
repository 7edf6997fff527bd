"""Groups that begin in the past: their queue is filled from the log.

The order to do so is a message in a durable queue, put there before the group's queue is declared and taken away when
all is done. So a crash leaves no queue half filled without anybody knowing: whoever subscribes to the group next finds
the order and fills it from the start, and what was there before comes twice, with the same ids.

The queue is bound before the log is read, and the log is read to where it ends then. What is published in between
comes twice at worst. Binding is a transaction on all nodes, so that nobody routes without it once the reading begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

from aiormq.abc import DeliveredMessage
from aiormq.connection import Connection
from pamqp.commands import Basic

from bloodbank.errors import NotOpen, TransportUnavailable
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._amqp import (
    CLOSE_SECONDS,
    FIRST_BACKOFF_SECONDS,
    close_channel,
    on_close,
    open_channel,
    translated,
)
from bloodbank.transports._rabbit_frames import Outgoing, outgoing_with
from bloodbank.transports._rabbit_link import Link
from bloodbank.transports._rabbit_log import RabbitLog, Start
from bloodbank.transports._rabbit_publishing import Outlet
from bloodbank.transports._rabbit_sending import BATCH, send_all
from bloodbank.transports.base import Start as GroupStart
from bloodbank.transports.base import matches_any

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What to fill a queue with: what fits one of the patterns, since a time (None: all)."""

    patterns: Sequence[str]
    since: datetime | None


class Filler:
    """Fills the queue of one subscription, if it has to be filled, in a task of its own until it is done.

    timeout_seconds: for a publish, and for an answer of the broker.
    """

    def __init__(self, link: Link, outlet: Outlet, log: RabbitLog, queue: str, timeout_seconds: float) -> None:
        self._link = link
        self._outlet = outlet
        self._log = log
        self._queue = queue
        self._timeout_seconds = timeout_seconds
        self._task: asyncio.Task[None] | None = None
        # Up to here the log is in the queue.
        self._filled: int | None = None
        self._is_filled = False
        self._is_done = False

    async def order(self, connection: Connection, patterns: Sequence[str], start: GroupStart) -> None:
        """Order the filling of a group's queue unless that is there already. To be called before it is declared."""
        if start == "now" or await wire.exists(connection, self._queue):
            return
        if await wire.declare_filling(connection, self._queue):
            return
        if await wire.exists(connection, self._queue):
            # Another one ordered it meanwhile, and it is done.
            await wire.delete(connection, wire.filling_of(self._queue))
            return
        headers: dict[str, Any] = {wire.PATTERN_HEADER: list(patterns)}
        if isinstance(start, datetime):
            headers[wire.START_HEADER] = wire.milliseconds_of(start)
        properties = Basic.Properties(delivery_mode=2, message_id=uuid4().hex, headers=headers)
        order = outgoing_with(properties, b"", exchange="", routing_key=wire.filling_of(self._queue))
        await self._send([order])

    async def begin_if_ordered(self, connection: Connection) -> None:
        """Fill a group's queue if that is ordered."""
        if not self._is_running and await wire.exists(connection, wire.filling_of(self._queue)):
            self._begin(self._fill_as_ordered)

    def begin(self, patterns: Sequence[str], start: GroupStart) -> None:
        """Fill a queue that nobody else has, once."""
        if start == "now" or self._is_done or self._is_running:
            return
        since = start if isinstance(start, datetime) else None
        self._begin(lambda: self._fill_alone(Order(patterns, since)))

    async def close(self) -> None:
        """Stop; what is not done is left to others. What is filled is said to be, so that nobody does it again."""
        if self._task is not None:
            if self._is_filled:
                await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)
            self._task.cancel()
            await asyncio.wait({self._task})

    @property
    def _is_running(self) -> bool:
        return self._task is not None and not self._task.done()

    def _begin(self, fill: Callable[[], Awaitable[None]]) -> None:
        self._is_done = False
        self._task = asyncio.create_task(self._until_done(fill), name=f"bloodbank-fill-{self._queue}")

    async def _until_done(self, fill: Callable[[], Awaitable[None]]) -> None:
        said = False
        while not self._is_done:
            try:
                await fill()
            except TransportUnavailable as error:
                if not said:
                    logger.warning("%s Filling %s from the log goes on when it works.", error, self._queue)
                    said = True
                await asyncio.sleep(FIRST_BACKOFF_SECONDS)
            except NotOpen:
                # The transport was closed. The order, where there is one, stays.
                return

    async def _fill_as_ordered(self) -> None:
        connection = await self._link.connection(patient=True)
        filling = wire.filling_of(self._queue)
        with translated(f"fill {self._queue} from the log"):
            async with asyncio.timeout(self._timeout_seconds):
                if not await wire.exists(connection, filling):
                    self._is_done = True
                    return
                channel = await open_channel(connection)
        try:
            arrived = asyncio.Queue[DeliveredMessage | None]()

            async def arrive(delivered: DeliveredMessage) -> None:
                arrived.put_nowait(delivered)

            on_close(channel, lambda: arrived.put_nowait(None))
            channel.on_consumer_cancel_callbacks.add(lambda _: arrived.put_nowait(None))
            with translated(f"fill {self._queue} from the log"):
                async with asyncio.timeout(self._timeout_seconds):
                    await channel.basic_qos(prefetch_count=1)
                    await channel.basic_consume(filling, arrive)
            # While another consumer fills the queue, nothing comes; when it is done, the end does.
            delivered = await arrived.get()
            if delivered is None:
                return
            if not self._is_filled:
                await self._fill(_order_of(delivered))
            with translated(f"end the filling of {self._queue}"):
                async with asyncio.timeout(self._timeout_seconds):
                    await wire.delete(connection, filling)
            self._is_done = True
        finally:
            await close_channel(channel)

    async def _fill_alone(self, order: Order) -> None:
        await self._fill(order)
        self._is_done = True

    async def _fill(self, order: Order) -> None:
        start = Start(since=order.since) if self._filled is None else Start(after=self._filled)
        since_ms = None if order.since is None else wire.milliseconds_of(order.since)
        batch: list[Outgoing] = []
        count = 0
        async with aclosing(self._log.read_as_delivered(start)) as entries:
            async for entry in entries:
                if _fits(entry, order.patterns, since_ms):
                    headers = {wire.ROUTING_KEY_HEADER: wire.routing_key_of(entry)}
                    properties = wire.properties_again(entry, headers, afresh=True)
                    batch.append(outgoing_with(properties, entry.body, exchange="", routing_key=self._queue))
                if len(batch) == BATCH:
                    await self._send(batch)
                    count += len(batch)
                    self._filled = wire.offset_of(entry)
                    batch = []
        await self._send(batch)
        self._is_filled = True
        logger.info("%s was filled with %d events of the log.", self._queue, count + len(batch))

    async def _send(self, several: list[Outgoing]) -> None:
        doing = f"fill {self._queue} from the log"
        await send_all(self._outlet, several, doing, timeout_seconds=self._timeout_seconds)


def _fits(entry: DeliveredMessage, patterns: Sequence[str], since_ms: int | None) -> bool:
    if not matches_any(patterns, wire.routing_key_of(entry)):
        return False
    if since_ms is None:
        return True
    published_at = wire.published_at(entry)
    return published_at is None or wire.milliseconds_of(published_at) >= since_ms


def _order_of(delivered: DeliveredMessage) -> Order:
    said = wire.header_of(delivered, wire.PATTERN_HEADER)
    # One that an earlier version ordered is a text.
    patterns = cast("list[str]", said) if isinstance(said, list) else [said if isinstance(said, str) else "#"]
    since_ms = wire.header_of(delivered, wire.START_HEADER)
    since = None
    if isinstance(since_ms, int):
        since = datetime.fromtimestamp(0, UTC) + since_ms * wire.MILLISECOND
    return Order(patterns, since)
