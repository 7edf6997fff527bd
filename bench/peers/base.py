"""What every publishing client of the benchmarks can do."""

from __future__ import annotations

from typing import Protocol

WINDOW = 1000
"""Most publishes that wait for their confirm at the same time, for every client that can have several."""


class Client(Protocol):
    """A client that is connected to a topology's exchange."""

    async def open(self, url: str, exchange: str) -> None:
        """Connect and open a channel with confirms."""
        ...

    async def send(self, count: int) -> None:
        """Publish that many events, up to WINDOW in flight, and return when the broker has confirmed all."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...
