"""`bb consume` as processes: told to stop, several at a time, and started again by a change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from bloodbank import EventEnvelope, Publisher, Settings, create_envelope
from tests.conformance.consumers import dead_letters, eventually

BB = [sys.executable, "-m", "bloodbank.cli.main"]
OTHERS = ("BLOODBANK_", "RABBIT_", "REDIS_", "EXCHANGE_", "CORRELATION_")
PATIENCE_SECONDS = 100.0

PROGRAM = """
import asyncio
import os
from pathlib import Path

from bloodbank import Attempt, Consumer, EventEnvelope, Publisher, Retry, create_envelope

consumer = Consumer("load")
seen = os.open("seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@consumer.on("load.tick.sent", concurrency=4, prefetch=20, retry=Retry(attempts=2, first_seconds=0.05))
async def handle(event: EventEnvelope[dict], publisher: Publisher) -> None:
    number = event.payload["number"]
    os.write(seen, f"{number} {os.getpid()}\\n".encode())
    if number % 25 == 0:
        raise ValueError(f"no {number}")
    while event.payload.get("waits") and not Path("go on").exists():
        await asyncio.sleep(0.02)
    await publisher.publish(create_envelope("load.tock.sent", {}))
    os.write(seen, f"done {number}\\n".encode())
"""


class Place:
    """A folder with the program, and the bus that its processes use."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.variables = dict(variables) | {"BLOODBANK_DATA_DIR": str(folder / "data"), "BLOODBANK_LEASE_SECONDS": "1"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OTHERS)}
        self.env = inherited | self.variables
        (folder / "program.py").write_text(PROGRAM)

    def settings(self) -> Settings:
        return Settings(_env_file=None, **self.variables)

    def start(self, *arguments: str, target: str = "program:consumer") -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen([*BB, "consume", target, *arguments], cwd=self.folder, env=self.env, stderr=log)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        process = self.start(*arguments)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            finally:
                process.kill()
                process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def seen(self) -> list[list[str]]:
        path = self.folder / "seen"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def runs(self) -> Counter[int]:
        return Counter(int(number) for number, _ in self.seen() if number != "done")

    def done(self) -> set[int]:
        return {int(number) for word, number in self.seen() if word == "done"}

    def pids(self) -> set[int]:
        return {int(pid) for word, pid in self.seen() if word != "done"}


@pytest.fixture(params=["embedded", pytest.param("rabbit", marks=[pytest.mark.rabbit, pytest.mark.redis])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    variables: dict[str, str] = {}
    if request.param == "rabbit":
        variables = {
            "RABBIT_URL": request.getfixturevalue("rabbit_server").url,
            "EXCHANGE_NAME": f"test.{uuid4().hex}.v1",
            "REDIS_URL": request.getfixturevalue("redis_server").url,
            "BLOODBANK_REDIS_PREFIX": uuid4().hex[:16],
        }
    return Place(tmp_path, variables)


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return Place(tmp_path, {})


def _tick(number: int, *, waits: bool = False) -> EventEnvelope[dict[str, object]]:
    return create_envelope("load.tick.sent", {"number": number, "waits": waits})


async def _joined(publisher: Publisher) -> None:
    """Make the group, so that it keeps what is published before the first process listens."""
    async with publisher.transport.subscribe("load.tick.sent", group="load", prefetch=1):
        pass


@pytest.mark.timeout(240)
async def test_a_consumer_that_is_told_to_stop_finishes_what_it_has_begun(place: Place) -> None:
    async with Publisher(place.settings(), enable_correlation_tracking=True) as publisher:
        await _joined(publisher)
        await publisher.publish(_tick(1, waits=True))
        with place.running() as process:
            await eventually(lambda: place.runs() == {1: 1})
            process.send_signal(signal.SIGTERM)
            await publisher.publish(_tick(2))
            (place.folder / "go on").touch()
            assert await anyio.to_thread.run_sync(lambda: process.wait(PATIENCE_SECONDS)) == 0
        assert place.done() >= {1}
        with place.running():
            await eventually(lambda: place.done() == {1, 2})
        assert place.runs() == {1: 1, 2: 1}
        assert await dead_letters(publisher, "load") == []


@pytest.mark.timeout(240)
async def test_several_processes_share_the_events_and_one_that_dies_is_replaced(local: Place) -> None:
    async with Publisher(local.settings()) as publisher:
        await _joined(publisher)
        with local.running("--workers", "2") as parent:
            await _until_so_many_processes(local, publisher, 2)
            victim = min(local.pids())
            assert victim != parent.pid
            os.kill(victim, signal.SIGKILL)
            await _until_so_many_processes(local, publisher, 3)
            parent.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(lambda: parent.wait(PATIENCE_SECONDS)) == 0
    assert not any(_is_alive(pid) for pid in local.pids())
    assert f"Process {victim} ended with -9" in local.log()


async def _until_so_many_processes(place: Place, publisher: Publisher, count: int) -> None:
    number = 1
    with anyio.fail_after(PATIENCE_SECONDS):
        while len(place.pids()) < count:
            await publisher.publish_many([_tick(number + 25 * each) for each in range(4)])
            number += 101
            await anyio.sleep(0.1)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(240)
async def test_a_thread_that_does_not_end_does_not_keep_the_process(local: Place) -> None:
    stuck = PROGRAM.replace(
        "async def handle(event: EventEnvelope[dict], publisher: Publisher)", "def handle(event: dict)"
    )
    stuck = stuck.partition("    number =")[0] + (
        "    os.write(seen, f\"{event['number']} {os.getpid()}\\n\".encode())\n    __import__('time').sleep(10000)\n"
    )
    (local.folder / "program.py").write_text(stuck)
    local.env["BLOODBANK_STOP_TIMEOUT_SECONDS"] = "0.1"
    async with Publisher(local.settings()) as publisher:
        await _joined(publisher)
        await publisher.publish(_tick(1))
        with local.running() as process:
            await eventually(lambda: local.runs() == {1: 1})
            process.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(lambda: process.wait(PATIENCE_SECONDS)) == 0
    assert "threads are still at work" in local.log()


@pytest.mark.timeout(240)
async def test_a_changed_program_is_started_again(local: Place) -> None:
    async with Publisher(local.settings()) as publisher:
        await _joined(publisher)
        with local.running("--reload"):
            await publisher.publish(_tick(1))
            await eventually(lambda: local.done() == {1})
            changed = PROGRAM.replace("done {number}", "done {number * 1000}")
            (local.folder / "program.py").write_text(changed)
            await publisher.publish(_tick(2))
            await eventually(lambda: "program.py changed" in local.log())
            await publisher.publish(_tick(3))
            await eventually(lambda: 3000 in local.done())


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("program", "MODULE:CONSUMER"),
        ("nowhere:consumer", "There is no module 'nowhere' in this folder"),
        ("program.py:consumer", "Write the name of its module: program:consumer."),
        ("program:seen", "'seen' is a int"),
        ("program:nothing", "'nothing' is nothing"),
        ("broken:consumer", "ZeroDivisionError"),
        ("refused:consumer", "(refused.py, line 2)"),
        ("empty:consumer", "has no handlers"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_no_consumer_is_a_wrong_usage(local: Place, target: str, said: str, workers: str) -> None:
    (local.folder / "broken.py").write_text("1 / 0\n")
    (local.folder / "refused.py").write_text("from bloodbank import Consumer\nConsumer('c').on('No.Type')\n")
    (local.folder / "empty.py").write_text("from bloodbank import Consumer\nconsumer = Consumer('c')\n")
    process = local.start("--workers", workers, target=target)
    assert process.wait(PATIENCE_SECONDS) == 2
    assert said in local.log()
