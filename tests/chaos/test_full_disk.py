"""An outbox that has filled its own disk still empties: removing takes room too, and some is kept for that."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from anyio.to_thread import run_sync

from bloodbank import Publisher, Settings, TransportUnavailable, create_envelope
from bloodbank._sqlite import Database
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


@pytest.fixture
def settings(rabbit_server: RabbitServer, disk: SmallDisk) -> Settings:
    exchange = f"test{uuid4().hex[:12]}.events.v1"
    folder = disk.folder / "data"
    return Settings(_env_file=None, rabbit_url=rabbit_server.url, exchange_name=exchange, data_dir=folder)


async def _accepted_until_full(publisher: Publisher) -> set[UUID]:
    accepted: set[UUID] = set()
    while True:
        results = await asyncio.gather(
            *(publisher.publish(create_envelope("a.b", {"fill": "x" * 2000})) for _ in range(100)),
            return_exceptions=True,
        )
        accepted |= {result.event_id for result in results if not isinstance(result, BaseException)}
        refusals = [result for result in results if isinstance(result, BaseException)]
        if refusals:
            assert {type(refusal) for refusal in refusals} <= {TransportUnavailable, PublishUnknown}
            return accepted


async def _are_forwarded(publisher: Publisher, accepted: set[UUID]) -> None:
    assert publisher.outbox is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await publisher.outbox.totals()).waiting:
            await asyncio.sleep(0.05)
    assert len(accepted) > 500
    assert accepted <= {entry.message.event_id async for entry in publisher.transport.read_log()}


async def test_an_outbox_that_filled_its_disk_empties_when_the_broker_is_back(
    rabbit_server: RabbitServer, disk: SmallDisk, settings: Settings
) -> None:
    await run_sync(rabbit_server.kill)
    async with Publisher(settings) as publisher:
        accepted = await _accepted_until_full(publisher)
        disk.fill()
        await run_sync(rabbit_server.start)
        await _are_forwarded(publisher, accepted)


async def test_a_reader_that_let_the_write_ahead_log_fill_the_disk_stops_nothing_when_it_has_gone(
    rabbit_server: RabbitServer, disk: SmallDisk, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite begins its log anew after a commit, when nobody reads; where no commit has room, it never would."""
    await run_sync(rabbit_server.kill)
    async with Publisher(settings) as publisher:
        accepted = await _accepted_until_full(publisher)
        [file] = settings.data_dir.glob("outbox-*.db")
        async with Database(file) as same_file:
            await same_file.fold_in()
        disk.fill()
        with closing(sqlite3.connect(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
            await run_sync(rabbit_server.start)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while "cannot be forwarded now" not in caplog.text:
                    await asyncio.sleep(0.05)
        await _are_forwarded(publisher, accepted)


async def test_a_process_that_starts_on_a_full_disk_forwards_what_an_earlier_one_left(
    rabbit_server: RabbitServer, disk: SmallDisk, settings: Settings
) -> None:
    await run_sync(rabbit_server.kill)
    async with Publisher(settings) as publisher:
        accepted = await _accepted_until_full(publisher)
    disk.fill()
    await run_sync(rabbit_server.start)
    async with Publisher(settings) as publisher:
        await _are_forwarded(publisher, accepted)
