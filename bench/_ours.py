"""Bloodbank in the benchmarks: from payload values to the confirm, the envelope made and validated each time."""

from __future__ import annotations

import asyncio
from typing import Any

from bench import _events
from bench._harness import in_flight
from bench.peers.base import WINDOW
from bloodbank import BloodbankError, Publisher, Settings

BATCH = 500


class Ours:
    """`publish`, awaited in each of WINDOW tasks.

    values: of the payload. tracking: keep the index of causes, on Redis when `settings` name one; each event then
    has the one before as its parent.
    """

    def __init__(self, values: dict[str, Any], **settings: Any) -> None:
        self._values = values
        self._settings = settings

    async def open(self, url: str, exchange: str) -> None:
        """Open a publisher."""
        settings = Settings(_env_file=None, rabbit_url=url, exchange_name=exchange, **self._settings)
        self._publisher = Publisher(settings)
        await self._publisher.start()

    async def send(self, count: int) -> None:
        """Publish from as many tasks as there may be in flight."""
        await in_flight(self.publish, count, limit=WINDOW)

    async def publish(self) -> None:
        """Make one event and publish it, confirmed."""
        await self._publisher.publish(_events.build(self._values))

    async def close(self) -> None:
        """Close the publisher."""
        await self._publisher.close()


class OursInBatches(Ours):
    """`publish_many` with BATCH events a call, as many calls at a time as make WINDOW events in flight."""

    async def send(self, count: int) -> None:
        """Publish in batches; the last one may be smaller."""
        sizes = iter([BATCH] * (count // BATCH) + [count % BATCH] * bool(count % BATCH))

        async def work() -> None:
            for size in sizes:
                events = [_events.build(self._values) for _ in range(size)]
                for outcome in await self._publisher.publish_many(events):
                    if isinstance(outcome, BloodbankError):
                        raise outcome

        async with asyncio.TaskGroup() as group:
            for _ in range(WINDOW // BATCH):
                group.create_task(work())
