"""Which events a group has handled, so that redelivery and duplicates do not run a handler twice.

An id is noted after the handler succeeded and before the delivery is settled. A process that dies between the two has
its delivery dropped by the next one; one that dies before the note, or while the inbox is away, has its event handled
again: at least once, always. Two copies of an event that are handled at the same moment by two processes run twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID

from bloodbank.breaker import BreakerState, CircuitBreaker
from bloodbank.errors import Unavailable

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 500
"""Most ids of one question or note."""

Ask = Callable[[str, Sequence[UUID]], Awaitable[set[UUID]]]
_Waiting = tuple[UUID, asyncio.Future[set[UUID]]]


class Inbox(Protocol):
    """What remembers. All raise StoreUnavailable; opening may be tried again."""

    async def __aenter__(self) -> Self:
        """Open. Raises StoreUnavailable, StoreFormatError."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        ...

    async def seen(self, group: str, event_ids: Sequence[UUID]) -> set[UUID]:
        """Return those of the ids that the group has handled."""
        ...

    async def mark(self, group: str, event_ids: Sequence[UUID]) -> None:
        """Note that the group has handled them; idempotent."""
        ...


class GuardedInbox:
    """An inbox whose absence stops no handler: what cannot be asked counts as not seen.

    What is asked while a round trip is under way shares the next one.

    inbox: opened here, also later when it was away at first. timeout_seconds: longest round trip.
    """

    def __init__(self, inbox: Inbox, *, timeout_seconds: float, breaker: CircuitBreaker) -> None:
        self._inbox = inbox
        self._timeout_seconds = timeout_seconds
        self._breaker = breaker
        self._is_open = False
        self._opening = asyncio.Lock()
        self._is_away = False
        self._seen = _Shared(self._ask_seen)
        self._mark = _Shared(self._ask_mark)

    async def __aenter__(self) -> Self:
        """Open; an inbox that is away is found later. Raises StoreFormatError."""
        await self._guarded(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, after what is under way."""
        await self._seen.close()
        await self._mark.close()
        if self._is_open:
            self._is_open = False
            await self._inbox.__aexit__(kind, error, trace)

    async def has_seen(self, group: str, event_id: UUID) -> bool:
        """Say whether the group has handled the event for certain."""
        return not self._is_left_alone() and event_id in await self._seen.ask(group, event_id)

    async def mark(self, group: str, event_id: UUID) -> None:
        """Note that the group has handled the event, if that can be done."""
        if not self._is_left_alone():
            await self._mark.ask(group, event_id)

    def _is_left_alone(self) -> bool:
        """Say whether nobody need be asked now, so that nobody waits behind a probe."""
        state = self._breaker.state
        return state is BreakerState.HALF_OPEN or (state is BreakerState.OPEN and self._breaker.seconds_until_probe > 0)

    async def _ask_seen(self, group: str, event_ids: Sequence[UUID]) -> set[UUID]:
        async def ask() -> set[UUID]:
            await self._open()
            return await self._inbox.seen(group, event_ids)

        return await self._guarded(ask) or set()

    async def _ask_mark(self, group: str, event_ids: Sequence[UUID]) -> set[UUID]:
        async def ask() -> set[UUID]:
            await self._open()
            await self._inbox.mark(group, event_ids)
            return set()

        return await self._guarded(ask) or set()

    async def _open(self) -> set[UUID]:
        async with self._opening:
            if not self._is_open:
                await self._inbox.__aenter__()
                self._is_open = True
        return set()

    async def _guarded(self, ask: Callable[[], Awaitable[set[UUID]]]) -> set[UUID] | None:
        """Ask, within the time; None: the inbox is away."""
        if not self._breaker.allow():
            return None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await ask()
        except (Unavailable, TimeoutError) as error:
            is_timeout = isinstance(error, TimeoutError) and not isinstance(error, Unavailable)
            self._breaker.record_failure(decisive=is_timeout)
            self._note_away(f"no answer within {self._timeout_seconds:g} s" if is_timeout else str(error))
            return None
        except BaseException:
            self._breaker.abandon()
            raise
        self._breaker.record_success()
        self._note_back()
        return answer

    def _note_away(self, reason: str) -> None:
        if not self._is_away:
            logger.warning("The inbox is away (%s): events may be handled more than once until it is back.", reason)
        self._is_away = True

    def _note_back(self) -> None:
        if self._is_away:
            logger.info("The inbox is back.")
        self._is_away = False


class _Shared:
    """Lets callers share round trips: one is under way at a time, and takes along all who came before it."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: dict[str, list[_Waiting]] = {}
        self._sending: asyncio.Task[None] | None = None

    async def ask(self, group: str, event_id: UUID) -> set[UUID]:
        """Return the answer of the round trip that takes this id along; who is cancelled leaves it there."""
        future: asyncio.Future[set[UUID]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(group, []).append((event_id, future))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send(), name="bloodbank-inbox")
        return await future

    async def close(self) -> None:
        """Wait until nothing is under way."""
        if self._sending is not None:
            await asyncio.wait([self._sending])

    async def _send(self) -> None:
        try:
            while self._waiting:
                group = next(iter(self._waiting))
                waiting = self._waiting.pop(group)
                if len(waiting) > MOST_AT_ONCE:
                    self._waiting[group] = waiting[MOST_AT_ONCE:]
                    waiting = waiting[:MOST_AT_ONCE]
                try:
                    answer = await self._ask(group, [event_id for event_id, _ in waiting])
                except Exception as error:  # noqa: BLE001, told to everybody who waits for it
                    for _, future in waiting:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for _, future in waiting:
                    if not future.done():
                        future.set_result(answer)
        finally:
            self._sending = None
