"""A circuit breaker: after failures it refuses at once, and lets one probe through now and then.

Source: Michael Nygard, Release It!, "Circuit Breaker". The clock is passed in, so that tests own time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum


class BreakerState(StrEnum):
    """closed: calls pass. open: calls are refused. half_open: one probe is under way."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Counts failures in a row and decides whether a call may be tried.

    Every call that `allow` permits must end in `record_success`, `record_failure` or `abandon`.

    failure_threshold: failures in a row that open it.
    reset_seconds: how long it stays open before one probe may pass.
    clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        failure_threshold: int = 3,
        reset_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failure_threshold = failure_threshold
        self._reset_seconds = reset_seconds
        self._clock = clock
        self._failures = 0
        self._opened_at = 0.0
        self._state = BreakerState.CLOSED

    @property
    def state(self) -> BreakerState:
        """The state now; an open breaker whose time is over is still `open` until the probe starts."""
        return self._state

    @property
    def seconds_until_probe(self) -> float:
        """Seconds until a probe may pass; 0 when it may now or when the breaker is not open."""
        if self._state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._reset_seconds - self._clock())

    def allow(self) -> bool:
        """Say whether a call may be tried; in the open state this may start the one probe."""
        if self._state is BreakerState.CLOSED:
            return True
        if self._state is BreakerState.OPEN and self.seconds_until_probe == 0.0:
            self._state = BreakerState.HALF_OPEN
            return True
        return False

    def record_success(self) -> None:
        """The call worked: close.

        Open, only a probe closes it: a call that began before says nothing of what came after.
        """
        if self._state is BreakerState.OPEN:
            return
        self._failures = 0
        self._state = BreakerState.CLOSED

    def record_failure(self, *, decisive: bool = False) -> None:
        """The call failed. Open when the threshold is reached, in a probe, or when `decisive`.

        A timeout is decisive: a store that hangs shall cost one bounded wait and not several. Failures of
        calls that began before it opened do not put off the next probe.
        """
        if self._state is BreakerState.OPEN:
            return
        self._failures += 1
        probe_failed = self._state is BreakerState.HALF_OPEN
        if decisive or probe_failed or self._failures >= self._failure_threshold:
            self._state = BreakerState.OPEN
            self._opened_at = self._clock()

    def abandon(self) -> None:
        """The call was given up by its caller and says nothing; a probe makes room for the next one."""
        if self._state is BreakerState.HALF_OPEN:
            self._state = BreakerState.OPEN
