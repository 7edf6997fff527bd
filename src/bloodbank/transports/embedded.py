"""The embedded log: publish, subscribe and read back, in one SQLite file that several processes share."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

from bloodbank._sqlite import Database, now_microseconds, translated, translation
from bloodbank._sqlite_writer import WriteTimedOut, is_primary
from bloodbank.errors import (
    BloodbankError,
    EventNotFound,
    InvalidQuery,
    NotOpen,
    PublishRejected,
    PublishUnknown,
    TransportUnavailable,
)
from bloodbank.transports import _embedded_dead_letters as dead
from bloodbank.transports import _embedded_log as log
from bloodbank.transports._embedded_groups import MICROSECONDS, DurableGroup, EphemeralGroup, states, unsettled
from bloodbank.transports._embedded_subscription import Subscription
from bloodbank.transports.base import (
    DeadLetter,
    Delivery,
    Features,
    GroupState,
    LogEntry,
    Message,
    Receipt,
    Start,
    require_patterns,
    require_start,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

PURGE_INTERVAL_SECONDS = 3600.0
RENEWALS_PER_LEASE = 3

_FAILURES = (WriteTimedOut, sqlite3.Error, OSError)


class EmbeddedTransport:
    """A Transport in one SQLite file, safe with several processes.

    A publish returns after the fsync; what is published at the same time shares one. The log forgets entries,
    dead letters and groups that nobody listened to after the retention, at opening and then hourly.

    database: entered by the transport while it is open; others may enter it too.
    retention_seconds: how long an entry is kept.
    lease_seconds: how long a group waits for a consumer that died before it delivers again.
    poll_seconds: how often to look for what other processes published, while somebody waits for it.
    """

    def __init__(
        self, database: Database, *, retention_seconds: float, lease_seconds: float, poll_seconds: float
    ) -> None:
        self._database = database
        self._retention_seconds = retention_seconds
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._bell = _Bell()
        self._open = False
        self._tasks: list[asyncio.Task[None]] = []
        self._subscriptions: set[Subscription] = set()

    @property
    def features(self) -> Features:
        """All of them; in memory, what needs a file is missing."""
        is_file = not self._database.is_in_memory
        return Features(
            ordered=True,
            competing_groups=True,
            replay=True,
            survives_restart=is_file,
            multi_process=is_file,
            detects_duplicates=True,
            forgets_untried=True,
        )

    async def __aenter__(self) -> Self:
        """Open. Raises TransportUnavailable, StoreFormatError; opening may be tried again."""
        with translated(self._database.path, TransportUnavailable):
            await self._database.__aenter__()
            try:
                await self._database.ensure_format("log", log.FORMAT, log.SCHEMA, upgrades=log.UPGRADES)
            except BaseException:
                await self._database.__aexit__(None, None, None)
                raise
        self._open = True
        self._tasks = [
            asyncio.create_task(self._watch_others(), name="bloodbank-log-watch"),
            asyncio.create_task(self._purge_hourly(), name="bloodbank-log-purge"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent. Subscriptions and followers end, what was queued is written or fails."""
        if not self._open:
            return
        self._open = False
        self._bell.ring()
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.wait(self._tasks)
            for subscription in list(self._subscriptions):
                await subscription.close()
        finally:
            await self._database.__aexit__(kind, error, trace)

    async def check(self, *, timeout_seconds: float) -> None:
        """Write to the disk and leave nothing behind. Raises TransportUnavailable."""
        self._require_open()
        with translated(self._database.path, TransportUnavailable):
            try:
                await self._database.write(log.probe, timeout_seconds=timeout_seconds)
            except WriteTimedOut as error:
                raise TransportUnavailable(
                    f"{self._database.path} did not take a write within {timeout_seconds} s."
                ) from error

    async def publish(self, message: Message, *, timeout_seconds: float) -> Receipt:
        """Return when the message is on the disk.

        Raises PublishRejected, EventConflict, PublishUnknown, TransportUnavailable. When the caller is
        cancelled the message may be stored.
        """
        self._require_open()
        entry = log.entry_of(message)
        try:
            [outcome] = await self._database.submit(log.APPEND, [entry], timeout_seconds=timeout_seconds)
        except _FAILURES as error:
            raise self._failure(error, timeout_seconds) from error
        self._bell.ring()
        if isinstance(outcome, BloodbankError):
            raise outcome
        return outcome

    async def publish_many(
        self, messages: Sequence[Message], *, timeout_seconds: float
    ) -> list[Receipt | BloodbankError]:
        """Publish several in one transaction; return one receipt or error for each, in order."""
        self._require_open()
        outcomes: dict[int, Receipt | BloodbankError] = {}
        entries: dict[int, log.Entry] = {}
        for index, message in enumerate(messages):
            try:
                entries[index] = log.entry_of(message)
            except PublishRejected as error:
                outcomes[index] = error
        if entries:
            batch = list(entries.values())
            try:
                appended = await self._database.submit(log.APPEND, batch, timeout_seconds=timeout_seconds)
            except _FAILURES as error:
                failure = self._failure(error, timeout_seconds)
                failure.__cause__ = error
                outcomes |= dict.fromkeys(entries, failure)
            else:
                self._bell.ring()
                outcomes |= zip(entries, appended, strict=True)
        return [outcomes[index] for index in range(len(messages))]

    @asynccontextmanager
    async def subscribe(
        self, pattern: str | Sequence[str], *, group: str | None, prefetch: int, start: Start = "now"
    ) -> AsyncGenerator[AsyncIterator[Delivery]]:
        """Deliver the messages whose routing key fits a pattern; in order also where a group begins in the past.

        Raises InvalidQuery, TransportUnavailable; the iterator raises NotOpen when
        the transport closes under it.
        """
        self._require_open()
        patterns = require_patterns(pattern)
        require_start(start)
        if prefetch < 1:
            raise InvalidQuery(f"prefetch is {prefetch}; at least one message must be on its way.")
        source = (
            EphemeralGroup(self._database, patterns, start=start)
            if group is None
            else DurableGroup(self._database, group, patterns, start=start, lease_seconds=self._lease_seconds)
        )
        with self._bell.listening() as wake:
            subscription = Subscription(
                source,
                prefetch=prefetch,
                renew_seconds=self._lease_seconds / RENEWALS_PER_LEASE,
                wake=wake,
                announce=self._bell.ring,
            )
            self._subscriptions.add(subscription)
            try:
                await subscription.start()
                yield subscription
            finally:
                self._subscriptions.discard(subscription)
                await subscription.close()

    async def read_log(
        self,
        *,
        after: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
        patient: bool = True,
    ) -> AsyncGenerator[LogEntry]:
        """Read the log in order, a page at a time. Closing the transport ends it with NotOpen.

        A file has no connection to wait for: that it cannot be read is told also to a patient reader.

        Raises TransportUnavailable, NotOpen.
        """
        self._require_open()
        position, end = await self._read(lambda connection: log.start_of(connection, after, since))
        with self._bell.listening() as wake:
            while follow or position < end:
                # Before looking, so that what comes while looking is not missed.
                wake.clear()
                entries = await self._read(lambda connection, start=position: log.page(connection, start))
                for entry in entries:
                    if not follow and entry.position > end:
                        return
                    position = entry.position
                    yield entry
                if not entries and not follow:
                    return
                if not entries:
                    await wake.wait()
                    self._require_open()

    def entries(self) -> list[LogEntry]:
        """Return the whole log, in order, without waiting for the loop: for a bus in memory. Raises NotOpen."""
        self._require_open()

        def question(connection: sqlite3.Connection) -> list[LogEntry]:
            found: list[LogEntry] = []
            while page := log.page(connection, found[-1].position if found else 0):
                found += page
            return found

        return self._database.read_here(question)

    async def unsettled(self) -> dict[str, int]:
        """Return how many deliveries each group has still to settle, by its name; groups with none are left out.

        Raises TransportUnavailable, NotOpen.
        """
        self._require_open()
        return await self._read(unsettled)

    async def get(self, event_id: UUID, *, near: datetime | None = None) -> Message:
        """Return a message of the log; `near` is not needed here. Raises EventNotFound, TransportUnavailable."""
        self._require_open()
        message = await self._read(lambda connection: log.find(connection, event_id))
        if message is None:
            raise EventNotFound(f"No event {event_id} is in the log. It may be older than the retention.")
        return message

    async def dead_letters(self, *, group: str | None = None, after: int | None = None) -> AsyncGenerator[DeadLetter]:
        """Read the dead letters, a page at a time; see `Transport.dead_letters`."""
        self._require_open()
        number = 0 if after is None else after
        while letters := await self._read(lambda connection, after=number: dead.page(connection, after, group)):
            for letter in letters:
                number = letter.number
                yield letter

    async def dead_letter_count(self) -> int:
        """Count the dead letters by their index; see `Transport.dead_letter_count`."""
        self._require_open()
        return await self._read(dead.count)

    async def groups(self) -> list[GroupState]:
        """Count what waits for each group, in at most GROUPS_SCAN entries of the log; see `Transport.groups`."""
        self._require_open()
        return await self._read(states)

    async def redeliver(self, numbers: Sequence[int]) -> int:
        """Put dead letters back to their groups, many in one transaction; see `Transport.redeliver`."""
        self._require_open()
        await self._read(lambda connection: dead.require_groups_of(connection, numbers))
        return sum([await self._write(lambda c, part=part: dead.redeliver(c, part)) for part in _chunks(numbers)])

    async def discard(self, numbers: Sequence[int]) -> int:
        """Take dead letters off the list, many in one transaction; see `Transport.discard`."""
        self._require_open()
        return sum([await self._write(lambda c, part=part: dead.discard(c, part)) for part in _chunks(numbers)])

    async def replay(self, messages: Sequence[Message], *, group: str | None) -> None:
        """Give messages to groups again, many in one transaction; see `Transport.replay`."""
        self._require_open()
        # With none there is still the group to look for.
        for part in _chunks(messages) or [messages]:
            await self._write(lambda connection, part=part: dead.replay(connection, part, group))

    def _failure(self, error: WriteTimedOut | sqlite3.Error | OSError, timeout_seconds: float) -> BloodbankError:
        path = self._database.path
        if isinstance(error, WriteTimedOut):
            if error.begun:
                return PublishUnknown(
                    f"{path} was not on the disk within {timeout_seconds} s; the event may be stored. "
                    "Publishing the same id again is safe."
                )
            return TransportUnavailable(
                f"{path} did not take a write within {timeout_seconds} s. Nothing was stored; try again."
            )
        if isinstance(error, sqlite3.OperationalError) and is_primary(error, sqlite3.SQLITE_IOERR):
            return PublishUnknown(
                f"The disk reported an error for {path} ({error}); the event may be stored. "
                "Publishing the same id again is safe."
            )
        return translation(error, path, TransportUnavailable)

    async def _read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        with translated(self._database.path, TransportUnavailable):
            return await self._database.read(question)

    async def _write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Write what subscriptions may wait for."""
        with translated(self._database.path, TransportUnavailable):
            outcome = await self._database.write(job)
        self._bell.ring()
        return outcome

    async def _watch_others(self) -> None:
        """Ring when another process wrote. Costs nothing while nobody listens."""
        seen: int | None = None
        failing = False
        while True:
            await asyncio.sleep(self._poll_seconds)
            if not self._bell.heard:
                continue
            try:
                with translated(self._database.path, TransportUnavailable):
                    count = await self._database.change_count()
            except TransportUnavailable as error:
                if not failing:
                    logger.warning("Events of other processes are not seen for now: %s", error)
                failing = True
                continue
            failing = False
            if count != seen:
                seen = count
                self._bell.ring()

    async def _purge_hourly(self) -> None:
        while True:
            before = now_microseconds() - int(self._retention_seconds * MICROSECONDS)
            try:
                with translated(self._database.path, TransportUnavailable):
                    while await self._database.write(lambda connection, b=before: log.purge(connection, b)):
                        pass
            except TransportUnavailable as error:
                logger.warning("Old events could not be removed from the log, next try in an hour: %s", error)
            except Exception:
                # The edge of this task: it goes on, or the log would grow without a word.
                logger.exception("Removing old events failed; next try in an hour.")
            await asyncio.sleep(PURGE_INTERVAL_SECONDS)

    def _require_open(self) -> None:
        if not self._open:
            raise NotOpen("The embedded log is not open. Enter it first: `async with transport`.")


def _chunks(several: Sequence[T]) -> list[Sequence[T]]:
    return [several[at : at + dead.CHUNK] for at in range(0, len(several), dead.CHUNK)]


class _Bell:
    """Wakes everybody who listens."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Event] = set()

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def ring(self) -> None:
        """Set the events of all listeners."""
        for event in self._listeners:
            event.set()

    @contextmanager
    def listening(self) -> Generator[asyncio.Event]:
        """Within the block, the event is set by every ring; the listener clears it."""
        event = asyncio.Event()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.remove(event)
