"""One handler: a function, what it is called for, and how."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, cast

from bloodbank.causation import handling
from bloodbank.consuming.arguments import Arguments, Function
from bloodbank.consuming.attempt import Attempt
from bloodbank.consuming.retry import Retry
from bloodbank.envelope import EventEnvelope
from bloodbank.transports.base import Start

OrderedBy = Callable[[EventEnvelope[Any]], Hashable]


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A function that handles the events of a pattern, for a group.

    name: stands in failures and logs.
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

    async def run(self, attempt: Attempt, threads: Executor) -> Exception | None:
        """Call the function, with the event as the one current parent; return what it raised.

        A function that is no coroutine function runs in a thread, which goes on when its time is over.
        """
        positional, named = self.arguments.fill(attempt)
        try:
            with handling(attempt.event_id):
                if self.timeout_seconds is None:
                    await self._call(positional, named, threads)
                else:
                    async with asyncio.timeout(self.timeout_seconds):
                        await self._call(positional, named, threads)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something that the handler waited for was cancelled, and not the handler.
            failure = RuntimeError("what the handler waited for was cancelled")
            failure.__cause__ = error
            return failure
        except Exception as error:  # noqa: BLE001, code of others, whose failures are told as events
            return error
        return None

    def _call(self, positional: list[object], named: dict[str, object], threads: Executor) -> Awaitable[object]:
        if self.is_async:
            return cast("Awaitable[object]", self.function(*positional, **named))
        call = functools.partial(self.function, *positional, **named)
        return asyncio.get_running_loop().run_in_executor(threads, call)


def is_async(function: Function) -> bool:
    """Say whether a call gives a coroutine, also through `partial` and objects that can be called."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
