"""Records which events caused which, without ever holding up a publish.

What is recorded at the same time shares a round trip. A store that hangs or is gone costs one bounded wait: then the
breaker opens, what waits for the store is let go, and a task of the recorder's own looks for the store again. What
could not be recorded goes into a journal meanwhile, and from there into the index when the store is back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from bloodbank.breaker import BreakerState, CircuitBreaker
from bloodbank.deferral import SINCE_MARGIN, Deferral, Journal, Lineage
from bloodbank.errors import NotOpen, StoreFormatError, StoreUnavailable, Unavailable
from bloodbank.events.registry import utc_now
from bloodbank.healing import Healing, Refused
from bloodbank.stores.base import CorrelationStore, Link, Sender

logger = logging.getLogger(__name__)

PURGE_INTERVAL_SECONDS = 3600.0
JOURNAL_SHARE = 0.8
"""Longest wait for the journal, of `timeout_seconds`: both together stay below twice that."""
OPEN_SECONDS = 10.0
"""Longest wait for the journal's file to be opened."""

Answer = TypeVar("Answer")


class _Queue:
    """Events that wait to be recorded. Lists side by side: an object for each event would have to be made and freed.

    answers, deadlines: of the links in the same place; the deadlines rise, in seconds of the monotonic clock.
    """

    __slots__ = ("answers", "deadlines", "links")

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.answers: list[asyncio.Future[Lineage]] = []
        self.deadlines: list[float] = []

    def __len__(self) -> int:
        return len(self.links)

    def take(self, count: int) -> _Queue:
        """Return the first ones, at most so many, and keep the rest."""
        taken = _Queue()
        for name in self.__slots__:
            mine: list[Any] = getattr(self, name)
            setattr(taken, name, mine[:count])
            del mine[:count]
        return taken

    def put_back(self, batch: _Queue) -> None:
        """Set what was taken before all others again."""
        for name in self.__slots__:
            getattr(self, name)[:0] = getattr(batch, name)


class _Sent(NamedTuple):
    """What is on its way without the task. fair: it had most of its time, so that running out of it tells something."""

    batch: _Queue
    give_up: Callable[[], None]
    timer: asyncio.TimerHandle
    fair: bool


class Recorder:
    """The recording part of a `CorrelationTracker`, which says what the arguments are."""

    def __init__(
        self,
        store: CorrelationStore,
        *,
        timeout_seconds: float,
        breaker: CircuitBreaker | None,
        batch_limit: int,
        queue_limit: int,
        retention_seconds: float | None,
        journal: Journal | None,
    ) -> None:
        self._store = store
        self._sender = store if isinstance(store, Sender) else None
        self._timeout_seconds = timeout_seconds
        self._breaker = breaker or CircuitBreaker()
        self._batch_limit = batch_limit
        self._queue_limit = queue_limit
        self._retention_seconds = retention_seconds
        self._deferral = Deferral(journal, timeout_seconds=JOURNAL_SHARE * timeout_seconds, kept=self._wake_healing)
        self._healing = Healing(
            self._deferral, record=self._record_kept, is_well=self._is_well, recorded_batches=lambda: self._recorded
        )
        self._waiting = _Queue()
        self._under_way = 0
        self._sent: _Sent | None = None
        self._flush_is_due = False
        # Whether the last batch was one event: who publishes one by one is not made to wait for others to join in.
        self._came_alone = False
        self._recorded = 0
        # Of the calls that are let go when the breaker opens.
        self._limits: set[asyncio.Timeout] = set()
        # Futures and no events: each is made when somebody waits, which is not for every event.
        self._wake: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._stack = AsyncExitStack()
        self._store_is_open = False
        self._last_failure = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open journal and store, or begin to look for what cannot be opened.

        Raises StoreFormatError when one of them holds a format that this version does not read.
        """
        if self._tasks:
            return
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._deferral.open()
        except (Unavailable, TimeoutError) as error:
            logger.warning("The journal cannot be opened; it is tried again. %s", error)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._open_store()
        except (StoreUnavailable, TimeoutError) as error:
            self._failed(error, decisive=True)
        except BaseException:
            await self._deferral.close()
            raise
        self._tasks = [asyncio.create_task(self._record_forever(), name="bloodbank-tracker")]
        if self._deferral.journal is not None:
            self._tasks.append(asyncio.create_task(self._healing.run_forever(), name="bloodbank-tracker-healing"))
        if self._retention_seconds is not None:
            self._tasks.append(asyncio.create_task(self._purge_forever(), name="bloodbank-tracker-purge"))

    async def close(self) -> None:
        """Record what waits, within the time limit; leave the rest in the journal; close both. Idempotent."""
        if not self._tasks:
            return
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._drain()
        except TimeoutError:
            left = self._under_way + len(self._waiting)
            logger.info("The correlation store did not take %d events before closing.", left)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sent is not None:
            self._give_up(self._sent)
        self._defer_all()
        await self._deferral.close()
        self._store_is_open = False
        await self._stack.aclose()

    @property
    def breaker_state(self) -> BreakerState:
        """State of the breaker, for health checks."""
        return self._breaker.state

    @property
    def last_failure(self) -> str:
        """Why the store did not do what it was asked last, as a sentence; empty before that."""
        return self._last_failure

    @property
    def deferred_total(self) -> int:
        """Events whose edges this tracker could not record when they came."""
        return self._deferral.deferred_total

    @property
    def journalled(self) -> int:
        """Links that wait in the journal, as it was last seen; other processes may share it."""
        return self._deferral.waiting

    @property
    def set_aside_total(self) -> int:
        """Links that the store refused and that are kept aside in the journal, as it was last seen."""
        return self._deferral.set_aside_total

    @property
    def unjournalled_total(self) -> int:
        """Deferred events that no journal has: the index gets them when it is rebuilt from the log."""
        missed = self._deferral.missed
        return missed.total if missed else 0

    @property
    def unjournalled_since(self) -> datetime | None:
        """From when on the log is to be read to get those events into the index; None: there are none."""
        missed = self._deferral.missed
        return missed.since - SINCE_MARGIN if missed else None

    async def clear_unjournalled(self, *, since: datetime, until: datetime) -> None:
        """Forget the events that no journal has, after the index was rebuilt from the log between two times.

        Those times must include all of these events, or nothing is forgotten. Raises Unavailable, NotOpen.
        """
        self._require_open()
        await self._deferral.clear_missed(since=since, until=until)

    async def record(self, link: Link) -> Lineage:
        """Record an accepted event and its edges; RECORDED, or DEFERRED when it is in the journal.

        The store is waited for at most `timeout_seconds`, and the journal as long at most.

        Never raises for a store that is away. Raises NotOpen outside `start` and `close`.
        """
        return await self.enqueue(link)

    async def record_many(self, links: Sequence[Link]) -> list[Lineage]:
        """Record several accepted events; one answer for each, in order."""
        self._require_open()
        if len(self._waiting) + len(links) > self._queue_limit:
            together: asyncio.Future[Lineage] = self._loop.create_future()
            self._deferral.defer(links, (together,))
            return [await together] * len(links)
        answers = [self.enqueue(link) for link in links]
        return [await answer for answer in answers]

    def enqueue(self, link: Link) -> asyncio.Future[Lineage]:
        """Take an accepted event to be recorded with all others of this turn of the event loop; never waits.

        What comes while a batch is on its way goes with the next one. The future gets the answer that `record`
        gives, within the same time. Raises NotOpen outside `start` and `close`.
        """
        self._require_open()
        waiting = self._waiting
        answer: asyncio.Future[Lineage] = self._loop.create_future()
        if self._breaker.state is not BreakerState.CLOSED or len(waiting.links) >= self._queue_limit:
            self._deferral.defer((link,), (answer,))
            return answer
        waiting.links.append(link)
        waiting.answers.append(answer)
        waiting.deadlines.append(time.monotonic() + self._timeout_seconds)
        if self._wake is not None and not self._flush_is_due and self._sent is None:
            if self._came_alone:
                self._flush()
            else:
                # All that is ready now shall run first, and what that enqueues goes with it.
                self._flush_is_due = True
                self._loop.call_soon(self._flush)
        return answer

    async def _record_forever(self) -> None:
        while True:
            if self._breaker.state is not BreakerState.CLOSED:
                self._defer_all()
                await asyncio.sleep(self._breaker.seconds_until_probe)
                await self._probe()
            elif self._waiting and self._sent is None:
                await self._record_batch()
            else:
                if self._sent is None:
                    self._end_drain()
                self._wake = self._loop.create_future()
                await self._wake

    def _wake_up(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    def _flush(self) -> None:
        """Send what waits, or let the task do it: while the store has no connection, or when it is no `Sender`."""
        self._flush_is_due = False
        if self._sent is not None or not self._waiting:
            return
        if self._sender is None or self._wake is None or self._breaker.state is not BreakerState.CLOSED:
            self._wake_up()
            return
        batch = self._waiting.take(self._batch_limit)
        try:
            give_up = self._sender.send(batch.links, partial(self._came_back, batch))
        except Exception:
            # Not lost: the task comes upon the same, as an error of `record`, and logs it.
            logger.debug("Sending %d events failed.", len(batch), exc_info=True)
            give_up = None
        if give_up is None:
            self._waiting.put_back(batch)
            self._wake_up()
            return
        self._under_way = len(batch)
        self._came_alone = self._under_way == 1
        seconds_left = max(0.0, batch.deadlines[0] - time.monotonic())
        timer = self._loop.call_later(seconds_left, self._ran_out_of_time, batch)
        self._sent = _Sent(batch, give_up, timer, fair=seconds_left > self._timeout_seconds / 2)

    def _came_back(self, batch: _Queue, recorded: bool) -> None:
        if self._sent is None or self._sent.batch is not batch:
            return
        self._sent.timer.cancel()
        self._sent, self._under_way = None, 0
        if recorded:
            self._breaker.record_success()
            self._resolve(batch, Lineage.RECORDED)
        else:
            # The task records it, or learns why that cannot be; to record twice does no harm.
            self._waiting.put_back(batch)
            self._wake_up()
        self._go_on()

    def _ran_out_of_time(self, batch: _Queue) -> None:
        sent = self._sent
        if sent is None or sent.batch is not batch:
            return
        if sent.fair:
            # Opens the breaker, which gives up what is under way.
            self._failed(TimeoutError(), decisive=True)
        if self._sent is sent:
            self._give_up(sent)
        self._go_on()

    def _give_up(self, sent: _Sent) -> None:
        sent.timer.cancel()
        self._sent, self._under_way = None, 0
        sent.give_up()
        self._resolve(sent.batch, Lineage.DEFERRED)

    def _go_on(self) -> None:
        if self._waiting:
            self._flush()
        else:
            self._end_drain()

    async def _drain(self) -> None:
        """Wait until nothing waits and nothing is on its way."""
        if self._waiting or self._under_way:
            self._drained = self._loop.create_future()
            await self._drained

    def _end_drain(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def _record_batch(self) -> None:
        batch = self._waiting.take(self._batch_limit)
        self._under_way = len(batch)
        lineage = Lineage.DEFERRED
        seconds_left = max(0.0, batch.deadlines[0] - time.monotonic())
        try:
            await self._within(seconds_left, self._store.record(batch.links))
            lineage = Lineage.RECORDED
            self._breaker.record_success()
        except StoreUnavailable as error:
            self._failed(error)
        except TimeoutError as error:
            # What waited behind others for most of its time says nothing of the store.
            if seconds_left > self._timeout_seconds / 2:
                self._failed(error, decisive=True)
        except Exception as error:
            # The edge of this task: it must outlive what nobody foresaw, or every later publish would wait.
            logger.exception("Recording %d events failed, the first being %s.", len(batch), batch.links[0].event_id)
            self._failed(error)
        finally:
            self._under_way = 0
            self._resolve(batch, lineage)

    async def _probe(self) -> None:
        if not self._breaker.allow():
            return
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._open_store()
                await self._store.check()
        except (StoreUnavailable, TimeoutError) as error:
            logger.debug("The correlation store is still away: %s", error)
            self._note(error)
            self._breaker.record_failure()
        except asyncio.CancelledError:
            self._breaker.abandon()
            raise
        except Exception as error:
            # The edge of this task, as above; a format that cannot be read ends here too.
            logger.exception("The correlation store is there but cannot be used.")
            self._note(error)
            self._breaker.record_failure()
        else:
            self._breaker.record_success()
            # A warning, since it ends one: whoever sees the first shall see the second.
            logger.warning("The correlation store answers again; lineage is recorded.")
            self._healing.wake()

    async def _record_kept(self, links: Sequence[Link]) -> None:
        """Record what the journal holds. Raises StoreUnavailable when the store is away, StoreFormatError, Refused."""
        try:
            await self._within(self._timeout_seconds, self._store.record(links))
        except StoreFormatError:
            raise
        except TimeoutError as error:
            self._failed(error, decisive=True)
            raise StoreUnavailable(f"No answer within {self._timeout_seconds:g} s.") from error
        except Exception as error:
            # Whoever is there and does not record these has a reason of his own.
            await self._require_store()
            raise Refused from error
        self._recorded += 1

    async def _require_store(self) -> None:
        try:
            await self._within(self._timeout_seconds, self._store.check())
        except StoreUnavailable as error:
            self._failed(error)
            raise
        except TimeoutError as error:
            self._failed(error, decisive=True)
            raise StoreUnavailable(f"No answer within {self._timeout_seconds:g} s.") from error

    def _is_well(self) -> bool:
        return self._breaker.state is BreakerState.CLOSED

    def _wake_healing(self) -> None:
        if self._is_well():
            self._healing.wake()

    async def _purge_forever(self) -> None:
        while True:
            if self._breaker.state is BreakerState.CLOSED and self._retention_seconds is not None:
                try:
                    await self._store.purge(before=utc_now() - timedelta(seconds=self._retention_seconds))
                except StoreUnavailable as error:
                    logger.warning("Old events could not be purged from the index, next try in an hour: %s", error)
                except Exception:
                    # The edge of this task: it goes on, or the index would grow without a word.
                    logger.exception("Purging the index failed; next try in an hour.")
            await asyncio.sleep(PURGE_INTERVAL_SECONDS)

    async def _open_store(self) -> None:
        if not self._store_is_open:
            await self._stack.enter_async_context(self._store)
            self._store_is_open = True

    async def _within(self, seconds: float, call: Awaitable[Answer]) -> Answer:
        """Wait for the store, for so long at most, and only while the breaker is closed. Raises TimeoutError."""
        async with asyncio.timeout(seconds) as limit:
            self._limits.add(limit)
            try:
                return await call
            finally:
                self._limits.discard(limit)

    def _failed(self, error: Exception, *, decisive: bool = False) -> None:
        was_closed = self._breaker.state is BreakerState.CLOSED
        self._breaker.record_failure(decisive=decisive)
        self._note(error)
        if was_closed and self._breaker.state is BreakerState.OPEN:
            reason = str(error) or f"no answer within {self._timeout_seconds:g} s"
            logger.warning(
                "The correlation store is away (%s). Events are still published; their lineage is deferred.", reason
            )
            self._let_go()
            self._wake_up()

    def _note(self, error: Exception) -> None:
        if isinstance(error, Unavailable | StoreFormatError):
            self._last_failure = str(error)
        elif isinstance(error, TimeoutError):
            self._last_failure = f"It gave no answer within {self._timeout_seconds:g} s."
        else:
            # What nobody foresaw; its words may be about the inside, and stand in the log.
            self._last_failure = f"{type(error).__name__}; the log says more."

    def _let_go(self) -> None:
        """End every wait for the store: who began later than the one that failed need not wait as long."""
        if self._sent is not None:
            self._give_up(self._sent)
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(self._loop.time())

    def _defer_all(self) -> None:
        waiting, self._waiting = self._waiting, _Queue()
        self._resolve(waiting, Lineage.DEFERRED)
        self._end_drain()

    def _resolve(self, batch: _Queue, lineage: Lineage) -> None:
        if lineage is Lineage.DEFERRED:
            self._deferral.defer(batch.links, batch.answers)
            return
        self._recorded += 1
        if self._deferral.is_deferring and batch.links:
            self._deferral.recorded()
        for answer in batch.answers:
            if not answer.done():
                answer.set_result(lineage)

    def _require_open(self) -> None:
        if not self._tasks:
            raise NotOpen("The correlation tracker is not open. Use it inside 'async with', or call start() first.")
