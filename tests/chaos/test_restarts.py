"""Ten thousand messages by a hundred publishers, while the broker is started again twice: all arrive."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from anyio import to_thread

from bloodbank import Publisher, Settings, create_envelope, wiring
from bloodbank.publisher import PublishResult
from tests.servers.rabbit import RabbitServer

PUBLISHERS, EACH = 100, 100
RESTARTS_AT = (20, 60)
"""How many events each publisher has published when the broker is restarted."""
ARRIVAL_SECONDS = 90.0

pytestmark = [pytest.mark.chaos, pytest.mark.rabbit, pytest.mark.timeout(280)]


def _settings(server: RabbitServer, exchange: str, folder: Path) -> Settings:
    settings: dict[str, Any] = {"rabbit_url": server.url, "exchange_name": exchange, "data_dir": folder}
    return Settings(_env_file=None, **settings)


class _Restarts:
    """Restarts the broker when all publishers have come so far, and lets them go on once it is on its way down."""

    def __init__(self, server: RabbitServer) -> None:
        self._server = server
        self._reached: Counter[int] = Counter()
        self._all_there = {number: asyncio.Event() for number in RESTARTS_AT}
        self._begun = {number: asyncio.Event() for number in RESTARTS_AT}

    async def run(self) -> None:
        for number in RESTARTS_AT:
            await self._all_there[number].wait()
            self._begun[number].set()
            await to_thread.run_sync(self._server.restart)

    async def pass_by(self, number: int) -> None:
        if number in self._begun:
            self._reached[number] += 1
            if self._reached[number] == PUBLISHERS:
                self._all_there[number].set()
            await self._begun[number].wait()


async def _publish_all(publisher: Publisher, restarts: _Restarts) -> list[PublishResult]:
    results: list[PublishResult] = []
    for number in range(EACH):
        await restarts.pass_by(number)
        results.append(await publisher.publish(create_envelope("restarts.message", {"number": number})))
    return results


async def _consume(settings: Settings, group: str, ready: asyncio.Event, got: Counter[UUID]) -> None:
    transport = wiring.build(settings, tracking=False).transport
    async with transport, transport.subscribe("restarts.*", group=group, prefetch=500) as deliveries:
        ready.set()
        async for delivery in deliveries:
            got[delivery.message.event_id] += 1
            try:
                await delivery.ack()
            except ConnectionError:
                continue  # it comes again


async def test_ten_thousand_messages_of_a_hundred_publishers_outlive_two_restarts_of_the_broker(
    rabbit_server: RabbitServer, tmp_path: Path
) -> None:
    exchange = f"restarts-{uuid4().hex[:8]}"
    ready, got = asyncio.Event(), Counter[UUID]()
    consuming = asyncio.create_task(_consume(_settings(rabbit_server, exchange, tmp_path / "c"), exchange, ready, got))
    await asyncio.wait_for(ready.wait(), 30)
    restarts = _Restarts(rabbit_server)
    async with AsyncExitStack() as stack:
        publishers = [
            await stack.enter_async_context(Publisher(_settings(rabbit_server, exchange, tmp_path / str(number))))
            for number in range(PUBLISHERS)
        ]
        restarting = asyncio.create_task(restarts.run())
        results = await asyncio.gather(*[_publish_all(publisher, restarts) for publisher in publishers])
        await restarting
        accepted = {result.event_id for each in results for result in each}
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                while not got.keys() >= accepted:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pass  # the comparison below says what is missing
    consuming.cancel()
    await asyncio.wait([consuming])
    statuses = Counter(result.status.value for each in results for result in each)
    print(f"{statuses}, {got.total() - len(got)} duplicates")
    assert len(accepted) == PUBLISHERS * EACH
    assert accepted - got.keys() == set()
    assert got.keys() == accepted
    assert statuses["queued"] > 0, "the broker was never missed"
