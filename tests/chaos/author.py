"""Makes the events of one publishing process, remembers which of them were answered, and says what to send next."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from bloodbank import create_envelope, event_id
from tests.chaos.ledger import Event, Ledger, Reader

REMEMBERED = 2000
"""How many accepted events are kept, as parents of later ones and to be sent again."""
MOST_UNANSWERED = 20_000
"""Beyond it no new events are made until older ones are accepted."""
CHOSEN_IDS = 0.2
"""Share of the events whose publisher chose the id."""
NO_ID = UUID(int=0)
AGAIN_SECONDS = 0.25
"""How long a client waits before it sends again what was refused."""
SHARED_PER_SECOND = 8
"""How often all processes publish one event, with the same id and body, at the same moment."""


class Author:
    """One publisher's memory: what it tried, and what became of it, also from its lives before a kill.

    name: of the process; the ledger's name. seed: makes the same sequence of choices (ids are new in each run).
    """

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        self.kind = f"chaos.{name}"
        self.unanswered: dict[UUID, Event] = {}
        self._again: deque[tuple[float, Event]] = deque()
        self._accepted: deque[Event] = deque(maxlen=REMEMBERED)
        lives = self._recall(folder / f"{name}.ledger")
        self._random = random.Random(f"{seed} {name} {lives}")
        self._ledger = Ledger(folder / f"{name}.ledger")
        self._next_shared = int(time.time() * SHARED_PER_SECOND)
        self._seed = seed

    def write(self, *line: object) -> None:
        self._ledger.write(line)

    def next_events(self, count: int) -> list[Event]:
        """Return what to send now: what was refused before, then new ones and a few that were accepted already."""
        now = time.monotonic()
        events: list[Event] = []
        while self._again and len(events) < count and self._again[0][0] <= now:
            events.append(self._again.popleft()[1])
        fresh: list[Event] = []
        while len(events) + len(fresh) < count and len(self.unanswered) + len(fresh) < MOST_UNANSWERED:
            if self._accepted and self._random.random() < 0.02:
                events.append(self._random.choice(self._accepted))
            else:
                fresh.append(self._new_event())
        self._try(fresh)
        return events + fresh

    def next_again(self, count: int) -> list[Event]:
        """Return only what was refused before and is due."""
        now = time.monotonic()
        events: list[Event] = []
        while self._again and len(events) < count and self._again[0][0] <= now:
            events.append(self._again.popleft()[1])
        return events

    def next_shared(self) -> Event | None:
        """Return the event that every process publishes at this moment, once."""
        number = int(time.time() * SHARED_PER_SECOND)
        if number < self._next_shared:
            return None
        self._next_shared = number + 1
        event = Event(_shared_id(self._seed, number), "chaos.shared", (_shared_id(self._seed, number - 1),), 40)
        self._try([event])
        return event

    def settle(self, events: Sequence[Event], answers: Sequence[tuple[bool, Sequence[Any]]]) -> None:
        """Note the answers. (accepted, what to write: status and lineage, or the code of the problem)."""
        later = time.monotonic() + AGAIN_SECONDS
        lines: list[Sequence[object]] = []
        for event, (accepted, words) in zip(events, answers, strict=True):
            lines.append(["ok" if accepted else "no", event.event_id, *words])
            event = event._replace(made=None)
            if accepted:
                self.unanswered.pop(event.event_id, None)
                self._accepted.append(event)
            elif event.event_id in self.unanswered:
                self._again.append((later, event))
        self._ledger.write(*lines)

    def _try(self, events: Sequence[Event]) -> None:
        for event in events:
            self.unanswered[event.event_id] = event
        if events:
            self._ledger.write(*[["try", *event[:4]] for event in events])

    def _new_event(self) -> Event:
        chance = self._random.random()
        size = 20_000 if self._random.random() < 0.005 else self._random.randint(20, 400)
        parents = self._parents()
        if chance < CHOSEN_IDS:
            chosen = uuid4() if chance < CHOSEN_IDS / 2 else event_id(self.kind, number=uuid4().hex)
            return Event(chosen, self.kind, parents, size)
        # As most publishers do: the id is the envelope's own, and new for certain.
        event = Event(NO_ID, self.kind, parents, size)
        envelope = create_envelope(event.event_type, event.payload, correlation_ids=parents)
        return event._replace(event_id=envelope.event_id, made=envelope)

    def _parents(self) -> tuple[UUID, ...]:
        wanted = self._random.choices((0, 1, 2, 3), (2, 5, 2, 1))[0]
        known = [self._random.choice(self._accepted).event_id for _ in range(wanted if self._accepted else 0)]
        return tuple(dict.fromkeys(known))

    def _recall(self, path: Path) -> int:
        """Read what the lives before left; what has no answer is sent again, as a client that starts again must."""
        tried: dict[str, Event] = {}
        lives = 0
        for kind, *rest in Reader(path).lines():
            if kind == "try":
                chosen, event_type, parents, size = rest
                event = Event(UUID(chosen), event_type, tuple(map(UUID, parents)), size)
                tried[chosen] = event
            elif kind == "ok" and (accepted := tried.pop(rest[0], None)):
                self._accepted.append(accepted)
            elif kind == "ready":
                lives += 1
        self.unanswered = {event.event_id: event for event in tried.values()}
        self._again.extend((0.0, event) for event in tried.values())
        return lives


def _shared_id(seed: int, number: int) -> UUID:
    return event_id("chaos.shared", seed=seed, number=number)
