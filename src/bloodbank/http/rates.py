"""How many events come, by second and by type."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bloodbank.events.registry import utc_now

SECONDS = 60
"""How many whole seconds are told."""
MOST_TYPES = 10_000
"""Most types that are counted; the one that was seen longest ago is forgotten first, and begins at 0 again."""
OTHERS = ""
"""Counts what is beyond that."""


@dataclass(slots=True)
class TypeCount:
    """How often a type was seen. last_minute: in the last 60 whole seconds and in this one. last_seen: aware, UTC."""

    event_type: str
    last_minute: int
    total: int
    last_seen: datetime


class Rates:
    """Counts events. clock: says what time it is, aware, UTC."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._second = self._now()
        # The last one is that of the second under way.
        self._seconds: deque[Counter[str]] = deque([Counter() for _ in range(SECONDS + 1)], maxlen=SECONDS + 1)
        self._minute: Counter[str] = Counter()
        self._types: OrderedDict[str, TypeCount] = OrderedDict()

    def count(self, event_type: str, logged_at: datetime) -> None:
        """Count an event that comes now. logged_at: when the bus accepted it."""
        self._advance()
        self._add(event_type, 0, logged_at)

    def count_past(self, event_type: str, logged_at: datetime) -> None:
        """Count an event that was accepted before: in the second of its acceptance, unless that was long ago."""
        self._advance()
        age = self._second - int(logged_at.timestamp())
        if age <= SECONDS:
            self._add(event_type, max(age, 0), logged_at)

    def count_missed(self, event_type: str, logged_at: datetime) -> None:
        """Count an event that should have been counted before: as `count_past`, and however long ago in the total."""
        self._advance()
        age = self._second - int(logged_at.timestamp())
        if age <= SECONDS:
            self._add(event_type, max(age, 0), logged_at)
        else:
            self._add_to_total(event_type, logged_at)

    def per_second(self) -> list[int]:
        """Return how many came in each of the last 60 whole seconds, the oldest first."""
        self._advance()
        return [counter.total() for counter in list(self._seconds)[:SECONDS]]

    def types(self, limit: int) -> list[TypeCount]:
        """Return what is known of types, the most frequent first: of the last minute, then of all."""
        self._advance()
        for known in self._types.values():
            known.last_minute = self._minute[known.event_type]
        ordered = sorted(self._types.values(), key=lambda known: (-known.last_minute, -known.total, known.event_type))
        return ordered[:limit]

    def _add(self, event_type: str, age: int, logged_at: datetime) -> None:
        # However many types there are, a minute counts so many by name.
        named = event_type if event_type in self._minute or len(self._minute) < MOST_TYPES else OTHERS
        self._seconds[SECONDS - age][named] += 1
        self._minute[named] += 1
        self._add_to_total(event_type, logged_at)

    def _add_to_total(self, event_type: str, logged_at: datetime) -> None:
        known = self._types.get(event_type)
        if known is None:
            if len(self._types) >= MOST_TYPES:
                self._types.popitem(last=False)
            self._types[event_type] = TypeCount(event_type, 0, 1, logged_at)
            return
        known.total += 1
        known.last_seen = max(known.last_seen, logged_at)
        self._types.move_to_end(event_type)

    def _advance(self) -> None:
        """Let the seconds go by that have gone by. A clock that steps back goes on counting into the same second."""
        for _ in range(min(self._now() - self._second, SECONDS + 1)):
            self._minute -= self._seconds[0]  # which drops what has become 0
            self._seconds.append(Counter())
        self._second = max(self._second, self._now())

    def _now(self) -> int:
        return int(self._clock().timestamp())
