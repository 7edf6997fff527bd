"""Consumes events: functions are called with them, and what these publish knows its cause."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self, TypeVar

from bloodbank import wiring
from bloodbank.acceptance import PublishResult
from bloodbank.causation import CausalThreadPool
from bloodbank.config import Settings, load_settings
from bloodbank.consuming.arguments import Arguments, Function, name_of
from bloodbank.consuming.group import GroupAtWork, Surroundings
from bloodbank.consuming.handler import Handler, OrderedBy, is_async, require_no_generator
from bloodbank.consuming.inbox import GuardedInbox
from bloodbank.consuming.retry import Retry
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import BloodbankError, ConfigurationError, NotOpen
from bloodbank.events.registry import EventRegistry
from bloodbank.publisher import Publisher
from bloodbank.transports.base import Start, compile_type_pattern, matches, require_group, require_start

AnyFunction = TypeVar("AnyFunction", bound=Function)

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class BlockingPublisher:
    """The publisher for handlers that are plain functions: its calls wait, in the handler's thread.

    Ask for it by annotation. It cannot be used on the event loop, which it would wait for for ever.
    """

    def __init__(self, publisher: Publisher, loop: asyncio.AbstractEventLoop) -> None:
        self._publisher = publisher
        self._loop = loop

    def publish(self, event: EventEnvelope[Any]) -> PublishResult:
        """Publish an envelope; returns and raises what `Publisher.publish` does."""
        return asyncio.run_coroutine_threadsafe(self._publisher.publish(event), self._loop).result()

    def publish_many(self, events: Sequence[EventEnvelope[Any]]) -> list[PublishResult | BloodbankError]:
        """Publish several; returns what `Publisher.publish_many` does."""
        return asyncio.run_coroutine_threadsafe(self._publisher.publish_many(events), self._loop).result()


class Consumer:
    """Calls functions with the events of a bus.

        consumer = Consumer("rag")

        @consumer.on("fireflies.transcript.ready", group="rag")
        async def ingest(event: EventEnvelope[FirefliesTranscriptReadyPayload], publisher: Publisher) -> None:
            ...

        await consumer.run()

    Each event is handled at least once, and in the normal case once: docs/consuming.md says what remains possible.

    name: stands in failures and logs, before the name of the function.
    settings: default: those of the publisher, or read from the environment and `.env` when it runs.
    publisher: an open one, which is used and not closed; default: one of its own, with the index of causes.
    registry: models of payloads whose class the handler leaves open.
    """

    def __init__(
        self,
        name: str,
        settings: Settings | None = None,
        *,
        publisher: Publisher | None = None,
        registry: EventRegistry | None = None,
    ) -> None:
        if not name:
            raise ConfigurationError("A consumer needs a name; it stands in failures and logs.")
        self._name = name
        self._given_settings = settings
        self._given_publisher = publisher
        self._registry = registry
        self._handlers: list[Handler] = []
        self._publisher: Publisher | None = None
        self._blocking: BlockingPublisher | None = None
        self._stopping: asyncio.Event | None = None
        self._working: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The name of the consumer."""
        return self._name

    @property
    def handlers(self) -> Sequence[Handler]:
        """The handlers, in the order of their registration."""
        return tuple(self._handlers)

    @property
    def has_failed(self) -> bool:
        """Whether its work has ended early; `running` raises the reason at the end of its block."""
        return self._working is not None and self._working.done()

    def on(
        self,
        pattern: str,
        group: str | None = None,
        *,
        start: Start = "now",
        concurrency: int = 1,
        prefetch: int | None = None,
        ordered_by: OrderedBy | None = None,
        retry: Retry | None = None,
        once: bool = True,
        timeout_seconds: float | None = None,
    ) -> Callable[[AnyFunction], AnyFunction]:
        """Decorate a function that handles the events of a pattern.

        The function gets what its annotations ask for: EventEnvelope or EventEnvelope[Model], a payload model or dict,
        Publisher (BlockingPublisher in a plain function), Attempt. One that is no coroutine function runs in a thread.

        pattern: words joined by dots; `*` stands for one word, `#` for any number. Within a group, the first handler
            whose pattern fits gets an event.
        group: consumers of one group share its events; default: the name of the consumer.
        start: where a new group begins: "now", "beginning" of the log, or an aware time; of its handlers' the earliest.
        concurrency: most events that the function handles at a time, in this process.
        prefetch: most events it has been given and not finished; default: BLOODBANK_CONSUMER_PREFETCH.
        ordered_by: returns the key of an event; those of one key are handled one after the other in this process, and
            while one of them waits for its next attempt the later ones wait too.
        retry: default: `Retry()`.
        once: whether an event that the group has handled is left out when it comes again.
        timeout_seconds: longest run; after it the attempt has failed with TimeoutError. A thread goes on all the same,
            and counts among `concurrency` until it ends.

        Raises InvalidQuery for a pattern, group or start, ConfigurationError for anything else that cannot be.
        """
        group = self._name if group is None else group
        _require_place(pattern, group, start)
        _require_sense(concurrency, prefetch, timeout_seconds, retry)
        # Models are often defined where the handler is, such as within a test.
        frame = inspect.currentframe()
        namespace = dict(frame.f_back.f_locals) if frame and frame.f_back else {}

        def decorate(function: AnyFunction) -> AnyFunction:
            handler = Handler(
                name=f"{self._name}.{name_of(function)}",
                function=function,
                arguments=self._arguments(function, namespace),
                pattern=pattern,
                group=group,
                start=start,
                concurrency=concurrency,
                prefetch=prefetch,
                ordered_by=ordered_by,
                retry=retry or Retry(),
                once=once,
                timeout_seconds=timeout_seconds,
            )
            self._add(handler)
            return function

        return decorate

    def _add(self, handler: Handler) -> None:
        """Register a handler; raise ConfigurationError for one that would get no event."""
        literal = not {"*", "#"} & set(handler.pattern.split("."))
        for other in self._handlers:
            if other.group != handler.group:
                continue
            if other.pattern == handler.pattern or (literal and matches(other.pattern, handler.pattern)):
                raise ConfigurationError(
                    f"{handler.name} would get no event: {other.name} takes {other.pattern} in the group "
                    f"{handler.group} before it, and an event goes to one handler of a group. Give one of them a "
                    f"group of its own, such as group={f'{handler.group}-{name_of(handler.function)}'!r}, or register "
                    "the narrower pattern first."
                )
        self._handlers.append(handler)

    async def run(self) -> None:
        """Consume until SIGTERM, SIGINT or `stop`; then as at the end of `running`. A second signal ends the process.

        Raises what `running` does.
        """
        loop = asyncio.get_running_loop()
        async with self.running() as consumer:
            stopping = consumer._stopping_now()
            handled: list[signal.Signals] = []

            def stop() -> None:
                stopping.set()
                for number in handled:
                    loop.remove_signal_handler(number)
                handled.clear()

            try:
                for number in _SIGNALS:
                    try:
                        loop.add_signal_handler(number, stop)
                    except (NotImplementedError, RuntimeError, ValueError):
                        logger.debug("No handler for %s outside of the main thread, or on this platform.", number.name)
                    else:
                        handled.append(number)
                await stopping.wait()
            finally:
                for number in handled:
                    loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Let `run` end; without effect while it does not run. For the thread of the event loop."""
        if self._stopping is not None:
            self._stopping.set()

    @asynccontextmanager
    async def running(
        self, *, publisher: Publisher | None = None, inbox: GuardedInbox | None = None
    ) -> AsyncGenerator[Self]:
        """Consume within the block; it begins when the groups keep what comes for them.

        At its end nothing new is taken, what is under way is finished within the stop timeout, and the rest goes back.

        publisher: an open one that takes the place of the consumer's for this time, with its settings.
        inbox: opened and closed here; default: the one that the settings name.

        Raises ConfigurationError without a handler, TransportUnavailable when the data folder cannot be used,
        StoreFormatError; at its end what went wrong meanwhile, other than in handlers.
        """
        if self._stopping is not None:
            raise ConfigurationError(f"The consumer {self._name} runs already.")
        if not self._handlers:
            raise ConfigurationError(f"The consumer {self._name} has no handlers. Register one with `on`.")
        self._stopping = asyncio.Event()
        try:
            async with AsyncExitStack() as stack:
                groups = await self._prepare(stack, publisher, inbox)
                subscribed = asyncio.Event()
                working = asyncio.create_task(self._work(groups, subscribed), name=f"bloodbank-consumer-{self._name}")
                self._working = working
                try:
                    await _first(working, subscribed)
                    yield self
                finally:
                    for group in groups:
                        group.stop()
                    await working
        finally:
            self._stopping = self._working = self._publisher = self._blocking = None

    async def _prepare(
        self, stack: AsyncExitStack, publisher: Publisher | None, inbox: GuardedInbox | None
    ) -> list[GroupAtWork]:
        settings = self._settings() if publisher is None else publisher.settings
        publisher = publisher or self._given_publisher
        if publisher is None:
            own = Publisher(
                settings, enable_correlation_tracking=settings.correlation_tracking, registry=self._registry
            )
            publisher = await stack.enter_async_context(own)
        self._publisher = publisher
        self._blocking = BlockingPublisher(publisher, asyncio.get_running_loop())
        if inbox is None:
            inbox = await asyncio.to_thread(wiring.build_inbox, settings)
        if any(handler.once for handler in self._handlers):
            await stack.enter_async_context(inbox)
        plain = sum(handler.concurrency for handler in self._handlers if not handler.is_async)
        threads = CausalThreadPool(max(1, plain), thread_name_prefix=f"bloodbank-{self._name}")
        # Those whose time was over may run for ever.
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        around = Surroundings(
            name=self._name,
            transport=publisher.transport,
            inbox=inbox,
            threads=threads,
            publish=publisher.publish,
            registry=publisher.registry,
            prefetch=settings.consumer_prefetch,
            stop_timeout_seconds=settings.stop_timeout_seconds,
        )
        by_group: dict[str, list[Handler]] = {}
        for handler in self._handlers:
            by_group.setdefault(handler.group, []).append(handler)
        return [GroupAtWork(handlers, around) for handlers in by_group.values()]

    async def _work(self, groups: Sequence[GroupAtWork], subscribed: asyncio.Event) -> None:
        """Let the groups work until they are stopped; one that fails stops them all."""
        waiting = set(self._handlers)

        def note(handler: Handler) -> None:
            waiting.discard(handler)
            if not waiting:
                subscribed.set()

        tasks = [asyncio.create_task(group.run(note)) for group in groups]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for group in groups:
                group.stop()
            self.stop()
            await asyncio.wait(tasks)
        for task in tasks:
            task.result()

    def _arguments(self, function: Function, namespace: Mapping[str, Any]) -> Arguments:
        require_no_generator(function)
        provided: dict[type, Callable[[], object]] = {BlockingPublisher: self._blocking_publisher}
        if is_async(function):
            provided = {Publisher: self._running_publisher}
        return Arguments(function, provided=provided, registry=self._registry_in_force, namespace=namespace)

    def _settings(self) -> Settings:
        if self._given_settings is None:
            publisher = self._given_publisher
            self._given_settings = load_settings() if publisher is None else publisher.settings
        return self._given_settings

    def _registry_in_force(self) -> EventRegistry:
        return self._registry or self._running_publisher().registry

    def _running_publisher(self) -> Publisher:
        if self._publisher is None:
            raise NotOpen(f"The consumer {self._name} does not run.")
        return self._publisher

    def _blocking_publisher(self) -> BlockingPublisher:
        if self._blocking is None:
            raise NotOpen(f"The consumer {self._name} does not run.")
        return self._blocking

    def _stopping_now(self) -> asyncio.Event:
        if self._stopping is None:
            raise NotOpen(f"The consumer {self._name} does not run.")
        return self._stopping


def _require_place(pattern: object, group: str, start: Start) -> None:
    if not isinstance(pattern, str):
        raise ConfigurationError("A handler needs the pattern of its events: write @consumer.on('llm.prompt').")
    compile_type_pattern(pattern)
    require_group(group)
    require_start(start)


def _require_sense(concurrency: int, prefetch: int | None, timeout_seconds: float | None, retry: object) -> None:
    if concurrency < 1 or (prefetch is not None and prefetch < 1):
        raise ConfigurationError("A handler needs concurrency and prefetch of 1 or more.")
    if timeout_seconds is not None and timeout_seconds <= 0:
        raise ConfigurationError(f"timeout_seconds is {timeout_seconds}; it must be more than 0, or None.")
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigurationError(f"retry is {retry!r}. Give a Retry, such as Retry(attempts=3).")


async def _first(working: asyncio.Task[None], subscribed: asyncio.Event) -> None:
    """Wait until all is subscribed, or the work has ended; raise what ended it."""
    waiting = asyncio.create_task(subscribed.wait())
    try:
        await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])
    if working.done():
        working.result()
