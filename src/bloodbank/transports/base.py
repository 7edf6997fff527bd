"""What carries events: bytes, ids and routing keys. A transport knows no envelope and no payload."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Protocol, Self
from uuid import UUID

from bloodbank.errors import BloodbankError, InvalidQuery


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
    """

    ordered: bool
    competing_groups: bool
    replay: bool
    survives_restart: bool
    multi_process: bool
    detects_duplicates: bool


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

    async def ack(self) -> None:
        """The work is done. Raises TransportUnavailable when the connection was lost: it comes again."""
        ...

    async def retry(self, delay_seconds: float) -> None:
        """Deliver it again after a delay, without holding up others."""
        ...

    async def dead_letter(self, reason: str) -> None:
        """Set it aside, with the reason; it is kept, and not delivered to this group again."""
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
        self, pattern: str, *, group: str | None, prefetch: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Delivery]]:
        """Deliver the messages whose routing key fits a pattern.

        pattern: words joined by dots; `*` stands for one word, `#` for any number of words.
        group: consumers of one group share its messages; the group outlives them and keeps what comes
            meanwhile. A new group begins with what is published from now on. None: a group of one's own that
            ends with the subscription.
        prefetch: most unsettled deliveries at a time.

        What is not settled when the subscription or the process ends is delivered again. The iterator
        survives the loss of the connection. Messages that the log kept but the group has settled do not
        come again.
        """
        ...

    def read_log(
        self, *, after: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[LogEntry]:
        """Read the log in order of acceptance.

        after: begin behind this position; a negative number begins that many entries before the end.
        since: begin at or before the first entry accepted at this time; earlier ones may come along.
        follow: go on with what is published later, for ever; otherwise end where the log ended.

        Raises TransportUnavailable.
        """
        ...

    async def get(self, event_id: UUID, *, near: datetime | None = None) -> Message:
        """Return a message of the log. `near`: a time at or shortly before its acceptance, for speed.

        Raises EventNotFound, TransportUnavailable.
        """
        ...


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


def matches(pattern: str, routing_key: str) -> bool:
    """Say whether a routing key fits a pattern."""
    return compile_pattern(pattern).fullmatch("." + routing_key) is not None
