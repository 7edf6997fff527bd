"""When a handler that failed is run again, and when it is given up."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from bloodbank.errors import ConfigurationError, InvalidEvent

LONGEST_DELAY_SECONDS = 86_400.0
"""A day: what waits for longer is better set aside, and delivered again by hand."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how soon a handler is run again for an event that it failed on.

    The delay grows by `factor` with each attempt; other events do not wait meanwhile.

    attempts: most deliveries of an event to a handler that fails, the first one included; 1: no second try. A process
        that is killed counts too, for each event that it had been given; on RabbitMQ also one that ends in order.
    first_seconds, longest_seconds: delay before the second attempt, and the longest one.
    jitter: share of the delay by which it varies at random, so that what failed together does not come back together.
    on: exceptions that are tried again. never: those of them that are not, since nothing would change.
    deliveries: after so many, an event whose handler never came to an end is set aside without being run: it may be
        what ends the process. Never fewer than `attempts`.

    Raises ConfigurationError for values that cannot be.
    """

    attempts: int = 5
    first_seconds: float = 1.0
    factor: float = 2.0
    longest_seconds: float = 300.0
    jitter: float = 0.2
    on: tuple[type[Exception], ...] = (Exception,)
    never: tuple[type[Exception], ...] = (InvalidEvent,)
    deliveries: int = 100

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.deliveries < 1:
            raise ConfigurationError("Retry needs attempts and deliveries of 1 or more.")
        if self.longest_seconds > LONGEST_DELAY_SECONDS:
            raise ConfigurationError(f"longest_seconds is {self.longest_seconds}, and at most {LONGEST_DELAY_SECONDS}.")
        if not (0 <= self.first_seconds <= self.longest_seconds and self.factor >= 1 and 0 <= self.jitter <= 1):
            raise ConfigurationError(
                "Retry needs 0 <= first_seconds <= longest_seconds, factor >= 1 and jitter between 0 and 1."
            )

    def covers(self, error: Exception) -> bool:
        """Say whether an exception is of a kind that is tried again."""
        return isinstance(error, self.on) and not isinstance(error, self.never)

    def delay_after(
        self, attempt: int, error: Exception, *, random: Callable[[], float] = random.random
    ) -> float | None:
        """Return the seconds until the next attempt, or None: this was the last.

        attempt: the one that failed, 1 for the first. random: a number from 0 to 1.
        """
        if attempt >= self.attempts or not self.covers(error):
            return None
        # The power of a large attempt would be no float any more.
        delay_seconds = min(self.first_seconds * self.factor ** min(attempt - 1, 64), self.longest_seconds)
        return min(delay_seconds * (1 + self.jitter * (2 * random() - 1)), self.longest_seconds)
