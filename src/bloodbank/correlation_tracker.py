"""Records which events caused which, and answers questions about it, without ever holding up a publish.

What is recorded at the same time shares a round trip. A store that hangs or is gone costs one bounded wait:
then the breaker opens, recording is `deferred` at once, and a task of the tracker's own looks for the store
again. The parents stay in the envelopes of the log, so nothing is lost by that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID

from bloodbank.breaker import BreakerState, CircuitBreaker
from bloodbank.errors import InvalidQuery, NotOpen, StoreFormatError, StoreUnavailable
from bloodbank.events.registry import utc_now
from bloodbank.ids import event_id as deterministic_event_id
from bloodbank.stores.base import CorrelationStore, Direction, Graph, Link, Node, Sender

logger = logging.getLogger(__name__)

PURGE_INTERVAL_SECONDS = 3600.0

Answer = TypeVar("Answer")


class Lineage(StrEnum):
    """What became of an event's edges.

    recorded: the index has them. deferred: it could not be reached in time; the envelope in the log has them.
    disabled: tracking is off.
    """

    RECORDED = "recorded"
    DEFERRED = "deferred"
    DISABLED = "disabled"


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


class CorrelationTracker:
    """Stands between publishing and a correlation store.

    store: opened and closed by the tracker; it may be unreachable when the tracker starts.
    timeout_seconds: longest wait of `record` and `find`, at most 1.
    query_timeout_seconds: longest wait of a question.
    batch_limit: most events recorded in one round trip.
    queue_limit: most events that wait; beyond it recording is deferred at once.
    retention_seconds: purge the store hourly of what is older; None for stores that expire by themselves.
    """

    def __init__(
        self,
        store: CorrelationStore,
        *,
        timeout_seconds: float = 1.0,
        query_timeout_seconds: float = 10.0,
        breaker: CircuitBreaker | None = None,
        batch_limit: int = 500,
        queue_limit: int = 10_000,
        retention_seconds: float | None = None,
    ) -> None:
        self._store = store
        self._sender = store if isinstance(store, Sender) else None
        self._timeout_seconds = timeout_seconds
        self._query_timeout_seconds = query_timeout_seconds
        self._breaker = breaker or CircuitBreaker()
        self._batch_limit = batch_limit
        self._queue_limit = queue_limit
        self._retention_seconds = retention_seconds
        self._waiting = _Queue()
        self._under_way = 0
        self._sent: _Sent | None = None
        self._flush_is_due = False
        # Whether the last batch was one event: who publishes one by one is not made to wait for others to join in.
        self._came_alone = False
        # Futures and no events: each is made when somebody waits, which is not for every event.
        self._wake: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._stack = AsyncExitStack()
        self._store_is_open = False
        self._deferring = False
        self._deferred_total = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the store, or begin to look for it when it is unreachable.

        Raises StoreFormatError when the store holds a format that this version does not read.
        """
        if self._tasks:
            return
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._open_store()
        except (StoreUnavailable, TimeoutError) as error:
            self._failed(error, decisive=True)
        self._tasks = [asyncio.create_task(self._record_forever(), name="bloodbank-tracker")]
        if self._retention_seconds is not None:
            self._tasks.append(asyncio.create_task(self._purge_forever(), name="bloodbank-tracker-purge"))

    async def close(self) -> None:
        """Record what waits, within the time limit, then close the store. Idempotent."""
        if not self._tasks:
            return
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._drain()
        except TimeoutError:
            left = self._under_way + len(self._waiting)
            logger.warning("Closed with %d events not recorded in the index; the log has them.", left)
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sent is not None:
            self._give_up(self._sent)
        self._defer_all()
        self._store_is_open = False
        await self._stack.aclose()

    @property
    def breaker_state(self) -> BreakerState:
        """State of the breaker, for health checks."""
        return self._breaker.state

    @property
    def deferred_total(self) -> int:
        """Events whose edges this tracker could not record; the index lacks them, the log has them."""
        return self._deferred_total

    @property
    def retry_after_seconds(self) -> float:
        """Seconds after which asking again makes sense while the store is away."""
        return max(1.0, self._breaker.seconds_until_probe)

    def generate_event_id(self, event_type: str, /, **unique_fields: Any) -> UUID:
        """Return the id that belongs to a type and its unique fields; see `bloodbank.ids.event_id`."""
        return deterministic_event_id(event_type, **unique_fields)

    async def record(self, link: Link) -> Lineage:
        """Record an accepted event and its edges; RECORDED, or DEFERRED after at most `timeout_seconds`.

        Never raises for a store that is away. Raises NotOpen outside `start` and `close`.
        """
        return await self.enqueue(link)

    async def record_many(self, links: Sequence[Link]) -> list[Lineage]:
        """Record several accepted events; one answer for each, in order."""
        self._require_open()
        if len(self._waiting) + len(links) > self._queue_limit:
            self._note_deferred(link.event_id for link in links)
            return [Lineage.DEFERRED] * len(links)
        answers = [self.enqueue(link) for link in links]
        return [await answer for answer in answers]

    def enqueue(self, link: Link) -> asyncio.Future[Lineage]:
        """Take an accepted event to be recorded with all others of this turn of the event loop; never waits.

        What comes while a batch is on its way goes with the next one. The future has its answer, as `record`
        gives it, after at most `timeout_seconds`. Raises NotOpen outside `start` and `close`.
        """
        self._require_open()
        waiting = self._waiting
        answer: asyncio.Future[Lineage] = self._loop.create_future()
        if self._breaker.state is not BreakerState.CLOSED or len(waiting.links) >= self._queue_limit:
            self._note_deferred((link.event_id,))
            answer.set_result(Lineage.DEFERRED)
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

    async def add_correlation(
        self,
        child_event_id: UUID,
        parent_event_ids: Sequence[UUID],
        *,
        event_type: str = "correlation.added",
        source: str = "unknown",
    ) -> Lineage:
        """Record that some events caused another, without publishing it.

        For events that are on the bus already but not in the index, or that live elsewhere: what is said here
        stands in no envelope and is gone when the index is rebuilt. An event that the index knows stays as it is.

        Raises InvalidQuery when the event is its own parent.
        """
        if child_event_id in parent_event_ids:
            raise InvalidQuery(f"{child_event_id} cannot be its own parent; remove it from parent_event_ids.")
        now = utc_now()
        parents = tuple(dict.fromkeys(parent_event_ids))
        return await self.record(Link(child_event_id, parents, event_type, now, source, now))

    async def find(self, event_ids: Sequence[UUID]) -> dict[UUID, Node] | None:
        """Return what the index knows of some events within `timeout_seconds`; None when it is away or unreadable."""
        self._require_open()
        if self._breaker.state is not BreakerState.CLOSED:
            return None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                nodes = await self._store.nodes(event_ids)
        except TimeoutError as error:
            # Very many ids take long on a store that is well.
            if len(event_ids) <= self._batch_limit:
                self._failed(error, decisive=True)
            return None
        except StoreUnavailable as error:
            self._failed(error)
            return None
        except StoreFormatError as error:
            # Publishing asks this first, and what is wrong with the index must not stop it.
            logger.warning("The index cannot tell of an event: %s", error)
            return None
        self._breaker.record_success()
        return nodes

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return what the index knows of some events; absent: never seen. Raises StoreUnavailable."""
        return await self._ask(lambda: self._store.nodes(event_ids))

    async def walk(self, event_id: UUID, direction: Direction | str, *, max_depth: int = 50, limit: int = 500) -> Graph:
        """Return the graph around an event; see `CorrelationStore.walk`.

        Raises InvalidQuery, EventNotFound, StoreUnavailable.
        """
        way = parse_direction(direction)
        if max_depth < 1 or limit < 1:
            raise InvalidQuery("max_depth and limit must be at least 1.")
        return await self._ask(lambda: self._store.walk(event_id, way, max_depth=max_depth, limit=limit))

    async def get_parents(self, event_id: UUID) -> list[UUID]:
        """Return the direct causes of an event; empty for a root and for an unknown event."""
        node = (await self.nodes([event_id])).get(event_id)
        return list(node.parents) if node else []

    async def get_children(self, event_id: UUID, *, limit: int = 50_000) -> list[UUID]:
        """Return the direct effects of an event, in order; raises EventNotFound for an unknown event."""
        graph = await self.walk(event_id, Direction.DESCENDANTS, max_depth=1, limit=limit + 1)
        return [step.node.event_id for step in graph.steps if event_id in step.node.parents]

    async def get_correlation_chain(
        self, event_id: UUID, direction: Direction | str = Direction.ANCESTORS, max_depth: int = 100
    ) -> list[UUID]:
        """Return an event with its ancestors or its descendants, parents first. Raises as `walk`."""
        graph = await self.walk(event_id, direction, max_depth=max_depth, limit=50_000)
        return list(graph.ids)

    async def debug_dump(self, event_id: UUID, *, max_depth: int = 100, limit: int = 5000) -> dict[str, Any]:
        """Return parents, children, ancestors, descendants and metadata of an event, ready for JSON.

        The event itself is in none of the lists. Raises EventNotFound, StoreUnavailable.
        """
        up = await self.walk(event_id, Direction.ANCESTORS, max_depth=max_depth, limit=limit)
        down = await self.walk(event_id, Direction.DESCENDANTS, max_depth=max_depth, limit=limit)
        node = next(step.node for step in up.steps if step.node.event_id == event_id)
        link = node.link
        children = [step.node.event_id for step in down.steps if event_id in step.node.parents]
        return {
            "event_id": str(event_id),
            "parents": [str(parent) for parent in node.parents],
            "children": [str(child) for child in children],
            "ancestors": [str(i) for i in up.ids if i != event_id],
            "descendants": [str(i) for i in down.ids if i != event_id],
            "metadata": {
                "known": node.known,
                "event_type": link.event_type if link else None,
                "timestamp": link.timestamp.isoformat() if link else None,
                "source": link.source if link else None,
                "children_total": node.children_total,
                "truncated": any((up.truncated.depth, up.truncated.limit, down.truncated.depth, down.truncated.limit)),
            },
        }

    async def check(self) -> None:
        """Make one round trip to the store. Raises StoreUnavailable."""
        await self._ask(self._store.check)

    async def _ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        self._require_open()
        if self._breaker.state is not BreakerState.CLOSED:
            raise StoreUnavailable(
                "The correlation store does not answer, so lineage cannot be told now. Events are still published. "
                f"Try again in {self.retry_after_seconds:.0f} s."
            )
        try:
            async with asyncio.timeout(self._query_timeout_seconds):
                answer = await question()
        except StoreUnavailable as error:
            self._failed(error)
            raise
        except TimeoutError as error:
            raise StoreUnavailable(
                f"The correlation store did not answer within {self._query_timeout_seconds:g} s. Ask for less "
                "(max_depth, limit) or try again."
            ) from error
        self._breaker.record_success()
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
            self._failed(TimeoutError(), decisive=True)
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
            async with asyncio.timeout(seconds_left):
                await self._store.record(batch.links)
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
            self._breaker.record_failure()
        except asyncio.CancelledError:
            self._breaker.abandon()
            raise
        except Exception:
            # The edge of this task, as above; a format that cannot be read ends here too.
            logger.exception("The correlation store is there but cannot be used.")
            self._breaker.record_failure()
        else:
            self._breaker.record_success()
            # A warning, since it ends one: whoever sees the first shall see the second.
            logger.warning("The correlation store answers again; lineage is recorded.")

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

    def _failed(self, error: Exception, *, decisive: bool = False) -> None:
        was_closed = self._breaker.state is BreakerState.CLOSED
        self._breaker.record_failure(decisive=decisive)
        if was_closed and self._breaker.state is BreakerState.OPEN:
            reason = str(error) or f"no answer within {self._timeout_seconds:g} s"
            logger.warning(
                "The correlation store is away (%s). Events are still published; their lineage is deferred.", reason
            )
            self._wake_up()

    def _defer_all(self) -> None:
        waiting, self._waiting = self._waiting, _Queue()
        self._resolve(waiting, Lineage.DEFERRED)
        self._end_drain()

    def _resolve(self, batch: _Queue, lineage: Lineage) -> None:
        if lineage is Lineage.DEFERRED:
            self._note_deferred(link.event_id for link in batch.links)
        elif self._deferring and batch.links:
            self._deferring = False
            logger.warning("Lineage is recorded again. Deferred so far: %d events.", self._deferred_total)
        for answer in batch.answers:
            if not answer.done():
                answer.set_result(lineage)

    def _note_deferred(self, event_ids: Iterable[UUID]) -> None:
        for event_id in event_ids:
            self._deferred_total += 1
            if not self._deferring:
                self._deferring = True
                logger.warning("Lineage is deferred, beginning with event %s: the index does not have it.", event_id)

    def _require_open(self) -> None:
        if not self._tasks:
            raise NotOpen("The correlation tracker is not open. Use it inside 'async with', or call start() first.")

    async def rebuild(self, links: Sequence[Link]) -> None:
        """Record events of the log, past the queue; when this returns, the index has them.

        Idempotent, and of no effect on those that are recorded already. Takes at most `query_timeout_seconds`.
        Raises StoreUnavailable, when some may be recorded; StoreFormatError.
        """
        await self._ask(lambda: self._store.record(links))


def parse_direction(text: str) -> Direction:
    """Return the direction of a name. Raises InvalidQuery that lists the names."""
    try:
        return Direction(text)
    except ValueError as error:
        names = ", ".join(Direction)
        raise InvalidQuery(f"{str(text)[:40]!r} is no direction. Use one of {names}.") from error
