"""One try of a handler at an event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from bloodbank.envelope import EventEnvelope


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a handler may know of the try that it is making, beside the event.

    event: the event. group: of the handler. consumer: name of the handler, as failures have it.
    number: which try this is, 1 for the first. most: after how many a failing handler is given up.
    first_attempt_at: when the first one began, aware; None: not known, or this is it.
    replayed: whether somebody had the event delivered again, after it had been handled perhaps.
    """

    event: EventEnvelope[Any]
    group: str
    consumer: str
    number: int
    most: int
    first_attempt_at: datetime | None
    replayed: bool

    @property
    def event_id(self) -> UUID:
        """Id of the event, so that an attempt can be given to `caused_by`."""
        return self.event.event_id

    @property
    def is_last(self) -> bool:
        """Whether a failure now sets the event aside."""
        return self.number >= self.most
