"""One handler: a function, what it is called for, and how."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from bloodbank.causation import handling
from bloodbank.consuming.arguments import Arguments, Function, name_of
from bloodbank.consuming.attempt import Attempt
from bloodbank.consuming.retry import Retry
from bloodbank.envelope import EventEnvelope
from bloodbank.errors import ConfigurationError
from bloodbank.transports.base import Start

OrderedBy = Callable[[EventEnvelope[Any]], Hashable]


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A function that handles the events of a pattern, for a group.

    name: stands in failures and logs.
    start: where its group begins when it is new, unless another handler of the group says an earlier one.
    concurrency: most events that it handles at a time.
    prefetch: most unsettled deliveries at a time; None: as the settings say.
    ordered_by: events of one key are handled one after the other; None: each on its own.
    once: an event that the group has handled is not handled again.
    timeout_seconds: longest run; None: any.
    is_async: whether a call gives a coroutine; found out once.
    """

    name: str
    function: Function
    arguments: Arguments
    pattern: str
    group: str
    start: Start
    concurrency: int
    prefetch: int | None
    ordered_by: OrderedBy | None
    retry: Retry
    once: bool
    timeout_seconds: float | None
    is_async: bool = field(init=False)

    def __post_init__(self) -> None:
        # The class is frozen.
        object.__setattr__(self, "is_async", is_async(self.function))

    async def run(self, attempt: Attempt, threads: Executor, *, ended: Callable[[], None]) -> Exception | None:
        """Call the function, with the event as the one current parent; return what it raised.

        A function that is no coroutine function runs in a thread, which goes on when its time is over.

        ended: called once, when the function has come to its end: where a thread goes on, after this has returned.
        """
        task = asyncio.current_task()
        # Not 0 where a handler before this one, in the same task, left it so.
        cancels = task.cancelling() if task is not None else 0
        try:
            with handling(attempt.event_id):
                if self.timeout_seconds is None:
                    await self._call(attempt, threads, ended)
                else:
                    async with asyncio.timeout(self.timeout_seconds):
                        await self._call(attempt, threads, ended)
        except asyncio.CancelledError as error:
            if task is None or task.cancelling() > cancels:
                raise
            # Something that the handler waited for was cancelled, and not the handler.
            failure = RuntimeError("what the handler waited for was cancelled")
            failure.__cause__ = error
            return failure
        except Exception as error:  # noqa: BLE001, code of others, whose failures are told as events
            return error
        return None

    async def _call(self, attempt: Attempt, threads: Executor, ended: Callable[[], None]) -> None:
        thread: Future[_Outcome] | None = None
        try:
            positional, named = self.arguments.fill(attempt)
            if self.is_async:
                await cast("Awaitable[object]", self.function(*positional, **named))
                return
            thread = threads.submit(_outcome_of, functools.partial(self.function, *positional, **named))
            outcome = await asyncio.wrap_future(thread)
            if outcome.error is not None:
                raise outcome.error
            await _whole(outcome.result)
        finally:
            if thread is None or thread.done():
                ended()
            else:
                thread.add_done_callback(_on(asyncio.get_running_loop(), ended))


class _Outcome(NamedTuple):
    """What a call in a thread came to. error: not raised there, since a future takes no StopIteration."""

    result: object
    error: Exception | None


def _outcome_of(call: Callable[[], object]) -> _Outcome:
    try:
        return _Outcome(call(), None)
    except Exception as error:  # noqa: BLE001, raised where it is waited for
        return _Outcome(None, error)


async def _whole(result: object) -> None:
    """Wait for what a plain function returned, such as a decorator's that calls a coroutine function.

    Raises TypeError for a generator, of which nothing has run.
    """
    if inspect.isawaitable(result):
        await result
    elif inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError("the handler returned a generator, so that its body did not run; a handler must not yield")


def _on(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Callable[[object], None]:
    """Return what calls back on a loop, from any thread, unless the loop is closed."""

    def call(_: object) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(callback)

    return call


def is_async(function: Function) -> bool:
    """Say whether a call gives a coroutine, also through `partial` and objects that can be called."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def require_no_generator(function: Function) -> None:
    """Raise ConfigurationError for a function that yields: a call of it runs nothing."""
    for called in (function, type(function).__call__):
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise ConfigurationError(
                f"The handler {name_of(function)} is a generator: it yields, so that a call of it runs nothing. "
                "Publish with a parameter annotated Publisher in place of `yield`."
            )
