"""uvicorn takes uvloop where it is installed: both buses work on it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from bloodbank import Direction, Lineage, Publisher, Settings, Status, create_envelope
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

if sys.platform == "win32":
    pytest.skip("uvloop does not run on Windows", allow_module_level=True)

import uvloop

COUNT = 300


async def publish_all(settings: Settings) -> None:
    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        root = create_envelope("a.root", {"n": -1})
        first = await publisher.publish(root)
        events = [create_envelope("a.child", {"n": n}, correlation_ids=[root.event_id]) for n in range(2 * COUNT)]
        singles = await asyncio.gather(*[publisher.publish(event) for event in events[:COUNT]])
        together = await publisher.publish_many(events[COUNT:])
        assert {(one.status, one.lineage) for one in (first, *singles)} == {(Status.PUBLISHED, Lineage.RECORDED)}
        assert [getattr(one, "event_id", one) for one in together] == [event.event_id for event in events[COUNT:]]
        graph = await publisher.tracker.walk(root.event_id, Direction.DESCENDANTS, limit=2 * COUNT + 1)
        assert {step.node.event_id for step in graph.steps} == {root.event_id, *(event.event_id for event in events)}


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


@pytest.mark.rabbit
@pytest.mark.redis
def test_rabbitmq_and_redis_work_on_uvloop(rabbit_server: RabbitServer, redis_server: RedisServer) -> None:
    exchange = f"test{uuid4().hex[:12]}.events.v1"
    prefix = f"test{uuid4().hex[:12]}"
    run(
        publish_all(
            Settings(
                _env_file=None,
                rabbit_url=rabbit_server.url,
                exchange_name=exchange,
                redis_url=redis_server.url,
                redis_prefix=prefix,
            )
        )
    )


def test_the_embedded_bus_works_on_uvloop(tmp_path: Path) -> None:
    run(publish_all(Settings(_env_file=None, data_dir=tmp_path)))
