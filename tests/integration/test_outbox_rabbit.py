"""Publishing while RabbitMQ is away, frozen, blocked or full: accepted means kept, and kept means forwarded."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from anyio.to_thread import run_sync

from bloodbank import (
    EventConflict,
    Lineage,
    Publisher,
    PublishResult,
    Settings,
    Status,
    TransportUnavailable,
    create_envelope,
)
from bloodbank._sqlite import Database
from bloodbank.deduplication import Dedup
from bloodbank.errors import NotOpen, OutboxFull, PublishUnknown
from bloodbank.outbox import Outbox
from tests.integration.rabbit_bus import PATIENCE_SECONDS, through
from tests.servers.proxy import TcpProxy
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.rabbit


@pytest.fixture
def settings(rabbit_server: RabbitServer, tmp_path: Path) -> Settings:
    return _settings(rabbit_server.url, tmp_path)


def _settings(url: str, folder: Path, **others: Any) -> Settings:
    exchange = f"test{uuid4().hex[:12]}.events.v1"
    values = {"exchange_name": exchange, "data_dir": folder, "publish_timeout_seconds": 5.0} | others
    return Settings(_env_file=None, rabbit_url=url, **values)


def _again(settings: Settings, **others: Any) -> Settings:
    return settings.model_copy(update=others)


async def _published(publisher: Publisher, count: int, first: int = 0) -> list[UUID]:
    """Publish events with rising numbers, at the same time; return their ids. None may fail."""
    results = await asyncio.gather(
        *(publisher.publish(create_envelope("a.b", {"n": number})) for number in range(first, first + count))
    )
    return [result.event_id for result in results]


async def _emptied(publisher: Publisher) -> None:
    assert publisher.outbox is not None
    async with asyncio.timeout(2 * PATIENCE_SECONDS):
        while (await publisher.outbox.totals()).waiting:
            await asyncio.sleep(0.05)


async def _logged(publisher: Publisher) -> list[UUID]:
    return [entry.message.event_id async for entry in publisher.transport.read_log()]


async def _edges_are_there(publisher: Publisher, children: list[UUID], parent: UUID) -> None:
    nodes = await publisher.tracker.nodes(children)
    assert {event_id for event_id in children if nodes[event_id].parents == (parent,)} == set(children)


async def test_a_broker_that_is_down_at_start_costs_no_event_and_gets_them_in_order(
    rabbit_server: RabbitServer, settings: Settings
) -> None:
    await run_sync(rabbit_server.kill)
    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        root = create_envelope("a.root", {})
        result = await publisher.publish(root)
        assert result == PublishResult(root.event_id, Status.QUEUED, Lineage.RECORDED)
        children = [create_envelope("a.b", {"n": n}, correlation_ids=[root.event_id]) for n in range(300)]
        for child in children[:100]:
            assert (await publisher.publish(child)).status is Status.QUEUED
        answers = await publisher.publish_many(children[100:])
        assert {answer.status for answer in answers if isinstance(answer, PublishResult)} == {Status.QUEUED}
        assert len(answers) == 200
        await run_sync(rabbit_server.start)
        await _emptied(publisher)
        sent = [root.event_id, *(child.event_id for child in children)]
        assert await _logged(publisher) == sent
        await _edges_are_there(publisher, sent[1:], root.event_id)
        assert (await publisher.publish(create_envelope("a.b", {}))).status is Status.PUBLISHED


async def test_ten_thousand_events_of_a_hundred_publishers_arrive_over_two_restarts(
    rabbit_server: RabbitServer, settings: Settings
) -> None:
    accepted: list[UUID] = []
    may_go_on = asyncio.Event()
    may_go_on.set()

    async def publish_some(publisher: Publisher, count: int) -> None:
        for number in range(count):
            await may_go_on.wait()
            accepted.append((await publisher.publish(create_envelope("a.b", {"n": number}))).event_id)

    async def restart_at(count: int) -> None:
        while len(accepted) < count:
            await asyncio.sleep(0.001)
        restarting = asyncio.create_task(run_sync(rabbit_server.restart))
        while len(accepted) < count + 3000 and not restarting.done():
            await asyncio.sleep(0.001)
        # Faster than a restart: the rest waits for it, or the second one would find no publisher.
        may_go_on.clear()
        await restarting
        may_go_on.set()

    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        async with asyncio.TaskGroup() as group:
            for _ in range(100):
                group.create_task(publish_some(publisher, 100))
            await restart_at(3333)
            await restart_at(6666)
        await _emptied(publisher)
        assert len(accepted) == 10_000
        assert set(accepted) == set(await _logged(publisher))


async def test_a_lost_connection_is_no_reason_to_queue_or_to_fail(rabbit_server: RabbitServer, tmp_path: Path) -> None:
    """The outcome is unknown, so the same id is sent again on the next connection."""
    async with TcpProxy(rabbit_server.port) as proxy:
        settings = _settings(through(proxy), tmp_path)
        async with Publisher(settings) as publisher:
            await _published(publisher, 1)
            proxy.stall(replies_only=True)
            publishing = [asyncio.create_task(publisher.publish(create_envelope("a.b", {"n": n}))) for n in range(50)]
            batch = asyncio.create_task(publisher.publish_many([create_envelope("a.b", {"n": n}) for n in range(50)]))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(await _log_of(rabbit_server, settings, tmp_path)) < 101:
                    await asyncio.sleep(0.05)
            proxy.cut()
            proxy.resume()
            results = [*await asyncio.gather(*publishing), *await batch]
            assert {result.status for result in results if isinstance(result, PublishResult)} == {Status.PUBLISHED}
            assert len(results) == 100
            times = Counter(await _logged(publisher))
            assert {times[result.event_id] for result in results if isinstance(result, PublishResult)} == {2}


async def _log_of(server: RabbitServer, settings: Settings, folder: Path) -> list[UUID]:
    direct = _again(settings, rabbit_url=Settings(_env_file=None, rabbit_url=server.url).rabbit_url, outbox="off")
    async with Publisher(_again(direct, data_dir=folder / "other")) as reader:
        return await _logged(reader)


async def test_a_frozen_broker_costs_one_wait_and_then_none(rabbit_server: RabbitServer, settings: Settings) -> None:
    settings = _again(settings, publish_timeout_seconds=1.0)
    async with Publisher(settings) as publisher:
        sent = await _published(publisher, 10)
        rabbit_server.freeze()
        try:
            started = time.monotonic()
            first = await publisher.publish(create_envelope("a.b", {}))
            waited_seconds = time.monotonic() - started
            assert first.status is Status.QUEUED
            assert waited_seconds >= 1.0
            started = time.monotonic()
            later = await _published(publisher, 200)
            assert time.monotonic() - started < waited_seconds, "none of them asked the broker"
        finally:
            rabbit_server.thaw()
        await _emptied(publisher)
        assert set(await _logged(publisher)) == {*sent, first.event_id, *later}
        await _until_published(publisher)


async def _until_published(publisher: Publisher) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await publisher.publish(create_envelope("a.b", {}))).status is not Status.PUBLISHED:
            await asyncio.sleep(0.05)


async def test_a_broker_short_of_memory_costs_no_event(rabbit_server: RabbitServer, settings: Settings) -> None:
    settings = _again(settings, publish_timeout_seconds=1.0)
    async with Publisher(settings) as publisher:
        sent = await _published(publisher, 10)
        await run_sync(rabbit_server.ctl, "set_vm_memory_high_watermark", "absolute", "1")
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    result = await publisher.publish(create_envelope("a.b", {}))
                    sent.append(result.event_id)
                    if result.status is Status.QUEUED:
                        break
            sent += await _published(publisher, 100)
        finally:
            await run_sync(rabbit_server.ctl, "set_vm_memory_high_watermark", "0.4")
        await _emptied(publisher)
        assert set(await _logged(publisher)) == set(sent)


async def test_without_an_outbox_the_caller_gets_the_error(rabbit_server: RabbitServer, settings: Settings) -> None:
    settings = _again(settings, outbox="off", publish_timeout_seconds=1.0)
    async with Publisher(settings) as publisher:
        assert publisher.outbox is None
        await _published(publisher, 1)
        rabbit_server.freeze()
        try:
            with pytest.raises(PublishUnknown, match="same id"):
                await publisher.publish(create_envelope("a.b", {}))
        finally:
            rabbit_server.thaw()
        await run_sync(rabbit_server.kill)
        with pytest.raises((TransportUnavailable, PublishUnknown)):
            await publisher.publish(create_envelope("a.b", {}))
        with pytest.raises(TransportUnavailable):
            await publisher.publish(create_envelope("a.b", {}))


async def test_a_full_outbox_is_an_error_and_no_loss(rabbit_server: RabbitServer, settings: Settings) -> None:
    settings = _again(settings, outbox_limit_bytes=1_048_576)
    await run_sync(rabbit_server.kill)
    async with Publisher(settings) as publisher:
        accepted: list[UUID] = []
        with pytest.raises(OutboxFull):  # noqa: PT012, the events before it must be accepted
            while True:
                accepted.append((await publisher.publish(create_envelope("a.b", {"fill": "x" * 50_000}))).event_id)
        assert len(accepted) > 5
        answers = await publisher.publish_many([create_envelope("a.b", {"fill": "x" * 50_000})])
        assert isinstance(answers[0], OutboxFull)
        await run_sync(rabbit_server.start)
        await _emptied(publisher)
        assert await _logged(publisher) == accepted
        await _until_published(publisher)


async def test_an_outbox_that_cannot_be_written_does_not_refuse_what_the_broker_takes(
    rabbit_server: RabbitServer, settings: Settings, tmp_path: Path
) -> None:
    settings = _again(settings, publish_timeout_seconds=1.0)
    file = tmp_path / "locked.db"
    async with (
        Outbox(Database(file, busy_seconds=0.1), limit_bytes=settings.outbox_limit_bytes) as outbox,
        Publisher(settings, outbox=outbox) as publisher,
    ):
        rabbit_server.freeze()
        try:
            kept = await publisher.publish(create_envelope("a.b", {}))
            assert kept.status is Status.QUEUED
            # As a disk that is full: nothing can be added, and nothing removed.
            other = sqlite3.connect(file, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            event = create_envelope("a.b", {})
            with pytest.raises((PublishUnknown, TransportUnavailable), match=r"locked\.db"):
                await publisher.publish(event)
        finally:
            rabbit_server.thaw()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    result = await publisher.publish(event)
                except (PublishUnknown, TransportUnavailable):
                    continue
                break
        assert result.status is Status.PUBLISHED
        [together] = await publisher.publish_many([create_envelope("a.b", {})])
        assert isinstance(together, PublishResult)
        assert together.status is Status.PUBLISHED
        other.execute("ROLLBACK")
        other.close()
        await _emptied(publisher)
        assert {kept.event_id, event.event_id, together.event_id} <= set(await _logged(publisher))


async def test_what_the_broker_refuses_for_good_is_set_aside_and_blocks_no_other(tmp_path: Path) -> None:
    server = RabbitServer("max_message_size = 100000")
    try:
        settings = _settings(server.url, tmp_path)
        async with Publisher(settings) as publisher:
            assert publisher.outbox is not None
            before = await _published(publisher, 5)
            large = create_envelope("a.large", {"fill": "x" * 150_000})
            assert (await publisher.publish(large)).status is Status.QUEUED, "nobody can know yet"
            after = await _published(publisher, 700)
            await run_sync(server.start)
            await _emptied(publisher)
            # What was sent with it and had no confirm was sent again.
            assert list(dict.fromkeys(await _logged(publisher))) == [*before, *after]
            [aside] = await publisher.outbox.entries(set_aside=True)
            assert (aside.event_id, aside.event_type) == (large.event_id, "a.large")
            assert "too large" in (aside.reason or "") or "size" in (aside.reason or "")
            assert await publisher.outbox.retry() == 1
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await publisher.outbox.entries(set_aside=True):
                    await asyncio.sleep(0.05)
            assert await publisher.outbox.drop(large.event_id)
    finally:
        server.close()


async def test_new_events_are_not_starved_while_the_outbox_empties(
    rabbit_server: RabbitServer, settings: Settings
) -> None:
    await run_sync(rabbit_server.kill)
    async with Publisher(settings) as publisher:
        assert publisher.outbox is not None
        for first in range(0, 20_000, 1000):
            await _published(publisher, 1000, first)
        await run_sync(rabbit_server.start)
        left = 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await publisher.publish(create_envelope("a.b", {}))).status is not Status.PUBLISHED:
                await asyncio.sleep(0.001)
            left = (await publisher.outbox.totals()).waiting
        assert left > 0, "it was published while others still waited"
        await _emptied(publisher)


KEEPS_AND_DIES = """
import asyncio, os, sys
from pathlib import Path
from bloodbank import Publisher, Settings, create_envelope

async def main():
    settings = Settings(_env_file=None, rabbit_url=sys.argv[1], exchange_name=sys.argv[2], data_dir=Path(sys.argv[3]))
    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        root = await publisher.publish(create_envelope("a.root", {}))
        results = await asyncio.gather(*(
            publisher.publish(create_envelope("a.b", {"n": n}, correlation_ids=[root.event_id])) for n in range(200)
        ))
        print(root.event_id, *[result.event_id for result in results], *{result.status for result in results})
        sys.stdout.flush()
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_what_a_killed_process_had_accepted_is_forwarded_by_another_one(
    rabbit_server: RabbitServer, settings: Settings
) -> None:
    await run_sync(rabbit_server.kill)
    arguments = (rabbit_server.url, settings.exchange_name, str(settings.data_dir))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KEEPS_AND_DIES, *arguments, stdout=subprocess.PIPE, env=os.environ.copy()
    )
    told, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    *ids, status = told.decode().split()
    assert status == "queued"
    accepted = [UUID(event_id) for event_id in ids]
    # The next one uses the same folder, and publishes nothing itself.
    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        await run_sync(rabbit_server.start)
        await _emptied(publisher)
        assert set(await _logged(publisher)) == set(accepted)
        await _edges_are_there(publisher, accepted[1:], accepted[0])


async def test_closing_finishes_what_is_under_way_and_keeps_the_rest(
    rabbit_server: RabbitServer, settings: Settings
) -> None:
    settings = _again(settings, publish_timeout_seconds=30.0, stop_timeout_seconds=0.5)
    publisher = Publisher(settings, enable_correlation_tracking=True)
    await publisher.start()
    root = await publisher.publish(create_envelope("a.root", {}))
    rabbit_server.freeze()
    try:
        publishing = [
            asyncio.create_task(
                publisher.publish(create_envelope("a.b", {"n": n}, correlation_ids=[root.event_id])),
            )
            for n in range(20)
        ]
        batch = asyncio.create_task(publisher.publish_many([create_envelope("a.b", {"n": n}) for n in range(20)]))
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await publisher.close()
        results = await asyncio.gather(*publishing)
        assert {result.status for result in results} == {Status.QUEUED}
        together = await batch
        assert {result.status for result in together if isinstance(result, PublishResult)} == {Status.QUEUED}
        with pytest.raises(NotOpen):
            await publisher.publish(create_envelope("a.b", {}))
    finally:
        rabbit_server.thaw()
    async with Publisher(settings, enable_correlation_tracking=True) as another:
        await _emptied(another)
        logged = set(await _logged(another))
        assert {result.event_id for result in results} <= logged
        await _edges_are_there(another, [result.event_id for result in results], root.event_id)


async def test_two_processes_that_publish_one_id_at_the_same_moment_publish_it_once(
    rabbit_server: RabbitServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    redis_url = Settings(_env_file=None, redis_url=redis_server.url).redis_url
    settings = _settings(rabbit_server.url, tmp_path / "one", redis_url=redis_url, redis_prefix=f"t{uuid4().hex[:8]}")
    async with (
        Publisher(settings, enable_correlation_tracking=True) as first,
        Publisher(_again(settings, data_dir=tmp_path / "two"), enable_correlation_tracking=True) as second,
    ):
        ids = [uuid4() for _ in range(100)]
        answers = await asyncio.gather(
            *(first.publish(create_envelope("a.b", {"id": str(i)}, event_id=i)) for i in ids),
            second.publish_many([create_envelope("a.b", {"id": str(i)}, event_id=i) for i in ids[50:]]),
            *(second.publish(create_envelope("a.b", {"id": str(i)}, event_id=i)) for i in ids[:50]),
        )
        flat = [one for answer in answers for one in (answer if isinstance(answer, list) else [answer])]
        statuses = Counter(result.status for result in flat if isinstance(result, PublishResult))
        assert statuses == {Status.PUBLISHED: 100, Status.DUPLICATE: 100}
        assert sorted(await _logged(first)) == sorted(ids)


async def test_of_two_bodies_with_one_id_at_the_same_moment_one_is_published(
    rabbit_server: RabbitServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    redis_url = Settings(_env_file=None, redis_url=redis_server.url).redis_url
    settings = _settings(rabbit_server.url, tmp_path / "one", redis_url=redis_url, redis_prefix=f"t{uuid4().hex[:8]}")
    async with (
        Publisher(settings, enable_correlation_tracking=True) as first,
        Publisher(_again(settings, data_dir=tmp_path / "two"), enable_correlation_tracking=True) as second,
    ):
        ids = [uuid4() for _ in range(20)]
        answers = await asyncio.gather(
            *(first.publish(create_envelope("a.b", {"said": "yes"}, event_id=i)) for i in ids),
            *(second.publish(create_envelope("a.b", {"said": "no"}, event_id=i)) for i in ids),
            return_exceptions=True,
        )
        assert Counter(type(answer) for answer in answers) == {PublishResult: 20, EventConflict: 20}
        assert sorted(await _logged(first)) == sorted(ids)


async def test_an_id_whose_first_publisher_died_in_between_is_published_and_not_swallowed(
    rabbit_server: RabbitServer, settings: Settings
) -> None:
    event = create_envelope("a.b", {"n": 1}, event_id=uuid4())
    async with (
        Publisher(settings, enable_correlation_tracking=True) as dead,
        Publisher(settings, enable_correlation_tracking=True) as other,
    ):
        from bloodbank import codec  # noqa: PLC0415

        digest = codec.encode(event).digest
        assert await dead.tracker.claim([(event.event_id, digest)], lease_seconds=600)
        result = await other.publish(event)
        assert (result.status, result.dedup) == (Status.PUBLISHED, Dedup.SKIPPED)
        assert await _logged(other) == [event.event_id]


async def test_a_publish_that_failed_gives_its_claim_back(rabbit_server: RabbitServer, settings: Settings) -> None:
    settings = _again(settings, outbox="off")
    event_id = uuid4()
    await run_sync(rabbit_server.kill)
    async with (
        Publisher(settings, enable_correlation_tracking=True) as first,
        Publisher(settings, enable_correlation_tracking=True) as second,
    ):
        with pytest.raises(TransportUnavailable):
            await first.publish(create_envelope("a.b", {"said": "yes"}, event_id=event_id))
        [failed] = await first.publish_many([create_envelope("a.b", {"said": "yes"}, event_id=event_id)])
        assert isinstance(failed, TransportUnavailable)
        await run_sync(rabbit_server.start)
        other = create_envelope("a.b", {"said": "no"}, event_id=event_id)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    result = await second.publish(other)
                except TransportUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert (result.status, result.dedup) == (Status.PUBLISHED, Dedup.CHECKED)


async def test_an_index_that_is_away_is_told_and_stops_nothing(
    rabbit_server: RabbitServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    redis_url = Settings(_env_file=None, redis_url=redis_server.url).redis_url
    settings = _settings(rabbit_server.url, tmp_path, redis_url=redis_url, redis_prefix=f"t{uuid4().hex[:8]}")
    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        redis_server.freeze()
        try:
            chosen = await publisher.publish(create_envelope("a.b", {}, event_id=uuid4()))
            fresh = await publisher.publish(create_envelope("a.b", {}))
            [together] = await publisher.publish_many([create_envelope("a.b", {}, event_id=uuid4())])
        finally:
            redis_server.thaw()
        assert isinstance(together, PublishResult)
        assert [result.dedup for result in (chosen, fresh, together)] == [Dedup.SKIPPED, Dedup.CHECKED, Dedup.SKIPPED]
        assert [result.lineage for result in (chosen, fresh, together)] == [Lineage.DEFERRED] * 3


async def test_without_tracking_a_chosen_id_cannot_be_checked(rabbit_server: RabbitServer, settings: Settings) -> None:
    async with Publisher(settings) as publisher:
        assert (await publisher.publish(create_envelope("a.b", {}))).dedup is Dedup.CHECKED
        assert (await publisher.publish(create_envelope("a.b", {}, event_id=uuid4()))).dedup is Dedup.SKIPPED
        [again] = await publisher.publish_many([create_envelope("a.b", {}, event_id=uuid4())])
        assert isinstance(again, PublishResult)
        assert again.dedup is Dedup.SKIPPED
