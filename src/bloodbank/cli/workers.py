"""Several processes that do the same, kept going until one is told to stop."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from bloodbank.cli.edge import ExitCode
from bloodbank.cli.text import note

LOOK_SECONDS = 0.25
"""How often it is looked whether a process has ended, or a file has changed."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Before a process that ended by itself is started again; longer each time that it soon ends again."""
STEADY_SECONDS = 60.0
"""A process that ran for so long is no longer one that soon ends."""
MARGIN_SECONDS = 5.0
"""How much longer than its stop timeout a process may take to end, before it is killed."""
_FINAL = (ExitCode.OK, ExitCode.USAGE)
"""Ways to end that starting again would not change."""


class _Worker:
    """One process of the command, started again when it ends by itself."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._starts_at = 0.0

    def keep_going(self) -> int | None:
        """Start it when it is due; return its exit code when that is final."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._starts_at:
                # In a group of its own: Ctrl-C reaches it through us, once.
                self._process = subprocess.Popen(self._command, start_new_session=True)  # noqa: S603, our own command
                self._started_at = now
            return None
        code = self._process.poll()
        if code is None:
            return None
        if code in _FINAL:
            return code
        if now - self._started_at > STEADY_SECONDS:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        note(f"Process {self._process.pid} ended with {code}; another starts in {self._pause_seconds:g} s.")
        self._process, self._starts_at = None, now + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        return None

    def tell_to_stop(self) -> None:
        """Ask it to end, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self, seconds: float) -> None:
        """Wait until it has ended; kill it when its time is over. It may be started again at once."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            note(f"Process {self._process.pid} did not end in time and is killed; what it had comes again.")
            self._process.kill()
            self._process.wait()
        self._process, self._starts_at, self._pause_seconds = None, 0.0, FIRST_PAUSE_SECONDS


def supervise(command: Sequence[str], *, count: int, watched: Path | None, stop_timeout_seconds: float) -> int:
    """Run a command in several processes until SIGTERM or SIGINT; return the exit code.

    A process that ends by itself is started again, unless it says that its usage is wrong, or is done: then all end.
    watched: folder whose .py files start all of them again when they change; also after a wrong usage.
    """
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    workers = [_Worker(command) for _ in range(count)]
    seen = modification_times(watched)
    code = 0
    try:
        while not stopping:
            finals = [final for worker in workers if (final := worker.keep_going()) is not None]
            if finals and watched is None:
                code = finals[0]
                break
            time.sleep(LOOK_SECONDS)
            now = modification_times(watched)
            if now != seen:
                changed = sorted(path.name for path in now.keys() | seen.keys() if now.get(path) != seen.get(path))
                note(f"{', '.join(changed[:3])} changed; starting again.")
                seen = now
                _end(workers, stop_timeout_seconds)
    finally:
        _end(workers, stop_timeout_seconds)
        for number, handler in before.items():
            signal.signal(number, handler)
    return code


def modification_times(folder: Path | None) -> dict[Path, int]:
    """Return when each .py file below a folder was changed last; hidden folders and virtual environments left out."""
    times: dict[Path, int] = {}
    waiting = [] if folder is None else [folder]
    while waiting:
        try:
            entries = list(waiting.pop().iterdir())
        except OSError:
            # Removed meanwhile, or not ours to read.
            continue
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                if not entry.name.startswith(".") and not (entry / "pyvenv.cfg").exists():
                    waiting.append(entry)
            elif entry.suffix == ".py":
                try:
                    times[entry] = entry.stat().st_mtime_ns
                except FileNotFoundError:
                    continue
    return times


def _end(workers: Sequence[_Worker], stop_timeout_seconds: float) -> None:
    for worker in workers:
        worker.tell_to_stop()
    deadline = time.monotonic() + stop_timeout_seconds + MARGIN_SECONDS
    for worker in workers:
        worker.end(deadline - time.monotonic())
