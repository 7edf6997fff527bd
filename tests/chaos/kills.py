"""Kills a consumer again and again under load, and counts how often it ran: `python -m tests.chaos.kills`.

The consumer is `bb consume` as a process of its own, ended by SIGKILL at whatever it is doing. Its handler notes that
it began, publishes an event, and notes that it is done; of some events it always fails. Events are published all the
while. Exit code 0: what is guaranteed held, 1: it did not; the last lines say what.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

from anyio.to_thread import run_sync

from bloodbank import BloodbankError, EventEnvelope, Publisher, Settings, codec, create_envelope
from tests.chaos.stage import environment
from tests.servers.process import OwnedProcess
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

EVENTS, KILLS = 10_000, 20
BROKEN_EACH = 25
"""Of so many events one makes the handler fail, each time."""
PREFETCH, ATTEMPTS = 20, 2
BACKLOG, BATCH = 1000, 100
"""Most events that wait for the consumer, and how many are published at a time."""
LEASE_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.005
LONGEST_STOP_SECONDS = 60.0

PROGRAM = f"""
import os

from bloodbank import Consumer, EventEnvelope, Publisher, Retry, create_envelope

consumer = Consumer("kills")
noted = os.open("noted", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@consumer.on(
    "load.tick.sent", concurrency=8, prefetch={PREFETCH}, retry=Retry(attempts={ATTEMPTS}, first_seconds=0.05)
)
async def handle(event: EventEnvelope[dict], publisher: Publisher) -> None:
    number = event.payload["number"]
    os.write(noted, f"begun {{number}}\\n".encode())
    if number % {BROKEN_EACH} == 0:
        raise ValueError(f"no {{number}}")
    await publisher.publish(create_envelope("load.tock.sent", {{}}))
    os.write(noted, f"done {{number}}\\n".encode())
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What was counted.

    runs: of the handler, by event, of those that it can handle. broken_runs: of those that it fails on. done: events
    that it came to the end of. effects, failed, dead: how many events it published, failure events and dead letters
    there are, by the event that caused them. failure_ids: how many ids the failure events have.
    """

    bus: str
    events: int
    kills: int
    runs: Mapping[int, int]
    broken_runs: Mapping[int, int]
    done: frozenset[int]
    effects: Mapping[int, int]
    failed: Mapping[int, int]
    failure_ids: int
    dead: Mapping[int, int]

    @property
    def good(self) -> set[int]:
        """Return the events that the handler can handle."""
        return set(range(self.events)) - self.broken

    @property
    def broken(self) -> set[int]:
        """Return the events that it fails on."""
        return set(range(0, self.events, BROKEN_EACH))

    @property
    def extra(self) -> int:
        """Return how many runs there were beyond one an event, and beyond the attempts of one that fails."""
        return sum(_beyond(self.runs, 1)) + sum(_beyond(self.broken_runs, ATTEMPTS))

    def wrong(self) -> list[str]:
        """Return what was guaranteed and did not hold."""
        second_letters, second_failures = sum(_beyond(self.dead, 1)), sum(_beyond(self.failed, 1))
        claims = {
            "every event was handled": set(self.runs) == self.good == self.done,
            "every event that cannot be handled was tried": set(self.broken_runs) == self.broken,
            "what was handled has its effect": set(self.effects) == self.good,
            "the dead letters are complete, and nothing else is there": set(self.dead) == self.broken,
            "each failure is an event, with one id": set(self.failed) == self.broken
            and self.failure_ids == len(self.broken),
            # What was under way when the process died, and no more.
            "few ran twice": self.extra <= self.kills * PREFETCH,
            "few were set aside twice": second_letters <= (0 if self.bus == "embedded" else self.kills * PREFETCH),
            "few failures are in the log twice": second_failures
            <= (0 if self.bus == "embedded" else self.kills * PREFETCH),
        }
        return [f"{self.bus}: not true: {claim}" for claim, holds in claims.items() if not holds]


async def play(bus: str, folder: Path, variables: Mapping[str, str], *, events: int, kills: int) -> Report:
    """Publish events while a consumer handles them and is killed so many times; return when all is settled.

    bus: its name. folder: for the program and what it notes. variables: settings of the bus, as environment variables.
    Raises TimeoutError when nothing goes on.
    """
    own = {"BLOODBANK_DATA_DIR": str(folder / "data"), "BLOODBANK_LEASE_SECONDS": str(LEASE_SECONDS), **variables}
    (folder / "program.py").write_text(PROGRAM)
    consumer, notes = _Process(folder, own), _Notes(folder / "noted")
    settings = Settings(
        _env_file=None, **{name.lower().removeprefix("bloodbank_"): value for name, value in own.items()}
    )  # type: ignore[arg-type]
    envelopes = [create_envelope("load.tick.sent", {"number": number}) for number in range(events)]
    numbers = {envelope.event_id: number for number, envelope in enumerate(envelopes)}
    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        # The group, so that it keeps what is published before the first process listens.
        async with publisher.transport.subscribe("load.tick.sent", group="kills", prefetch=1):
            pass
        publishing = asyncio.create_task(_publish(publisher, envelopes, notes))
        try:
            for kill in range(1, kills + 1):
                async with consumer.running():
                    await _until(lambda due=events * kill // (kills + 1): notes.runs.total() >= due, notes)
                    consumer.kill()
            killed_at = time.monotonic()
            async with consumer.running():
                await publishing
                await _until(lambda: len(notes.done) == events - len(range(0, events, BROKEN_EACH)), notes)
                # What a dead process held comes again when its lease is over.
                await _until(lambda: time.monotonic() - killed_at > 2 * LEASE_SECONDS, notes)
                dead = await _dead(publisher, numbers, len(range(0, events, BROKEN_EACH)))
                await consumer.stop()
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
        dead = await _dead(publisher, numbers, len(dead))
        effects, _ = await _caused(publisher, "load.tock.sent", numbers)
        failed, failure_ids = await _caused(publisher, "load.tick.failed", numbers)
    notes.read()
    broken = {number: runs for number, runs in notes.runs.items() if number % BROKEN_EACH == 0}
    good = {number: runs for number, runs in notes.runs.items() if number not in broken}
    return Report(bus, events, kills, good, broken, frozenset(notes.done), effects, failed, failure_ids, dead)


class _Process:
    """`bb consume`, one at a time."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder = folder
        # Not measured: what is killed writes no coverage, and it would be slow.
        self._env = {name: value for name, value in environment(variables).items() if not name.startswith("COVERAGE_")}
        self._process: OwnedProcess | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start it; it is ended with the block, if it did not before."""
        command = [sys.executable, "-m", "bloodbank.cli.main", "consume", "program:consumer"]
        self._process = OwnedProcess(command, env=self._env, cwd=self._folder, log=self._folder / "log")
        try:
            yield
        finally:
            self.kill()

    def kill(self) -> None:
        """End it by SIGKILL. Idempotent."""
        if self._process is not None:
            self._process.end(signal.SIGKILL, seconds=LONGEST_STOP_SECONDS)
            self._process = None

    async def stop(self) -> None:
        """End it by SIGTERM: it finishes what it has begun."""
        process, self._process = self._process, None
        if process is not None:
            await run_sync(lambda: process.end(signal.SIGTERM, seconds=LONGEST_STOP_SECONDS))


class _Notes:
    """What the handler noted, read from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self.runs: Counter[int] = Counter()
        self.done: set[int] = set()

    def read(self) -> None:
        """Read what came; the last line may not be whole."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return
        self._at += len(whole) + 1
        for line in whole.split(b"\n"):
            word, number = line.split()
            if word == b"begun":
                self.runs[int(number)] += 1
            else:
                self.done.add(int(number))


async def _publish(publisher: Publisher, envelopes: Sequence[EventEnvelope[Any]], notes: _Notes) -> None:
    for start in range(0, len(envelopes), BATCH):
        while start - len(notes.runs) > BACKLOG:
            await asyncio.sleep(POLL_SECONDS)
        for outcome in await publisher.publish_many(envelopes[start : start + BATCH]):
            if isinstance(outcome, BloodbankError):
                raise outcome


async def _until(condition: Callable[[], bool], notes: _Notes) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        notes.read()
        while not condition():
            await asyncio.sleep(POLL_SECONDS)
            notes.read()


async def _dead(publisher: Publisher, numbers: Mapping[UUID, int], least: int) -> Counter[int]:
    """Return the dead letters by event, once there are those of so many."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            letters = [letter async for letter in publisher.transport.dead_letters(group="kills")]
            found = Counter(numbers[letter.message.event_id] for letter in letters)
            if len(found) >= least:
                return found
            await asyncio.sleep(0.1)


async def _caused(publisher: Publisher, event_type: str, numbers: Mapping[UUID, int]) -> tuple[Counter[int], int]:
    """Return how many events of a type the log has, by the event that caused them, and how many ids these have."""
    found: Counter[int] = Counter()
    ids: set[UUID] = set()
    async for entry in publisher.transport.read_log():
        if entry.message.routing_key == event_type:
            [cause] = codec.decode(entry.message.body).correlation_ids
            found[numbers[cause]] += 1
            ids.add(entry.message.event_id)
    return found, len(ids)


def _beyond(counts: Mapping[int, int], most: int) -> list[int]:
    return [count - most for count in counts.values() if count > most]


def table(reports: Iterable[Report]) -> str:
    """Return the figures as a table in Markdown, one row a bus."""
    head = (
        "bus",
        "events that succeed",
        "kills",
        "handler runs, of all",
        "of these events, ran once, twice, …",
        "events that always fail",
        "of these, ran once, twice, …",
        "their dead letters",
        "their failure events",
        "runs beyond 1, or beyond 2 of those that fail",
    )
    lines = [head, ("---",) * len(head), *map(_row, reports)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(report: Report) -> tuple[str, ...]:
    return (
        report.bus,
        f"{len(report.good):,}",
        f"{report.kills}",
        f"{sum(report.runs.values()) + sum(report.broken_runs.values()):,}",
        _spread(report.runs),
        f"{len(report.broken):,}",
        _spread(report.broken_runs),
        _complete(report.dead),
        _complete(report.failed),
        f"{report.extra:,}",
    )


def _spread(counts: Mapping[int, int]) -> str:
    events_by_runs = sorted(Counter(counts.values()).items())
    return ", ".join(f"{runs}: {events:,}" for runs, events in events_by_runs)


def _complete(counts: Mapping[int, int]) -> str:
    twice = sum(_beyond(counts, 1))
    return f"{len(counts):,}" + (f" and {twice} second copies" if twice else "")


@asynccontextmanager
async def _servers(bus: str) -> AsyncIterator[dict[str, str]]:
    if bus == "embedded":
        yield {}
        return
    rabbit, redis = RabbitServer(), RedisServer()
    try:
        await run_sync(redis.start)
        await run_sync(rabbit.start)
        yield on_servers(rabbit.url, redis.url)
    finally:
        await run_sync(rabbit.close)
        await run_sync(redis.close)


def on_servers(rabbit_url: str, redis_url: str) -> dict[str, str]:
    """Return the settings of a bus of its own on both servers."""
    name = f"kills{uuid4().hex[:8]}"
    return {
        "RABBIT_URL": rabbit_url,
        "EXCHANGE_NAME": f"{name}.events.v1",
        "REDIS_URL": redis_url,
        "BLOODBANK_REDIS_PREFIX": name,
    }


BUSES = ("embedded", "RabbitMQ and Redis")


async def _all(buses: Sequence[str], events: int, kills: int) -> list[Report]:
    reports: list[Report] = []
    for bus in buses:
        with TemporaryDirectory(prefix="bloodbank-kills-") as folder:
            async with _servers(bus) as variables:
                begun = time.monotonic()
                reports.append(await play(bus, Path(folder), variables, events=events, kills=kills))
                print(f"{bus}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return reports


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help=f"default {EVENTS}")
    parser.add_argument("--kills", type=int, default=KILLS, help=f"default {KILLS}")
    parser.add_argument("--bus", choices=BUSES, action="append", help="default: both, one after the other")
    arguments = parser.parse_args()
    reports = asyncio.run(_all(arguments.bus or BUSES, arguments.events, arguments.kills))
    print(table(reports))
    wrong = [line for report in reports for line in report.wrong()]
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
