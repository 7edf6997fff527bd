"""Publishes events durably, then records what caused them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from enum import StrEnum
from types import TracebackType
from typing import Any, NamedTuple, Self, cast, overload
from uuid import UUID

from pydantic import SecretStr

from bloodbank import codec, wiring
from bloodbank.config import Settings, load_settings
from bloodbank.correlation_tracker import CorrelationTracker, Lineage
from bloodbank.deduplication import Dedup, Deduplicator, is_duplicate
from bloodbank.envelope import AnyEnvelope, EventEnvelope, Source, envelope_from_v2_call
from bloodbank.errors import BloodbankError, EventConflict, InvalidEvent, NotOpen, TrackingDisabled
from bloodbank.events.registry import EventRegistry
from bloodbank.forwarding import UNDECIDED, Forwarder, is_to_be_asked
from bloodbank.ids import event_id as deterministic_event_id
from bloodbank.outbox import Outbox
from bloodbank.stores.base import ClaimState, Direction, Link
from bloodbank.transports.base import Message, Receipt, Transport

ENCODED_AT_ONCE_BYTES = 262_144
"""How much `publish_many` serialises before it lets others run."""
LEASE_MARGIN_SECONDS = 5.0
"""How much longer a claim holds than the publish that it was made for can take: recording, and a busy machine."""
SLICE = 64
"""How many events `publish_many` serialises before it sends them; the broker has work while the rest is prepared."""


class Status(StrEnum):
    """What became of an accepted event.

    published: the broker confirmed it, or the log has it on disk. duplicate: this id with this body is on
    the bus already. queued: kept on disk until the broker is back.
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


class Publisher:
    """Publishes events on the bus that the settings describe.

        async with Publisher(enable_correlation_tracking=True) as publisher:
            result = await publisher.publish(create_envelope("llm.prompt", {...}))

    settings: default: read from the environment and `.env`.
    enable_correlation_tracking: keep the index of causes; off by default.
    transport, tracker, outbox: already open ones, which are used and not closed. With a transport that is given, only
    a given outbox is used.
    registry: models that payloads of the version 2 call form are checked with.
    redis_host, redis_port, redis_password: take precedence over the settings, as in version 2.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        enable_correlation_tracking: bool = False,
        transport: Transport | None = None,
        tracker: CorrelationTracker | None = None,
        outbox: Outbox | None = None,
        registry: EventRegistry | None = None,
        redis_host: str | None = None,
        redis_port: int | None = None,
        redis_password: str | None = None,
    ) -> None:
        overrides: dict[str, Any] = {
            "redis_host": redis_host,
            "redis_port": redis_port,
            "redis_password": SecretStr(redis_password) if redis_password else None,
        }
        if redis_host:
            # It would win over any host that is given with it.
            overrides["redis_url"] = None
        settings = settings or load_settings()
        self._settings = settings.model_copy(
            update={k: v for k, v in overrides.items() if v is not None or k == "redis_url"}
        )
        self._publish_timeout_seconds = self._settings.publish_timeout_seconds
        self._tracking = enable_correlation_tracking or tracker is not None
        self._given_transport = transport
        self._given_tracker = tracker
        self._given_outbox = outbox
        self._registry = registry or EventRegistry(accept_unknown=self._settings.unknown_event_types == "accept")
        self._transport: Transport | None = None
        self._tracker: CorrelationTracker | None = None
        self._outbox: Outbox | None = None
        # Both stay after closing began, for what is under way then.
        self._forwarder: Forwarder | None = None
        self._deduplicator: Deduplicator | None = None
        self._transport_stack = AsyncExitStack()
        self._stack = AsyncExitStack()
        # Whether the transport itself tells duplicates. It stays the same while it is open.
        self._transport_tells = False
        self._with_digest = False
        self._under_way = 0
        self._all_ended: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the bus. An unreachable broker or store does not fail this; it is found when it comes back.

        Raises StoreFormatError, and TransportUnavailable when the data folder cannot be used.
        """
        if self._transport is not None:
            return
        transport, tracker, outbox = self._given_transport, self._given_tracker, self._given_outbox
        async with AsyncExitStack() as stack, AsyncExitStack() as transport_stack:
            if transport is None or (self._tracking and tracker is None):
                # In a thread, since it imports the backends that are chosen.
                backends = await asyncio.to_thread(wiring.build, self._settings, tracking=self._tracking)
                if transport is None and outbox is None and backends.outbox is not None:
                    outbox = await stack.enter_async_context(backends.outbox)
                if self._tracking and tracker is None and backends.tracker is not None:
                    tracker = await stack.enter_async_context(backends.tracker)
                transport = transport or await transport_stack.enter_async_context(backends.transport)
            self._stack, self._transport_stack = stack.pop_all(), transport_stack.pop_all()
        self._transport, self._tracker, self._outbox = transport, tracker, outbox
        self._transport_tells = transport.features.detects_duplicates
        self._with_digest = self._tracking or self._transport_tells
        if tracker is not None and not self._transport_tells:
            # Twice: a connection that is lost is tried again once.
            lease_seconds = 2 * self._publish_timeout_seconds + LEASE_MARGIN_SECONDS
            self._deduplicator = Deduplicator(tracker, lease_seconds=lease_seconds)
        self._forwarder = Forwarder(
            transport,
            outbox,
            timeout_seconds=self._publish_timeout_seconds,
            record=tracker.record_many if tracker is not None else None,
        )
        self._forwarder.start()

    async def close(self) -> None:
        """Take nothing more, finish what is under way within the stop timeout, and close what was opened. Idempotent.

        What has no confirm by then is kept in the outbox; without one its callers get PublishUnknown.
        """
        self._transport = None
        stop_seconds = self._settings.stop_timeout_seconds
        await self._end_under_way(stop_seconds)
        if self._forwarder is not None:
            await self._forwarder.stop(timeout_seconds=stop_seconds)
        # What waits for its confirm gets an error now, which puts it into the outbox.
        await self._transport_stack.aclose()
        await self._end_under_way(stop_seconds)
        self._tracker = self._outbox = None
        await self._stack.aclose()

    async def _end_under_way(self, seconds: float) -> None:
        if not self._under_way:
            return
        self._all_ended = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._all_ended}, timeout=seconds)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    @property
    def registry(self) -> EventRegistry:
        """The registry of payload models."""
        return self._registry

    @property
    def transport(self) -> Transport:
        """The open transport. Raises NotOpen."""
        if self._transport is None:
            raise NotOpen("The publisher is not open. Use it inside 'async with', or call start() first.")
        return self._transport

    @property
    def tracker(self) -> CorrelationTracker:
        """The open tracker. Raises TrackingDisabled, NotOpen."""
        if not self._tracking:
            raise TrackingDisabled(
                "Correlation tracking is disabled. Create the publisher with enable_correlation_tracking=True."
            )
        if self._tracker is None:
            raise NotOpen("The publisher is not open. Use it inside 'async with', or call start() first.")
        return self._tracker

    @property
    def outbox(self) -> Outbox | None:
        """The open outbox; None where there is none: the embedded log, or BLOODBANK_OUTBOX=off."""
        return self._outbox

    @property
    def tracking_enabled(self) -> bool:
        """Whether causes are recorded."""
        return self._tracking

    @overload
    async def publish(self, event: EventEnvelope[Any], /) -> PublishResult: ...

    @overload
    async def publish(
        self,
        routing_key: str,
        body: Mapping[str, Any],
        message_id: str | None = None,
        correlation_id: str | UUID | None = None,
        event_id: UUID | str | None = None,
        parent_event_ids: Sequence[UUID | str] | None = None,
        correlation_metadata: Mapping[str, Any] | None = None,
    ) -> PublishResult: ...

    async def publish(
        self,
        routing_key: EventEnvelope[Any] | str,
        body: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        correlation_id: str | UUID | None = None,
        event_id: UUID | str | None = None,
        parent_event_ids: Sequence[UUID | str] | None = None,
        correlation_metadata: Mapping[str, Any] | None = None,
    ) -> PublishResult:
        """Publish an envelope; return when it is durable.

        The arguments after the first are the call form of version 2: `body` is an envelope as a dict or a
        bare payload, `parent_event_ids` are added to its parents.

        Raises InvalidEvent (nothing was published), EventConflict (this id is on the bus with another body),
        PublishRejected, PublishUnknown (publish the same envelope again), TransportUnavailable (not sent).
        Causes that cannot be recorded raise nothing: `lineage` is then `deferred`.
        """
        # By type first: pydantic makes isinstance slow.
        if type(routing_key) is AnyEnvelope or isinstance(routing_key, EventEnvelope):
            envelope: EventEnvelope[Any] = routing_key
        else:
            if body is None:
                raise InvalidEvent("publish() takes an envelope, or a routing_key and a body.")
            parents = [*(parent_event_ids or ()), *([correlation_id] if correlation_id else [])]
            envelope = envelope_from_v2_call(
                routing_key,
                body,
                event_id=event_id or message_id,
                parent_event_ids=parents,
                correlation_metadata=correlation_metadata,
                source=Source.local(self._settings.service_name),
                registry=self._registry,
            )
        transport = self._transport or self.transport
        self._under_way += 1
        try:
            if self._tracking:
                publishing = self._publish_tracked(transport, envelope, codec.encode(envelope))
                del envelope, routing_key  # as below
                return await publishing
            message = codec.encode(envelope, with_digest=self._with_digest)
            dedup = _CHECKED if self._transport_tells or not _may_be_known(envelope) else _SKIPPED
            _remember_attempt(envelope)
            # Not kept while this waits: with a thousand in flight that takes 2 of 20 microseconds an event off.
            del envelope, routing_key
            receipt = await self._accept(transport, message)
            return PublishResult(message.event_id, _status(receipt), _DISABLED, dedup)
        finally:
            self._ended()

    async def publish_many(self, events: Sequence[EventEnvelope[Any]]) -> list[PublishResult | BloodbankError]:
        """Publish several envelopes, sharing confirms and round trips.

        Return one result or error for each, in order; one that fails does not stop the others. An id that
        stands in the list again is published after the rest, as if by itself.
        """
        transport = self.transport
        self._under_way += 1
        try:
            return await self._publish_many(transport, events)
        finally:
            self._ended()

    def generate_event_id(self, event_type: str, /, **unique_fields: Any) -> UUID:
        """Return the UUIDv5 of a type and the fields that make an event unique; the same fields, the same id.

        Raises TrackingDisabled when tracking is off (`bloodbank.event_id` works without), and ValueError for
        fields that JSON cannot hold.
        """
        if not self._tracking:
            raise TrackingDisabled(
                "Correlation tracking is disabled. Create the publisher with enable_correlation_tracking=True, "
                "or call bloodbank.event_id()."
            )
        return deterministic_event_id(event_type, **unique_fields)

    async def get_correlation_chain(
        self, event_id: UUID, direction: Direction | str = Direction.ANCESTORS, max_depth: int = 100
    ) -> list[UUID]:
        """Return an event with its ancestors or descendants, parents first.

        Raises TrackingDisabled, InvalidQuery, EventNotFound, StoreUnavailable.
        """
        return await self.tracker.get_correlation_chain(event_id, direction, max_depth)

    async def debug_correlation(self, event_id: UUID) -> dict[str, Any]:
        """Return parents, children, ancestors, descendants and metadata of an event, ready for JSON.

        Raises TrackingDisabled, EventNotFound, StoreUnavailable.
        """
        return await self.tracker.debug_dump(event_id)

    def _ended(self) -> None:
        self._under_way -= 1
        if not self._under_way and self._all_ended is not None and not self._all_ended.done():
            self._all_ended.set_result(None)

    async def _accept(self, transport: Transport, message: Message) -> Receipt | None:
        """Return the receipt, or None: the event is in the outbox. Raises as `publish`."""
        forwarder = cast("Forwarder", self._forwarder)  # made when it was opened
        if forwarder.is_diverting and await forwarder.divert(message):
            return None
        try:
            return await transport.publish(message, timeout_seconds=self._publish_timeout_seconds)
        except UNDECIDED as error:
            return await forwarder.recover(message, error)

    async def _publish_tracked(
        self, transport: Transport, envelope: EventEnvelope[Any], message: Message
    ) -> PublishResult:
        deduplicator = self._deduplicator
        if deduplicator is None:
            link = codec.link_of(envelope, message.digest)
            del envelope
            return await self._accept_and_record(transport, message, link, _CHECKED)
        event_id = message.event_id
        await deduplicator.begin(event_id)
        try:
            # Asked in here: another task may have been publishing this very object.
            is_claimed, dedup = _may_be_known(envelope), _CHECKED
            if is_claimed:
                verdict = await deduplicator.claim(message)
                if verdict is None:
                    return PublishResult(event_id, _DUPLICATE, Lineage.RECORDED)
                dedup = verdict
            _remember_attempt(envelope)
            link = codec.link_of(envelope, message.digest)
            del envelope
            try:
                return await self._accept_and_record(transport, message, link, dedup)
            except BloodbankError:
                if is_claimed:
                    await deduplicator.release([event_id])
                raise
        finally:
            deduplicator.end(event_id)

    async def _accept_and_record(
        self, transport: Transport, message: Message, link: Link, dedup: Dedup
    ) -> PublishResult:
        receipt = await self._accept(transport, message)
        try:
            recorded = self._tracker_to_record().enqueue(link)
        except NotOpen:
            # Closed while it was on its way: it is on the bus, and that is what the answer must say.
            return PublishResult(message.event_id, _status(receipt), Lineage.DEFERRED, dedup)
        return PublishResult(message.event_id, _status(receipt), await recorded, dedup)

    def _tracker_to_record(self) -> CorrelationTracker:
        if self._tracker is None:
            raise NotOpen("The publisher was closed.")
        return self._tracker

    async def _publish_many(
        self, transport: Transport, events: Sequence[EventEnvelope[Any]]
    ) -> list[PublishResult | BloodbankError]:
        answers: dict[int, PublishResult | BloodbankError] = {}
        first: dict[UUID, int] = {}
        for place, event in enumerate(events):
            first.setdefault(event.event_id, place)
        places = list(first.values())
        if len(places) <= SLICE:
            await self._publish_slice(transport, events, places, answers)
        else:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(places), SLICE):
                    group.create_task(self._publish_slice(transport, events, places[start : start + SLICE], answers))
                    # It is on its way before the next is serialised, and others get their turn.
                    await asyncio.sleep(0)
        # Ids that stand here again, or that somebody else publishes at this moment.
        for place, event in enumerate(events):
            if place not in answers:
                try:
                    answers[place] = await self.publish(event)
                except BloodbankError as error:
                    answers[place] = error
        return [answers[place] for place in range(len(events))]

    async def _publish_slice(
        self,
        transport: Transport,
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
        deduplicator = self._deduplicator
        if deduplicator is None:
            await self._send_many(transport, events, messages, answers, {})
            return
        free = set(deduplicator.begin_free(message.event_id for message in messages.values()))
        messages = {place: message for place, message in messages.items() if message.event_id in free}
        try:
            dedup = await self._claim_known(deduplicator, events, messages, answers)
            await self._send_many(transport, events, messages, answers, dedup)
            failed = [place for place in dedup if place in messages and not isinstance(answers[place], PublishResult)]
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
                answers[place] = PublishResult(messages.pop(place).event_id, _DUPLICATE, Lineage.RECORDED)
            else:
                dedup[place] = _CHECKED
        return dedup

    async def _send_many(
        self,
        transport: Transport,
        events: Sequence[EventEnvelope[Any]],
        messages: Mapping[int, Message],
        answers: dict[int, PublishResult | BloodbankError],
        dedup: Mapping[int, Dedup],
    ) -> None:
        if not messages:
            return
        if not self._tracking and not self._transport_tells:
            dedup = {place: _SKIPPED for place in messages if _may_be_known(events[place])}
        for place in messages:
            _remember_attempt(events[place])
        outcomes = await self._accept_many(transport, list(messages.values()))
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

    async def _accept_many(
        self, transport: Transport, messages: Sequence[Message]
    ) -> Sequence[Receipt | BloodbankError | None]:
        forwarder = cast("Forwarder", self._forwarder)  # made when it was opened
        if forwarder.is_diverting:
            diverted = await forwarder.divert_many(messages)
            places = [place for place, answer in enumerate(diverted) if is_to_be_asked(answer)]
            asked = await self._ask_for_many(forwarder, transport, [messages[place] for place in places])
            return _filled(diverted, places, asked)
        return await self._ask_for_many(forwarder, transport, messages)

    async def _ask_for_many(
        self, forwarder: Forwarder, transport: Transport, messages: Sequence[Message]
    ) -> Sequence[Receipt | BloodbankError | None]:
        if not messages:
            return []
        try:
            outcomes = await transport.publish_many(messages, timeout_seconds=self._publish_timeout_seconds)
        except NotOpen as error:
            # Closed meanwhile, or else each message would have an answer of its own.
            outcomes = [error] * len(messages)
        if all(isinstance(outcome, Receipt) for outcome in outcomes):
            return outcomes
        return await forwarder.recover_many(messages, outcomes)

    async def _record(self, links: Sequence[Link]) -> Sequence[Lineage]:
        if not self._tracking:
            return [_DISABLED] * len(links)
        try:
            return await self._tracker_to_record().record_many(links)
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
