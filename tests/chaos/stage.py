"""The servers and processes of a run, and what can be done to them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import bloodbank
from tests.chaos.faults import LANES, Fault, Kind
from tests.chaos.ledger import Reader
from tests.servers.api import ApiServer
from tests.servers.process import OwnedProcess, Server, wait_until

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(bloodbank.__file__).resolve().parents[1]
OURS = ("BLOODBANK_", "RABBIT_", "REDIS_", "HTTP_", "EXCHANGE_", "CORRELATION_", "COVERAGE_")
READY_SECONDS = 60.0
GROUP, PLAIN_QUEUE = "chaos-group", "chaos-plain"
REINDEX_SECONDS = 120.0
PUBLISHERS = {"sdk-a": 0.28, "sdk-b": 0.28, "sdk-c": 0.24, "http": 0.2}
"""The publishing processes, with their shares of the load. Where a stage says so, some share a data folder."""


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


class Stage(ABC):
    """A broker, a Redis, and those who use them. What these are, and what can be done to them, says the subclass.

    folder: of the run. seed: of the load. rate: events a second that all publishers try together.
    """

    lanes: ClassVar[Sequence[Sequence[Kind]]] = LANES
    """The faults that can be made, in lanes: of one lane there is one at a time."""

    def __init__(self, folder: Path, *, seed: int, rate: float) -> None:
        self.folder = folder
        self.publishers: list[Worker] = []
        self.consumers: list[Worker] = []
        self.server: ApiServer | None = None
        self._seed = seed
        self._rate = rate
        self._stack = AsyncExitStack()

    @property
    @abstractmethod
    def rabbit_url(self) -> str:
        """Address of the broker itself."""

    @property
    @abstractmethod
    def redis_url(self) -> str:
        """Address of Redis itself."""

    @property
    @abstractmethod
    def servers(self) -> Sequence[Server]:
        """The servers that are watched."""

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
        servers = [*self.servers, *([self.server] if self.server else [])]
        named += [(f"{server.name} {server.port}", server.pid) for server in servers]
        return {name: pid for name, pid in named if pid is not None}

    async def inject(self, fault: Fault) -> None:
        """Make a fault, let it last, and heal it; what it hits is chosen by its chance."""
        await self._injections()[fault.kind](fault)

    def reindex(self) -> None:
        """Run `bb reindex`. Raises RuntimeError when it fails."""
        command = [sys.executable, "-m", "bloodbank.cli.main", "reindex"]
        settings = self._addresses() | {"BLOODBANK_DATA_DIR": str(self.folder / "reindex")}
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

    @abstractmethod
    async def _open_bus(self) -> None:
        """Start the servers."""

    def _settings_of(self, name: str) -> dict[str, str]:
        """Return what the process of a name needs to find the bus, and its data folder."""
        return self._addresses() | {"BLOODBANK_DATA_DIR": str(self.folder / name)}

    def _addresses(self) -> dict[str, str]:
        return {"RABBIT_URL": self.rabbit_url, "REDIS_URL": self.redis_url}

    def _injections(self) -> dict[Kind, Callable[[Fault], Awaitable[None]]]:
        return {
            Kind.PUBLISHER_KILLED: self._kill_publisher,
            Kind.SERVER_KILLED: self._kill_server,
            Kind.CONSUMER_KILLED: self._kill_consumer,
        }

    async def _open(self) -> None:
        await self._open_bus()
        settings = self._settings_of("server")
        del settings["BLOODBANK_DATA_DIR"]  # the server has a folder of its own
        self.server = ApiServer(**settings, PYTHONPATH=f"{SOURCE}{os.pathsep}{ROOT}")
        self._stack.push_async_callback(asyncio.to_thread, self.server.close)
        await asyncio.to_thread(self.server.start)
        await self._start_workers(self.server.url)

    async def _start_workers(self, url: str) -> None:
        load, consume = "tests.chaos.load", "tests.chaos.consume"
        self.consumers = [
            Worker(name, self.folder, consume, GROUP, **self._addresses()) for name in ("consumer-a", "consumer-b")
        ]
        self.consumers.append(Worker("consumer-plain", self.folder, consume, PLAIN_QUEUE, self.rabbit_url))
        for name, share in PUBLISHERS.items():
            arguments = [str(self._seed), f"{share * self._rate:.0f}", *([url] if name == "http" else [])]
            self.publishers.append(Worker(name, self.folder, load, *arguments, **self._settings_of(name)))
        for workers in (self.consumers, self.publishers):
            for worker in workers:
                self._stack.push_async_callback(asyncio.to_thread, worker.kill)
                worker.start()
            for worker in workers:
                await asyncio.to_thread(worker.wait, "ready", seconds=READY_SECONDS)

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
