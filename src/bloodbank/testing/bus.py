"""The embedded bus on a database in memory: what a program does with it, it does with a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from bloodbank import codec, wiring
from bloodbank.acceptance import PublishResult
from bloodbank.causation import HasEventId
from bloodbank.config import Settings, load_settings
from bloodbank.consumer import Consumer
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.envelope import EventEnvelope, create_envelope
from bloodbank.errors import NotOpen
from bloodbank.events.registry import EventRegistry
from bloodbank.publisher import Publisher
from bloodbank.testing.assertions import assert_caused_by, assert_published

PATIENCE = {
    "publish_timeout_seconds": 60.0,
    "correlation_timeout_seconds": 60.0,
    "query_timeout_seconds": 60.0,
    "inbox_timeout_seconds": 60.0,
    "lease_seconds": 600.0,
}
"""Limits of the settings that are not kept here: a busy machine is no outage, and there is no other process."""
LONGEST_SECONDS = 30.0
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.001, 0.05
"""Between looks whether all is handled."""


class InMemoryBus:
    """A bus for one test or one program, which is gone when it closes: transport, index of causes and inbox.

        async with InMemoryBus() as bus:
            async with bus.consuming(consumer):
                call = await bus.publish("call.recorded", {"title": "Planning"})
            note = bus.assert_published("note.filed", title="Planning")
            bus.assert_caused_by(note, call)

    It is the bus that runs without settings, its database in memory: the same semantics of groups, retries, dead
    letters and duplicates. It belongs to the event loop that opened it.

    settings: default: the environment, without `.env`; URLs of servers in it are not used.
    registry: models that payloads are checked with, beside those of the `event` decorator.
    """

    def __init__(self, settings: Settings | None = None, *, registry: EventRegistry | None = None) -> None:
        self._settings = (settings or load_settings(_env_file=None)).model_copy(update=PATIENCE)
        self._registry = registry
        self._parts: wiring.InMemory | None = None
        self._publisher: Publisher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Open; idempotent. Whatever publishes or consumes here does it by itself."""
        if self._publisher is not None:
            return
        parts = await asyncio.to_thread(wiring.build_in_memory, self._settings)
        async with AsyncExitStack() as stack:
            # The database lives from its first user to its last.
            await stack.enter_async_context(parts.database)
            transport = await stack.enter_async_context(parts.transport)
            tracker = await stack.enter_async_context(parts.tracker)
            publisher = Publisher(self._settings, transport=transport, tracker=tracker, registry=self._registry)
            await stack.enter_async_context(publisher)
            self._stack = stack.pop_all()
        self._parts, self._publisher, self._loop = parts, publisher, asyncio.get_running_loop()

    async def close(self) -> None:
        """Close, and forget all that was published; idempotent."""
        self._parts = self._publisher = self._loop = None
        await self._stack.aclose()

    def close_left_open(self) -> None:
        """Close from outside of any coroutine, as `close` does, or what is left when the loop is closed; idempotent."""
        loop, parts = self._loop, self._parts
        if loop is None or parts is None:
            return
        if loop.is_closed():
            # Its tasks ended with it.
            self._parts = self._publisher = self._loop = None
            self._stack.pop_all()
            parts.database.abandon()
        else:
            loop.run_until_complete(self.close())

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it was opened on; None while it is not open."""
        return self._loop

    @property
    def publisher(self) -> Publisher:
        """The open publisher, for code that takes one. Raises NotOpen."""
        if self._publisher is None:
            raise _not_open()
        return self._publisher

    @property
    def tracker(self) -> CorrelationTracker:
        """The index of causes. Raises NotOpen."""
        return self.publisher.tracker

    @property
    def events(self) -> list[EventEnvelope[Any]]:
        """All that was published so far, by whomever, in order; payloads are JSON objects. Raises NotOpen."""
        return [codec.decode(entry.message.body) for entry in self._open_parts().transport.entries()]

    async def publish(self, event: EventEnvelope[Any] | str, payload: object = None, /, **fields: Any) -> PublishResult:
        """Publish an envelope, or make one of a type, a payload and further fields of `create_envelope`.

        Raises what `create_envelope` and `Publisher.publish` raise.
        """
        await self.open()
        if isinstance(event, str):
            event = create_envelope(event, {} if payload is None else payload, registry=self._registry, **fields)
        return await self.publisher.publish(event)

    @asynccontextmanager
    async def consuming(self, *consumers: Consumer, timeout_seconds: float = LONGEST_SECONDS) -> AsyncGenerator[None]:
        """Let consumers run on this bus within the block, whatever bus they were made for.

        It begins when their groups keep what comes for them. Its end waits until all is handled or set aside, also
        what the handlers published; retries wait for as long as their `Retry` says.

        timeout_seconds: longest wait at the end. Raises TimeoutError that names what is left, and at once what ended a
        consumer, such as `pytest.fail` in a handler.
        """
        await self.open()
        parts = self._open_parts()
        async with AsyncExitStack() as stack:
            for consumer in consumers:
                await stack.enter_async_context(consumer.running(publisher=self.publisher, inbox=parts.inbox))
            yield
            await self._settled(consumers, timeout_seconds)

    def assert_published(self, event_type: str, /, **payload_subset: object) -> EventEnvelope[Any]:
        """Assert that an event was published; see `bloodbank.testing.assert_published`."""
        return assert_published(self.events, event_type, **payload_subset)

    def assert_caused_by(self, event: UUID | HasEventId, /, *parents: UUID | HasEventId) -> None:
        """Assert that an event has exactly these direct causes; see `bloodbank.testing.assert_caused_by`."""
        assert_caused_by(self.events, event, *parents)

    async def _settled(self, consumers: Sequence[Consumer], timeout_seconds: float) -> None:
        transport = self._open_parts().transport
        groups = {handler.group for consumer in consumers for handler in consumer.handlers}
        pause_seconds = FIRST_LOOK_SECONDS
        left: dict[str, int] = {}
        try:
            async with asyncio.timeout(timeout_seconds):
                while left := {name: count for name, count in (await transport.unsettled()).items() if name in groups}:
                    if any(consumer.has_failed for consumer in consumers):
                        # What is left stays so; the end of the block says why.
                        return
                    await asyncio.sleep(pause_seconds)
                    pause_seconds = min(2 * pause_seconds, LONGEST_LOOK_SECONDS)
        except TimeoutError as error:
            waiting = ", ".join(f"{name} has {count}" for name, count in left.items())
            raise TimeoutError(
                f"Not everything was handled within {timeout_seconds:g} s: {waiting or 'nobody answered'}. A handler "
                "is still at work, or waits for its next attempt: a test may want Retry(first_seconds=0)."
            ) from error

    def _open_parts(self) -> wiring.InMemory:
        if self._parts is None:
            raise _not_open()
        return self._parts


def _not_open() -> NotOpen:
    return NotOpen("The bus is not open. Use it inside 'async with', or call open() first; with its end, all is gone.")
