"""An outbox that has filled its own disk still empties: removing takes room too, and some is kept for that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from anyio.to_thread import run_sync

from bloodbank import Publisher, Settings, TransportUnavailable, create_envelope
from bloodbank.errors import PublishUnknown
from tests.chaos.disk import NoSmallDisk, SmallDisk
from tests.servers.rabbit import RabbitServer

ALLOW_SKIP = "BLOODBANK_TEST_ALLOW_SKIP"
PATIENCE_SECONDS = 60.0

pytestmark = [pytest.mark.chaos, pytest.mark.rabbit]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        mounted = SmallDisk(tmp_path / "disk", megabytes=12).__enter__()
    except NoSmallDisk as error:
        if os.environ.get(ALLOW_SKIP) == "1":
            pytest.skip(f"{error} ({ALLOW_SKIP}=1)")
        pytest.fail(f"{error}. Set {ALLOW_SKIP}=1 to skip this.", pytrace=False)
    yield mounted
    mounted.__exit__(None, None, None)


async def test_an_outbox_that_filled_its_disk_empties_when_the_broker_is_back(
    rabbit_server: RabbitServer, disk: SmallDisk
) -> None:
    exchange = f"test{uuid4().hex[:12]}.events.v1"
    settings = Settings(
        _env_file=None, rabbit_url=rabbit_server.url, exchange_name=exchange, data_dir=disk.folder / "data"
    )
    await run_sync(rabbit_server.kill)
    accepted: set[UUID] = set()
    async with Publisher(settings) as publisher:
        assert publisher.outbox is not None
        with pytest.raises((TransportUnavailable, PublishUnknown)):  # noqa: PT012, those before it are accepted
            while True:
                results = await asyncio.gather(
                    *(publisher.publish(create_envelope("a.b", {"fill": "x" * 2000})) for _ in range(100)),
                    return_exceptions=True,
                )
                accepted |= {result.event_id for result in results if not isinstance(result, BaseException)}
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
        assert len(accepted) > 500
        disk.fill()
        await run_sync(rabbit_server.start)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await publisher.outbox.totals()).waiting:
                await asyncio.sleep(0.05)
        assert accepted <= {entry.message.event_id async for entry in publisher.transport.read_log()}
