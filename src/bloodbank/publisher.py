"""Publishes events durably, then records what caused them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from enum import StrEnum
from types import TracebackType
from typing import Any, NamedTuple, Self, overload
from uuid import UUID

from pydantic import SecretStr

from bloodbank import codec, wiring
from bloodbank.config import Settings, load_settings
from bloodbank.correlation_tracker import CorrelationTracker, Lineage
from bloodbank.envelope import AnyEnvelope, EventEnvelope, Source, envelope_from_v2_call
from bloodbank.errors import BloodbankError, EventConflict, InvalidEvent, NotOpen, TrackingDisabled
from bloodbank.events.registry import EventRegistry
from bloodbank.ids import event_id as deterministic_event_id
from bloodbank.stores.base import Direction, Link, Node
from bloodbank.transports.base import Message, Receipt, Transport

ENCODED_AT_ONCE_BYTES = 262_144
"""How much `publish_many` serialises before it lets others run."""
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
_PUBLISHED, _DUPLICATE, _DISABLED = Status.PUBLISHED, Status.DUPLICATE, Lineage.DISABLED


class PublishResult(NamedTuple):
    """The answer to a publish: the event is on the bus, or on disk, whatever `status` says."""

    event_id: UUID
    status: Status
    lineage: Lineage


class Publisher:
    """Publishes events on the bus that the settings describe.

        async with Publisher(enable_correlation_tracking=True) as publisher:
            result = await publisher.publish(create_envelope("llm.prompt", {...}))

    settings: default: read from the environment and `.env`.
    enable_correlation_tracking: keep the index of causes; off by default.
    transport, tracker: already open ones, which are used and not closed.
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
        self._registry = registry or EventRegistry(accept_unknown=self._settings.unknown_event_types == "accept")
        self._transport: Transport | None = None
        self._tracker: CorrelationTracker | None = None
        self._stack = AsyncExitStack()
        # By id: who waits until the publish of that id has ended.
        self._in_flight: dict[UUID, list[asyncio.Future[None]]] = {}

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
        async with AsyncExitStack() as stack:
            transport, tracker = self._given_transport, self._given_tracker
            if transport is None or (self._tracking and tracker is None):
                # In a thread, since it imports the backends that are chosen.
                backends = await asyncio.to_thread(wiring.build, self._settings, tracking=self._tracking)
                transport = transport or await stack.enter_async_context(backends.transport)
                if self._tracking and tracker is None and backends.tracker is not None:
                    tracker = await stack.enter_async_context(backends.tracker)
            self._stack = stack.pop_all()
            self._transport, self._tracker = transport, tracker

    async def close(self) -> None:
        """Close what was opened. Idempotent."""
        self._transport = None
        self._tracker = None
        await self._stack.aclose()

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
        if self._tracking:
            publishing = self._publish_tracked(transport, envelope, codec.encode(envelope))
            del envelope, routing_key  # as below
            return await publishing
        message = codec.encode(envelope, with_digest=transport.features.detects_duplicates)
        _remember_attempt(envelope)
        # Not kept while this waits: with a thousand in flight that takes 2 of 20 microseconds an event off.
        del envelope, routing_key
        receipt = await transport.publish(message, timeout_seconds=self._publish_timeout_seconds)
        return PublishResult(receipt.event_id, _status(receipt), _DISABLED)

    async def publish_many(self, events: Sequence[EventEnvelope[Any]]) -> list[PublishResult | BloodbankError]:
        """Publish several envelopes, sharing confirms and round trips.

        Return one result or error for each, in order; one that fails does not stop the others. An id that
        stands in the list again is published after the rest, as if by itself.
        """
        transport = self.transport
        answers: dict[int, PublishResult | BloodbankError] = {}
        first: dict[UUID, int] = {}
        repeated = [place for place, event in enumerate(events) if first.setdefault(event.event_id, place) != place]
        places = list(first.values())
        if len(places) <= SLICE:
            await self._publish_slice(transport, events, places, answers)
        else:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(places), SLICE):
                    group.create_task(self._publish_slice(transport, events, places[start : start + SLICE], answers))
                    # It is on its way before the next is serialised, and others get their turn.
                    await asyncio.sleep(0)
        for place in repeated:
            try:
                answers[place] = await self.publish(events[place])
            except BloodbankError as error:
                answers[place] = error
        return [answers[place] for place in range(len(events))]

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

    def _needs_digest(self, transport: Transport) -> bool:
        return self._tracking or transport.features.detects_duplicates

    async def _publish_tracked(
        self, transport: Transport, envelope: EventEnvelope[Any], message: Message
    ) -> PublishResult:
        event_id = message.event_id
        takes_turns = not transport.features.detects_duplicates
        if takes_turns:
            # One `publish` of an id in this process goes at a time, so that the second sees the first in the index.
            while (waiting := self._in_flight.get(event_id)) is not None:
                turn = asyncio.get_running_loop().create_future()
                waiting.append(turn)
                await turn
            self._in_flight[event_id] = []
        try:
            # Asked in here: another task may have been publishing this very object.
            if takes_turns and _may_be_known(envelope):
                known = _duplicate(message, await self._find([event_id]))
                if known is not None:
                    return known
            _remember_attempt(envelope)
            link = codec.link_of(envelope, message.digest)
            del envelope
            receipt = await transport.publish(message, timeout_seconds=self._publish_timeout_seconds)
            try:
                recorded = self.tracker.enqueue(link)
            except NotOpen:
                # Closed while it was on its way: it is on the bus, and that is what the answer must say.
                return PublishResult(event_id, _status(receipt), Lineage.DEFERRED)
            return PublishResult(event_id, _status(receipt), await recorded)
        finally:
            for turn in self._in_flight.pop(event_id) if takes_turns else ():
                if not turn.done():
                    turn.set_result(None)

    async def _publish_slice(
        self,
        transport: Transport,
        events: Sequence[EventEnvelope[Any]],
        places: Sequence[int],
        answers: dict[int, PublishResult | BloodbankError],
    ) -> None:
        """Publish the events in some places, each with an id of its own; add their answers."""
        messages: dict[int, Message] = {}
        with_digest = self._needs_digest(transport)
        encoded_bytes = 0
        for place in places:
            try:
                message = messages[place] = codec.encode(events[place], with_digest=with_digest)
            except InvalidEvent as error:
                answers[place] = error
                continue
            encoded_bytes += len(message.body)
            if encoded_bytes > ENCODED_AT_ONCE_BYTES:
                # Many large events take seconds, and others wait for the event loop.
                encoded_bytes = 0
                await asyncio.sleep(0)
        try:
            if not transport.features.detects_duplicates:
                await self._answer_known(events, messages, answers)
            if messages:
                await self._send_many(transport, events, messages, answers)
        except BloodbankError as error:
            # Closed meanwhile, or else each message would have an answer of its own.
            answers.update((place, error) for place in messages if place not in answers)

    async def _send_many(
        self,
        transport: Transport,
        events: Sequence[EventEnvelope[Any]],
        messages: Mapping[int, Message],
        answers: dict[int, PublishResult | BloodbankError],
    ) -> None:
        for place in messages:
            _remember_attempt(events[place])
        outcomes = await transport.publish_many(list(messages.values()), timeout_seconds=self._publish_timeout_seconds)
        accepted: dict[int, Receipt] = {}
        for place, outcome in zip(messages, outcomes, strict=True):
            if not isinstance(outcome, Receipt):
                answers[place] = outcome
            elif self._tracking:
                accepted[place] = outcome
            else:
                answers[place] = PublishResult(outcome.event_id, _status(outcome), _DISABLED)
        if accepted:
            lineages = await self._record([codec.link_of(events[place], messages[place].digest) for place in accepted])
            for (place, receipt), lineage in zip(accepted.items(), lineages, strict=True):
                answers[place] = PublishResult(receipt.event_id, _status(receipt), lineage)

    async def _answer_known(
        self,
        events: Sequence[EventEnvelope[Any]],
        messages: dict[int, Message],
        answers: dict[int, PublishResult | BloodbankError],
    ) -> None:
        """Answer the events that are on the bus already, and take them out of what is to be sent."""
        suspects = [place for place in messages if _may_be_known(events[place])]
        known = await self._find([events[place].event_id for place in suspects])
        for place in suspects:
            try:
                result = _duplicate(messages[place], known)
            except EventConflict as error:
                answers[place] = error
            else:
                if result is None:
                    continue
                answers[place] = result
            del messages[place]

    async def _find(self, event_ids: Sequence[UUID]) -> Mapping[UUID, Node]:
        """Ask the index which ids are known; an index that is off or away knows none."""
        if self._tracker is None or not event_ids:
            return {}
        return await self._tracker.find(event_ids) or {}

    async def _record(self, links: Sequence[Link]) -> list[Lineage]:
        try:
            return await self.tracker.record_many(links)
        except NotOpen:
            # Closed while these were on their way: they are on the bus, and that is what the answer must say.
            return [Lineage.DEFERRED] * len(links)


def _may_be_known(envelope: EventEnvelope[Any]) -> bool:
    # An id that pydantic made for this very object cannot be on the bus before the first try to publish it.
    return "event_id" in envelope.model_fields_set


def _remember_attempt(envelope: EventEnvelope[Any]) -> None:
    envelope.__pydantic_fields_set__.add("event_id")


def _duplicate(message: Message, known: Mapping[UUID, Node]) -> PublishResult | None:
    """Return the answer for an event that is on the bus, None for a new one; raise EventConflict."""
    node = known.get(message.event_id)
    if node is None or node.link is None or not node.link.digest:
        return None
    if node.link.digest != message.digest:
        raise EventConflict(
            f"Event {message.event_id} is on the bus already with another body. That one stays; nothing was "
            "published. Use another id, or send the same type, parents, agent_context and payload."
        )
    return PublishResult(message.event_id, Status.DUPLICATE, Lineage.RECORDED)


def _status(receipt: Receipt) -> Status:
    return _DUPLICATE if receipt.duplicate else _PUBLISHED
