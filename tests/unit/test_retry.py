"""When there is another attempt, and how long until then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodbank import ConfigurationError, InvalidEvent, Retry, TransportUnavailable


def _delays(retry: Retry, error: Exception, count: int) -> list[float | None]:
    return [retry.delay_after(attempt, error, random=lambda: 0.5) for attempt in range(1, count + 1)]


def test_delays_grow_up_to_the_longest_and_end_with_the_last_attempt() -> None:
    retry = Retry(attempts=6, first_seconds=1, factor=3, longest_seconds=20)
    assert _delays(retry, ValueError(), 7) == [1, 3, 9, 20, 20, None, None]


def test_what_would_not_change_is_not_tried_again() -> None:
    assert _delays(Retry(), InvalidEvent("wrong"), 1) == [None]
    assert _delays(Retry(), TransportUnavailable("away"), 1) == [1]


def test_classes_of_exceptions_decide_and_never_wins() -> None:
    retry = Retry(on=(OSError,), never=(FileNotFoundError,))
    assert [retry.covers(error) for error in (OSError(), TimeoutError(), FileNotFoundError(), ValueError())] == [
        True,
        True,
        False,
        False,
    ]


@given(
    attempt=st.integers(1, 10**6),
    first=st.floats(0, 100),
    factor=st.floats(1, 1000),
    jitter=st.floats(0, 1),
    random=st.floats(0, 1),
)
def test_a_delay_is_never_negative_nor_longer_than_the_longest(
    attempt: int, first: float, factor: float, jitter: float, random: float
) -> None:
    retry = Retry(
        attempts=10**7,
        deliveries=10**7,
        first_seconds=first,
        factor=factor,
        longest_seconds=100,
        jitter=jitter,
    )
    delay = retry.delay_after(attempt, ValueError(), random=lambda: random)
    assert delay is not None
    assert 0 <= delay <= 100


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"deliveries": 0},
        {"first_seconds": -1},
        {"first_seconds": 400},
        {"factor": 0.5},
        {"jitter": 2},
        {"longest_seconds": 10**9},
    ],
)
def test_values_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        Retry(**wrong)  # type: ignore[arg-type]
