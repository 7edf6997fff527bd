"""Every error that Bloodbank raises on purpose.

    BloodbankError                    catch this one to catch them all
    ├── ConfigurationError            a setting is wrong; the start stops            (ValueError)
    ├── InvalidEvent                  the event breaks a rule of the envelope or of its type  (ValueError)
    │   └── UnknownEventType          no model is registered and unknown types are refused
    ├── InvalidQuery                  a question that cannot be asked: direction, depth, cursor  (ValueError)
    │   └── AmbiguousEventId          several events begin with the given prefix
    ├── EventNotFound                 no such event in the log or in the index       (LookupError)
    ├── DeadLetterNotFound            no dead letter has this number or key          (LookupError)
    ├── TrackingDisabled              the call needs correlation tracking            (RuntimeError)
    ├── NotOpen                       used before it was opened or after it was closed  (RuntimeError)
    ├── PublishError                  what became of a publish
    │   ├── PublishRejected           certainly not stored; sending it again will not help
    │   │   └── EventConflict         this id is on the bus with another body
    │   └── PublishUnknown            may be stored; the same id again is safe
    ├── Unavailable                   a dependency cannot be reached now; try again  (ConnectionError)
    │   ├── TransportUnavailable      the broker or the log; the event was not sent
    │   │   └── OutboxFull            nor did the outbox have room for it
    │   └── StoreUnavailable          the correlation store; published events are safe in the log
    └── StoreFormatError              the store holds a format that this version does not read

Each message says what happened, what was kept, and what to do next. `code` is the stable name
that HTTP problems carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

UnknownReason = Literal["timed_out", "lost", "nacked"]
"""Why an answer is missing: it did not come in time; the connection or its channel ended before it came; the broker
said that some queue did not take the event."""


class BloodbankError(Exception):
    """Root of all errors of this package."""

    code = "bloodbank_error"


class ConfigurationError(BloodbankError, ValueError):
    """A setting has a value that cannot work. The message names the variable."""

    code = "configuration_error"


class InvalidEvent(BloodbankError, ValueError):
    """The event breaks a rule of the envelope or of its type; nothing was published.

    `problems` holds one `(path, message)` for each thing to change, for example
    `("payload.prompt", "Field required")`.
    """

    code = "invalid_event"

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class UnknownEventType(InvalidEvent):
    """No model is registered for the type, and the settings refuse unknown types."""

    code = "unknown_event_type"


class InvalidQuery(BloodbankError, ValueError):
    """A question that cannot be asked: an unknown direction, a depth below one, a broken cursor."""

    code = "invalid_query"


class AmbiguousEventId(InvalidQuery):
    """Several events begin with the given prefix; `candidates` lists some of them."""

    code = "ambiguous_event_id"

    def __init__(self, message: str, candidates: Sequence[UUID]) -> None:
        super().__init__(message)
        self.candidates = tuple(candidates)


class EventNotFound(BloodbankError, LookupError):
    """No event with this id is in the log, or in the index that was asked."""

    code = "event_not_found"


class DeadLetterNotFound(BloodbankError, LookupError):
    """No dead letter has this number, or none is in the group of this key; it may be settled already."""

    code = "dead_letter_not_found"


class TrackingDisabled(BloodbankError, RuntimeError):
    """The call needs correlation tracking: `Publisher(enable_correlation_tracking=True)`."""

    code = "tracking_disabled"


class NotOpen(BloodbankError, RuntimeError):
    """Used before it was opened or after it was closed; nothing was sent."""

    code = "not_open"


class PublishError(BloodbankError):
    """What became of a publish that did not succeed."""

    code = "publish_failed"


class PublishRejected(PublishError):
    """The event is certainly not stored, and sending it again unchanged will not help."""

    code = "publish_rejected"


class EventConflict(PublishRejected):
    """An event with this id is on the bus with another body. The first one stays."""

    code = "event_conflict"


class PublishUnknown(PublishError):
    """The event may be stored: the answer was lost. Publishing the same id again is safe.

    reason: after "lost" the next attempt finds a connection, or learns at once that there is none; after "timed_out"
    the broker has had its time, and after "nacked" it needs some.
    """

    code = "publish_unknown"

    def __init__(self, message: str, *, reason: UnknownReason = "timed_out") -> None:
        super().__init__(message)
        self.reason: UnknownReason = reason


class Unavailable(BloodbankError, ConnectionError):
    """A dependency cannot be reached now."""

    code = "unavailable"


class TransportUnavailable(Unavailable):
    """The broker or the log cannot be reached. The event was not sent; try again."""

    code = "transport_unavailable"


class OutboxFull(TransportUnavailable):
    """The broker takes nothing now, and the outbox has no room; the event was not accepted."""

    code = "outbox_full"


class StoreUnavailable(Unavailable):
    """The correlation store cannot be reached. Published events are safe in the log."""

    code = "store_unavailable"


class StoreFormatError(BloodbankError):
    """The store holds a format that this version does not read; the message says what to do."""

    code = "store_format"
