"""From an envelope to its acceptance: confirmed by the broker or kept on disk, and its causes recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from bloodbank import codec
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.deduplication import Dedup, Deduplicator, is_duplicate
from bloodbank.deferral import Lineage
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import BloodbankError, EventConflict, InvalidEvent, NotOpen, PublishUnknown
from bloodbank.forwarding import UNDECIDED, Forwarder, is_to_be_asked
from bloodbank.stores.base import ClaimState, Link
from bloodbank.transports.base import Message, Receipt, Transport

ENCODED_AT_ONCE_BYTES = 262_144
"""How much `publish_many` serialises before it lets others run."""
LEASE_MARGIN_SECONDS = 5.0
"""How much longer a claim holds than the publish that it was made for can take: recording, and a busy machine."""
SLICE = 64
"""How many events `publish_many` serialises before it sends them; the broker has work while the rest is prepared."""


class Status(StrEnum):
    """What became of an accepted event.

    published: the broker confirmed it, or the log has it on disk. duplicate: this id with this body was accepted
    before. queued: kept on disk until the broker is back.
    """

    PUBLISHED = "published"
    DUPLICATE = "duplicate"
    QUEUED = "queued"


# Python 3.11 looks a member up in its class by a detour of a tenth of a microsecond.
_PUBLISHED, _DUPLICATE, _QUEUED = Status.PUBLISHED, Status.DUPLICATE, Status.QUEUED
_DISABLED = Lineage.DISABLED
_CHECKED, _SKIPPED = Dedup.CHECKED, Dedup.SKIPPED


class PublishResult(NamedTuple):
    """The answer to a publish: the event is on the bus, or on disk, whatever `status` says.

    dedup: `skipped` when the caller chose the id and nobody could tell whether it is on the bus already.
    """

    event_id: UUID
    status: Status
    lineage: Lineage
    dedup: Dedup = _CHECKED


class Acceptor:
    """Accepts envelopes on an open bus; see `Publisher.publish` for what it raises.

    tracker: None when tracking is off. publish_timeout_seconds: longest wait for a confirm.
    """

    def __init__(
        self,
        transport: Transport,
        forwarder: Forwarder,
        tracker: CorrelationTracker | None,
        *,
        publish_timeout_seconds: float,
    ) -> None:
        self._transport = transport
        self._forwarder = forwarder
        self._tracker = tracker
        self._publish_timeout_seconds = publish_timeout_seconds
        # Whether the transport itself tells duplicates. It stays the same while it is open.
        self._transport_tells = transport.features.detects_duplicates
        self._with_digest = tracker is not None or self._transport_tells
        self._deduplicator: Deduplicator | None = None
        if tracker is not None and not self._transport_tells:
            # Twice: a connection that is lost is tried again once.
            lease_seconds = 2 * publish_timeout_seconds + LEASE_MARGIN_SECONDS
            self._deduplicator = Deduplicator(tracker, lease_seconds=lease_seconds)

    async def publish(self, envelope: EventEnvelope[Any]) -> PublishResult:
        """Publish one."""
        message = codec.encode(envelope, with_digest=self._with_digest)
        tracker = self._tracker
        if tracker is not None:
            publishing = self._publish_tracked(tracker, envelope, message)
            del envelope  # as below
            return await publishing
        dedup = _CHECKED if self._transport_tells or not _may_be_known(envelope) else _SKIPPED
        _remember_attempt(envelope)
        # Not kept while this waits: with a thousand in flight that takes 2 of 20 microseconds an event off.
        del envelope
        receipt = await self._accept(message)
        return PublishResult(message.event_id, _status(receipt), _DISABLED, dedup)

    async def publish_many(self, events: Sequence[EventEnvelope[Any]]) -> list[PublishResult | BloodbankError]:
        """Publish several; one result or error for each, in order."""
        answers: dict[int, PublishResult | BloodbankError] = {}
        first: dict[UUID, int] = {}
        for place, event in enumerate(events):
            first.setdefault(event.event_id, place)
        places = list(first.values())
        if len(places) <= SLICE:
            await self._publish_slice(events, places, answers)
        else:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(places), SLICE):
                    group.create_task(self._publish_slice(events, places[start : start + SLICE], answers))
                    # It is on its way before the next is serialised, and others get their turn.
                    await asyncio.sleep(0)
        # Ids that stand here again, or that somebody else publishes at this moment: all at once, or one that is held
        # for long would keep the others waiting.
        left = [place for place in range(len(events)) if place not in answers]
        later = await asyncio.gather(*(self._publish_later(events[place]) for place in left))
        answers.update(zip(left, later, strict=True))
        return [answers[place] for place in range(len(events))]

    async def _accept(self, message: Message) -> Receipt | None:
        """Return the receipt, or None: the event is in the outbox. Raises as `publish`."""
        forwarder = self._forwarder
        if forwarder.is_diverting and await forwarder.divert(message):
            return None
        try:
            return await self._transport.publish(message, timeout_seconds=self._publish_timeout_seconds)
        except UNDECIDED as error:
            return await forwarder.recover(message, error)

    async def _publish_tracked(
        self, tracker: CorrelationTracker, envelope: EventEnvelope[Any], message: Message
    ) -> PublishResult:
        deduplicator = self._deduplicator
        if deduplicator is None:
            link = codec.link_of(envelope, message.digest)
            del envelope
            return await self._accept_and_record(tracker, message, link, _CHECKED)
        event_id = message.event_id
        await deduplicator.begin(event_id)
        try:
            # Asked in here: another task may have been publishing this very object.
            is_claimed, dedup = _may_be_known(envelope), _CHECKED
            if is_claimed:
                verdict = await deduplicator.claim(message)
                if verdict is None:
                    return await self._again(event_id)
                dedup = verdict
            _remember_attempt(envelope)
            link = codec.link_of(envelope, message.digest)
            del envelope
            try:
                return await self._accept_and_record(tracker, message, link, dedup)
            except PublishUnknown:
                # It may be on the bus: the claim stays until it ends.
                raise
            except BloodbankError:
                if is_claimed:
                    await deduplicator.release([event_id])
                raise
        finally:
            deduplicator.end(event_id)

    async def _again(self, event_id: UUID) -> PublishResult:
        """Answer an event that was accepted before; if the broker refused it for good since, it is tried again."""
        waits = await self._forwarder.wait_again(event_id)
        return PublishResult(event_id, _QUEUED if waits else _DUPLICATE, Lineage.RECORDED)

    async def _accept_and_record(
        self, tracker: CorrelationTracker, message: Message, link: Link, dedup: Dedup
    ) -> PublishResult:
        receipt = await self._accept(message)
        try:
            recorded = tracker.enqueue(link)
        except NotOpen:
            # Closed while it was on its way: it is on the bus, and that is what the answer must say.
            return PublishResult(message.event_id, _status(receipt), Lineage.DEFERRED, dedup)
        return PublishResult(message.event_id, _status(receipt), await recorded, dedup)

    async def _publish_later(self, event: EventEnvelope[Any]) -> PublishResult | BloodbankError:
        try:
            return await self.publish(event)
        except BloodbankError as error:
            return error

    async def _publish_slice(
        self,
        events: Sequence[EventEnvelope[Any]],
        places: Sequence[int],
        answers: dict[int, PublishResult | BloodbankError],
    ) -> None:
        """Publish the events in some places, each with an id of its own; add their answers.

        Those whose id is being published by somebody else get none.
        """
        messages: dict[int, Message] = {}
        encoded_bytes = 0
        for place in places:
            try:
                message = messages[place] = codec.encode(events[place], with_digest=self._with_digest)
            except InvalidEvent as error:
                answers[place] = error
                continue
            encoded_bytes += len(message.body)
            if encoded_bytes > ENCODED_AT_ONCE_BYTES:
                # Many large events take seconds, and others wait for the event loop.
                encoded_bytes = 0
                await asyncio.sleep(0)
        try:
            await self._send_slice(events, messages, answers)
        except BloodbankError as error:
            # Closed meanwhile, or else each message would have an answer of its own.
            answers.update((place, error) for place in messages if place not in answers)

    async def _send_slice(
        self,
        events: Sequence[EventEnvelope[Any]],
        messages: dict[int, Message],
        answers: dict[int, PublishResult | BloodbankError],
    ) -> None:
        deduplicator = self._deduplicator
        if deduplicator is None:
            await self._send_many(events, messages, answers, {})
            return
        free = set(deduplicator.begin_free(message.event_id for message in messages.values()))
        messages = {place: message for place, message in messages.items() if message.event_id in free}
        try:
            dedup = await self._claim_known(deduplicator, events, messages, answers)
            await self._send_many(events, messages, answers, dedup)
            certain = (PublishResult, PublishUnknown)
            failed = [place for place in dedup if place in messages and not isinstance(answers[place], certain)]
            if failed:
                await deduplicator.release([messages[place].event_id for place in failed])
        finally:
            for event_id in free:
                deduplicator.end(event_id)

    async def _claim_known(
        self,
        deduplicator: Deduplicator,
        events: Sequence[EventEnvelope[Any]],
        messages: dict[int, Message],
        answers: dict[int, PublishResult | BloodbankError],
    ) -> dict[int, Dedup]:
        """Claim the ids that may be known; return for each that may be published whether it was looked up.

        Events that are on the bus already are answered, and taken out of what is to be sent; taken out too are those
        that another process publishes at this moment.
        """
        suspects = [place for place in messages if _may_be_known(events[place])]
        claimed = await deduplicator.claim_many([messages[place] for place in suspects])
        if claimed is None:
            return dict.fromkeys(suspects, _SKIPPED)
        dedup: dict[int, Dedup] = {}
        for place, claim in zip(suspects, claimed, strict=True):
            if claim.state is ClaimState.HELD:
                del messages[place]
                continue
            try:
                known = is_duplicate(messages[place], claim)
            except EventConflict as error:
                answers[place] = error
                del messages[place]
                continue
            if known:
                answers[place] = await self._again(messages.pop(place).event_id)
            else:
                dedup[place] = _CHECKED
        return dedup

    async def _send_many(
        self,
        events: Sequence[EventEnvelope[Any]],
        messages: Mapping[int, Message],
        answers: dict[int, PublishResult | BloodbankError],
        dedup: Mapping[int, Dedup],
    ) -> None:
        if not messages:
            return
        if self._tracker is None and not self._transport_tells:
            dedup = {place: _SKIPPED for place in messages if _may_be_known(events[place])}
        for place in messages:
            _remember_attempt(events[place])
        outcomes = await self._accept_many(list(messages.values()))
        accepted: dict[int, Receipt | None] = {}
        for place, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, BloodbankError):
                answers[place] = outcome
            else:
                accepted[place] = outcome
        lineages = await self._record([codec.link_of(events[p], messages[p].digest) for p in accepted])
        for (place, receipt), lineage in zip(accepted.items(), lineages, strict=True):
            event_id = messages[place].event_id
            answers[place] = PublishResult(event_id, _status(receipt), lineage, dedup.get(place, _CHECKED))

    async def _accept_many(self, messages: Sequence[Message]) -> Sequence[Receipt | BloodbankError | None]:
        forwarder = self._forwarder
        if forwarder.is_diverting:
            diverted = await forwarder.divert_many(messages)
            places = [place for place, answer in enumerate(diverted) if is_to_be_asked(answer)]
            asked = await self._ask_for_many([messages[place] for place in places])
            return _filled(diverted, places, asked)
        return await self._ask_for_many(messages)

    async def _ask_for_many(self, messages: Sequence[Message]) -> Sequence[Receipt | BloodbankError | None]:
        if not messages:
            return []
        try:
            outcomes = await self._transport.publish_many(messages, timeout_seconds=self._publish_timeout_seconds)
        except NotOpen as error:
            # Closed meanwhile, or else each message would have an answer of its own.
            outcomes = [error] * len(messages)
        if all(isinstance(outcome, Receipt) for outcome in outcomes):
            return outcomes
        return await self._forwarder.recover_many(messages, outcomes)

    async def _record(self, links: Sequence[Link]) -> Sequence[Lineage]:
        if self._tracker is None:
            return [_DISABLED] * len(links)
        try:
            return await self._tracker.record_many(links)
        except NotOpen:
            # Closed while these were on their way: they are on the bus, and that is what the answer must say.
            return [Lineage.DEFERRED] * len(links)


def _may_be_known(envelope: EventEnvelope[Any]) -> bool:
    # An id that pydantic made for this very object cannot be on the bus before the first try to publish it.
    return "event_id" in envelope.model_fields_set


def _remember_attempt(envelope: EventEnvelope[Any]) -> None:
    envelope.__pydantic_fields_set__.add("event_id")


def _filled(
    answers: Sequence[BloodbankError | None], places: Sequence[int], others: Sequence[Receipt | BloodbankError | None]
) -> Sequence[Receipt | BloodbankError | None]:
    filled: list[Receipt | BloodbankError | None] = list(answers)
    for place, other in zip(places, others, strict=True):
        filled[place] = other
    return filled


def _status(receipt: Receipt | None) -> Status:
    if receipt is None:
        return _QUEUED
    return _DUPLICATE if receipt.duplicate else _PUBLISHED
