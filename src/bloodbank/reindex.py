"""Rebuilds the index of causes from the log: the envelopes there say all that the index holds.

Recording is idempotent and the first of an id wins, as when events are recorded one by one; so this may run
while the bus is in use, twice, or over an index that has some of it. What is published meanwhile is recorded by
whoever publishes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bloodbank import codec
from bloodbank.config import Settings
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import InvalidEvent, StoreUnavailable, TransportUnavailable, Unavailable
from bloodbank.events.registry import utc_now
from bloodbank.stores.base import Link
from bloodbank.transports.base import CLOCK_SKEW, LogEntry, Transport

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
"""How often a broker or store that is away is asked again."""
SHOWN_POSITIONS = 10
"""Of how many entries that are no envelopes the positions are told."""
DECODED_AT_ONCE_BYTES = 262_144
"""How much is decoded before others get their turn."""
NEWEST = 20
"""How many entries at the end of the log are looked at to find the last event."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come; the last one is its result.

    first_position, position, last_position: of the first entry read, the latest one, and the one where the log
    ended when the run began. None where nothing was read. first_at, reached_at, last_at: when those were accepted.
    entries, size_bytes: entries read, and the bytes of their bodies. recorded: events that the index has now; those
    that it had before count too, and in a dry run those that it would get. skipped: entries that are no envelopes,
    skipped_positions: where the first of them lie.
    waiting: why the run waits; None while it goes on.
    resume_since: a later run that begins at this time (aware) goes on where this one is; None: from the beginning.
    """

    first_position: int | None = None
    position: int | None = None
    last_position: int | None = None
    first_at: datetime | None = None
    reached_at: datetime | None = None
    last_at: datetime | None = None
    entries: int = 0
    size_bytes: int = 0
    recorded: int = 0
    skipped: int = 0
    skipped_positions: tuple[int, ...] = ()
    waiting: str | None = None
    resume_since: datetime | None = None

    @property
    def fraction(self) -> float | None:
        """How much of the way is done, from 0 to 1; None while that is not known."""
        if self.first_position is None or self.position is None or self.last_position is None:
            return None
        way = self.last_position - self.first_position + 1
        return min(1.0, (self.position - self.first_position + 1) / max(1, way))


async def reindex(
    transport: Transport,
    tracker: CorrelationTracker | None,
    settings: Settings,
    *,
    since: datetime | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Record the events of the log in the index, up to where the log ended when this began.

    tracker: whose index is rebuilt; None reads and counts, and records nothing.
    since: begin with what the bus accepted then, aware; earlier events may come along. Default: all of the log.
    on_progress: called after each batch, and whenever the run begins to wait or is still waiting.

    An outage of broker or store is waited out, for `reindex_patience_seconds` without any progress. Then this raises
    TransportUnavailable or StoreUnavailable, which say from where to go on; what was recorded stays. Raises
    StoreFormatError when the index cannot be written by this version.

    Afterwards the tracker forgets which events had no place in its journal, if all of them were accepted within what
    was read.
    """
    return await _Run(transport, tracker, settings, since, on_progress).complete()


def link_in(entry: LogEntry) -> Link:
    """Return what the index keeps of the event in a log entry. Raises InvalidEvent when it is no envelope.

    What a foreign envelope leaves out is taken from the entry, so that it is the same each time it is read.
    """
    message = entry.message
    envelope = codec.decode(message.body)
    digest = message.digest or _digest(envelope)
    link = codec.link_of(envelope, digest, entry.logged_at)
    given = envelope.model_fields_set
    if "event_id" not in given:
        parents = tuple([parent for parent in link.parents if parent != message.event_id])
        link = link._replace(event_id=message.event_id, parents=parents)
    return link if "timestamp" in given else link._replace(timestamp=entry.logged_at)


def _digest(envelope: EventEnvelope[Any]) -> bytes:
    """Return the digest that publishing the envelope would give it; none where it could not be published."""
    try:
        return codec.encode(envelope).digest
    except InvalidEvent:
        return b""


class _Run:
    def __init__(
        self,
        transport: Transport,
        tracker: CorrelationTracker | None,
        settings: Settings,
        since: datetime | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._transport = transport
        self._tracker = tracker
        self._batch_limit = settings.tracker_batch_limit
        self._patience_seconds = settings.reindex_patience_seconds
        self._begin = self._resume_since = since
        self._on_progress = on_progress
        self._moved_at = time.monotonic()
        self._waiting: str | None = None
        self._first: tuple[int, datetime] | None = None
        self._latest: tuple[int, datetime] | None = None
        self._last: tuple[int, datetime] | None = None
        self._knows_last = False
        # When the run began to look where the log ends, and how many events no journal had by then.
        self._began_at = utc_now()
        self._unjournalled = 0
        self._entries = self._size_bytes = self._recorded = self._skipped = 0
        self._skipped_positions: list[int] = []
        self._links: list[Link] = []
        # Of the batch: the earliest time, and how many entries and bytes it holds.
        self._batch_since: datetime | None = None
        self._batch_entries = 0
        self._undecoded_room = DECODED_AT_ONCE_BYTES

    async def complete(self) -> Progress:
        """Read to the end, over outages."""
        while True:
            try:
                if not self._knows_last:
                    self._began_at = utc_now()
                    self._unjournalled = self._tracker.unjournalled_total if self._tracker is not None else 0
                    self._last = await self._end_of_log()
                    self._knows_last = True
                await self._read_on()
                await self._record()
            except TransportUnavailable as error:
                await self._wait(error)
            else:
                break
        await self._clear_unjournalled()
        return self._progress()

    async def _end_of_log(self) -> tuple[int, datetime] | None:
        last: tuple[int, datetime] | None = None
        async with aclosing(self._transport.read_log(after=-NEWEST)) as entries:
            async for entry in entries:
                last = (entry.position, entry.logged_at)
        return last

    async def _read_on(self) -> None:
        """Take the entries behind the latest one, up to the last one or, where that is not known, to the end."""
        last = None if self._last is None else self._last[0]
        if self._latest is None:
            reading = self._transport.read_log(since=self._begin)
        elif last is None or self._latest[0] < last:
            reading = self._transport.read_log(after=self._latest[0])
        else:
            return
        async with aclosing(reading) as entries:
            async for entry in entries:
                if last is not None and entry.position > last:
                    return
                await self._take(entry)
                if entry.position == last:
                    return

    async def _take(self, entry: LogEntry) -> None:
        size = len(entry.message.body)
        self._moved_at = time.monotonic()
        self._latest = (entry.position, entry.logged_at)
        self._first = self._first or self._latest
        self._entries += 1
        self._size_bytes += size
        self._batch_entries += 1
        if self._batch_since is None or entry.logged_at < self._batch_since:
            self._batch_since = entry.logged_at
        try:
            self._links.append(link_in(entry))
        except InvalidEvent:
            self._skipped += 1
            if len(self._skipped_positions) < SHOWN_POSITIONS:
                self._skipped_positions.append(entry.position)
        if self._batch_entries >= self._batch_limit:
            await self._record()
        self._undecoded_room -= size
        if self._undecoded_room < 0:
            self._undecoded_room = DECODED_AT_ONCE_BYTES
            await asyncio.sleep(0)

    async def _record(self) -> None:
        """Record the batch, however long the store is away."""
        while self._links and self._tracker is not None:
            try:
                await self._tracker.rebuild(self._links)
                break
            except StoreUnavailable as error:
                await self._wait(error)
        if self._batch_since is not None:
            self._resume_since = _earlier(self._batch_since)
        self._recorded += len(self._links)
        self._links, self._batch_since, self._batch_entries = [], None, 0
        self._moved_at = time.monotonic()
        self._waiting = None
        self._report()
        # Whether or not there was anything to wait for.
        await asyncio.sleep(0)

    async def _wait(self, error: TransportUnavailable | StoreUnavailable) -> None:
        """Wait until it is worth trying again; raise the error with what to do when that was done for long enough."""
        if time.monotonic() - self._moved_at > self._patience_seconds:
            kind = StoreUnavailable if isinstance(error, StoreUnavailable) else TransportUnavailable
            raise kind(
                f"Reindexing stopped after {self._patience_seconds:g} s without progress. {error} "
                f"What was recorded stays. {way_on(self._progress())}"
            ) from error
        if self._waiting is None:
            logger.warning("Reindexing waits: %s", error)
        self._waiting = str(error)
        self._report()
        await asyncio.sleep(RETRY_SECONDS)

    async def _clear_unjournalled(self) -> None:
        if self._tracker is None or not self._unjournalled or self._tracker.unjournalled_total != self._unjournalled:
            return
        begin = self._begin or datetime.min.replace(tzinfo=UTC)
        try:
            # What was accepted just before may have come into the log after its end was looked for.
            await self._tracker.clear_unjournalled(since=begin, until=self._began_at - CLOCK_SKEW)
        except Unavailable as error:
            logger.warning("The journal still counts events that the index has now: %s", error)

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._progress())

    def _progress(self) -> Progress:
        nothing = (None, None)
        first_position, first_at = self._first or nothing
        position, reached_at = self._latest or nothing
        last_position, last_at = self._last or nothing
        return Progress(
            first_position=first_position,
            position=position,
            last_position=last_position,
            first_at=first_at,
            reached_at=reached_at,
            last_at=last_at,
            entries=self._entries,
            size_bytes=self._size_bytes,
            recorded=self._recorded,
            skipped=self._skipped,
            skipped_positions=tuple(self._skipped_positions),
            waiting=self._waiting,
            resume_since=self._resume_since,
        )


def way_on(progress: Progress) -> str:
    """Say how to go on after a run that was ended before its time."""
    if progress.resume_since is None:
        return "Begin again with: bb reindex"
    return f"Go on with: bb reindex --since {progress.resume_since.isoformat(timespec='seconds')}"


def _earlier(moment: datetime) -> datetime:
    try:
        return moment - CLOCK_SKEW
    except OverflowError:
        return moment
