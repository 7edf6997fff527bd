"""Bloodbank in the benchmarks: from payload values to the confirm, the envelope made and validated each time."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from bench import _events
from bench._harness import in_flight
from bench.peers.base import WINDOW
from bloodbank import BloodbankError, Lineage, Publisher, Settings

BATCH = 500


class Ours:
    """`publish`, awaited in each of WINDOW tasks.

    values: of the payload. tracking: keep the index of causes.
    chained: each event has the one that was made before it as its parent.
    settings: fields of Settings, such as `redis_url`.
    """

    def __init__(
        self, values: dict[str, Any], *, chained: bool = False, tracking: bool = False, **settings: Any
    ) -> None:
        self._values, self._chained = values, chained
        self._parents: tuple[UUID, ...] = ()
        self._tracking, self._settings = tracking, settings

    async def open(self, url: str, exchange: str) -> None:
        """Open a publisher; on the embedded log where there is no URL."""
        broker = {"rabbit_url": url, "exchange_name": exchange} if url else {}
        settings = Settings(_env_file=None, **broker, **self._settings)
        self._publisher = Publisher(settings, enable_correlation_tracking=self._tracking)
        await self._publisher.start()

    async def send(self, count: int) -> None:
        """Publish from as many tasks as there may be in flight."""
        await in_flight(self.publish, count, limit=WINDOW)

    async def publish(self) -> None:
        """Make one event and publish it, confirmed."""
        event = _events.build(self._values, self._parents)
        if self._chained:
            self._parents = (event.event_id,)
        publishing = self._publisher.publish(event)
        del event  # as when it is made in the call: nobody needs it any more
        result = await publishing
        if self._tracking and result.lineage is not Lineage.RECORDED:
            raise RuntimeError(f"The causes of an event were {result.lineage}: the rate would be that of no tracking.")

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
                events = [_events.build(self._values, self._parents) for _ in range(size)]
                for outcome in await self._publisher.publish_many(events):
                    if isinstance(outcome, BloodbankError):
                        raise outcome

        async with asyncio.TaskGroup() as group:
            for _ in range(WINDOW // BATCH):
                group.create_task(work())
