"""Reads the events that the log keeps: one by its id, or the newest first."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from bloodbank import codec
from bloodbank.config import Settings
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import AmbiguousEventId, EventNotFound, InvalidEvent, InvalidQuery, TransportUnavailable
from bloodbank.search import Search
from bloodbank.transports.base import CLOCK_SKEW, Delivery, LogEntry, Transport, compile_type_pattern

SHORTEST_PREFIX = 8
LARGEST_WINDOW = 5000
"""Most entries of the log in memory for a page."""
SEARCH_WINDOW = 1000
"""The same for a search, which reads more bodies than it returns."""
LARGEST_WINDOW_BYTES = 33_554_432
"""Most bytes of their bodies; the last entry is kept whatever its size."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event with its place in the log and the time (aware, UTC) when it was accepted."""

    position: int
    logged_at: datetime
    envelope: EventEnvelope[Any]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list. `next`: where to go on (`before`), or None at the end.

    searched: how many entries of the log were looked at for it.
    """

    items: tuple[LoggedEvent, ...]
    next: int | None
    searched: int = 0


class EventLog:
    """The log behind a transport, as envelopes. What is no envelope is passed over in lists.

    tracker: tells when an event was accepted, so that its body is found faster; optional.
    """

    def __init__(self, transport: Transport, tracker: CorrelationTracker | None, settings: Settings) -> None:
        self._transport = transport
        self._tracker = tracker
        self._settings = settings

    async def get(self, event_id: UUID) -> EventEnvelope[Any]:
        """Return an event. Raises EventNotFound, also for a message that is no envelope, and TransportUnavailable."""
        near = await self._tracker.accepted_at(event_id) if self._tracker is not None else None
        async with self._in_time("find the event"):
            message = await self._transport.get(event_id, near=near)
        try:
            return codec.decode(message.body)
        except InvalidEvent as error:
            # Whoever may publish on the broker can put anything there; it is not what the caller sent that is wrong.
            raise EventNotFound(f"The log has a message {event_id}, and it is no event: {error}") from error

    async def page(
        self,
        *,
        pattern: str = "#",
        since: datetime | None = None,
        until: datetime | None = None,
        before: int | None = None,
        limit: int = 50,
        search: Search | None = None,
    ) -> Page:
        """Return events newest first.

        pattern: routing pattern of the type. since, until: when the bus accepted them, aware; `until` exclusive.
        before: position of the page before; only earlier entries are listed. search: what else must fit.

        At most `scan_limit` entries are read for one page, for a search at most `search_limit_events` and for about
        `query_timeout_seconds`: a page may be short, or empty, and still have a next.
        Raises InvalidQuery, TransportUnavailable.
        """
        wanted = _Wanted(compile_type_pattern(pattern), since, until, search or None)
        if limit < 1 or limit > self._settings.page_limit:
            raise InvalidQuery(f"limit must be between 1 and {self._settings.page_limit}.")
        most, largest = self._settings.scan_limit, LARGEST_WINDOW
        if wanted.search:
            most, largest = self._settings.search_limit_events, SEARCH_WINDOW
        enough_at = asyncio.get_running_loop().time() + self._settings.query_timeout_seconds
        found: list[LoggedEvent] = []
        end = before
        window = min(max(2 * limit, 100), largest)
        scanned = read = 0
        while len(found) < limit:
            entries = await self._window(end, min(window, most - read) if wanted.search else window)
            if not entries:
                return Page(tuple(found), None, scanned)
            read += len(entries)
            if since is not None and all(entry.logged_at < since - CLOCK_SKEW for entry in entries):
                # Not at the first that is older: it may come from a host whose clock is wrong, or tell no time.
                return Page(tuple(found), None, scanned + len(entries))
            room = limit - len(found)
            # Looking into bodies takes longer than the event loop may be held up.
            looking = asyncio.to_thread(_look, entries, wanted, room) if wanted.search else None
            part, end, count = await looking if looking else _look(entries, wanted, room)
            found += part
            scanned += count
            if read >= most:
                break
            if wanted.search and asyncio.get_running_loop().time() >= enough_at:
                break
            # Of large events fewer: what does not fit would be read in vain.
            average = sum(len(entry.message.body) for entry in entries) // len(entries)
            window = min(window * 4, largest, max(1, LARGEST_WINDOW_BYTES // max(1, average)))
        return Page(tuple(found), end, scanned)

    async def resolve(self, text: str) -> UUID:
        """Return the id that a full id or a unique prefix of at least 8 hexadecimal digits means.

        Prefixes are looked for among the newest `scan_limit` entries.
        Raises InvalidQuery, AmbiguousEventId, EventNotFound, TransportUnavailable.
        """
        prefix = parse_prefix(text)
        if isinstance(prefix, UUID):
            return prefix
        found: dict[UUID, None] = {}
        async with self._in_time("look for the id"):
            async for entry in self._transport.read_log(after=-self._settings.scan_limit):
                if entry.message.event_id.hex.startswith(prefix):
                    found[entry.message.event_id] = None
        return only_match(text, list(found))

    @asynccontextmanager
    async def tail(self, pattern: str) -> AsyncGenerator[AsyncIterator[EventEnvelope[Any]]]:
        """Within the block, iterate over events that fit a pattern as they come, from its beginning on, for ever.

        Raises InvalidQuery, TransportUnavailable.
        """
        compile_type_pattern(pattern)
        async with self._transport.subscribe(pattern, group=None, prefetch=100) as deliveries:
            yield _envelopes(deliveries)

    async def _window(self, end: int | None, size: int) -> list[LogEntry]:
        """Return up to about `size` entries before a position, or the last ones, in the order of the log.

        Those that are large are fewer: the last ones that LARGEST_WINDOW_BYTES hold.
        """
        start = -size if end is None else max(-1, end - size - 1)
        step = size
        # The last ones count: behind a gap there can be more than were asked for.
        entries: deque[LogEntry] = deque()
        held = 0
        async with self._in_time("list events"):
            while True:
                async for entry in self._transport.read_log(after=None if start == -1 else start):
                    if end is not None and entry.position >= end:
                        break
                    entries.append(entry)
                    held += len(entry.message.body)
                    while len(entries) > size or (held > LARGEST_WINDOW_BYTES and len(entries) > 1):
                        held -= len(entries.popleft().message.body)
                # Retention leaves gaps at the beginning; below them there is nothing.
                if entries or end is None or start == -1:
                    return list(entries)
                step *= 10
                start = max(-1, start - step)

    @asynccontextmanager
    async def _in_time(self, what: str) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(self._settings.query_timeout_seconds):
                yield
        except TimeoutError as error:
            raise TransportUnavailable(
                f"The log could not {what} within {self._settings.query_timeout_seconds:g} s. "
                "Try again, or ask for less."
            ) from error


class _Wanted(NamedTuple):
    """What a page lists. search: None where nothing is searched for."""

    fits: re.Pattern[str]
    since: datetime | None
    until: datetime | None
    search: Search | None

    def may_fit(self, entry: LogEntry) -> bool:
        """Say of an entry whether its event can be one of the page."""
        if self.since is not None and entry.logged_at < self.since:
            return False
        if self.until is not None and entry.logged_at >= self.until:
            return False
        if not self.fits.fullmatch("." + entry.message.routing_key):
            return False
        return self.search is None or self.search.may_fit(entry)


def _look(entries: Sequence[LogEntry], wanted: _Wanted, room: int) -> tuple[list[LoggedEvent], int, int]:
    """Return up to `room` events that fit, newest first, the position of the last entry looked at, and how many were.

    entries: at least one, in the order of the log.
    """
    found: list[LoggedEvent] = []
    count = 0
    for entry in reversed(entries):
        count += 1
        if wanted.may_fit(entry):
            event = _logged_event(entry)
            if event is not None and (wanted.search is None or wanted.search.fits(event.envelope)):
                found.append(event)
                if len(found) == room:
                    return found, entry.position, count
    return found, entries[0].position, count


def parse_prefix(text: str) -> UUID | str:
    """Return the id that the text is, or else its lower-case hexadecimal digits. Raises InvalidQuery."""
    prefix = text.strip().lower().replace("-", "")
    if not prefix or len(prefix) > 32 or set(prefix) - set("0123456789abcdef"):
        raise InvalidQuery(f"{text[:80]!r} is no event id. Give a UUID, or the first 8 of its digits or more.")
    if len(prefix) == 32:
        return UUID(prefix)
    if len(prefix) < SHORTEST_PREFIX:
        raise InvalidQuery(f"{text!r} is too short. Give at least {SHORTEST_PREFIX} digits of the event id.")
    return prefix


def only_match(text: str, found: Sequence[UUID]) -> UUID:
    """Return the one id that a prefix matched. Raises EventNotFound, AmbiguousEventId."""
    if not found:
        raise EventNotFound(f"No recent event begins with {text}. Give the whole id.")
    if len(found) > 1:
        candidates = found[:10]
        listed = ", ".join(map(str, candidates))
        raise AmbiguousEventId(f"{text} is the beginning of several events: {listed}. Give more digits.", candidates)
    return found[0]


async def _envelopes(deliveries: AsyncIterator[Delivery]) -> AsyncIterator[EventEnvelope[Any]]:
    async for delivery in deliveries:
        try:
            envelope = codec.decode(delivery.message.body)
        except InvalidEvent:
            await delivery.ack()
            continue
        yield envelope
        await delivery.ack()


def _logged_event(entry: LogEntry) -> LoggedEvent | None:
    try:
        return LoggedEvent(entry.position, entry.logged_at, codec.decode(entry.message.body))
    except InvalidEvent:
        return None
