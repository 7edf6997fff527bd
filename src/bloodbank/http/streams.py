"""The open event streams of a server: how many there are, and that they end when it does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from bloodbank.config import Settings
from bloodbank.errors import BloodbankError, NotOpen, Unavailable
from bloodbank.http.feed import Feed

LOOK_SECONDS = 0.25
"""How often to look whether the server stops."""


class TooManyStreams(Unavailable):
    """As many streams are open as the settings allow; this one was not begun."""

    code = "too_many_streams"


class Streams:
    """The open streams of one server. Use it inside `async with`.

    is_stopping: says whether the server is about to end.
    """

    def __init__(self, feed: Feed, settings: Settings, is_stopping: Callable[[], bool]) -> None:
        self.feed = feed
        self.settings = settings
        self.stopping = asyncio.Event()
        self._is_stopping = is_stopping
        self._count = 0
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all streams; idempotent."""
        self.stopping.set()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    def refusal(self) -> BloodbankError | None:
        """Return why no further stream can be opened; None when one can."""
        if self.stopping.is_set() or self._must_stop():
            return NotOpen("The server is stopping. Connect again in a moment, with the cursor that you have.")
        if self._count >= self.settings.stream_clients:
            return TooManyStreams(
                f"{self._count} streams are open, as many as BLOODBANK_STREAM_CLIENTS allows. Close one, or try later."
            )
        return None

    @contextmanager
    def counted(self) -> Generator[None]:
        """Within the block a stream is open."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="bloodbank-streams")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    async def _watch(self) -> None:
        """End the streams when the server is to end: it waits for those who are connected."""
        # A signal handler of uvicorn sets a flag, and tells nobody.
        while not self._must_stop():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        self.stopping.set()

    def _must_stop(self) -> bool:
        return self._is_stopping() or _uvicorn_stops()


def _uvicorn_stops() -> bool:
    """Say whether uvicorn was told to end: started by its own command it tells no application before it waits."""
    handler = signal.getsignal(signal.SIGTERM)
    return bool(getattr(getattr(handler, "__self__", None), "should_exit", False))
