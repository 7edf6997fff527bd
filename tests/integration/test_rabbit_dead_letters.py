"""A group of dead letters on RabbitMQ, given back while the connection breaks: nothing is lost, and it can go on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from bloodbank import DeadLetters, Settings
from bloodbank.errors import TransportUnavailable
from bloodbank.progress import Progress
from tests.conformance.messages import ids, listed, messages, set_aside, soon, take_and_ack
from tests.integration.rabbit_bus import PATIENCE_SECONDS, through, transport_at
from tests.servers.proxy import TcpProxy
from tests.servers.rabbit import RabbitServer

pytestmark = pytest.mark.rabbit


async def test_a_group_whose_broker_goes_away_is_told_and_goes_on_later(
    rabbit_server: RabbitServer, tmp_path: Path
) -> None:
    exchange = f"test.{uuid4().hex}.v1"
    settings = Settings(_env_file=None, data_dir=tmp_path, query_timeout_seconds=60)
    sent = messages(700)
    async with TcpProxy(rabbit_server.port) as proxy, transport_at(through(proxy), exchange) as transport:
        await set_aside(transport, *sent)
        letters = DeadLetters(transport, settings)
        [group] = (await letters.groups()).items
        told: list[Progress] = []

        def cut_after_the_first(progress: Progress) -> None:
            told.append(progress)
            if progress.done:
                proxy.cut()

        with pytest.raises(TransportUnavailable):
            await soon(letters.retry_group(group.key, cut_after_the_first))
        assert told == [Progress(700), Progress(700, 200)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    rest = await listed(transport)
                    result = await letters.retry_group(group.key)
                    break
                except TransportUnavailable:
                    await asyncio.sleep(0.1)
        assert result == Progress(len(rest), len(rest))
        async with transport.subscribe("#", group="workers", prefetch=100) as deliveries:
            missing = set(ids(sent))
            # What was on its way when the connection broke may come twice.
            while missing:
                missing -= set(ids(await take_and_ack(deliveries, 1)))
        assert await listed(transport) == []
