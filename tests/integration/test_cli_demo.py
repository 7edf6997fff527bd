"""`bb demo` on an embedded bus and on real servers: what it says is so, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import aiormq
import anyio
import httpx
import orjson
import pytest
from aiormq.abc import DeliveredMessage
from anyio import to_thread

from tests.servers.process import free_port, wait_until
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

BB = [sys.executable, "-m", "bloodbank.cli.main"]
SETTINGS = ("BLOODBANK_", "RABBIT_", "REDIS_", "HTTP_", "EXCHANGE_", "CORRELATION_")
FIREFLIES = ["fireflies.transcript.upload", "fireflies.meeting.transcribed", "fireflies.transcript.ready"]


def _environment(folder: Path, **variables: str) -> dict[str, str]:
    """An environment whose temporary files, and so the demo's data, lie in the folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    return {**inherited, "TMPDIR": str(folder), **variables}


def _demo(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BB, "demo"],
        env=_environment(folder, **variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def _server_is_gone(output: str) -> bool:
    found = re.search(r"http://127\.0\.0\.1:(\d+)", output)
    assert found is not None
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(found[1]))) != 0


def _link(demo: subprocess.Popen[str]) -> str:
    """Read what a demo that stays says, up to the link to its explorer."""
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("The explorer: "):
            return line.removeprefix("The explorer: ").strip()
    raise AssertionError("it ended without a link")


def test_the_demo_shows_both_trees_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = _demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    for question, length in (("Why does the document exist?", 9), ("What did the transcript lead to?", 8)):
        below = lines[lines.index(question) + 2 :]
        assert below.index("") == length
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    assert any(line.startswith("Both answers are right") for line in lines)
    assert list(tmp_path.iterdir()) == []
    assert _server_is_gone(done.stdout)


def test_what_the_demo_says_to_try_works(tmp_path: Path) -> None:
    lines = _demo(tmp_path).stdout.splitlines()
    tips = [line for line in lines[lines.index("Next, on a bus of your own:") + 1 :] if "#" not in line]
    bb = f'bb() {{ {" ".join(BB)} "$@"; }}\n'
    script = bb + "\n".join(re.sub(r"\S*/bb ", "bb ", tip.strip()) for tip in tips)
    env = _environment(tmp_path, BLOODBANK_DATA_DIR=str(tmp_path / "data"))
    done = subprocess.run(["sh", "-euc", script], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == ["note.written", "└─ call.recorded"]


def test_a_demo_that_is_ended_ends_its_server(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*BB, "demo"],
        env=_environment(tmp_path, PYTHONUNBUFFERED="1"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("A call")
        wait_until(lambda: any(tmp_path.glob("bloodbank-demo-*/server.log")), seconds=30, what="start of the server")
        demo.send_signal(signal.SIGTERM)
        said, wrong = demo.communicate(timeout=40)
    assert demo.returncode == 130
    assert "Traceback" not in said + wrong
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a process alone")
def test_a_demo_that_stays_serves_what_it_links_to_until_it_is_told(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*BB, "demo", "--stay"],
        env=_environment(tmp_path, PYTHONUNBUFFERED="1", BLOODBANK_API_KEYS=f"{'k' * 24}:read"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            url, _, event_id = _link(demo).partition("/e/")
            why = httpx.get(f"{url}/events/{event_id}/lineage?direction=ancestors", trust_env=False)
        finally:
            demo.send_signal(signal.SIGINT)
            _, wrong = demo.communicate(timeout=40)
    assert (why.status_code, len(why.json()["nodes"])) == (200, 8)
    assert (demo.returncode, wrong) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_demo_without_its_broker_says_so(tmp_path: Path) -> None:
    done = _demo(tmp_path, RABBIT_URL=f"amqp://guest:guest@127.0.0.1:{free_port()}/", HTTP_HOST="ignored")
    assert done.returncode == 3
    assert "bb doctor" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@asynccontextmanager
async def _plain_client(url: str, exchange: str, pattern: str) -> AsyncIterator[list[DeliveredMessage]]:
    """Collect what an AMQP client that knows nothing of Bloodbank receives."""
    received: list[DeliveredMessage] = []

    async def keep(message: DeliveredMessage) -> None:
        received.append(message)

    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        await channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        queue = (await channel.queue_declare(exclusive=True)).queue
        assert queue is not None
        await channel.queue_bind(queue, exchange, pattern)
        await channel.basic_consume(queue, keep, no_ack=True)
        yield received
    finally:
        await connection.close()


def test_a_demo_without_its_store_says_so(tmp_path: Path) -> None:
    done = _demo(tmp_path, REDIS_HOST="127.0.0.1", REDIS_PORT=str(free_port()))
    assert (done.returncode, "deferred" in done.stderr) == (3, True)
    assert "Both answers" not in done.stdout


@pytest.mark.rabbit
@pytest.mark.redis
async def test_the_demo_plays_on_real_servers_again_and_again(
    rabbit_server: RabbitServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    exchange = f"demo.{uuid4().hex}"
    settings = {
        "RABBIT_URL": rabbit_server.url,
        "EXCHANGE_NAME": exchange,
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(redis_server.port),
        "BLOODBANK_REDIS_PREFIX": exchange[:32],
    }
    async with _plain_client(rabbit_server.url, exchange, "fireflies.#") as received:
        for round_number in (1, 2):
            done = await to_thread.run_sync(lambda: _demo(tmp_path, **settings))
            assert done.returncode == 0, done.stdout + done.stderr
            assert "RabbitMQ at" in done.stdout
            assert "Redis at" in done.stdout
            with anyio.fail_after(10):
                while len(received) < round_number * len(FIREFLIES):
                    await anyio.sleep(0.02)
    bodies = [orjson.loads(message.body) for message in received]
    assert [message.delivery.routing_key for message in received] == FIREFLIES * 2
    assert [body["event_type"] for body in bodies] == FIREFLIES * 2
    assert len({body["event_id"] for body in bodies}) == 2 * len(FIREFLIES)
    for upload, webhook, ready in (bodies[:3], bodies[3:]):
        assert webhook["correlation_ids"] == [upload["event_id"]]
        assert ready["correlation_ids"] == [webhook["event_id"]]
