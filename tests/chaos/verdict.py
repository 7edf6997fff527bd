"""Compares what was accepted with what is there: the log, the consumers, the index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from tests.chaos.faults import Kind
from tests.chaos.ledger import Event, Reader
from tests.chaos.watch import Life

MOST_EXAMPLES = 5
EXPECTED_CODES = frozenset({"transport_unavailable", "outbox_full", "publish_unknown", "connection_lost"})
"""How a publish may be refused while something is away. Whatever else is answered is a defect."""
LONGEST_WAIT_SECONDS = 1.0
"""What the index may add to a publish, whatever it does."""
LONG_LIFE_SECONDS = 20.0
"""Shorter lives say nothing of growth."""
MORE_FILES = 64
"""As many connections as pools and clients may open later than in the first half; a leak has no such end."""
MEBIBYTE = 1 << 20
ROOM = {"rabbitmq": 160 * MEBIBYTE, "redis": 32 * MEBIBYTE}
OTHER_ROOM = 40 * MEBIBYTE
REDIS_BYTES_AN_EVENT = 1024
"""Redis holds the index, which grows with every event."""


@dataclass(slots=True)
class Expected:
    """An event that somebody tried to publish."""

    fingerprint: str
    parents: tuple[str, ...]


@dataclass(slots=True)
class Known:
    """What the index says of an event. parents: None for one that was only named."""

    parents: tuple[str, ...] | None
    children_total: int


@dataclass(slots=True)
class Evidence:
    """All that a run left.

    tried: by id. accepted: id to the statuses it was answered with. refused: how often by code. unanswered: ids that
    no publisher got accepted although all was healed.
    log, consumed: (id, fingerprint) in the order found; consumed by group. index: by id.
    faults: {"kind", "began", "ended", "error"}, seconds of the monotonic clock. waits: (began, seconds in all, of
    them at the broker, of them lost because the machine was busy) of single publishes.
    died: processes that ended although nobody ended them.
    """

    tried: dict[str, Expected] = field(default_factory=dict[str, Expected])
    accepted: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    lineages: Counter[str] = field(default_factory=Counter[str])
    refused: Counter[str] = field(default_factory=Counter[str])
    unanswered: list[str] = field(default_factory=list[str])
    log: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    consumed: dict[str, list[tuple[str, str]]] = field(default_factory=dict[str, list[tuple[str, str]]])
    index: dict[str, Known] = field(default_factory=dict[str, Known])
    faults: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    waits: list[tuple[float, float, float, float]] = field(default_factory=list[tuple[float, float, float, float]])
    lives: list[Life] = field(default_factory=list[Life])
    died: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the verdict. found: a count, or another figure; examples: of what is wrong."""

    name: str
    passed: bool
    found: str
    wanted: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence amounts to."""

    checks: tuple[Check, ...]
    figures: Mapping[str, Any]
    accepted: int = 0
    faults: int = 0

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)

    def table(self) -> str:
        """Return the verdict as a table for people."""
        rows = [("", "found", "wanted", ""), *[(c.name, c.found, c.wanted, _mark(c)) for c in self.checks]]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        for check in self.checks:
            lines += [f"  {check.name}: {example}" for example in check.examples]
        lines += [f"{name}: {value}" for name, value in self.figures.items()]
        return "\n".join(lines)

    def json(self) -> bytes:
        fields = {"passed": self.passed, "checks": [asdict(check) for check in self.checks], "figures": self.figures}
        return orjson.dumps(fields, option=orjson.OPT_INDENT_2)


def collect_ledgers(evidence: Evidence, publishers: Iterable[Path], consumers: Mapping[str, Sequence[Path]]) -> None:
    """Add what the processes of a run wrote down. consumers: by group."""
    for path in publishers:
        pending: set[str] = set()
        for kind, *rest in Reader(path).lines():
            if kind == "try":
                pending.add(rest[0])
                evidence.tried[rest[0]] = expected(rest)
            elif kind == "ok":
                evidence.accepted.setdefault(rest[0], set()).add(rest[1])
                evidence.lineages[rest[2]] += 1
                pending.discard(rest[0])
            elif kind == "no":
                evidence.refused[rest[1]] += 1
            elif kind == "wait":
                evidence.waits.append((rest[0], rest[1], rest[2], rest[3]))
        evidence.unanswered += pending
    for group, paths in consumers.items():
        evidence.consumed[group] = [(line[1], line[2]) for p in paths for line in Reader(p).lines() if line[0] == "got"]


def judge(evidence: Evidence) -> Verdict:
    """Return the verdict; each check fails by itself."""
    accepted = evidence.accepted.keys()
    checks = [
        Check("accepted", bool(accepted), str(len(accepted)), "some"),
        _none("tried and never accepted, after healing", evidence.unanswered),
        _none("refused for a reason that is none", _strange_refusals(evidence)),
        _none("accepted, and missing in the log", accepted - {event_id for event_id, _ in evidence.log}),
        _none("in the log, and not what was published", _strangers(evidence, evidence.log)),
    ]
    for group, got in sorted(evidence.consumed.items()):
        checks.append(_none(f"accepted, and not got by {group}", accepted - {event_id for event_id, _ in got}))
        checks.append(_none(f"got by {group}, and not what was published", _strangers(evidence, got)))
    if not evidence.consumed:
        checks.append(Check("consumers", False, "none", "some"))
    checks += [
        _none("accepted, and edges to its causes missing", _missing_parents(evidence)),
        _none("causes whose edges to effects are missing", _missing_children(evidence)),
        Check("faults", bool(evidence.faults), str(len(evidence.faults)), "some"),
        _none("faults that could not be made", _failed_faults(evidence)),
        _longest_wait(evidence),
        _none("processes that ended by themselves", evidence.died),
        *_growth(evidence),
    ]
    return Verdict(tuple(checks), _figures(evidence), len(accepted), len(evidence.faults))


def expected(line: Sequence[Any]) -> Expected:
    """Return what a line of a ledger says of an event: id, type, parents, size."""
    event_id, event_type, parents, size = line
    event = Event(UUID(event_id), event_type, tuple(map(UUID, parents)), size)
    return Expected(event.fingerprint(), tuple(parents))


def waits_while(evidence: Evidence, kinds: Iterable[Kind]) -> list[float]:
    """Return the seconds that publishes waited for the index, of those that began during faults of some kinds."""
    wanted = set(kinds)
    spans = [(fault["began"], fault["ended"]) for fault in evidence.faults if fault["kind"] in wanted]
    return [
        max(0.0, seconds - at_the_broker - lost)
        for began, seconds, at_the_broker, lost in evidence.waits
        if any(start <= began <= end for start, end in spans)
    ]


def _none(name: str, wrong: Iterable[str]) -> Check:
    listed = list(wrong)
    return Check(name, not listed, str(len(listed)), "0", tuple(sorted(listed)[:MOST_EXAMPLES]))


def _strange_refusals(evidence: Evidence) -> list[str]:
    return [f"{code} ({times} times)" for code, times in evidence.refused.items() if code not in EXPECTED_CODES]


def _strangers(evidence: Evidence, found: Iterable[tuple[str, str]]) -> set[str]:
    """Return the ids that nobody tried, or that came with another body; a duplicate of the same body is none."""
    tried = evidence.tried
    return {
        f"{event_id} {fingerprint}"
        for event_id, fingerprint in found
        if event_id not in tried or tried[event_id].fingerprint != fingerprint
    }


def _missing_parents(evidence: Evidence) -> list[str]:
    index, tried = evidence.index, evidence.tried
    return [
        event_id
        for event_id in evidence.accepted
        if event_id not in index or event_id not in tried or index[event_id].parents != tried[event_id].parents
    ]


def _missing_children(evidence: Evidence) -> list[str]:
    known = [evidence.tried[event_id] for event_id in evidence.accepted if event_id in evidence.tried]
    children = Counter(parent for event in known for parent in event.parents)
    return [
        f"{parent}: {evidence.index[parent].children_total if parent in evidence.index else 0} of {count}"
        for parent, count in children.items()
        if parent not in evidence.index or evidence.index[parent].children_total < count
    ]


def _failed_faults(evidence: Evidence) -> list[str]:
    return [f"{fault['kind']}: {fault['error']}" for fault in evidence.faults if fault["error"]]


def _longest_wait(evidence: Evidence) -> Check:
    name = "longest wait for the index while Redis was frozen"
    frozen = any(fault["kind"] == Kind.REDIS_FROZEN for fault in evidence.faults)
    waits = waits_while(evidence, [Kind.REDIS_FROZEN])
    if not frozen:
        return Check(name, True, "it was not", f"<= {LONGEST_WAIT_SECONDS:g} s")
    longest = max(waits, default=float("inf"))
    return Check(name, longest <= LONGEST_WAIT_SECONDS, f"{longest:.3f} s", f"<= {LONGEST_WAIT_SECONDS:g} s")


def _growth(evidence: Evidence) -> list[Check]:
    """Compare the end of each long life with its first half.

    Memory at the end may be a quarter above the most of the first half, plus some room for what servers hold;
    open files may be MORE_FILES above. What leaks with the load would double.
    """
    memory: list[str] = []
    files: list[str] = []
    long_lives = 0
    for life in evidence.lives:
        began, ended = life.samples[0][0], life.samples[-1][0]
        if ended - began < LONG_LIFE_SECONDS:
            continue
        long_lives += 1
        first = [sample for sample in life.samples if sample[0] <= (began + ended) / 2]
        _, last_bytes, last_files = life.samples[-1]
        most_bytes, most_files = max(sample[1] for sample in first), max(sample[2] for sample in first)
        if last_bytes > 1.25 * most_bytes + _room(life.name, len(evidence.accepted)):
            memory.append(f"{life.name}: {most_bytes / MEBIBYTE:.0f} MiB, then {last_bytes / MEBIBYTE:.0f} MiB")
        if last_files > most_files + MORE_FILES:
            files.append(f"{life.name}: {most_files} open files, then {last_files}")
    lived = Check("processes watched for long enough", bool(long_lives), str(long_lives), "some")
    return [lived, _none("processes that grew in memory", memory), _none("processes that kept files open", files)]


def _room(name: str, events: int) -> int:
    kind = name.split()[0].split("-")[0]
    return ROOM.get(kind, OTHER_ROOM) + (REDIS_BYTES_AN_EVENT * events if kind == "redis" else 0)


def _figures(evidence: Evidence) -> dict[str, Any]:
    statuses = Counter(status for answers in evidence.accepted.values() for status in answers)
    repeated = {f"got by {group}": len(got) - len(dict(got)) for group, got in sorted(evidence.consumed.items())}
    return {
        "answers": dict(statuses),
        "lineage": dict(evidence.lineages),
        "refused or unknown, and sent again": dict(evidence.refused),
        "duplicates": {"in the log": len(evidence.log) - len(dict(evidence.log)), **repeated},
        "wait for the index, ms": _percentiles(waits_between_faults(evidence)),
        "the same while Redis was frozen": _percentiles(waits_while(evidence, [Kind.REDIS_FROZEN])),
        "memory, MiB, and open files at start, middle, end": _sizes(evidence.lives),
    }


def waits_between_faults(evidence: Evidence) -> list[float]:
    """Return the same while nothing was wrong."""
    spans = [(fault["began"], fault["ended"]) for fault in evidence.faults]
    return [
        max(0.0, seconds - at_the_broker - lost)
        for began, seconds, at_the_broker, lost in evidence.waits
        if not any(start <= began + seconds and began <= end for start, end in spans)
    ]


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ordered = sorted(seconds)
    places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * ordered[min(len(ordered) - 1, int(p * len(ordered)))], 1) for name, p in places.items()}


def _sizes(lives: Iterable[Life]) -> dict[str, str]:
    sizes: dict[str, str] = {}
    for life in lives:
        places = (0, len(life.samples) // 2, -1)
        memory = "/".join(f"{life.samples[place][1] / MEBIBYTE:.0f}" for place in places)
        files = "/".join(str(life.samples[place][2]) for place in places)
        sizes[f"{life.name} {life.pid}"] = f"{memory}, {files}"
    return sizes


def _mark(check: Check) -> str:
    return "ok" if check.passed else "FAILED"
