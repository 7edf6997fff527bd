"""The handlers of one group at work: deliveries come in, each is handled once and settled.

Each handler has a subscription of its own, with the patterns of all: any of them may bring an event that another one
asked for. The first whose pattern fits gets it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from bloodbank import codec
from bloodbank.consuming.attempt import Attempt
from bloodbank.consuming.failing import Publish, failed_in, failure_of, give_up, message_of
from bloodbank.consuming.handler import Handler
from bloodbank.consuming.inbox import GuardedInbox
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import InvalidEvent, NotOpen, Unavailable
from bloodbank.events.registry import EventRegistry
from bloodbank.transports.base import Delivery, Failure, Start, Transport, matches

logger = logging.getLogger(__name__)

NO_HANDLER = "no_handler"
"""Stands for the class of the exception where an event came to a group that has no handler for it."""
CRASHED = "crashed"
"""The same, where an event came again and again and its handler never came to an end."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
"""Between attempts to subscribe while the bus is away."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all groups of a consumer share.

    name: of the consumer. threads: where plain functions run. publish: takes failure events. registry: their models.
    prefetch: of handlers that say nothing of it.
    """

    name: str
    transport: Transport
    inbox: GuardedInbox
    threads: Executor
    publish: Publish
    registry: EventRegistry
    prefetch: int
    stop_timeout_seconds: float


class _Taken(NamedTuple):
    """A delivery on its way. event: its payload as the handler wants it."""

    delivery: Delivery
    handler: Handler
    event: EventEnvelope[Any]


class GroupAtWork:
    """Takes the deliveries of one group until it is told to stop.

    handlers: of the group, at least one; the first whose pattern fits gets an event.
    """

    def __init__(self, handlers: Sequence[Handler], around: Surroundings) -> None:
        self._handlers = handlers
        self._group = handlers[0].group
        self._around = around
        self._start: Start = _earliest(handlers)
        self._turns = {handler: asyncio.Semaphore(handler.concurrency) for handler in handlers}
        self._lanes: dict[tuple[Handler, Hashable], deque[_Taken]] = {}
        # With what their second copies wait for, where there are any.
        self._under_way: dict[UUID, asyncio.Future[None] | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._error: BaseException | None = None
        self._gives_back = False

    def stop(self) -> None:
        """Take nothing new from now on; `run` returns when what is under way has ended, or its time."""
        self._stopping.set()
        # Those who wait behind a thread that goes on find out one by one: each passes its turn on.
        for turn in self._turns.values():
            turn.release()

    async def run(self, subscribed: Callable[[Handler], None]) -> None:
        """Work until `stop`, or until an error that is none of a handler.

        subscribed: called for each handler once its group keeps what comes for it.
        """
        subscriptions = [
            asyncio.create_task(self._subscribe(handler, subscribed), name=f"bloodbank-{handler.name}")
            for handler in self._handlers
        ]
        try:
            await asyncio.wait(subscriptions, return_when=asyncio.FIRST_EXCEPTION)
            # One that failed ends them all, in order.
            self.stop()
            await asyncio.wait(subscriptions)
        finally:
            for task in subscriptions:
                task.cancel()
            await asyncio.wait(subscriptions)
        for task in subscriptions:
            task.result()
        if self._error is not None:
            raise self._error

    async def _subscribe(self, handler: Handler, subscribed: Callable[[Handler], None]) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                await self._work(handler, subscribed)
            except Unavailable as error:
                if pause_seconds == FIRST_PAUSE_SECONDS:
                    logger.warning("%s cannot subscribe now: %s Trying again.", handler.name, error)
                await self._pause(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    async def _work(self, handler: Handler, subscribed: Callable[[Handler], None]) -> None:
        # Fewer than may run at a time would leave some of them idle.
        prefetch = max(handler.prefetch or self._around.prefetch, handler.concurrency)
        # All say the same, so that it does not matter which of them makes a new group.
        subscription = self._around.transport.subscribe(
            [one.pattern for one in self._handlers], group=self._group, prefetch=prefetch, start=self._start
        )
        async with subscription as deliveries:
            subscribed(handler)
            reading = asyncio.create_task(self._read(deliveries))
            stopped = asyncio.create_task(self._stopping.wait())
            try:
                await asyncio.wait([reading, stopped], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (reading, stopped):
                    task.cancel()
                await asyncio.wait([reading, stopped])
                # Within the subscription, so that what is finished now can still be settled.
                await self._drain()
            if not reading.cancelled() and (error := reading.exception()) is not None:
                raise error

    async def _read(self, deliveries: AsyncIterator[Delivery]) -> None:
        async for delivery in deliveries:
            self._take(delivery)

    async def _drain(self) -> None:
        """Wait for what is under way, and end what is not ready in time; it is delivered again."""
        tasks = set(self._tasks)
        if not tasks:
            return
        try:
            _, late = await asyncio.wait(tasks, timeout=self._around.stop_timeout_seconds)
        finally:
            self._gives_back = True
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._gives_back = False
        if late:
            logger.warning(
                "%d events of the group %s were not finished in time; they come again.", len(late), self._group
            )

    def _take(self, delivery: Delivery) -> None:
        """Begin to handle a delivery. Does not wait: how many there are at a time, the prefetch says."""
        handler = self._handler_for(delivery.message.routing_key)
        try:
            event = codec.decode(delivery.message.body)
        except InvalidEvent as error:
            name = self._around.name if handler is None else handler.name
            self._begin(self._set_aside(delivery, failure_of(error, name, poison=True), None))
            return
        if failed_in(event) == self._group and (handler is None or handler.pattern.rpartition(".")[2] in ("*", "#")):
            # A wildcard means what there is to handle, not that this very group gave some of it up.
            self._begin(self._settled(delivery, delivery.ack))
        elif handler is None:
            self._begin(self._set_aside(delivery, self._unhandled(delivery), event))
        else:
            self._take_for(handler, delivery, event)

    def _take_for(self, handler: Handler, delivery: Delivery, event: EventEnvelope[Any]) -> None:
        try:
            event = handler.arguments.read(event)
        except InvalidEvent as error:
            self._begin(self._set_aside(delivery, failure_of(error, handler.name, poison=True), event))
            return
        except Exception as error:  # noqa: BLE001, a model's validator is code of others
            self._begin(self._set_aside(delivery, failure_of(error, handler.name), event))
            return
        taken = _Taken(delivery, handler, event)
        if handler.ordered_by is None:
            self._begin(self._handle(taken))
            return
        try:
            key = handler.ordered_by(event)
            lane = self._lanes.get((handler, key))
        except Exception as error:  # noqa: BLE001, code of others; without a key there is no place for the event
            self._begin(self._set_aside(delivery, failure_of(error, handler.name), event))
            return
        if lane is not None:
            lane.append(taken)
            return
        self._lanes[handler, key] = deque([taken])
        self._begin(self._follow(handler, key))

    def _handler_for(self, routing_key: str) -> Handler | None:
        return next((handler for handler in self._handlers if matches(handler.pattern, routing_key)), None)

    def _unhandled(self, delivery: Delivery) -> Failure:
        reason = (
            f"The group {self._group} has no handler for {delivery.message.routing_key} in this program. Another "
            "program of the group, a pattern that it had before, or a replay brought it here. Programs of one group "
            "need the same handlers; otherwise give each a group of its own."
        )
        return Failure(reason, NO_HANDLER, "", self._around.name)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if self._gives_back:
                return
            error = RuntimeError(f"A handler of the group {self._group} cancelled its own task; its event comes again.")
        else:
            error = task.exception()
        if error is not None:
            # A defect, or an inbox of another format: going on would leave events unsettled without a word.
            self._error = self._error or error
            self.stop()

    async def _follow(self, handler: Handler, key: Hashable) -> None:
        """Handle the events of one key in the order of their delivery."""
        lane = self._lanes[handler, key]
        try:
            while lane and not self._stopping.is_set():
                await self._handle(lane.popleft())
        finally:
            del self._lanes[handler, key]
            for taken in lane:
                taken.delivery.leave_untried()

    async def _handle(self, taken: _Taken) -> None:
        delivery, handler, event = taken
        if not handler.once:
            await self._attempts(taken)
            return
        event_id = event.event_id
        while event_id in self._under_way:
            # A second copy: the first decides whether it has to be handled.
            first = self._under_way[event_id] or asyncio.get_running_loop().create_future()
            self._under_way[event_id] = first
            try:
                await asyncio.wait([first])
            except asyncio.CancelledError:
                delivery.leave_untried()
                raise
        self._under_way[event_id] = None
        try:
            if not delivery.replayed and await self._around.inbox.has_seen(self._group, event_id):
                await self._settled(delivery, delivery.ack)
            else:
                await self._attempts(taken)
        finally:
            waited_for = self._under_way.pop(event_id)
            if waited_for is not None:
                waited_for.set_result(None)

    async def _attempts(self, taken: _Taken) -> None:
        """Run the handler and settle. Where order is kept, further attempts are made here, and the key waits."""
        delivery, handler, event = taken
        number = delivery.attempt
        if number > max(handler.retry.deliveries, handler.retry.attempts):
            reason = f"The event was delivered {number - 1} times, and its handler never came to an end."
            await self._set_aside(delivery, Failure(reason, CRASHED, "", handler.name), event, number, told=number)
            return
        while True:
            turn = self._turns[handler]
            await turn.acquire()
            if self._stopping.is_set():
                turn.release()
                if number == delivery.attempt:
                    delivery.leave_untried()
                return
            # A thread that goes on when its time is over keeps its turn, or what comes next would find none.
            error = await handler.run(self._attempt(taken, number), self._around.threads, ended=turn.release)
            if error is None:
                if handler.once:
                    await self._around.inbox.mark(self._group, event.event_id)
                await self._settled(delivery, delivery.ack)
                return
            delay_seconds = handler.retry.delay_after(number, error)
            if delay_seconds is None:
                # Never more than there may be, so that who gives it up again, since a process died meanwhile, tells the
                # same, and need not wait until it is clear what that one had told.
                told = min(number, handler.retry.attempts)
                await self._set_aside(delivery, failure_of(error, handler.name), event, number, told=told)
                return
            logger.warning(
                "%s failed on event %s (%s), attempt %d, again in %.1f s: %s: %s",
                handler.name,
                event.event_id,
                event.event_type,
                number,
                delay_seconds,
                type(error).__name__,
                message_of(error),
            )
            if handler.ordered_by is None:
                await self._settled(delivery, functools.partial(delivery.retry, delay_seconds))
                return
            await self._pause(delay_seconds)
            number += 1

    def _attempt(self, taken: _Taken, number: int) -> Attempt:
        delivery, handler, event = taken
        return Attempt(
            event=event,
            group=self._group,
            consumer=handler.name,
            number=number,
            most=handler.retry.attempts,
            first_attempt_at=delivery.first_attempt_at,
            replayed=delivery.replayed,
        )

    async def _set_aside(
        self,
        delivery: Delivery,
        failure: Failure,
        event: EventEnvelope[Any] | None,
        attempts: int | None = None,
        *,
        told: int = 1,
    ) -> None:
        """Give it up. attempts: how many there were; None: as many as deliveries. told: what its failure event says."""
        await self._settled(
            delivery,
            lambda: give_up(
                delivery,
                failure,
                event=event,
                group=self._group,
                attempts=attempts or delivery.attempt,
                told=told,
                publish=self._around.publish,
                registry=self._around.registry,
            ),
        )

    async def _settled(self, delivery: Delivery, settle: Callable[[], Awaitable[None]]) -> None:
        """Settle; what cannot be settled comes again, and that is all there is to do."""
        try:
            await settle()
        except (Unavailable, NotOpen) as error:
            logger.warning("Event %s comes again: %s", delivery.message.event_id, error)

    async def _pause(self, seconds: float) -> None:
        """Wait for a time, or until it stops."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


def _earliest(handlers: Sequence[Handler]) -> Start:
    starts = [handler.start for handler in handlers]
    if "beginning" in starts:
        return "beginning"
    times = [start for start in starts if isinstance(start, datetime)]
    return min(times) if times else "now"
