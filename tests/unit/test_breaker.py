"""The breaker's states, each transition, and what holds whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bloodbank.breaker import BreakerState, CircuitBreaker

THRESHOLD = 3
RESET = 5.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(failure_threshold=THRESHOLD, reset_seconds=RESET, clock=clock)


def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    breaker.record_failure(decisive=True)
    return breaker


def test_it_starts_closed_and_lets_calls_pass(breaker: CircuitBreaker) -> None:
    assert breaker.state is BreakerState.CLOSED
    assert all(breaker.allow() for _ in range(10))


def test_it_opens_at_the_threshold_and_not_before(breaker: CircuitBreaker) -> None:
    for _ in range(THRESHOLD - 1):
        breaker.record_failure()
        assert breaker.state is BreakerState.CLOSED
    breaker.record_failure()
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allow()


def test_a_success_forgets_the_failures_before_it(breaker: CircuitBreaker) -> None:
    for _ in range(THRESHOLD - 1):
        breaker.record_failure()
    breaker.record_success()
    for _ in range(THRESHOLD - 1):
        breaker.record_failure()
    assert breaker.state is BreakerState.CLOSED


def test_a_decisive_failure_opens_at_once(breaker: CircuitBreaker) -> None:
    breaker.record_failure(decisive=True)
    assert breaker.state is BreakerState.OPEN


def test_open_it_refuses_until_the_time_is_over(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += RESET - 0.001
    assert not breaker.allow()
    assert breaker.seconds_until_probe == pytest.approx(0.001)
    clock.now += 0.001
    assert breaker.seconds_until_probe == 0.0
    assert breaker.state is BreakerState.OPEN, "until the probe starts"
    assert breaker.allow()


def test_half_open_it_lets_one_probe_pass(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += RESET
    assert [breaker.allow() for _ in range(3)] == [True, False, False]
    assert breaker.state is BreakerState.HALF_OPEN


def test_a_probe_that_works_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += RESET
    breaker.allow()
    breaker.record_success()
    assert breaker.state is BreakerState.CLOSED
    breaker.record_failure()
    assert breaker.state is BreakerState.CLOSED, "the failures before were forgotten"


def test_a_success_of_a_call_from_before_does_not_close_it(breaker: CircuitBreaker) -> None:
    opened(breaker).record_success()
    assert breaker.state is BreakerState.OPEN
    assert not breaker.allow()


def test_a_probe_that_fails_opens_it_for_the_whole_time_again(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += RESET + 100
    breaker.allow()
    breaker.record_failure()
    assert breaker.state is BreakerState.OPEN
    assert breaker.seconds_until_probe == RESET


def test_a_probe_that_was_given_up_makes_room_for_the_next(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.now += RESET
    breaker.allow()
    breaker.abandon()
    assert breaker.state is BreakerState.OPEN
    assert breaker.allow()


def test_giving_up_an_ordinary_call_changes_nothing(breaker: CircuitBreaker) -> None:
    breaker.allow()
    breaker.abandon()
    assert breaker.state is BreakerState.CLOSED


def test_closed_it_tells_no_waiting_time(breaker: CircuitBreaker) -> None:
    assert breaker.seconds_until_probe == 0.0


class AnyHistory(RuleBasedStateMachine):
    """One caller after the other, as the tracker does it, with any outcomes and any pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker(failure_threshold=THRESHOLD, reset_seconds=RESET, clock=self.clock)
        self.failures_in_a_row = 0
        self.refused_until: float | None = None

    @rule(outcome=st.sampled_from(["success", "failure", "timeout", "given up"]))
    def call(self, outcome: str) -> None:
        expected = self.refused_until is None or self.clock.now >= self.refused_until
        allowed = self.breaker.allow()
        assert allowed is expected
        if not allowed:
            return
        if outcome == "success":
            self.breaker.record_success()
            self.failures_in_a_row, self.refused_until = 0, None
        elif outcome == "given up":
            self.breaker.abandon()
        else:
            self.breaker.record_failure(decisive=outcome == "timeout")
            self.failures_in_a_row += 1
            if outcome == "timeout" or self.refused_until is not None or self.failures_in_a_row >= THRESHOLD:
                self.refused_until = self.clock.now + RESET

    @rule(seconds=st.sampled_from([0.5, RESET - 0.5, RESET, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.refused_until is not None and self.clock.now >= self.refused_until)
    @rule()
    def nobody_passes_beside_a_probe(self) -> None:
        assert self.breaker.allow()
        assert not self.breaker.allow()
        self.breaker.abandon()

    @invariant()
    def the_waiting_time_is_told(self) -> None:
        left = 0.0 if self.refused_until is None else max(0.0, self.refused_until - self.clock.now)
        assert self.breaker.seconds_until_probe == pytest.approx(left)


AnyHistory.TestCase.settings = settings(stateful_step_count=25)
TestAnyHistory = AnyHistory.TestCase
