"""Publishes events durably, then records what caused them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, overload
from uuid import UUID

from pydantic import SecretStr

from bloodbank import wiring
from bloodbank.acceptance import Acceptor, PublishResult
from bloodbank.config import Settings, load_settings
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.envelope import AnyEnvelope, EventEnvelope, Source, envelope_from_v2_call
from bloodbank.errors import BloodbankError, InvalidEvent, NotOpen, TrackingDisabled
from bloodbank.events.registry import EventRegistry
from bloodbank.forwarding import Forwarder
from bloodbank.ids import event_id as deterministic_event_id
from bloodbank.outbox import Outbox
from bloodbank.stores.base import Direction
from bloodbank.transports.base import Transport

logger = logging.getLogger(__name__)


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
        self._acceptor: Acceptor | None = None
        self._transport_stack = AsyncExitStack()
        self._stack = AsyncExitStack()
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
            if self._given_transport is None:
                for one in await asyncio.to_thread(wiring.find_stranded, self._settings):
                    logger.warning("%s", one)
            self._stack, self._transport_stack = stack.pop_all(), transport_stack.pop_all()
        self._transport, self._tracker, self._outbox = transport, tracker, outbox
        self._forwarder = Forwarder(
            transport,
            outbox,
            timeout_seconds=self._settings.publish_timeout_seconds,
            record=tracker.record_many if tracker is not None else None,
        )
        self._acceptor = Acceptor(
            transport, self._forwarder, tracker, publish_timeout_seconds=self._settings.publish_timeout_seconds
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
            raise _not_open()
        return self._transport

    @property
    def tracker(self) -> CorrelationTracker:
        """The open tracker. Raises TrackingDisabled, NotOpen."""
        if not self._tracking:
            raise TrackingDisabled(
                "Correlation tracking is disabled. Create the publisher with enable_correlation_tracking=True."
            )
        if self._tracker is None:
            raise _not_open()
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
        acceptor = self._acceptor
        if acceptor is None or self._transport is None:
            raise _not_open()
        self._under_way += 1
        try:
            publishing = acceptor.publish(envelope)
            del envelope, routing_key  # it keeps the envelope no longer than it must
            return await publishing
        finally:
            self._ended()

    async def publish_many(self, events: Sequence[EventEnvelope[Any]]) -> list[PublishResult | BloodbankError]:
        """Publish several envelopes, sharing confirms and round trips.

        Return one result or error for each, in order; one that fails does not stop the others. An id that
        stands in the list again is published after the rest, as if by itself.
        """
        acceptor = self._acceptor
        if acceptor is None or self._transport is None:
            raise _not_open()
        self._under_way += 1
        try:
            return await acceptor.publish_many(events)
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


def _not_open() -> NotOpen:
    return NotOpen("The publisher is not open. Use it inside 'async with', or call start() first.")
