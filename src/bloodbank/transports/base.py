"""What carries events: bytes, ids and routing keys. A transport knows no envelope and no payload."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import Literal, NamedTuple, Protocol, Self
from uuid import UUID

from bloodbank.errors import BloodbankError, InvalidQuery

CLOCK_SKEW = timedelta(seconds=60)
"""How far the clocks of publishers and broker may differ: searches by time begin that much earlier."""
Start = Literal["now", "beginning"] | datetime
"""Where a new group begins: with what is published from now on, with the first entry of the log, or with the first
one accepted at or after a time (aware)."""

REASON_CHARACTERS = 4000
"""Longest reason, error and consumer kept with a dead letter; what is longer is cut at its end."""
TRACEBACK_CHARACTERS = 4000
"""Longest traceback kept with a dead letter; what is longer is cut at its beginning."""


class Message(NamedTuple):
    """One event on the wire. Two are equal when id, routing key and body are.

    routing_key: the event type; consumers bind patterns to it.
    body: the serialised envelope.
    digest: 16 bytes that are equal when two bodies say the same; empty when it is not known.
    correlation_id: the first parent, for clients that look at message properties only.
    app_id: application that made the event.
    headers: further text properties, such as the envelope's version.
    """

    event_id: UUID
    routing_key: str
    body: bytes
    digest: bytes = b""
    correlation_id: UUID | None = None
    app_id: str | None = None
    headers: Mapping[str, str] = MappingProxyType({})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and self[:3] == other[:3]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:3])


class Receipt(NamedTuple):
    """Proof that a message is durable.

    duplicate: the same id with the same digest was there before; nothing was added.
    position: place in the log, where the transport tells it.
    """

    event_id: UUID
    duplicate: bool = False
    position: int | None = None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A message in the log.

    position: grows with every entry; entries are read in this order.
    logged_at: aware, UTC; when the message was accepted, by the clock of whoever published it.
    """

    position: int
    logged_at: datetime
    message: Message


@dataclass(frozen=True, slots=True)
class Features:
    """What a transport can do beyond the protocol.

    ordered: a single consumer of a group gets messages in the order of their publishing.
    competing_groups: several consumers of one group share its messages.
    replay: the log can be read from any place.
    survives_restart: accepted messages outlive the process and, where there is one, the server.
    multi_process: several processes can use it at once.
    detects_duplicates: publishing an id again is answered as duplicate or conflict.
    forgets_untried: a delivery that was left untried does not count as a try.
    """

    ordered: bool
    competing_groups: bool
    replay: bool
    survives_restart: bool
    multi_process: bool
    detects_duplicates: bool
    forgets_untried: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """What a consumer tells of the try after which it set a message aside.

    reason: one line for people.
    error: class of the exception, such as "ValueError"; "poison" for what is no envelope or has an invalid payload.
    traceback: the end of it, at most TRACEBACK_CHARACTERS.
    consumer: name of the handler.
    """

    reason: str
    error: str = ""
    traceback: str = ""
    consumer: str = ""

    def kept(self) -> Failure:
        """Return what a transport keeps of it: texts of bounded length, and what is no text replaced."""
        reason, error, consumer = (
            _as_text(text[:REASON_CHARACTERS]) for text in (self.reason, self.error, self.consumer)
        )
        return Failure(reason, error, _as_text(self.traceback[-TRACEBACK_CHARACTERS:]), consumer)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that a consumer set aside.

    number: names it in this bus; never used for another one.
    group: that it was delivered to; empty for a subscription without a group.
    failure: of the last try.
    attempts: how many tries there were.
    first_at: when the first try began, aware, UTC; None where nobody said.
    dead_at: when it was set aside, aware, UTC.
    """

    number: int
    group: str
    message: Message
    failure: Failure
    attempts: int
    first_at: datetime | None
    dead_at: datetime


@dataclass(frozen=True, slots=True)
class GroupState:
    """How far a group of consumers is.

    patterns: what it wants, in order; together they make its messages.
    waiting: messages that no consumer has yet; what waits for a retry may be left out.
    delivered: those that consumers have and have not settled; None where the transport does not tell.
    more: there are more waiting than were counted.
    """

    name: str
    patterns: tuple[str, ...]
    waiting: int
    delivered: int | None = None
    more: bool = False


class Delivery(Protocol):
    """A message handed to a consumer, who settles it exactly once."""

    @property
    def message(self) -> Message:
        """The message that was published."""
        ...

    @property
    def attempt(self) -> int:
        """Which try this is, 1 for the first."""
        ...

    @property
    def first_attempt_at(self) -> datetime | None:
        """When the first try began, aware, UTC; None where that is not known."""
        ...

    @property
    def replayed(self) -> bool:
        """Whether `Transport.replay` sent it: the event was there before."""
        ...

    async def ack(self) -> None:
        """The work is done. Raises TransportUnavailable when the connection was lost: it comes again."""
        ...

    async def retry(self, delay_seconds: float) -> None:
        """Deliver it again after a delay, without holding up others."""
        ...

    async def dead_letter(self, failure: Failure | str, *, attempts: int | None = None) -> None:
        """Set it aside with what is known of the failure, or with a reason alone.

        attempts: how many tries there were, where that is not `attempt`.

        It is kept among the dead letters, for as long as the log keeps an entry, and not delivered to this group
        again. It is there before the delivery is gone: a crash in between sets it aside twice, and loses nothing.
        """
        ...

    def leave_untried(self) -> None:
        """Say that nothing was done with it and nothing will be: it goes back when the subscription ends.

        It is no try then where the transport `forgets_untried`.
        """
        ...


class Transport(Protocol):
    """What carries events; every backend passes tests/conformance/test_transport.py."""

    @property
    def features(self) -> Features:
        """What this backend can do."""
        ...

    async def __aenter__(self) -> Self:
        """Open. An unreachable server does not fail this: it is found again when it comes back."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent, and it works while a publish is blocked."""
        ...

    async def check(self, *, timeout_seconds: float) -> None:
        """Make one durable round trip that leaves nothing behind. Raises TransportUnavailable."""
        ...

    async def publish(self, message: Message, *, timeout_seconds: float) -> Receipt:
        """Return when the message is durable.

        Raises PublishRejected (certainly not stored; EventConflict: this id has another body),
        PublishUnknown (may be stored; the same id again is safe; so it is after a cancellation) or
        TransportUnavailable (not sent).
        """
        ...

    async def publish_many(
        self, messages: Sequence[Message], *, timeout_seconds: float
    ) -> list[Receipt | BloodbankError]:
        """Publish several; return one receipt or error for each, in order. Never raises for one of them."""
        ...

    def subscribe(
        self, pattern: str | Sequence[str], *, group: str | None, prefetch: int, start: Start = "now"
    ) -> AbstractAsyncContextManager[AsyncIterator[Delivery]]:
        """Deliver the messages whose routing key fits a pattern, or one of several.

        pattern: words joined by dots; `*` stands for one word, `#` for any number of words. Patterns of one group add
            up. A new group that begins in the past gets of it what fits those that the first subscription gives.
        group: consumers of one group share its messages; the group outlives them and keeps what comes
            meanwhile. None: a group of one's own that ends with the subscription.
        prefetch: most unsettled deliveries at a time.
        start: where a new group begins; one that exists goes on where it was. What is published while a group is
            filled from the log may come before older events, and what is published at that moment may come twice.

        What is not settled when the subscription or the process ends is delivered again. The iterator
        survives the loss of the connection. Messages that the log kept but the group has settled do not
        come again.
        """
        ...

    def read_log(
        self,
        *,
        after: int | None = None,
        since: datetime | None = None,
        follow: bool = False,
        patient: bool = True,
    ) -> AsyncGenerator[LogEntry]:
        """Read the log in order of acceptance. Close it (`contextlib.aclosing`) when it is not read to its end.

        after: begin behind this position; a negative number begins that many entries before the end.
        since: begin at or before the first entry accepted at this time; earlier ones may come along.
        follow: go on with what is published later, for ever; otherwise end where the log ended.
        patient: whether a connection that is lost while following is waited out. Otherwise TransportUnavailable is
            raised then, so that the reader knows of it; it may go on behind the last entry that it got.

        Raises TransportUnavailable.
        """
        ...

    async def get(self, event_id: UUID, *, near: datetime | None = None) -> Message:
        """Return a message of the log. `near`: a time at or shortly before its acceptance, for speed.

        Raises EventNotFound, TransportUnavailable.
        """
        ...

    def dead_letters(self, *, group: str | None = None, after: int | None = None) -> AsyncGenerator[DeadLetter]:
        """Read what consumers set aside, oldest first and so by number. Reading takes nothing away.

        group: only its own; None: of all. after: begin behind this number; None: with the first.

        Raises TransportUnavailable.
        """
        ...

    async def dead_letter_count(self) -> int:
        """Return how many there are. Asked again, it costs what has changed since. Raises TransportUnavailable."""
        ...

    async def groups(self) -> list[GroupState]:
        """Return the groups that exist, by name, and how much waits for each. Raises TransportUnavailable.

        A group is there once a consumer of it has subscribed, by a version that makes it known; it may take a moment.
        """
        ...

    async def redeliver(self, numbers: Sequence[int]) -> int:
        """Put dead letters back to their group alone; return how many.

        Same id, body and parents; their attempts begin at 1, and a replay is one again. Each is in its group before it
        leaves the dead letters: a crash in between delivers it twice. Numbers that are not there, and those of a
        subscription without a group, are passed over. Raises InvalidQuery when a group does not exist any more
        (nothing was put back), and TransportUnavailable (some may be back).
        """
        ...

    async def discard(self, numbers: Sequence[int]) -> int:
        """Take dead letters off the list; return how many. Raises TransportUnavailable (some may be gone)."""
        ...

    async def replay(self, messages: Sequence[Message], *, group: str | None) -> None:
        """Deliver messages of the log again, in order, marked as replayed; the log does not get them again.

        group: who gets them, whatever its patterns; None: every group of which a pattern fits. Subscriptions without
        a group get none.

        Returns when they are durable. Raises InvalidQuery for a group that does not exist (nothing was sent), and
        TransportUnavailable (some may have been sent; doing it again is safe, and delivers those twice).
        """
        ...


def require_start(start: object) -> None:
    """Raise InvalidQuery for what is no `Start`."""
    if start in ("now", "beginning") or (isinstance(start, datetime) and start.tzinfo is not None):
        return
    raise InvalidQuery(f"{start!r} is no start. Give 'now', 'beginning' or an aware time.")


def _as_text(text: str) -> str:
    """Replace what UTF-8 cannot carry, such as lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def require_group(group: str) -> None:
    """Raise InvalidQuery for what cannot be the name of a group on every transport."""
    is_taken = group in _RESERVED_GROUPS or _QUEUE_OF_A_GROUP.fullmatch(group) is not None
    if is_taken or not _GROUP.fullmatch(group):
        raise InvalidQuery(
            f"{group[:80]!r} cannot be the name of a group. Use letters, digits, '-', '_' and single dots; "
            f"{', '.join(_RESERVED_GROUPS)} and what ends with .filling or .retry.NUMBER are taken."
        )


def require_patterns(pattern: str | Sequence[str]) -> tuple[str, ...]:
    """Return the patterns of a subscription, at least one. Raises InvalidQuery."""
    patterns = (pattern,) if isinstance(pattern, str) else tuple(dict.fromkeys(pattern))
    if not patterns:
        raise InvalidQuery("A subscription needs a routing pattern, such as 'llm.*'.")
    for each in patterns:
        compile_pattern(each)
    return patterns


_GROUP = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_RESERVED_GROUPS = ("log", "dead", "deadletters", "groups", "replays")
_QUEUE_OF_A_GROUP = re.compile(r".*(\.filling|\.retry\.[0-9]+)")
"""What a group with a shorter name has beside its own queue, on RabbitMQ."""
_TYPE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-.*#")


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a routing pattern (AMQP 0-9-1 specification, section 3.1.3.3).

    Raises InvalidQuery for an empty pattern, one over 255 bytes, or one with empty words.
    """
    words = pattern.split(".")
    if not pattern or len(pattern.encode()) > 255 or "" in words or "\x00" in pattern:
        raise InvalidQuery(
            f"{pattern[:80]!r} is no routing pattern. Write words joined by dots, such as 'llm.*' or 'fireflies.#'."
        )
    parts = [""]
    for word in words:
        if word == "#":
            parts.append("")
        else:
            parts[-1] += (r"\.[^.]+" if word == "*" else r"\." + re.escape(word)) + r"(?=\.|\Z)"
    first, *others = parts
    if not others:
        return re.compile(first)
    # As in fnmatch: what stands between two '#' may be taken where it is first found, and never again. Otherwise
    # a pattern of many '#' would try every way to share out the words.
    any_words = r"(?:\.[^.]++)*"
    *inner, last = others
    found = "".join(f"(?>{any_words}?{part})" for part in inner if part)
    return re.compile(first + found + any_words + last)


def compile_type_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of event types, which unlike other routing keys have few characters.

    Raises InvalidQuery also for a pattern that no type can fit.
    """
    if strange := set(pattern) - _TYPE_CHARACTERS:
        raise InvalidQuery(
            f"No event type has {min(strange)!r} in it. Types are words of a-z, 0-9, _ and - joined by dots; in a "
            "pattern * stands for one word and # for any number."
        )
    for word in pattern.split("."):
        if len(word) > 1 and {"*", "#"} & set(word):
            raise InvalidQuery(f"{word!r} is no word of a pattern: * and # stand for whole words, as in 'llm.*'.")
    return compile_pattern(pattern)


def matches(pattern: str, routing_key: str) -> bool:
    """Say whether a routing key fits a pattern."""
    return compile_pattern(pattern).fullmatch("." + routing_key) is not None


def matches_any(patterns: Iterable[str], routing_key: str) -> bool:
    """Say whether a routing key fits one of the patterns."""
    return any(matches(pattern, routing_key) for pattern in patterns)
