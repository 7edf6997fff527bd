"""A bus in memory for tests and programs that are no coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID

from bloodbank.acceptance import PublishResult
from bloodbank.causation import HasEventId
from bloodbank.config import Settings
from bloodbank.consumer import Consumer
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.envelope import EventEnvelope
from bloodbank.events.registry import EventRegistry
from bloodbank.publisher import Publisher
from bloodbank.testing.bus import LONGEST_SECONDS, InMemoryBus

T = TypeVar("T")


class BlockingBus:
    """An `InMemoryBus` with an event loop of its own, which runs while one of these calls waits, in this thread.

        with BlockingBus() as bus:
            with bus.consuming(consumer):
                bus.publish("call.recorded", {"title": "Planning"})
            bus.assert_published("note.filed")

    settings, registry: as of `InMemoryBus`. Cannot be used where an event loop runs.
    """

    def __init__(self, settings: Settings | None = None, *, registry: EventRegistry | None = None) -> None:
        self._bus = InMemoryBus(settings, registry=registry)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.__enter__()
        try:
            self.run(self._bus.open())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self._bus.close())
        finally:
            self._runner.close()

    @property
    def publisher(self) -> Publisher:
        """The open publisher, for coroutines that `run` runs. Raises NotOpen."""
        return self._bus.publisher

    @property
    def tracker(self) -> CorrelationTracker:
        """The index of causes, for `run`: `bus.run(bus.tracker.get_parents(event_id))`. Raises NotOpen."""
        return self._bus.tracker

    @property
    def events(self) -> list[EventEnvelope[Any]]:
        """All that was published so far, in order; payloads are JSON objects. Raises NotOpen."""
        return self._bus.events

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the bus's loop, with the context variables of here; return or raise what it does."""
        return self._runner.run(work, context=copy_context())

    def publish(self, event: EventEnvelope[Any] | str, payload: object = None, /, **fields: Any) -> PublishResult:
        """Publish an event; see `InMemoryBus.publish`."""
        return self.run(self._bus.publish(event, payload, **fields))

    @contextmanager
    def consuming(self, *consumers: Consumer, timeout_seconds: float = LONGEST_SECONDS) -> Generator[None]:
        """Let consumers run on this bus; handlers work while a call waits, and all is done at the end of the block.

        See `InMemoryBus.consuming`.
        """
        block = self._bus.consuming(*consumers, timeout_seconds=timeout_seconds)
        self.run(_of(block.__aenter__()))
        try:
            yield
        except BaseException as error:
            if not self.run(_of(block.__aexit__(type(error), error, error.__traceback__))):
                raise
        else:
            self.run(_of(block.__aexit__(None, None, None)))

    def assert_published(self, event_type: str, /, **payload_subset: object) -> EventEnvelope[Any]:
        """Assert that an event was published; see `bloodbank.testing.assert_published`."""
        return self._bus.assert_published(event_type, **payload_subset)

    def assert_caused_by(self, event: UUID | HasEventId, /, *parents: UUID | HasEventId) -> None:
        """Assert that an event has exactly these direct causes; see `bloodbank.testing.assert_caused_by`."""
        self._bus.assert_caused_by(event, *parents)


async def _of(awaitable: Any) -> Any:
    return await awaitable
