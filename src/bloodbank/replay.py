"""Delivers events of the log again: those of a type and a time, or one with all that it led to.

The log is read twice: first to find and count the events, then to send them. What is published meanwhile is not among
them, also where handlers answer what is replayed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from bloodbank.config import Settings
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.errors import EventNotFound, InvalidQuery, TrackingDisabled
from bloodbank.progress import Progress, Report, ignore
from bloodbank.stores.base import Direction
from bloodbank.transports.base import CLOCK_SKEW, LogEntry, Message, Transport, compile_pattern

BATCH_MESSAGES, BATCH_BYTES = 500, 4_194_304
"""How much is handed to the transport at once, whichever is reached first."""
LATER_IN_A_ROW = 1000
"""After so many entries in a row that are later than what was asked for, nothing else is expected."""
REMEMBERED = 20_000
"""Among how many events a second copy is noticed, where the bus may hold one: copies follow within moments."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Events of the log that are to be delivered again, counted.

    pattern, since, until: of types, and of when the bus accepted them; `until` exclusive.
    event_ids: only these; None: any.
    count: how many there are. missing: how many were asked for by id and are not in the log.
    first, last: positions of the first and the last one; None where there is none.
    message: the one event, where it was found without reading the log.
    """

    pattern: str = "#"
    since: datetime | None = None
    until: datetime | None = None
    event_ids: frozenset[UUID] | None = None
    count: int = 0
    missing: int = 0
    first: int | None = None
    last: int | None = None
    message: Message | None = None


class Replay:
    """Finds events of the log, and delivers them to groups of consumers again.

    tracker: knows descendants; None: they cannot be asked for.
    """

    def __init__(self, transport: Transport, tracker: CorrelationTracker | None, settings: Settings) -> None:
        self._transport = transport
        self._tracker = tracker
        self._settings = settings

    async def select(
        self, *, pattern: str = "#", since: datetime | None = None, until: datetime | None = None
    ) -> Selection:
        """Count the events whose type fits a routing pattern and that the bus accepted in a time (aware).

        Raises InvalidQuery, TransportUnavailable.
        """
        compile_pattern(pattern)
        for time in (since, until):
            if time is not None and time.tzinfo is None:
                raise InvalidQuery(f"{time.isoformat()} has no offset. Give an aware time.")
        return await self._find(Selection(pattern, since, until), since)

    async def select_event(self, event_id: UUID, *, descendants: bool = False) -> Selection:
        """Find an event, and with `descendants` all that the index knows it led to.

        Raises EventNotFound, TransportUnavailable; with descendants also TrackingDisabled, StoreUnavailable, and
        InvalidQuery when there are more than `lineage_node_limit`.
        """
        if not descendants:
            near = await self._tracker.accepted_at(event_id) if self._tracker is not None else None
            return Selection(count=1, message=await self._transport.get(event_id, near=near))
        if self._tracker is None:
            raise TrackingDisabled("What an event led to is known to the index alone, and correlation tracking is off.")
        limits = self._settings.lineage_depth_limit, self._settings.lineage_node_limit
        graph = await self._tracker.walk(event_id, Direction.DESCENDANTS, max_depth=limits[0], limit=limits[1])
        if graph.truncated.depth or graph.truncated.limit:
            raise InvalidQuery(
                f"Event {event_id} led to more than the {limits[0]:,} hops or {limits[1]:,} events that the settings "
                "allow. Replay by type and time instead. Nothing was sent."
            )
        accepted = [step.node.link.accepted_at for step in graph.steps if step.node.link is not None]
        wanted = Selection(event_ids=frozenset(graph.ids))
        found = await self._find(wanted, min(accepted, default=None))
        if not found.count:
            raise EventNotFound(
                f"Neither event {event_id} nor any that it led to is in the log. Retention removed them."
            )
        return replace(found, missing=len(graph.ids) - found.count)

    async def send(self, selection: Selection, *, to: str | None, on_progress: Report = ignore) -> Progress:
        """Deliver what was selected again, in the order of the log, marked as replayed; return when it is durable.

        to: a group, whatever its patterns; None: every group of which a pattern fits.

        Raises InvalidQuery for a group that does not exist, when nothing was sent; TransportUnavailable, when what
        was reported as done was sent, and up to BATCH_MESSAGES more may have been. Again delivers those twice.
        """
        progress = Progress(total=selection.count)
        await self._transport.replay([], group=to)
        on_progress(progress)
        async with aclosing(self._batches(selection)) as batches:
            async for batch in batches:
                await self._transport.replay(batch, group=to)
                progress = replace(progress, done=progress.done + len(batch))
                on_progress(progress)
        # What retention removed since it was counted.
        return replace(progress, skipped=selection.count - progress.done)

    async def _find(self, wanted: Selection, since: datetime | None) -> Selection:
        fits = _Fits(wanted, remembers=not self._transport.features.detects_duplicates)
        count, later = 0, 0
        first = last = None
        async with aclosing(self._transport.read_log(since=None if since is None else since - CLOCK_SKEW)) as entries:
            async for entry in entries:
                if fits(entry):
                    count += 1
                    first = entry.position if first is None else first
                    last = entry.position
                if wanted.event_ids is not None and count == len(wanted.event_ids):
                    break
                later = later + 1 if _is_behind(wanted, entry) else 0
                if later == LATER_IN_A_ROW:
                    break
        return replace(wanted, count=count, first=first, last=last)

    async def _batches(self, selection: Selection) -> AsyncGenerator[list[Message]]:
        if selection.message is not None:
            yield [selection.message]
        if selection.first is None or selection.last is None:
            return
        fits = _Fits(selection, remembers=not self._transport.features.detects_duplicates)
        batch: list[Message] = []
        size = 0
        async with aclosing(
            self._transport.read_log(after=selection.first - 1 if selection.first > 0 else None)
        ) as entries:
            async for entry in entries:
                if entry.position > selection.last:
                    break
                if not fits(entry):
                    continue
                batch.append(entry.message)
                size += len(entry.message.body)
                if len(batch) == BATCH_MESSAGES or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch


class _Fits:
    """Says of entries in their order whether they are among what was selected, each event once."""

    def __init__(self, selection: Selection, *, remembers: bool) -> None:
        self._selection = selection
        self._pattern: re.Pattern[str] = compile_pattern(selection.pattern)
        self._remembers = remembers or selection.event_ids is not None
        self._limit = REMEMBERED if selection.event_ids is None else len(selection.event_ids)
        self._seen: set[bytes] = set()
        self._order: deque[bytes] = deque()

    def __call__(self, entry: LogEntry) -> bool:
        asked, event_id = self._selection, entry.message.event_id
        if asked.event_ids is not None and event_id not in asked.event_ids:
            return False
        if asked.since is not None and entry.logged_at < asked.since:
            return False
        if asked.until is not None and entry.logged_at >= asked.until:
            return False
        if self._pattern.fullmatch("." + entry.message.routing_key) is None:
            return False
        return not self._remembers or self._is_new(event_id.bytes)

    def _is_new(self, event_id: bytes) -> bool:
        if event_id in self._seen:
            return False
        self._seen.add(event_id)
        self._order.append(event_id)
        if len(self._order) > self._limit:
            self._seen.discard(self._order.popleft())
        return True


def _is_behind(asked: Selection, entry: LogEntry) -> bool:
    return asked.until is not None and entry.logged_at >= asked.until + CLOCK_SKEW
