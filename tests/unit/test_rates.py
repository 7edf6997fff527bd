"""Counts by second and type, on a clock of the test's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from bloodbank.http import rates
from bloodbank.http.rates import SECONDS, Rates

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class _Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def test_an_event_is_in_the_last_second_when_that_is_over() -> None:
    clock = _Clock()
    counts = Rates(clock)
    for _ in range(3):
        counts.count("a.b", clock.now)
    assert counts.per_second() == [0] * SECONDS
    clock.go(1)
    assert counts.per_second() == [0] * (SECONDS - 1) + [3]
    clock.go(59)
    assert counts.per_second() == [3] + [0] * (SECONDS - 1)
    clock.go(1)
    assert counts.per_second() == [0] * SECONDS


def test_types_come_by_their_last_minute_and_keep_their_total() -> None:
    clock = _Clock()
    counts = Rates(clock)
    for _ in range(5):
        counts.count("old.type", clock.now)
    clock.go(120)
    for _ in range(2):
        counts.count("new.type", clock.now)
    told = [(one.event_type, one.last_minute, one.total, one.last_seen) for one in counts.types(10)]
    assert told == [("new.type", 2, 2, clock.now), ("old.type", 0, 5, NOON)]
    assert len(counts.types(1)) == 1


def test_what_was_accepted_before_counts_in_its_own_second_unless_that_was_long_ago() -> None:
    clock = _Clock()
    counts = Rates(clock)
    for age in (-5, 0, 1, 1, 59, 60, 61, 1000):
        counts.count_past("a.b", NOON - timedelta(seconds=age))
    assert counts.per_second() == [1, 1] + [0] * (SECONDS - 3) + [2]
    [known] = counts.types(1)
    assert (known.total, known.last_minute) == (6, 6)
    assert known.last_seen == NOON + timedelta(seconds=5)


def test_what_was_missed_counts_in_its_own_second_and_always_in_the_total() -> None:
    clock = _Clock()
    counts = Rates(clock)
    counts.count("a.b", NOON)
    clock.go(100)
    counts.count_missed("a.b", NOON + timedelta(seconds=10))
    counts.count_missed("a.b", NOON + timedelta(seconds=97))
    clock.go(1)
    assert counts.per_second() == [0] * 56 + [1, 0, 0, 0]
    (known,) = counts.types(1)
    assert (known.last_minute, known.total, known.last_seen) == (1, 3, NOON + timedelta(seconds=97))


def test_a_clock_that_steps_back_loses_nothing() -> None:
    clock = _Clock()
    counts = Rates(clock)
    counts.count("a.b", clock.now)
    clock.go(-30)
    counts.count("a.b", clock.now)
    clock.go(31)
    assert counts.per_second()[-1] == 2


def test_however_many_types_there_are_so_many_are_kept() -> None:
    clock = _Clock()
    counts = Rates(clock)
    for number in range(rates.MOST_TYPES + 50):
        counts.count(f"type.n{number}", clock.now)
    assert len(counts.types(10**9)) == rates.MOST_TYPES
    clock.go(1)
    assert counts.per_second()[-1] == rates.MOST_TYPES + 50


@given(st.lists(st.tuples(st.floats(0, 40), st.sampled_from("abc"))))
def test_counts_are_those_of_a_list(steps: list[tuple[float, str]]) -> None:
    clock = _Clock()
    counts = Rates(clock)
    seen: list[tuple[int, str]] = []
    for seconds, name in steps:
        clock.go(seconds)
        counts.count(name, clock.now)
        seen.append((int(clock.now.timestamp()), name))
    now = int(clock.now.timestamp())
    assert counts.per_second() == [sum(second == now - age for second, _ in seen) for age in range(SECONDS, 0, -1)]
    told = {one.event_type: (one.last_minute, one.total) for one in counts.types(10)}
    assert told == {
        name: (sum(s >= now - SECONDS and n == name for s, n in seen), sum(n == name for _, n in seen))
        for name in {n for _, n in seen}
    }
