"""What becomes of an event that the broker did not confirm, and how the outbox empties.

An event whose connection was lost is sent once more, with the same id. One that still has no confirm is kept in the
outbox. A task of the forwarder's own sends what waits there, in the order of acceptance and beside what is published
directly, and removes it after the confirm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import TypeVar
from uuid import UUID

from bloodbank import codec
from bloodbank.errors import (
    BloodbankError,
    InvalidEvent,
    NotOpen,
    OutboxFull,
    PublishRejected,
    PublishUnknown,
    TransportUnavailable,
    Unavailable,
)
from bloodbank.outbox import LONGEST_POSTPONEMENT_SECONDS, NOTHING_SETTLED, Outbox, Settled, Waiting
from bloodbank.stores.base import Link
from bloodbank.transports.base import Message, Receipt, Transport

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""How often the outbox is looked into for what a process left that ended."""
ELSEWHERE_SECONDS = 0.2
"""How often it is looked whether the process that forwards has finished."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
"""How long after a failure the broker is asked again, the first time and at most."""
QUICK_ATTEMPTS = 3
"""How often an event that the broker does not take keeps its place; from then on it waits longer each time."""
DECODED_AT_ONCE = 50
"""How many events are read before others get their turn of the event loop."""

Outcome = TypeVar("Outcome", bound=Receipt | BloodbankError)
Record = Callable[[Sequence[Link]], Awaitable[object]]
Undecided = PublishUnknown | TransportUnavailable | NotOpen
"""How a publish ends of which nobody knows that the broker has the event, or that it will never take it."""
UNDECIDED = (PublishUnknown, TransportUnavailable, NotOpen)


class _Round(Enum):
    """How a look into the outbox ended."""

    NOTHING = auto()
    ELSEWHERE = auto()  # another process forwards
    FORWARDED = auto()
    STUCK = auto()  # the broker takes nothing, or the file cannot be used


class Forwarder:
    """Stands behind a publisher for what the transport alone cannot do.

    transport: open. outbox: open, or None: then the caller gets the error. record: told of what was forwarded, so that
    its causes are in the index also when the process that accepted it died in between.
    timeout_seconds: longest wait for a confirm.

    `is_diverting`: the broker was seen to be away or silent, and what waits is forwarded first: do not ask it, keep
    the event.
    """

    def __init__(
        self, transport: Transport, outbox: Outbox | None, *, timeout_seconds: float, record: Record | None = None
    ) -> None:
        self.is_diverting = False
        self._transport = transport
        self._outbox = outbox
        self._timeout_seconds = timeout_seconds
        self._record = record
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # What became of the last batch and is not noted yet.
        self._settled = NOTHING_SETTLED
        # One after the other until the broker has answered again.
        self._is_away = False
        self._file_failed = False
        # When the broker confirmed something of the outbox, by the loop's clock.
        self._confirmed_at = float("-inf")

    def start(self) -> None:
        """Begin to look into the outbox. Idempotent."""
        if self._outbox is not None and self._task is None:
            self._task = asyncio.create_task(self._forward_forever(self._outbox), name="bloodbank-forwarder")

    async def stop(self, *, timeout_seconds: float) -> None:
        """End the task, which gets some time to finish its batch; what is left stays in the outbox. Idempotent."""
        self._stop.set()
        self._wake.set()
        task, self._task = self._task, None
        if task is None:
            return
        done, _ = await asyncio.wait({task}, timeout=timeout_seconds)
        if not done:
            task.cancel()
            await asyncio.wait({task})
        if self._outbox is not None:
            try:
                await self._outbox.settle(self._settled)
            except TransportUnavailable as error:
                logger.warning("What the broker confirmed last is sent again at the next start: %s", error)

    async def recover(self, message: Message, error: Undecided) -> Receipt | None:
        """Decide what becomes of an event that was not confirmed; the receipt, or None: it is kept in the outbox.

        Raises PublishUnknown (it may be stored), TransportUnavailable (it is not), PublishRejected.
        """
        if may_send_again(error) and not self._stop.is_set():
            try:
                return await self._transport.publish(message, timeout_seconds=self._timeout_seconds)
            except PublishRejected as refused:
                raise _worse(error, refused) from refused
            except UNDECIDED as again:
                error = _worse(error, again)
        await self.keep(message, error)
        return None

    async def recover_many(
        self, messages: Sequence[Message], outcomes: Sequence[Receipt | BloodbankError]
    ) -> list[Receipt | BloodbankError | None]:
        """Do it for the outcomes of `publish_many`; None stands for an event that is kept in the outbox."""
        answers: list[Receipt | BloodbankError | None] = list(outcomes)
        again = [place for place, outcome in enumerate(outcomes) if may_send_again(outcome)]
        if again and not self._stop.is_set():
            retried = await self._transport.publish_many(
                [messages[place] for place in again], timeout_seconds=self._timeout_seconds
            )
            for place, outcome in zip(again, retried, strict=True):
                answers[place] = _worse(outcomes[place], outcome)
        undecided = [(place, answer) for place, answer in enumerate(answers) if isinstance(answer, UNDECIDED)]
        if undecided and self._outbox is not None:
            kept = await self._keep_many(self._outbox, [(messages[place], error) for place, error in undecided])
            for (place, _), outcome in zip(undecided, kept, strict=True):
                answers[place] = outcome
        return answers

    async def wait_again(self, event_id: UUID) -> bool:
        """Send an event of the outbox again that was set aside; False: it is none. A file that fails is logged."""
        if self._outbox is None:
            return False
        try:
            waits = await self._outbox.wait_again(event_id)
        except (TransportUnavailable, NotOpen) as error:
            logger.warning("The outbox cannot tell of event %s: %s", event_id, error)
            return False
        if waits:
            self._wake.set()
        return waits

    async def divert(self, message: Message) -> bool:
        """Keep an event without asking the broker. False: the outbox's disk fails, so the broker is to be asked.

        Raises OutboxFull, EventConflict.
        """
        try:
            await self.keep(message)
        except OutboxFull:
            raise
        except TransportUnavailable as error:
            # What waits cannot be forwarded either, and nobody would learn that the broker is back.
            logger.debug("The broker is asked, since the outbox cannot be written: %s", error)
            return False
        return True

    async def divert_many(self, messages: Sequence[Message]) -> list[BloodbankError | None]:
        """Do it for several; None stands for an event that is kept, and `is_to_be_asked` for those that are not."""
        if self._outbox is None:
            return [_not_asked()] * len(messages)
        return await self._keep_many(self._outbox, [(message, None) for message in messages])

    async def keep(self, message: Message, error: Undecided | None = None) -> None:
        """Put an event into the outbox.

        error: why the broker does not have it; None: it was not asked. Raises that error when there is no outbox, and
        OutboxFull, TransportUnavailable, EventConflict, or PublishUnknown when the broker may have it.
        """
        if self._outbox is None:
            raise error or _not_asked()
        try:
            await self._outbox.keep(message)
        except (Unavailable, PublishRejected, PublishUnknown) as full:
            if error is None:
                raise
            raise _not_kept(error, full) from error
        self._has_kept(error)

    async def _keep_many(
        self, outbox: Outbox, undecided: Sequence[tuple[Message, Undecided | None]]
    ) -> list[BloodbankError | None]:
        refusals = await outbox.keep_many([message for message, _ in undecided])
        answers: list[BloodbankError | None] = []
        for (_, error), refusal in zip(undecided, refusals, strict=True):
            if refusal is None:
                self._has_kept(error)
            answers.append(None if refusal is None else _not_kept(error, refusal))
        return answers

    def _has_kept(self, error: Undecided | None) -> None:
        # Its publish may have begun before the broker was silent, and end now that it has answered again.
        is_old = asyncio.get_running_loop().time() - self._confirmed_at < self._timeout_seconds
        if _is_silence(error) and not is_old:
            if not self.is_diverting:
                logger.warning("Events are kept in the outbox until the broker takes them: %s", error)
            self.is_diverting = self._is_away = True
        self._wake.set()

    async def _forward_forever(self, outbox: Outbox) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            self._wake.clear()
            try:
                ended = await self._forward(outbox)
                self._file_failed = False
            except (TransportUnavailable, NotOpen) as error:
                if not self._file_failed:
                    logger.warning("The outbox cannot be forwarded now, and is tried again: %s", error)
                self._file_failed = True
                ended = _Round.STUCK
            except Exception:
                # The edge of this task: it goes on, or what waits would stay for ever.
                logger.exception("Forwarding what waits in the outbox failed; it is tried again.")
                ended = _Round.STUCK
            if ended is _Round.FORWARDED:
                pause_seconds = FIRST_PAUSE_SECONDS
            elif ended is _Round.STUCK:
                await _wait(self._stop, pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
            elif ended is _Round.ELSEWHERE:
                # What waits is on its way, or the other one finds the broker silent as well.
                if self.is_diverting and await self._answers():
                    self._stop_diverting()
                await _wait(self._stop, ELSEWHERE_SECONDS)
            else:
                self._stop_diverting()
                await _wait(self._wake, POLL_SECONDS)

    async def _forward(self, outbox: Outbox) -> _Round:
        """Send one batch."""
        if self._settled == NOTHING_SETTLED and not await outbox.has_due():
            return _Round.NOTHING
        if self._is_away and self._settled == NOTHING_SETTLED and not await self._answers():
            # Nothing is claimed that nobody takes: on a full disk the claim would use up the room that is kept for
            # emptying the outbox, and something else could take it before the broker is back.
            return _Round.STUCK
        batch = await outbox.exchange(self._settled, limit=1) if self._is_away else await outbox.exchange(self._settled)
        self._settled = NOTHING_SETTLED
        if batch is None:
            return _Round.ELSEWHERE
        if not batch:
            await outbox.settle(NOTHING_SETTLED)
            return _Round.NOTHING
        outcomes = await self._transport.publish_many(
            [waiting.message for waiting in batch], timeout_seconds=self._timeout_seconds
        )
        forwarded = [waiting for waiting, outcome in zip(batch, outcomes, strict=True) if isinstance(outcome, Receipt)]
        if forwarded:
            await self._record_causes(forwarded)
        refused = any(isinstance(outcome, PublishRejected) for outcome in outcomes)
        answers = bool(forwarded) or refused
        if not answers and len(batch) == 1 and _is_silence(outcomes[0]):
            # Is it the broker, or this one event? Otherwise one would hold up all others.
            answers = await self._answers()
        self._settled = _judge(batch, outcomes, broker_answers=answers)
        if not answers:
            self._is_away = self._is_away or any(_is_silence(outcome) for outcome in outcomes)
            settled, self._settled = self._settled, NOTHING_SETTLED
            await outbox.settle(settled)
            return _Round.STUCK
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, PublishRejected):
                what = (waiting.message.event_id, waiting.message.routing_key, outcome)
                logger.error("The broker refused event %s (%s) for good; the outbox sets it aside: %s", *what)
        self._is_away = False
        self._confirmed_at = asyncio.get_running_loop().time()
        self._stop_diverting()
        return _Round.FORWARDED

    async def _answers(self) -> bool:
        """Ask the broker something that leaves nothing behind."""
        try:
            await self._transport.check(timeout_seconds=self._timeout_seconds)
        except (TransportUnavailable, NotOpen) as error:
            logger.debug("The broker does not answer: %s", error)
            return False
        return True

    def _stop_diverting(self) -> None:
        if self.is_diverting:
            # A warning, since it ends one: whoever sees the first shall see the second.
            logger.warning("The broker takes events again; what waits in the outbox is forwarded.")
        self.is_diverting = False

    async def _record_causes(self, forwarded: Sequence[Waiting]) -> None:
        if self._record is None:
            return
        links: list[Link] = []
        for place, waiting in enumerate(forwarded, 1):
            try:
                envelope = codec.decode(waiting.message.body)
            except InvalidEvent:
                # Nothing of ours; the broker has it, and that is all that can be done.
                logger.exception("An event of the outbox is no envelope: %s", waiting.message.event_id)
                continue
            links.append(codec.link_of(envelope, waiting.message.digest, waiting.accepted_at))
            if not place % DECODED_AT_ONCE:
                await asyncio.sleep(0)
        try:
            await self._record(links)
        except NotOpen:
            logger.debug("The tracker is closed; %d events were recorded when they were accepted.", len(links))


def is_to_be_asked(answer: BloodbankError | None) -> bool:
    """Say of an answer of `divert_many` whether the broker is to be asked, since the outbox's disk fails."""
    return isinstance(answer, TransportUnavailable) and not isinstance(answer, OutboxFull)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def may_send_again(outcome: object) -> bool:
    """Say whether sending the same id at once makes sense."""
    return isinstance(outcome, PublishUnknown) and outcome.reason == "lost"


def _not_asked() -> TransportUnavailable:
    return TransportUnavailable("The broker does not take events now. The event was not sent; try again.")


def _worse(first: Receipt | BloodbankError, second: Outcome) -> Outcome | PublishUnknown:
    """Return the second outcome, unless the first one says more: what may be stored is not «not sent»."""
    if isinstance(first, PublishUnknown) and isinstance(second, (TransportUnavailable, NotOpen, PublishRejected)):
        reason = "nacked" if isinstance(second, PublishRejected) else "timed_out"
        return PublishUnknown(f"{first} Sending it again failed: {second}", reason=reason)
    return second


def _not_kept(error: Undecided | None, full: BloodbankError) -> BloodbankError:
    if isinstance(error, PublishUnknown):
        return PublishUnknown(f"{error} It could not be kept on disk either: {full}", reason=error.reason)
    return full


def _is_silence(outcome: object) -> bool:
    return isinstance(outcome, TransportUnavailable) or (
        isinstance(outcome, PublishUnknown) and outcome.reason == "timed_out"
    )


def _judge(batch: Sequence[Waiting], outcomes: Sequence[Receipt | BloodbankError], *, broker_answers: bool) -> Settled:
    """Return what to note of a batch. What a silent or absent broker did not take says nothing of the event.

    broker_answers: it has taken others, or said so.
    """
    forwarded: list[int] = []
    postponed: list[tuple[int, float]] = []
    set_aside: list[tuple[int, str]] = []
    for waiting, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, Receipt):
            forwarded.append(waiting.number)
        elif isinstance(outcome, PublishRejected):
            set_aside.append((waiting.number, str(outcome)))
        elif broker_answers or (isinstance(outcome, PublishUnknown) and outcome.reason != "timed_out"):
            later = waiting.attempts - QUICK_ATTEMPTS
            seconds = 0.0 if later < 0 else min(2.0**later, LONGEST_POSTPONEMENT_SECONDS)
            postponed.append((waiting.number, seconds))
    return Settled(forwarded, postponed, set_aside)
