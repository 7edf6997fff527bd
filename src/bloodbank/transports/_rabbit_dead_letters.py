"""Dead letters on RabbitMQ: a stream of what was set aside, and of what became of it.

A stream is read without taking anything away. An entry says that a message is dead, with all that is known of it; a
later one says that the one at an offset was settled: put back to its group, or discarded. What is dead and not settled
is the list.

What is in the queue `<base>.dead` is moved into the stream whenever the list is read: version 0.2 set messages aside
there, and RabbitMQ puts there what a group gave back too often (from version 4 on, 20 times).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.connection import Connection
from pamqp.commands import Basic

from bloodbank.errors import InvalidQuery
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._amqp import on_close, scratch_channel, translated
from bloodbank.transports._rabbit_frames import Outgoing, outgoing_with
from bloodbank.transports._rabbit_increments import Increments
from bloodbank.transports._rabbit_link import Link
from bloodbank.transports._rabbit_log import RabbitLog, Start
from bloodbank.transports._rabbit_publishing import Outlet
from bloodbank.transports._rabbit_received import Arrivals, Received, never
from bloodbank.transports._rabbit_sending import BATCH, send_all, send_each
from bloodbank.transports.base import DeadLetter, Failure

FORGET_SECONDS = 60.0
"""How often to look where the stream begins, while dead letters are counted."""
LOOK_SECONDS = 0.5
"""After this much silence it is looked whether another program has taken what is moved into the stream."""
_MOVER = "mover"


@dataclass(frozen=True, slots=True)
class _Open:
    """What is dead and not settled: {offset: group}."""

    groups: dict[int, str]

    @property
    def start(self) -> Start:
        return Start(after=min(self.groups) - 1 if min(self.groups) else None)


class DeadLetters:
    """The dead letters of a bus. All raise TransportUnavailable.

    timeout_seconds: for a publish, and for an answer of the broker.
    """

    def __init__(
        self, link: Link, outlet: Outlet, names: wire.Names, stream: RabbitLog, timeout_seconds: float
    ) -> None:
        self._link = link
        self._outlet = outlet
        self._names = names
        self._stream = stream
        self._timeout_seconds = timeout_seconds
        self._increments = Increments(stream)
        self._counting = asyncio.Lock()
        # Offsets of what is dead and not settled, as far as it was counted.
        self._counted: set[int] = set()
        self._forget_at = 0.0

    async def read(self, group: str | None, after: int | None) -> AsyncGenerator[DeadLetter]:
        """Yield the list from behind an offset on, oldest first."""
        await self._take_over()
        # What settles an entry stands behind it, so that nothing before has to be read.
        is_open = await self._open(Start(after=after))
        if not is_open.groups:
            return
        async with aclosing(self._stream.read_as_delivered(is_open.start)) as entries:
            async for entry in entries:
                offset = wire.offset_of(entry)
                if offset in is_open.groups and group in (None, is_open.groups[offset]):
                    yield _letter(entry, offset, is_open.groups[offset])

    async def count(self) -> int:
        """Return how many there are, by what was not counted before."""
        await self._take_over()
        async with self._counting:
            async with aclosing(self._increments.read()) as entries:
                async for entry in entries:
                    if entry is None:
                        self._counted.clear()
                    elif isinstance(settled := wire.header_of(entry, wire.SETTLED_HEADER), int):
                        self._counted.discard(settled)
                    elif wire.time_of(entry, wire.DEAD_HEADER) is not None:
                        self._counted.add(wire.offset_of(entry))
            if self._counted and time.monotonic() >= self._forget_at:
                # What the stream has forgotten is settled by time.
                first = await self._increments.first_offset()
                self._counted = {offset for offset in self._counted if first is not None and offset >= first}
                self._forget_at = time.monotonic() + FORGET_SECONDS
            return len(self._counted)

    async def redeliver(self, numbers: Sequence[int]) -> int:
        """Put some back to their groups; see `Transport.redeliver`."""
        chosen = await self._chosen(numbers)
        queues = {group: self._names.group(group) for group in sorted(set(chosen.groups.values())) if group}
        await self._require(queues)
        chosen = _Open({offset: group for offset, group in chosen.groups.items() if group})
        if not chosen.groups:
            return 0
        done = 0
        batch: dict[int, Outgoing] = {}
        async with aclosing(self._stream.read_as_delivered(chosen.start)) as entries:
            async for entry in entries:
                offset = wire.offset_of(entry)
                if offset in chosen.groups:
                    batch[offset] = _as_new(entry, queues[chosen.groups[offset]])
                    if len(batch) == BATCH:
                        done += await self._put_back(batch)
                        batch = {}
        return done + await self._put_back(batch)

    async def discard(self, numbers: Sequence[int]) -> int:
        """Take some off the list; see `Transport.discard`."""
        chosen = list((await self._chosen(numbers)).groups)
        for at in range(0, len(chosen), BATCH):
            await self._settle(chosen[at : at + BATCH])
        return len(chosen)

    async def _chosen(self, numbers: Sequence[int]) -> _Open:
        wanted = {number for number in numbers if number >= 0}
        if not wanted:
            return _Open({})
        lowest = min(wanted)
        is_open = await self._open(Start(after=lowest - 1 if lowest else None))
        return _Open({offset: group for offset, group in is_open.groups.items() if offset in wanted})

    async def _open(self, start: Start) -> _Open:
        groups: dict[int, str] = {}
        names: dict[str, str] = {}
        async with aclosing(self._stream.read_as_delivered(start)) as entries:
            async for entry in entries:
                settled = wire.header_of(entry, wire.SETTLED_HEADER)
                if isinstance(settled, int):
                    groups.pop(settled, None)
                elif wire.time_of(entry, wire.DEAD_HEADER) is not None:
                    # Each name once, however many there are.
                    name = _text(entry, wire.GROUP_HEADER)
                    groups[wire.offset_of(entry)] = names.setdefault(name, name)
        return _Open(groups)

    async def _require(self, queues: Mapping[str, str]) -> None:
        with translated("put dead letters back"):
            async with asyncio.timeout(self._timeout_seconds):
                connection = await self._link.connection()
                for group, queue in queues.items():
                    if not await wire.exists(connection, queue):
                        raise InvalidQuery(no_group(group))

    async def _put_back(self, batch: Mapping[int, Outgoing]) -> int:
        outcomes = await self._send_each(list(batch.values()), "put a dead letter back")
        await self._settle([offset for offset, outcome in zip(batch, outcomes, strict=True) if outcome is None])
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        return len(batch)

    async def _settle(self, offsets: Sequence[int]) -> None:
        entries = [
            outgoing_with(
                Basic.Properties(delivery_mode=2, message_id=uuid4().hex, headers={wire.SETTLED_HEADER: offset}),
                b"",
                exchange="",
                routing_key=self._names.dead_letters,
            )
            for offset in offsets
        ]
        await send_all(self._outlet, entries, "settle a dead letter", timeout_seconds=self._timeout_seconds)

    async def _send_each(self, several: Sequence[Outgoing], doing: str) -> list[Any]:
        return await send_each(self._outlet, several, doing, timeout_seconds=self._timeout_seconds)

    async def _take_over(self) -> None:
        """Move what is in the queue into the stream. After a crash in between it is in the stream twice."""
        with translated("read the dead letters"):
            async with asyncio.timeout(self._timeout_seconds):
                connection = await self._link.connection()
                count = await wire.waiting_in(connection, self._names.dead)
            if count:
                async with scratch_channel(connection) as channel:
                    await self._move(connection, channel, count)

    async def _move(self, connection: Connection, channel: Channel, count: int) -> None:
        """Move up to so many. They are read beside the driver, since they may come from any program."""
        socket, number, arrived = self._link.wire_of(connection), channel.number, Arrivals()

        def end() -> None:
            socket.stop_receiving(number)
            arrived.put_nowait(None)

        on_close(channel, end)
        channel.on_consumer_cancel_callbacks.add(lambda _: arrived.put_nowait(None))
        socket.receive(number, arrived)
        async with asyncio.timeout(self._timeout_seconds):
            await channel.basic_qos(prefetch_count=1)
            await channel.basic_consume(self._names.dead, never, consumer_tag=_MOVER)
        for left in range(count, 0, -1):
            received = await self._next(connection, arrived)
            if received is None:
                return
            if left == 1:
                # Before the last one is acknowledged, or another one would come, and go back as a further try.
                async with asyncio.timeout(self._timeout_seconds):
                    await channel.basic_cancel(_MOVER)
            entry = _moved(received.delivered(channel), self._names)
            doing = f"move what is in {self._names.dead}"
            await send_all(self._outlet, [entry], doing, timeout_seconds=self._timeout_seconds)
            await channel.basic_ack(received.tag, wait=False)

    async def _next(self, connection: Connection, arrived: Arrivals) -> Received | None:
        """Return what comes next; None where somebody else has taken the rest, or the queue is gone."""
        async with asyncio.timeout(self._timeout_seconds):
            while True:
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        return await arrived.get()
                except TimeoutError:
                    if not await wire.waiting_in(connection, self._names.dead):
                        return None


def dead_headers(failure: Failure, *, group: str, attempts: int, first_ms: int | None) -> dict[str, str | int]:
    """Return the headers of an entry that says that a message is dead, now."""
    kept = failure.kept()
    headers: dict[str, str | int] = {
        wire.GROUP_HEADER: group,
        wire.REASON_HEADER: kept.reason,
        wire.ERROR_HEADER: kept.error,
        wire.TRACEBACK_HEADER: kept.traceback,
        wire.CONSUMER_HEADER: kept.consumer,
        wire.ATTEMPTS_HEADER: attempts,
        wire.DEAD_HEADER: int(time.time() * 1000),
    }
    return headers if first_ms is None else headers | {wire.FIRST_HEADER: first_ms}


def no_group(name: str) -> str:
    """Return a sentence that says that a group is not there."""
    return f"There is no group {name!r}. Nothing was sent. A group is there once a consumer of it has subscribed."


def _letter(entry: DeliveredMessage, offset: int, group: str) -> DeadLetter:
    attempts = wire.header_of(entry, wire.ATTEMPTS_HEADER)
    dead_at = wire.time_of(entry, wire.DEAD_HEADER)
    assert dead_at is not None  # noqa: S101, without it, it is not in the list
    return DeadLetter(
        number=offset,
        group=group,
        message=wire.message_of(entry),
        failure=Failure(
            reason=_text(entry, wire.REASON_HEADER),
            error=_text(entry, wire.ERROR_HEADER),
            traceback=_text(entry, wire.TRACEBACK_HEADER),
            consumer=_text(entry, wire.CONSUMER_HEADER),
        ),
        attempts=attempts if isinstance(attempts, int) else 1,
        first_at=wire.time_of(entry, wire.FIRST_HEADER),
        dead_at=dead_at,
    )


def _as_new(entry: DeliveredMessage, queue: str) -> Outgoing:
    headers = {wire.ROUTING_KEY_HEADER: wire.routing_key_of(entry)}
    properties = wire.properties_again(entry, headers, afresh=True)
    return outgoing_with(properties, entry.body, exchange="", routing_key=queue)


def _moved(found: DeliveredMessage, names: wire.Names) -> Outgoing:
    """Return the entry for a message of the queue: from version 0.2, or given up by RabbitMQ, which says so itself."""
    headers: dict[str, str | int] = {}
    if wire.time_of(found, wire.DEAD_HEADER) is None:
        deaths = cast("list[dict[str, Any]]", wire.header_of(found, "x-death") or [{}])
        last = deaths[0]
        tries = wire.header_of(found, wire.ATTEMPTS_HEADER)
        failure = Failure(f"RabbitMQ gave it up: {last.get('reason', 'unknown')}.", str(last.get("reason", "")))
        headers = dead_headers(
            failure,
            group=names.group_of(str(last.get("queue", ""))),
            attempts=tries if isinstance(tries, int) else 1,
            first_ms=None,
        )
        if not isinstance(wire.header_of(found, wire.ROUTING_KEY_HEADER), str):
            keys = cast("list[str]", last.get("routing-keys") or [found.header.properties.message_type or ""])
            headers[wire.ROUTING_KEY_HEADER] = keys[0]
    properties = wire.properties_again(found, headers)
    return outgoing_with(properties, found.body, exchange="", routing_key=names.dead_letters)


def _text(entry: DeliveredMessage, name: str) -> str:
    value = wire.header_of(entry, name)
    return value if isinstance(value, str) else ""
