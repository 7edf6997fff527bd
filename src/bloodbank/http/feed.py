"""One reader of the log a process: it keeps the newest events for all who listen, and counts them.

It begins with the first who asks, and stays. While the log cannot be read it says so, and goes on behind the last
entry that it got when the log answers again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from contextlib import aclosing, contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from bloodbank import codec
from bloodbank.config import Settings
from bloodbank.errors import BloodbankError, InvalidEvent, NotOpen, TransportUnavailable
from bloodbank.events.registry import utc_now
from bloodbank.http.cursors import cursor_of
from bloodbank.http.rates import SECONDS, Rates
from bloodbank.transports.base import LogEntry, Message, Transport

SEED_ENTRIES = 1000
"""So many of the log's newest entries are read to begin with: what happened a moment ago counts."""
RETRY_SECONDS = 0.5
"""Pause between attempts while the log cannot be read."""
LOOKS = 5
"""How often the log's end is looked for, with those pauses, before it counts as another log: in a cluster of brokers a
node may be a moment behind the one that was asked before."""
BEFORE_ALL = -1
"""The position before the first entry: where an empty log ends."""

logger = logging.getLogger(__name__)


class Kept:
    """An entry of the log, ready to be sent. What is no envelope has an empty frame."""

    __slots__ = ("_frame", "_message", "event_type", "position", "size")

    def __init__(self, entry: LogEntry) -> None:
        self.position = entry.position
        self.event_type = entry.message.routing_key
        self.size = len(entry.message.body)
        self._message: Message | None = entry.message
        self._frame = b""

    @property
    def frame(self) -> bytes:
        """The event as server-sent events have it; made when the first client wants it."""
        if self._message is not None:
            self._frame, self._message = event_frame(self.position, self._message), None
        return self._frame


class Ring:
    """The newest entries of the log, without a gap.

    events, size_bytes: most entries, and most bytes of their bodies; the last one is kept whatever its size.
    head: position of the last one, or where reading began. floor: every entry behind it is here.
    """

    def __init__(self, *, events: int, size_bytes: int) -> None:
        self._events = events
        self._size_bytes = size_bytes
        self._size = 0
        self._entries: deque[Kept] = deque()
        self.head = BEFORE_ALL
        self.floor = BEFORE_ALL

    def add(self, entry: Kept) -> None:
        """Add what comes next in the log."""
        self._entries.append(entry)
        self._size += entry.size
        self.head = entry.position
        while len(self._entries) > 1 and (len(self._entries) > self._events or self._size > self._size_bytes):
            oldest = self._entries.popleft()
            self._size -= oldest.size
            self.floor = oldest.position

    def after(self, position: int, limit: int, size_bytes: int) -> list[Kept]:
        """Return the first entries behind a position that is not below the floor, up to the one that makes it many."""
        found: list[Kept] = []
        for entry in reversed(self._entries):
            if entry.position <= position:
                break
            found.append(entry)
        size = 0
        for count, entry in enumerate(reversed(found), 1):
            size += entry.size
            if count == limit or size >= size_bytes:
                return found[: -count - 1 : -1]
        return found[::-1]

    def begin_anew(self, position: int) -> None:
        """Forget all: the log ends at a position, and goes on from there."""
        self._entries.clear()
        self._size = 0
        self.head = self.floor = position


class Feed:
    """The newest events of a bus, and how many there are. Use it inside `async with`, while the transport is open.

    trouble: why the log cannot be read now; None while it can.
    begun: whether the end of the log was found, from which on everything comes here.
    epoch: grows when the log turns out to be another one than before, whose positions begin anew.
    since: from when on events are counted; None before it has begun.
    """

    def __init__(self, transport: Transport, settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.transport = transport
        self.ring = Ring(events=settings.stream_ring_events, size_bytes=settings.stream_ring_bytes)
        self.rates = Rates(clock)
        self.trouble: BloodbankError | None = None
        self.begun = False
        self.epoch = 0
        self.since: datetime | None = None
        # Up to here it came while the log could not be read.
        self._missed_until = BEFORE_ALL
        self._clock = clock
        self._seed = min(SEED_ENTRIES, settings.stream_ring_events)
        self._answer_seconds = settings.query_timeout_seconds
        self._listeners: set[asyncio.Event] = set()
        self._reading: asyncio.Task[None] | None = None
        self._known = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop reading; idempotent."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def start(self) -> None:
        """Begin to read, unless it has begun; return when the end of the log was found, or why it cannot be."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_forever(), name="bloodbank-feed")
            self._reading.add_done_callback(self._ended)
        await self._known.wait()

    @contextmanager
    def listening(self) -> Generator[asyncio.Event]:
        """Within the block the event is set whenever something has changed."""
        wake = asyncio.Event()
        self._listeners.add(wake)
        try:
            yield wake
        finally:
            self._listeners.discard(wake)

    async def ends_before(self, position: int) -> bool:
        """Say whether the log ends before a position, and does so for a while. Raises TransportUnavailable."""
        for _ in range(LOOKS - 1):
            if await self._last_position() >= position:
                return False
            await asyncio.sleep(RETRY_SECONDS)
        return await self._last_position() < position

    async def _last_position(self) -> int:
        try:
            async with (
                asyncio.timeout(self._answer_seconds),
                aclosing(self.transport.read_log(after=-1)) as entries,
            ):
                return max([entry.position async for entry in entries], default=BEFORE_ALL)
        except TimeoutError as error:
            raise TransportUnavailable(f"The log did not answer within {self._answer_seconds:g} s.") from error

    async def _read_forever(self) -> None:
        while True:
            try:
                await self._begin()
                await self._follow()
            except NotOpen:
                return  # The transport is closed, and this will be in a moment.
            except TransportUnavailable as error:
                self._note(error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _begin(self) -> None:
        """Find the end of the log: for the first time, or again after an outage."""
        if not self.begun:
            await self._read_newest()
            self.begun = True
        elif await self.ends_before(self.ring.head):
            last = await self._last_position()
            # It was emptied or replaced. What comes now would stand below everything that clients have seen.
            logger.warning("The log ends before what was read of it already: it is another one than before.")
            self.ring.begin_anew(last)
            self.epoch += 1
            self._missed_until = last
        else:
            self._missed_until = await self._last_position()
        if self.trouble is not None:
            logger.warning("The log can be read again.")
        self.trouble = None
        self._announce()

    async def _read_newest(self) -> None:
        began = self._clock()
        minute = timedelta(seconds=SECONDS)
        since, count = began - minute, 0
        # An attempt that broke off has counted some.
        self.rates = Rates(self._clock)
        try:
            async with (
                asyncio.timeout(self._answer_seconds),
                aclosing(self.transport.read_log(after=-self._seed)) as entries,
            ):
                async for entry in entries:
                    if not count:
                        self.ring.begin_anew(entry.position - 1)
                    count += 1
                    self.ring.add(Kept(entry))
                    self.rates.count_past(entry.message.routing_key, entry.logged_at)
                    if count == 1:
                        since = entry.logged_at
        except TimeoutError as error:
            raise TransportUnavailable(f"The log did not answer within {self._answer_seconds:g} s.") from error
        # All of the last minute was counted, unless more came than was read.
        self.since = min(max(since, began - minute), began) if count >= self._seed else began - minute

    async def _follow(self) -> None:
        head = self.ring.head
        async with aclosing(
            self.transport.read_log(after=head if head >= 0 else None, follow=True, patient=False)
        ) as entries:
            async for entry in entries:
                is_missed = entry.position <= self._missed_until
                count = self.rates.count_missed if is_missed else self.rates.count
                count(entry.message.routing_key, entry.logged_at)
                self.ring.add(Kept(entry))
                for wake in self._listeners:
                    wake.set()

    def _note(self, error: BloodbankError) -> None:
        if self.trouble is None:
            logger.warning("Streams and counts wait for the log: %s", error)
        self.trouble = error
        self._announce()

    def _announce(self) -> None:
        self._known.set()
        for wake in self._listeners:
            wake.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        defect = None if task.cancelled() else task.exception()
        if defect is not None:
            logger.error("The reader of the log failed.", exc_info=defect)
            self._note(BloodbankError("The server's reader of the log failed; its log says why. Restart the server."))
        self._known.set()


def event_frame(position: int, message: Message) -> bytes:
    """Return an event as server-sent events have it; nothing for what is no envelope."""
    try:
        envelope = codec.decode(message.body)
    except InvalidEvent:
        return b""
    # JSON has no line break in it: those of texts are escaped.
    return b"id: %s\nevent: event\ndata: %s\n\n" % (cursor_of(position).encode(), envelope.model_dump_json().encode())
