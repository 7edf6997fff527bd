"""Memory and open files of the processes of a run, as the kernel tells them."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Life:
    """One process, with all that belong to its session, from its start to its end.

    samples: (seconds of the monotonic clock, resident bytes, open files).
    """

    name: str
    pid: int
    samples: list[tuple[float, int, int]] = field(default_factory=list[tuple[float, int, int]])


class Watch:
    """Takes samples of the processes that it is told of. A process that was started again is another life."""

    def __init__(self) -> None:
        self._lives: dict[int, Life] = {}

    @property
    def lives(self) -> list[Life]:
        return list(self._lives.values())

    def sample(self, pids: Mapping[str, int]) -> None:
        """Look once. pids: of session leaders, by name."""
        now = time.monotonic()
        members = _sessions()
        for name, pid in pids.items():
            sizes = [size for member in members[pid] if (size := _size(member))]
            if sizes:
                life = self._lives.setdefault(pid, Life(name, pid))
                life.samples.append((now, sum(rss for rss, _ in sizes), sum(files for _, files in sizes)))


def _sessions() -> dict[int, list[int]]:
    members: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # Behind the name, which may hold anything: state, parent, group, session.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            members[int(fields[3])].append(int(entry.name))
    return members


def _size(pid: int) -> tuple[int, int] | None:
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
        return resident, sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
