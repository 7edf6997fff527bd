"""The pytest plugin: a fixture `bus`, a bus in memory for one test.

Pytest loads this in every run, so that it imports nothing of ours before a test asks for the bus.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from bloodbank.testing.blocking import BlockingBus
    from bloodbank.testing.bus import InMemoryBus


@pytest.fixture
def bus(request: pytest.FixtureRequest) -> Generator[InMemoryBus | BlockingBus]:
    """A bus in memory: an `InMemoryBus` for an async test, whoever runs it, and a `BlockingBus` for any other."""
    test = cast("pytest.Function", request.node)
    if not inspect.iscoroutinefunction(inspect.unwrap(test.obj)):
        from bloodbank.testing.blocking import BlockingBus  # noqa: PLC0415, not loaded without need

        with BlockingBus() as blocking:
            yield blocking
        return
    from bloodbank.testing.bus import InMemoryBus  # noqa: PLC0415, as above

    in_memory = InMemoryBus()
    # It belongs to the loop that the test runs on, and only the plugin that runs the test knows which one that is.
    test.obj = _within(in_memory, test.obj)
    yield in_memory
    # An async fixture may have opened it for a test that did not run then.
    in_memory.close_left_open()


def _within(bus: InMemoryBus, test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    async def opened(*args: Any, **kwargs: Any) -> None:
        async with bus:
            await test(*args, **kwargs)

    return opened
