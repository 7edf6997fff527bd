"""A verdict that cannot fail is worth nothing: each hole in the evidence is found, and named."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from uuid import uuid4

import orjson
import pytest

from bloodbank import codec, create_envelope
from tests.chaos.faults import LANES, Kind, count, script
from tests.chaos.ledger import UNREADABLE, Event, Ledger, Reader, fingerprint_of
from tests.chaos.verdict import Evidence, Expected, Known, Verdict, collect_ledgers, judge
from tests.chaos.watch import Life

MEBIBYTE = 1 << 20


def _evidence() -> Evidence:
    """A run in which all went well: a cause, its effect, and an effect of both, which is twice in the log."""
    tried = {"a": Expected("fa", ()), "b": Expected("fb", ("a",)), "c": Expected("fc", ("a", "b"))}
    all_of_them = [("a", "fa"), ("b", "fb"), ("c", "fc"), ("c", "fc")]
    return Evidence(
        tried=tried,
        accepted={event_id: {"published"} for event_id in tried},
        log=list(all_of_them),
        consumed={"group": list(all_of_them), "plain": list(all_of_them)},
        index={"a": Known((), 2), "b": Known(("a",), 1), "c": Known(("a", "b"), 0)},
        faults=[{"kind": Kind.REDIS_FROZEN, "began": 10.0, "ended": 14.0, "error": ""}],
        waits=[(11.0, 0.7, 0.1, 0.0)],
        lives=[Life("load", 1, [(float(second), 50 * MEBIBYTE, 20) for second in range(60)])],
    )


def _failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_all_there_passes_also_with_a_duplicate_of_the_same_body() -> None:
    verdict = judge(_evidence())
    assert _failed(verdict) == []
    assert verdict.passed
    assert verdict.figures["duplicates"] == {"in the log": 1, "got by group": 1, "got by plain": 1}


HOLES: dict[str, Callable[[Evidence], object]] = {
    "accepted": lambda run: run.accepted.clear(),
    "tried and never accepted, after healing": lambda run: run.unanswered.append("d"),
    "refused for a reason that is none": lambda run: run.refused.update(["event_conflict"]),
    "accepted, and missing in the log": lambda run: run.log.remove(("b", "fb")),
    "in the log, and not what was published": lambda run: run.log.append(("c", "another body")),
    "accepted, and not got by group": lambda run: run.consumed["group"].remove(("a", "fa")),
    "got by plain, and not what was published": lambda run: run.consumed["plain"].append(("nobody's", "f")),
    "consumers": lambda run: run.consumed.clear(),
    "accepted, and edges to its causes missing": lambda run: run.index.update(c=Known(("b",), 0)),
    "causes whose edges to effects are missing": lambda run: run.index.update(a=Known((), 1)),
    "faults": lambda run: run.faults.clear(),
    "faults that could not be made": lambda run: run.faults.append(run.faults[0] | {"error": "no tmpfs"}),
    "longest wait for the index while Redis was frozen": lambda run: run.waits.append((12.0, 1.3, 0.2, 0.0)),
    "processes that ended by themselves": lambda run: run.died.append("load"),
    "processes watched for long enough": lambda run: run.lives.clear(),
}


@pytest.mark.parametrize("name", HOLES)
def test_a_hole_fails_its_own_check_and_no_other(name: str) -> None:
    evidence = _evidence()
    HOLES[name](evidence)
    verdict = judge(evidence)
    assert _failed(verdict) == [name]
    assert not verdict.passed
    assert f"{name} " in verdict.table()
    assert orjson.loads(verdict.json())["passed"] is False


def test_an_event_that_the_index_only_heard_of_is_missing_in_it() -> None:
    evidence = _evidence()
    evidence.index["b"] = Known(None, 1)
    assert _failed(judge(evidence)) == ["accepted, and edges to its causes missing"]


def test_a_wait_that_nobody_measured_while_redis_was_frozen_does_not_pass() -> None:
    evidence = _evidence()
    evidence.waits.clear()
    assert _failed(judge(evidence)) == ["longest wait for the index while Redis was frozen"]


def test_what_the_machine_and_the_broker_took_is_not_laid_to_the_index() -> None:
    evidence = _evidence()
    evidence.waits.append((12.0, 6.0, 4.0, 1.5))
    assert judge(evidence).passed


@pytest.mark.parametrize(
    ("grown_bytes", "grown_files", "failed"),
    [
        (0, 0, []),
        (20 * MEBIBYTE, 10, []),
        (200 * MEBIBYTE, 0, ["processes that grew in memory"]),
        (0, 100, ["processes that kept files open"]),
    ],
)
def test_growth_is_told_from_the_second_half_of_a_life(grown_bytes: int, grown_files: int, failed: list[str]) -> None:
    evidence = _evidence()
    evidence.lives[0].samples.append((60.0, 50 * MEBIBYTE + grown_bytes, 20 + grown_files))
    assert _failed(judge(evidence)) == failed


def test_the_same_seed_gives_the_same_script_and_each_kind_comes_before_any_comes_again() -> None:
    assert script(7, 90) == script(7, 90)
    assert script(7, 90) != script(8, 90)
    kinds = [fault.kind for slot in script(7, 90) for fault in slot.faults]
    assert len(kinds) == count(script(7, 90))
    singles = set(chain.from_iterable(LANES))
    assert set(kinds[: len(singles)]) == singles


def test_nothing_else_is_wrong_while_redis_is_frozen() -> None:
    slots = [slot for seed in range(50) for slot in script(seed, 90)]
    assert all(len(slot.faults) == 1 for slot in slots if any(f.kind is Kind.REDIS_FROZEN for f in slot.faults))


def test_a_ledger_outlives_a_torn_line_and_its_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.ledger"
    reader = Reader(path)
    assert list(reader.lines()) == []
    path.write_bytes(b'["try", 1]\n["try", 2')
    assert list(reader.lines()) == [["try", 1]]
    ledger = Ledger(path)
    ledger.write(["try", 3], ["try", 4])
    ledger.close()
    assert list(reader.lines()) == [["try", 3], ["try", 4]]
    assert list(reader.lines()) == []


def test_ledgers_become_evidence(tmp_path: Path) -> None:
    event = Event(uuid4(), "chaos.load", (uuid4(),), 5)
    lost = Event(uuid4(), "chaos.load", (), 5)
    ledger = Ledger(tmp_path / "load.ledger")
    ledger.write(["try", *event[:4]], ["try", *lost[:4]], ["no", event.event_id, "outbox_full"])
    ledger.write(["ok", event.event_id, "queued", "deferred"], ["wait", 1.0, 0.5, 0.25, 0.0])
    ledger.close()
    ledger = Ledger(tmp_path / "consumer.ledger")
    ledger.write(["ready"], ["got", event.event_id, event.fingerprint()])
    ledger.close()
    evidence = Evidence()
    collect_ledgers(evidence, [tmp_path / "load.ledger"], {"group": [tmp_path / "consumer.ledger"]})
    chosen = str(event.event_id)
    assert evidence.accepted == {chosen: {"queued"}}
    assert evidence.tried[chosen] == Expected(event.fingerprint(), (str(event.parents[0]),))
    assert evidence.unanswered == [str(lost.event_id)]
    assert evidence.refused == {"outbox_full": 1}
    assert evidence.consumed == {"group": [(chosen, event.fingerprint())]}
    assert evidence.waits == [(1.0, 0.5, 0.25, 0.0)]


def test_a_fingerprint_is_that_of_the_body_on_the_bus() -> None:
    event = Event(uuid4(), "chaos.load", (uuid4(), uuid4()), 5)
    envelope = create_envelope(event.event_type, event.payload, correlation_ids=event.parents, event_id=event.event_id)
    assert fingerprint_of(codec.encode(envelope).body) == event.fingerprint()
    assert event._replace(size=6).fingerprint() != event.fingerprint()
    assert fingerprint_of(b"nothing of ours") == UNREADABLE
