"""The servers and processes of a run, and what can be done to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import bloodbank
from tests.chaos.disk import SmallDisk
from tests.chaos.faults import Fault, Kind
from tests.chaos.ledger import Reader
from tests.chaos.wires import Wires
from tests.servers.api import ApiServer
from tests.servers.process import OwnedProcess, wait_until
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(bloodbank.__file__).resolve().parents[1]
OURS = ("BLOODBANK_", "RABBIT_", "REDIS_", "HTTP_", "EXCHANGE_", "CORRELATION_", "COVERAGE_")
READY_SECONDS = 60.0
SMALL_DISK_MEGABYTES, SMALL_OUTBOX_BYTES = 24, 6_000_000
GROUP, PLAIN_QUEUE = "chaos-group", "chaos-plain"
REINDEX_SECONDS = 120.0
BROKER_WIRES, REDIS_WIRE = ("shared", "small", "server"), "redis"


class Worker:
    """A process of the run that may be killed and started again with the same folder."""

    def __init__(self, name: str, folder: Path, module: str, *arguments: str, **settings: str) -> None:
        self.name = name
        self._folder = folder
        self._command = [sys.executable, "-m", module, name, str(folder), *arguments]
        self._settings = settings
        self._process: OwnedProcess | None = None
        self._reader = Reader(folder / f"{name}.ledger")
        self._seen: set[str] = set()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.running else None

    def start(self) -> None:
        self._process = OwnedProcess(
            self._command, env=environment(self._settings), cwd=self._folder, log=self._folder / f"{self.name}.log"
        )

    def kill(self) -> None:
        self._end(signal.SIGKILL, 5)

    def end(self, *, seconds: float) -> None:
        """Ask it to end, and make it after some time."""
        self._end(signal.SIGTERM, seconds)

    def has_written(self, word: str) -> bool:
        self._seen.update(line[0] for line in self._reader.lines())
        return word in self._seen

    def wait(self, word: str, *, seconds: float) -> None:
        """Wait until its ledger has a line of this kind."""
        wait_until(lambda: self.has_written(word), seconds=seconds, what=f"'{word}' of {self.name}")

    def _end(self, number: signal.Signals, seconds: float) -> None:
        if self._process is not None:
            self._process.end(number, seconds=seconds)
            self._process = None


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process of the run: what the developer has set for the bus is left out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**inherited, "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1", **settings}


class Stage:
    """One broker, one Redis, and those who use them; the wires between them can be broken.

    folder: of the run. seed: of the load. rate: events a second that all publishers try together.
    """

    def __init__(self, folder: Path, *, seed: int, rate: float) -> None:
        self.folder = folder
        self.disk = SmallDisk(folder / "small-disk", megabytes=SMALL_DISK_MEGABYTES)
        self.rabbit = RabbitServer()
        self.redis = RedisServer()
        targets = dict.fromkeys(BROKER_WIRES, self.rabbit.port)
        self.wires = Wires(targets | {REDIS_WIRE: self.redis.port})
        self.publishers: list[Worker] = []
        self.consumers: list[Worker] = []
        self.server: ApiServer | None = None
        self._seed = seed
        self._rate = rate
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def pids(self) -> dict[str, int]:
        """Return the leaders of all processes that run, by name."""
        named = [(worker.name, worker.pid) for worker in [*self.publishers, *self.consumers]]
        servers = [(server.name, server.pid) for server in (self.rabbit, self.redis, self.server) if server]
        return {name: pid for name, pid in [*named, *servers] if pid is not None}

    def settings(self, *, wire: str | None = None, redis_wire: bool = False) -> dict[str, str]:
        """Return what a process needs to find the bus. wire: the proxy that its broker is behind."""
        port = self.wires.ports[wire] if wire else self.rabbit.port
        redis_port = self.wires.ports[REDIS_WIRE] if redis_wire else self.redis.port
        return {
            "RABBIT_URL": f"amqp://guest:guest@127.0.0.1:{port}/",
            "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
        }

    async def inject(self, fault: Fault) -> None:
        """Make a fault, let it last, and heal it; what it hits is chosen by its chance."""
        injections: dict[Kind, Callable[[Fault], Awaitable[None]]] = {
            Kind.BROKER_KILLED: self._kill_broker,
            Kind.BROKER_FROZEN: self._freeze_broker,
            Kind.BROKER_FULL: self._fill_broker,
            Kind.WIRES_CUT: self._cut_wires,
            Kind.WIRES_HALF_OPEN: self._stall_wires,
            Kind.DISK_FULL: self._fill_disk,
            Kind.REDIS_KILLED: self._kill_redis,
            Kind.REDIS_FROZEN: self._freeze_redis,
            Kind.REDIS_HALF_OPEN: self._stall_redis,
            Kind.REDIS_EMPTIED: self._empty_redis,
            Kind.PUBLISHER_KILLED: self._kill_publisher,
            Kind.SERVER_KILLED: self._kill_server,
            Kind.CONSUMER_KILLED: self._kill_consumer,
        }
        await injections[fault.kind](fault)

    async def _open(self) -> None:
        self._stack.enter_context(self.disk)
        for server in (self.rabbit, self.redis):
            self._stack.push_async_callback(asyncio.to_thread, server.close)
        await asyncio.gather(*[asyncio.to_thread(server.start) for server in (self.rabbit, self.redis)])
        await self._stack.enter_async_context(self.wires)
        self.server = ApiServer(**self.settings(wire="server"), PYTHONPATH=f"{SOURCE}{os.pathsep}{ROOT}")
        self._stack.push_async_callback(asyncio.to_thread, self.server.close)
        await asyncio.to_thread(self.server.start)
        await self._start_workers(self.server.url)

    async def _start_workers(self, url: str) -> None:
        plain, load, consume = self.rabbit.url, "tests.chaos.load", "tests.chaos.consume"
        self.consumers = [
            Worker(name, self.folder, consume, GROUP, **self.settings()) for name in ("consumer-a", "consumer-b")
        ]
        self.consumers.append(Worker("consumer-plain", self.folder, consume, PLAIN_QUEUE, plain))
        shared = {**self.settings(wire="shared", redis_wire=True), "BLOODBANK_DATA_DIR": str(self.folder / "shared")}
        small = {**self.settings(wire="small"), "BLOODBANK_DATA_DIR": str(self.disk.folder)}
        # An outbox of the disk's own size could not be emptied: SQLite needs room to delete.
        small["BLOODBANK_OUTBOX_LIMIT_BYTES"] = str(SMALL_OUTBOX_BYTES)
        seed = str(self._seed)
        for name, share, settings, more in (
            ("sdk-a", 0.28, shared, ()),
            ("sdk-b", 0.28, shared, ()),
            ("sdk-small-disk", 0.24, small, ()),
            ("http", 0.2, {}, (url,)),
        ):
            arguments = (seed, f"{share * self._rate:.0f}", *more)
            self.publishers.append(Worker(name, self.folder, load, *arguments, **settings))
        for workers in (self.consumers, self.publishers):
            for worker in workers:
                self._stack.push_async_callback(asyncio.to_thread, worker.kill)
                worker.start()
            for worker in workers:
                await asyncio.to_thread(worker.wait, "ready", seconds=READY_SECONDS)

    async def _kill_broker(self, fault: Fault) -> None:
        await asyncio.to_thread(self.rabbit.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.rabbit.start)

    async def _freeze_broker(self, fault: Fault) -> None:
        self.rabbit.freeze()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self.rabbit.thaw()

    async def _fill_broker(self, fault: Fault) -> None:
        mark = "vm_memory_high_watermark"
        await asyncio.to_thread(self.rabbit.ctl, f"set_{mark}", "absolute", "1")
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await asyncio.to_thread(self.rabbit.ctl, f"set_{mark}", "0.4")

    async def _cut_wires(self, fault: Fault) -> None:
        deadline = time.monotonic() + fault.seconds
        while time.monotonic() < deadline:
            for wire in self._some_wires(fault):
                await self.wires.order(wire, "cut")
            await asyncio.sleep(0.1 + fault.chance / 2)

    async def _stall_wires(self, fault: Fault) -> None:
        wires = self._some_wires(fault)
        for wire in wires:
            await self.wires.order(wire, "stall", replies_only=fault.chance < 0.6)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            for wire in wires:
                # Either the network comes back, or the connections turn out to be gone.
                if int(fault.chance * 1000) % 2:
                    await self.wires.order(wire, "cut")
                await self.wires.order(wire, "resume")

    async def _fill_disk(self, fault: Fault) -> None:
        order = partial(self.wires.order, "small")
        await order("refuse")
        await order("cut")
        await asyncio.sleep(fault.seconds / 4)
        await asyncio.to_thread(self.disk.fill)
        try:
            await asyncio.sleep(fault.seconds)
            if fault.chance < 0.5:
                await order("accept")
                await asyncio.sleep(fault.seconds / 4)
        finally:
            await asyncio.to_thread(self.disk.empty)
            await order("accept")

    async def _kill_redis(self, fault: Fault) -> None:
        await asyncio.to_thread(self.redis.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.redis.start)

    async def _freeze_redis(self, fault: Fault) -> None:
        self.redis.freeze()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self.redis.thaw()

    async def _stall_redis(self, fault: Fault) -> None:
        await self.wires.order(REDIS_WIRE, "stall", replies_only=fault.chance < 0.5)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await self.wires.order(REDIS_WIRE, "cut")
            await self.wires.order(REDIS_WIRE, "resume")

    async def _empty_redis(self, fault: Fault) -> None:
        await asyncio.to_thread(self.redis.kill)
        for path in self.redis.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix == ".rdb":
                path.unlink()
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.redis.start)
        await asyncio.to_thread(self.reindex)

    def reindex(self) -> None:
        """Run `bb reindex`. Raises RuntimeError when it fails."""
        command = [sys.executable, "-m", "bloodbank.cli.main", "reindex"]
        settings = self.settings() | {"BLOODBANK_DATA_DIR": str(self.folder / "reindex")}
        done = subprocess.run(
            command,
            env=environment(settings),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=REINDEX_SECONDS,
            check=False,
        )
        (self.folder / "reindex.log").write_text(done.stdout + done.stderr)
        if done.returncode:
            raise RuntimeError(f"bb reindex ended with {done.returncode}: {done.stderr[-500:]}")

    async def _kill_publisher(self, fault: Fault) -> None:
        worker = self.publishers[int(fault.chance * len(self.publishers))]
        await asyncio.to_thread(worker.kill)
        await asyncio.sleep(fault.seconds)
        worker.start()

    async def _kill_consumer(self, fault: Fault) -> None:
        worker = self.consumers[int(fault.chance * len(self.consumers))]
        await asyncio.to_thread(worker.kill)
        await asyncio.sleep(fault.seconds)
        worker.start()

    async def _kill_server(self, fault: Fault) -> None:
        assert self.server is not None
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.server.start)

    def _some_wires(self, fault: Fault) -> list[str]:
        """Return all wires to the broker, or every one but one."""
        left_out = int(fault.chance * 2 * len(BROKER_WIRES))
        return [wire for place, wire in enumerate(BROKER_WIRES) if place != left_out]
