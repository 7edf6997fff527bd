"""Links that the correlation store does not take now: they go into a journal before anybody is told `deferred`.

A journal is bounded, and its disk can fail. What it does not take is deferred all the same, since the log has it; it
is counted, with the time of the first, so that an operator knows from when on the index is to be rebuilt.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from bloodbank.breaker import CircuitBreaker
from bloodbank.errors import Unavailable
from bloodbank.stores.base import Link

logger = logging.getLogger(__name__)

JOURNAL_FAILURES = 3
"""Failures in a row after which the journal is left alone, so that a disk that hangs costs one bounded wait."""
JOURNAL_RESET_SECONDS = 1.0
"""How long it is left alone before it is tried again."""
LOOKS = 3
"""How often the journal is read for one look, while it is being written to."""
SINCE_MARGIN = timedelta(minutes=1)
"""How much earlier than it was told an event can stand in the log: a confirm takes time, and clocks differ."""


class Lineage(StrEnum):
    """What became of an event's edges.

    recorded: the index has them. deferred: it could not be reached in time; the journal or at least the envelope in
    the log has them. disabled: tracking is off.
    """

    RECORDED = "recorded"
    DEFERRED = "deferred"
    DISABLED = "disabled"


class Missed(NamedTuple):
    """Links that are in no journal: how many, and when the first and the last of them were accepted."""

    total: int
    since: datetime
    until: datetime

    @classmethod
    def of(cls, links: Sequence[Link]) -> Self:
        """Return what is remembered of some links, at least one."""
        times = [link.accepted_at for link in links]
        return cls(len(times), min(times), max(times))

    def plus(self, other: Missed | None) -> Missed:
        """Return both together."""
        if other is None:
            return self
        return Missed(self.total + other.total, min(self.since, other.since), max(self.until, other.until))


class JournalStatus(NamedTuple):
    """waiting: links that wait. set_aside: those that the store refused. missed: those that had no place."""

    waiting: int
    set_aside: int
    missed: Missed | None


class Journal(Protocol):
    """Keeps links, in order, until they are recorded. Several processes may share what it keeps them in."""

    async def __aenter__(self) -> Self:
        """Open; what was set aside waits again. Raises Unavailable, StoreFormatError; may be tried again."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        ...

    async def append(self, links: Sequence[Link]) -> int:
        """Keep links; return how many of the first ones were kept, durably. Those for which there is no room are noted.

        Raises Unavailable.
        """
        ...

    async def first(self, limit: int) -> list[tuple[int, Link]]:
        """Return the oldest ones, with their numbers. Raises Unavailable."""
        ...

    async def remove(self, numbers: Sequence[int]) -> None:
        """Remove some; idempotent. Raises Unavailable."""
        ...

    async def set_aside(self, number: int, reason: str) -> None:
        """Keep one out of the way until the journal is opened again. Raises Unavailable."""
        ...

    async def count(self) -> int:
        """Return how many wait. Raises Unavailable."""
        ...

    async def status(self) -> JournalStatus:
        """Return what is kept and what had no place. Raises Unavailable."""
        ...

    async def note_missed(self, missed: Missed) -> None:
        """Remember links that had no place. Raises Unavailable."""
        ...

    async def clear_missed(self, *, since: datetime, until: datetime) -> None:
        """Forget the links that had no place, when all were accepted within these times. Raises Unavailable."""
        ...


class Deferral:
    """Gives the answer DEFERRED, after the link is in the journal if there is one.

    journal: opened and closed here; None: every link that comes is counted as in no journal.
    timeout_seconds: longest wait for the journal.
    kept: called when the journal has taken links.

    deferred_total: links that came. waiting: links in the journal, as it was last seen. set_aside_total: links that
    the store refused, likewise. is_deferring: whether the last link came here and was not recorded.
    """

    def __init__(self, journal: Journal | None, *, timeout_seconds: float, kept: Callable[[], None]) -> None:
        self.journal = journal
        self.deferred_total = 0
        self.waiting = 0
        self.set_aside_total = 0
        self.is_deferring = False
        self._timeout_seconds = timeout_seconds
        self._kept = kept
        self._breaker = CircuitBreaker(failure_threshold=JOURNAL_FAILURES, reset_seconds=JOURNAL_RESET_SECONDS)
        self._stack = AsyncExitStack()
        self._is_open = False
        # What came in this turn of the loop: links, and who waits for them.
        self._links: list[Link] = []
        self._answers: list[asyncio.Future[Lineage]] = []
        self._flush_is_due = False
        self._appends: set[asyncio.Task[None]] = set()
        self._missed_before: Missed | None = None
        self._missed_now: Missed | None = None
        self._is_missing = False
        self._appended = 0

    @property
    def missed(self) -> Missed | None:
        """Links that are in no journal; None: there are none."""
        return self._missed_now.plus(self._missed_before) if self._missed_now else self._missed_before

    async def open(self) -> None:
        """Open the journal unless it is open, and look what is in it. Raises Unavailable, StoreFormatError."""
        if self.journal is None:
            return
        if not self._is_open:
            await self._stack.enter_async_context(self.journal)
            self._is_open = True
        await self.look()

    async def look(self) -> None:
        """Look what is in the journal, where other processes write too. Raises Unavailable."""
        if self.journal is None or not self._is_open:
            return
        if self._missed_now is not None:
            missed, before = self._missed_now, self._missed_before
            # They count all the time: here, while they are noted, and then in what the journal says.
            self._missed_now, self._missed_before = None, missed.plus(before)
            try:
                await self.journal.note_missed(missed)
            except BaseException:
                self._missed_now, self._missed_before = missed.plus(self._missed_now), before
                raise
        for _ in range(LOOKS):
            appended = self._appended
            self.waiting, self.set_aside_total, self._missed_before = await self.journal.status()
            if appended == self._appended:
                # Otherwise it may be older than what was appended meanwhile.
                break

    async def close(self) -> None:
        """Wait for what is being written, then close the journal. Idempotent."""
        self._flush()
        while self._appends:
            await asyncio.gather(*self._appends)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self.look()
        except (Unavailable, TimeoutError) as error:
            logger.warning("The journal cannot be written (%s). %s", _reason(error), self._advice())
        self._is_open = False
        await self._stack.aclose()

    async def clear_missed(self, *, since: datetime, until: datetime) -> None:
        """Forget links that are in no journal, when all were accepted within these times. Raises Unavailable."""
        missed = self._missed_now
        if missed is not None and since <= missed.since and missed.until <= until:
            self._missed_now = None
        if self.journal is not None and self._is_open:
            await self.journal.clear_missed(since=since, until=until)
            await self.look()

    def defer(self, links: Sequence[Link], answers: Sequence[asyncio.Future[Lineage]]) -> None:
        """Give some answers once some links are in the journal; what comes in one turn of the loop goes together."""
        if not links:
            return
        self.deferred_total += len(links)
        if not self.is_deferring:
            self.is_deferring = True
            logger.warning(
                "Lineage is deferred, beginning with event %s: the index does not have it.", links[0].event_id
            )
        if not self._is_open:
            self._miss(links, None)
            _answer(answers)
            return
        self._links += links
        self._answers += answers
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def recorded(self) -> None:
        """Say that lineage is recorded again."""
        self.is_deferring = False
        logger.warning("Lineage is recorded again. Deferred so far: %d events.", self.deferred_total)

    def _flush(self) -> None:
        self._flush_is_due = False
        links, self._links = self._links, []
        answers, self._answers = self._answers, []
        if not links:
            return
        if self.journal is None or not self._breaker.allow():
            self._miss(links, None)
            _answer(answers)
            return
        append = asyncio.get_running_loop().create_task(self._append(self.journal, links, answers))
        self._appends.add(append)
        append.add_done_callback(self._appends.discard)

    async def _append(
        self, journal: Journal, links: Sequence[Link], answers: Sequence[asyncio.Future[Lineage]]
    ) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                kept = await journal.append(links)
        except (Unavailable, TimeoutError) as error:
            self._breaker.record_failure()
            self._miss(links, _reason(error))
        except asyncio.CancelledError:
            self._breaker.abandon()
            self._miss(links, "it was not waited for")
            raise
        except Exception as error:
            # The edge of this task: whoever published waits for the answer.
            logger.exception("Writing %d links to the journal failed, the first being %s.", len(links), links[0][0])
            self._breaker.record_failure()
            self._miss(links, _reason(error))
        else:
            self._breaker.record_success()
            self._appended += 1
            self.waiting += kept
            if kept < len(links):
                # The journal has noted them itself, in the same commit.
                missed = Missed.of(links[kept:])
                self._missed_before = missed.plus(self._missed_before)
                self._tell_missed("it is full")
            else:
                self._is_missing = False
            self._kept()
        finally:
            _answer(answers)

    def _miss(self, links: Sequence[Link], reason: str | None) -> None:
        self._missed_now = Missed.of(links).plus(self._missed_now)
        if reason is not None or self.journal is not None:
            self._tell_missed(reason or "it is not open")

    def _tell_missed(self, reason: str) -> None:
        if not self._is_missing:
            self._is_missing = True
            logger.warning("The journal does not take links (%s). %s", reason, self._advice())

    def _advice(self) -> str:
        missed = self.missed
        if missed is None:
            return "Nothing is missing."
        since = (missed.since - SINCE_MARGIN).isoformat(timespec="seconds")
        return f"The log has them: once the index is back, run bb reindex --since {since}."


def _reason(error: Exception) -> str:
    return str(error) or "no answer in time"


def _answer(answers: Sequence[asyncio.Future[Lineage]]) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_result(Lineage.DEFERRED)
