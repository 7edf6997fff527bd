"""One private server process: started, frozen, killed and always ended.

Everything here blocks. From a coroutine call it through `anyio.to_thread.run_sync(server.restart)`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

START_SECONDS = 180.0
STOP_SECONDS = 20.0


class ServerMissing(Exception):
    """The program is not installed; the message has the command that installs it."""


_FIRST_PORT = 10_000
_PORTS_A_WORKER = 2_500
"""Below the range from which systems take the ports of outgoing connections (32768 on Linux, 49152 elsewhere): while a
server of ours is down for a moment, nobody else is given its port. Each worker of a parallel run has its own share."""


def _ports() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST_PORT + worker % 8 * _PORTS_A_WORKER
    # Runs that are under way at the same time begin at different places.
    begin = os.getpid() * 97 % _PORTS_A_WORKER
    while True:
        yield first + begin % _PORTS_A_WORKER
        begin += 1


_candidates = _ports()


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free just now, and that this process is not given again soon."""
    for _ in range(_PORTS_A_WORKER):
        port = next(_candidates)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise OSError(f"none of {_PORTS_A_WORKER} ports is free")


def wait_until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Ask a condition again and again; raise TimeoutError when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


class OwnedProcess:
    """A process group that ends with us, also when we are killed.

    A watchdog shell holds the reading end of a pipe. When this process dies the pipe closes, and the
    watchdog kills the group.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str] | None, cwd: Path, log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=None if env is None else dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r done || kill -9 -{self._process.pid}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Id of the process, which is that of its group and session too."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def is_stopped(self) -> bool:
        """Whether no process of the group runs; where the kernel lists no processes under /proc, true."""
        states: list[str] = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # The name in parentheses may hold anything; state, parent and group follow it.
                state, _, group = file.read_text().rpartition(")")[2].split()[:3]
                if int(group) == self._process.pid:
                    states.append(state)
        return all(state in "TtZX" for state in states)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def end(self, number: signal.Signals, *, seconds: float) -> None:
        """End the group: with the given signal, after `seconds` by force. Idempotent."""
        self.signal(signal.SIGCONT)
        self.signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.signal(signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        self._watchdog.communicate(b"done\n", timeout=STOP_SECONDS)


AnyServer = TypeVar("AnyServer", bound="Server")


class Server:
    """A private server: its port and data outlive a restart, not `close`.

    url: address with credentials.
    port: on 127.0.0.1; the same after a restart.
    """

    name = "server"

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"bloodbank-{self.name}-"))
        self.log = self.folder / "server.log"
        self._process: OwnedProcess | None = None
        self._frozen = False

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int | None:
        """Id of the process, or None while it does not run."""
        return self._process.pid if self._process is not None and self._process.running else None

    def start(self) -> None:
        """Start and return when it answers. Nothing happens when it runs already."""
        if self.running:
            return
        self._process = self._launch()
        try:
            wait_until(self._started, seconds=START_SECONDS, what=f"start of {self.name}")
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def stop(self) -> None:
        """Stop as an operator would, with time to write everything."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End at once, as a power cut would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start, with the same port and data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop the process without ending it (SIGSTOP): connections stay open, nothing is answered."""
        process = self._running_process()
        process.signal(signal.SIGSTOP)
        # The signal is only on its way: what is busy on another core could still answer.
        wait_until(lambda: process.is_stopped, seconds=10, what=f"{self.name} stands still")
        self._frozen = True

    def thaw(self) -> None:
        """Let a frozen process go on."""
        self._running_process().signal(signal.SIGCONT)
        self._frozen = False

    def close(self) -> None:
        """End it and remove the data. Idempotent."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self) -> bool:
        """Say whether the server greets a client now."""
        raise NotImplementedError

    def _launch(self) -> OwnedProcess:
        raise NotImplementedError

    def _started(self) -> bool:
        if not self.running:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended while it started. Its log ends with:\n{tail}")
        return self.answers()

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.end(number, seconds=STOP_SECONDS)
            self._process = None
            self._frozen = False

    def _running_process(self) -> OwnedProcess:
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process


@contextmanager
def started(server: AnyServer) -> Iterator[AnyServer]:
    """Start a server, and close it at the end of the block in any case."""
    try:
        server.start()
        yield server
    finally:
        server.close()


def find_program(name: str, *, folders: Sequence[str] = (), install: str) -> str:
    """Return the path of a program: from the folders first, then from PATH. Raises ServerMissing."""
    for folder in folders:
        candidate = Path(folder) / name
        if os.access(candidate, os.X_OK):
            return str(candidate)
    found = shutil.which(name)
    if found is None:
        raise ServerMissing(f"{name} is not installed. Install it with: {install}")
    return found
