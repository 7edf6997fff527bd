"""Reads the events that the log keeps: one by its id, or the newest first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from bloodbank import codec
from bloodbank.config import Settings
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import AmbiguousEventId, EventNotFound, InvalidEvent, InvalidQuery, TransportUnavailable
from bloodbank.transports.base import CLOCK_SKEW, Delivery, LogEntry, Transport, compile_type_pattern

SHORTEST_PREFIX = 8


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event with its place in the log and the time (aware, UTC) when it was accepted."""

    position: int
    logged_at: datetime
    envelope: EventEnvelope[Any]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list. `next`: where to go on (`before`), or None at the end."""

    items: tuple[LoggedEvent, ...]
    next: int | None


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
    ) -> Page:
        """Return events newest first.

        pattern: routing pattern of the type. since, until: when the bus accepted them, aware; `until` exclusive.
        before: position of the page before; only earlier entries are listed.

        At most `scan_limit` entries are read for one page: a page may be short, or empty, and still have a next.
        Raises InvalidQuery, TransportUnavailable.
        """
        fits = compile_type_pattern(pattern)
        if limit < 1 or limit > self._settings.page_limit:
            raise InvalidQuery(f"limit must be between 1 and {self._settings.page_limit}.")
        found: list[LoggedEvent] = []
        end = before
        window = max(2 * limit, 100)
        scanned = 0
        while len(found) < limit:
            entries = await self._window(end, window)
            if not entries:
                return Page(tuple(found), None)
            scanned += len(entries)
            if since is not None and all(entry.logged_at < since - CLOCK_SKEW for entry in entries):
                # Not at the first that is older: it may come from a host whose clock is wrong, or tell no time.
                return Page(tuple(found), None)
            for entry in reversed(entries):
                end = entry.position
                if since is not None and entry.logged_at < since:
                    continue
                if until is not None and entry.logged_at >= until:
                    continue
                if not fits.fullmatch("." + entry.message.routing_key):
                    continue
                event = _logged_event(entry)
                if event is not None:
                    found.append(event)
                if len(found) == limit:
                    break
            if scanned >= self._settings.scan_limit:
                break
            window = min(window * 4, 5000)
        return Page(tuple(found), end)

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
        """Return up to about `size` entries before a position, or the last ones, in the order of the log."""
        start = -size if end is None else max(-1, end - size - 1)
        step = size
        # The last ones count: behind a gap there can be more than were asked for.
        entries: deque[LogEntry] = deque(maxlen=size)
        async with self._in_time("list events"):
            while True:
                async for entry in self._transport.read_log(after=None if start == -1 else start):
                    if end is not None and entry.position >= end:
                        break
                    entries.append(entry)
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
