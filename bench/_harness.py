"""How everything here is measured: paired rounds in shuffled order, ratios a round, medians with their spread.

Absolute figures drift by tens of per cent on a machine that does other things as well. So contestants run one
after the other within a round, with equal counts, the order shuffled anew each round; a ratio is formed within
a round; of the rounds' ratios the median is reported, with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import re
import resource
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

Sample = Mapping[str, float]
"""What one run of a contestant measured, by name."""
Contestant = Callable[[], Awaitable[Sample]]

_TARGET = re.compile(r"(ratio|value) (>=|<=) (\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the results.

    name: what was measured. value: median over the rounds, in `unit`; text in rows of unit "version" and "machine".
    versus: what it is compared with; ratio: median of the rounds' ratios, ours over theirs.
    target: "ratio >= 2.1" or "value <= 140"; holds: whether it is met. None where there is none.
    low, high: extremes over the rounds, of the ratio where there is one, else of the value.
    """

    name: str
    value: float | str
    unit: str
    versus: str | None = None
    ratio: float | None = None
    target: str | None = None
    holds: bool | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. rounds: how many paired rounds. count: events a run."""

    rounds: int
    count: int


@dataclass(slots=True)
class Rounds:
    """The samples of paired rounds: `samples[contestant][round]`."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def values(self, contestant: str, measure: str) -> list[float]:
        """Return a measure of a contestant, round by round."""
        return [sample[measure] for sample in self.samples[contestant]]

    def ratios(self, contestant: str, versus: str, measure: str) -> list[float]:
        """Return the quotients of two contestants, each formed within a round."""
        pairs = zip(self.values(contestant, measure), self.values(versus, measure), strict=True)
        return [ours / theirs for ours, theirs in pairs]

    def row(
        self,
        name: str,
        contestant: str,
        measure: str,
        unit: str,
        *,
        versus: str | None = None,
        target: str | None = None,
    ) -> Row:
        """Return the line for a measure of a contestant, compared with another where `versus` names one."""
        values = self.values(contestant, measure)
        if versus is None:
            return row_of(name, values, unit, target=target)
        return row_of(name, values, unit, versus=versus, ratios=self.ratios(contestant, versus, measure), target=target)


def row_of(
    name: str,
    values: Sequence[float],
    unit: str,
    *,
    versus: str | None = None,
    ratios: Sequence[float] | None = None,
    target: str | None = None,
) -> Row:
    """Return the line for values, one a round, and for ratios, where something was compared."""
    value, ratio = median(values), None if ratios is None else median(ratios)
    spread = values if ratios is None else ratios
    holds = None if target is None else meets(target, value=value, ratio=ratio)
    return Row(name, value, unit, versus, ratio, target, holds, min(spread), max(spread))


def meets(target: str, *, value: float, ratio: float | None) -> bool:
    """Say whether a target such as "ratio >= 2.1" is met. Raises ValueError for what is none."""
    match = _TARGET.fullmatch(target)
    measured = None if match is None else value if match[1] == "value" else ratio
    if match is None or measured is None:
        raise ValueError(f"{target!r} is no target for value {value} and ratio {ratio}.")
    return measured >= float(match[3]) if match[2] == ">=" else measured <= float(match[3])


async def paired(contestants: Mapping[str, Contestant], rounds: int, *, order: random.Random | None = None) -> Rounds:
    """Run each contestant once a round, in an order that is shuffled anew for every round.

    order: default: seeded by the system. Garbage is collected before each run, so that nobody pays for another's.
    """
    order = order or random.Random()  # noqa: S311, an order is no secret
    result = Rounds({name: [] for name in contestants})
    for _ in range(rounds):
        names = list(contestants)
        order.shuffle(names)
        for name in names:
            gc.collect()
            result.samples[name].append(await contestants[name]())
    return result


@dataclass(slots=True)
class Stopwatch:
    """Seconds of the wall clock and of this process' CPU, user and system, within `measured()`."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


@contextmanager
def measured() -> Iterator[Stopwatch]:
    """Measure the block; read `seconds` and `cpu_seconds` of what it yields afterwards."""
    watch = Stopwatch()
    cpu, begun = _cpu_seconds(), time.perf_counter()
    yield watch
    watch.seconds = time.perf_counter() - begun
    watch.cpu_seconds = _cpu_seconds() - cpu


def rate(watch: Stopwatch, count: int) -> Sample:
    """Return events a second and microseconds of client CPU an event."""
    return {"rate": count / watch.seconds, "cpu": watch.cpu_seconds / count * 1e6}


async def in_flight(publish: Callable[[], Awaitable[object]], count: int, *, limit: int) -> None:
    """Await `publish` `count` times, by `limit` tasks of which each has one on its way at a time."""
    turns = iter(range(count))

    async def work() -> None:
        for _ in turns:
            await publish()

    if count == 1:
        await publish()  # a group and a task would be a part of its latency
        return
    async with asyncio.TaskGroup() as group:
        for _ in range(min(limit, count)):
            group.create_task(work())


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_bytes() -> int:
    """Return the memory of this process that is resident now. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def environment(packages: Iterable[str]) -> list[Row]:
    """Return lines with the machine and the versions of Python and of packages."""
    rows = [
        Row("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "machine"),
        Row("processor", f"{os.cpu_count()} x {_processor()}", "machine"),
        Row("system", f"{platform.system()} {platform.release()}", "machine"),
        Row("load before", f"{os.getloadavg()[0]:.1f}", "machine"),
        Row("Python", platform.python_version(), "version"),
        Row("SQLite", sqlite3.sqlite_version, "version"),
    ]
    return rows + [Row(package, version(package), "version") for package in packages]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(rows: Iterable[Row], *, markdown: bool = False) -> str:
    """Return the lines as a table; machine and versions stand above it, one a line."""
    rows = list(rows)
    about = [f"{row.name}: {row.value}" for row in rows if isinstance(row.value, str)]
    head = ("what", "median", "unit", "ratio", "versus", "spread", "target", "holds")
    body = [_cells(row) for row in rows if not isinstance(row.value, str)]
    if markdown:
        lines = [f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *body)]
    else:
        widths = [max(len(cells[column]) for cells in (head, *body)) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            for cells in (head, *body)
        ]
    return "\n".join([*([", ".join(about), ""] if about else []), *lines])


def _cells(row: Row) -> tuple[str, ...]:
    spread = "" if row.low is None or row.high is None else f"{number(row.low)} .. {number(row.high)}"
    holds = {None: "", True: "yes", False: "NO"}[row.holds]
    ratio = "" if row.ratio is None else f"{number(row.ratio)} x"
    value = row.value if isinstance(row.value, str) else number(row.value)
    return (row.name, value, row.unit, ratio, row.versus or "", spread, row.target or "", holds)


def number(value: float) -> str:
    """Return a figure with three digits that count, thousands set apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{0 if value == 0 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"


def write(rows: Iterable[Row], path: Path) -> None:
    """Write the lines as a JSON list of objects, one for each row."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def read(path: Path) -> list[Row]:
    """Read what `write` wrote."""
    return [Row(**fields) for fields in json.loads(path.read_text())]


def main(
    measure: Callable[[Options], Coroutine[Any, Any, list[Row]]],
    *,
    count: int,
    rounds: int = 5,
    packages: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
) -> None:
    """Run one subject from the command line: print its table, and write it where --json says.

    count, rounds: the defaults. packages: whose versions the output names, beside our own dependencies'.
    """
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"paired rounds, default {rounds}")
    parser.add_argument("--count", type=int, default=count, help=f"events a run, default {count}")
    chosen = parser.parse_args(arguments)
    about = environment(("bloodbank", *packages))
    rows = about + asyncio.run(measure(Options(chosen.rounds, chosen.count)))
    print(table(rows))
    if chosen.json:
        write(rows, chosen.json)
