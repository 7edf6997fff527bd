"""Claim, publish, confirm, then mark: whoever dies in between leaves an event that is published again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from anyio.to_thread import run_sync

from bloodbank import Publisher, PublishResult, Settings, Status, codec, create_envelope
from tests.chaos.stage import environment
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

PATIENCE_SECONDS = 60.0

pytestmark = [pytest.mark.rabbit, pytest.mark.redis]


@pytest.fixture
def variables(rabbit_server: RabbitServer, redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    """Environment variables of processes that share a bus of their own."""
    name = f"order{uuid4().hex[:8]}"
    return {
        "RABBIT_URL": rabbit_server.url,
        "EXCHANGE_NAME": f"{name}.events.v1",
        "REDIS_URL": redis_server.url,
        "BLOODBANK_REDIS_PREFIX": name,
        "BLOODBANK_DATA_DIR": str(tmp_path),
    }


def _publisher(variables: dict[str, str]) -> Publisher:
    values: dict[str, Any] = {
        "rabbit_url": variables["RABBIT_URL"],
        "exchange_name": variables["EXCHANGE_NAME"],
        "redis_url": variables["REDIS_URL"],
        "redis_prefix": variables["BLOODBANK_REDIS_PREFIX"],
        "data_dir": Path(variables["BLOODBANK_DATA_DIR"]),
        "publish_timeout_seconds": float(variables.get("BLOODBANK_PUBLISH_TIMEOUT_SECONDS", "5")),
    }
    return Publisher(Settings(_env_file=None, **values), enable_correlation_tracking=True)


def _die_at(method: str, variables: dict[str, str], body: bytes = b"") -> None:
    """Run a process that is killed when it calls a method of the transport."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.dying", method],
        env=environment(variables),
        cwd=variables["BLOODBANK_DATA_DIR"],
        input=body,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


async def _logged(publisher: Publisher) -> list[UUID]:
    return [entry.message.event_id async for entry in publisher.transport.read_log()]


@pytest.mark.parametrize("method", ["publish", "publish_many"])
async def test_an_id_whose_publisher_was_killed_before_the_confirm_is_published_by_the_next(
    variables: dict[str, str], method: str
) -> None:
    event = create_envelope("order.event", {"n": 1}, correlation_ids=[uuid4()], event_id=uuid4())
    await run_sync(_die_at, method, variables, codec.encode(event).body)
    async with _publisher(variables) as publisher:
        assert (await publisher.publish(event)).status is Status.PUBLISHED
        assert await _logged(publisher) == [event.event_id]
        [node] = (await publisher.tracker.nodes([event.event_id])).values()
        assert list(node.parents) == event.correlation_ids


async def test_an_outbox_whose_process_was_killed_before_the_confirm_is_sent_by_the_next(
    rabbit_server: RabbitServer, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_sync(rabbit_server.kill)
    events = [create_envelope("order.event", {"n": number}) for number in range(100)]
    async with _publisher(variables) as publisher:
        results = await publisher.publish_many(events)
    assert [result.status for result in results if isinstance(result, PublishResult)] == [Status.QUEUED] * len(events)
    await run_sync(rabbit_server.start)
    await run_sync(_die_at, "publish_many", variables)
    # The dead one's lease is taken for one from a clock that was set back, which saves the waiting for its end.
    monkeypatch.setattr("bloodbank.wiring.SHORTEST_LEASE_SECONDS", 1.0)
    variables = {**variables, "BLOODBANK_PUBLISH_TIMEOUT_SECONDS": "1"}
    async with _publisher(variables) as publisher:
        assert publisher.outbox is not None
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await publisher.outbox.totals()).waiting:
                await asyncio.sleep(0.05)
        assert set(await _logged(publisher)) == {event.event_id for event in events}
