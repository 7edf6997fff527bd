"""The bus, opened in this process: no server is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import orjson

from bloodbank.cli.bus import Json
from bloodbank.config import Settings
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.envelope import EventEnvelope, read_envelope
from bloodbank.errors import EventNotFound, InvalidQuery, TrackingDisabled
from bloodbank.event_log import EventLog
from bloodbank.events import load_plugins
from bloodbank.http.answers import lineage_body, require_bounds, schema_list
from bloodbank.http.feed import Feed
from bloodbank.http.statistics import Statistics
from bloodbank.publisher import Publisher


class LocalBus:
    """Opens what the settings describe. Use it inside `async with`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._publisher = Publisher(settings, enable_correlation_tracking=settings.correlation_tracking)
        self._stack = AsyncExitStack()
        self._statistics: Statistics | None = None

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(load_plugins)
        await self._stack.enter_async_context(self._publisher)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def publish(self, event: Mapping[str, Any]) -> Json:
        """See `Bus.publish`."""
        envelope = read_envelope(event)
        payload = self._publisher.registry.validate(envelope.event_type, envelope.payload)
        result = await self._publisher.publish(envelope.model_copy(update={"payload": payload}))
        return {"event_id": str(result.event_id), "status": result.status.value, "lineage": result.lineage.value}

    async def get(self, event_id: UUID) -> Json:
        """See `Bus.get`."""
        return _as_json(await self._log.get(event_id))

    async def lineage(self, event_id: UUID, direction: str, *, max_depth: int, limit: int) -> Json:
        """See `Bus.lineage`."""
        tracker = self._tracker_if_on
        if tracker is None:
            raise TrackingDisabled("Correlation tracking is off. Set BLOODBANK_CORRELATION_TRACKING=true.")
        require_bounds(self._settings, max_depth, limit)
        graph = await tracker.walk(event_id, direction, max_depth=max_depth, limit=limit)
        return orjson.loads(lineage_body(graph))

    async def page(
        self, *, pattern: str, since: datetime | None, until: datetime | None, cursor: str | None, limit: int
    ) -> Json:
        """See `Bus.page`."""
        if cursor is not None and not cursor.isdecimal():
            raise InvalidQuery(f"{cursor[:80]!r} is no cursor. Give the one that the page before ended with.")
        before = int(cursor) if cursor is not None else None
        page = await self._log.page(pattern=pattern, since=since, until=until, before=before, limit=limit)
        items = [_as_json(item.envelope) for item in page.items]
        return {"items": items, "next": str(page.next) if page.next is not None else None}

    @asynccontextmanager
    async def tail(self, pattern: str) -> AsyncGenerator[AsyncIterator[Json]]:
        """See `Bus.tail`. Raises TransportUnavailable when the bus is away at first; later losses are waited out."""
        await self._publisher.transport.check(timeout_seconds=self._settings.connect_timeout_seconds)
        async with self._log.tail(pattern) as envelopes:
            yield (_as_json(envelope) async for envelope in envelopes)

    async def resolve(self, text: str) -> UUID:
        """See `Bus.resolve`."""
        return await self._log.resolve(text)

    async def stats(self) -> Json:
        """See `Bus.stats`. Counting begins with the first question."""
        if self._statistics is None:
            feed = await self._stack.enter_async_context(Feed(self._publisher.transport, self._settings))
            self._statistics = Statistics(feed, self._publisher.outbox)
        return orjson.loads(orjson.dumps(await self._statistics.answer()))

    async def schemas(self) -> Json:
        """See `Bus.schemas`."""
        return schema_list(self._publisher.registry)

    async def schema(self, event_type: str) -> Json:
        """See `Bus.schema`."""
        model = self._publisher.registry.model_for(event_type)
        if model is None:
            raise EventNotFound(
                f"No schema is registered for {event_type[:80]!r}. 'bb events schema' lists the types that have one."
            )
        return model.model_json_schema()

    @property
    def _log(self) -> EventLog:
        return EventLog(self._publisher.transport, self._tracker_if_on, self._settings)

    @property
    def _tracker_if_on(self) -> CorrelationTracker | None:
        return self._publisher.tracker if self._publisher.tracking_enabled else None


def _as_json(envelope: EventEnvelope[Any]) -> Json:
    return envelope.model_dump(mode="json")
