"""Names, queues and message properties: what Bloodbank puts on a RabbitMQ broker.

    <exchange>            durable topic exchange; the routing key is the event type
    <base>.log            stream bound to `#`: every event, for the retention time
    <base>.<group>        quorum queue of a consumer group
    <base>.<group>.retry.<ms>   where deliveries wait before they come again to that group alone
    <base>.dead           quorum queue of what consumers set aside, with the reason

In a cluster RabbitMQ keeps a quorum queue on three nodes and the stream on all that run when it is declared; their
leader is where the client that declares them is connected. Nothing is asked of it that would make a queue of a former
version look different.

`<base>` is the exchange's name without `.events.v1`, with `bloodbank.` before a name that begins with `amq.`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha1
from typing import Any
from uuid import UUID, uuid4

from aiormq.abc import DeliveredMessage
from aiormq.connection import Connection
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed
from pamqp.commands import Basic

from bloodbank import ids
from bloodbank.errors import InvalidQuery, TransportUnavailable
from bloodbank.transports._amqp import scratch_channel
from bloodbank.transports._rabbit_frames import PUBLISHED_HEADER
from bloodbank.transports.base import Message

EXCHANGE_SUFFIX = ".events.v1"
ATTEMPTS_HEADER = "bloodbank-attempts"
ROUTING_KEY_HEADER = "bloodbank-routing-key"
GROUP_HEADER = "bloodbank-group"
REASON_HEADER = "bloodbank-reason"
DEAD_HEADER = "bloodbank-dead-ms"
MARKER_HEADER = "bloodbank-marker"
"""Marks the one log entry that is no event: a reader puts it into an empty log, to find its end."""

SHORTEST_RETRY_MS = 10
RETRY_STEP = 2**0.25
"""Delays are rounded up to a power of this, so that few queues serve all of them (19 % at most)."""
LONGEST_RETRY_SECONDS = 30 * 86_400.0
IDLE_RETRY_QUEUE_MS = 3_600_000
"""How long an unused retry queue is kept after its last message has left."""
IDLE_PRIVATE_QUEUE_MS = 300_000
"""How long the queue of a subscription without a group outlives its connection."""

_GROUP = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_RESERVED_GROUPS = ("log", "dead")


@dataclass(frozen=True, slots=True)
class Names:
    """The names that follow from the exchange's."""

    exchange: str

    @property
    def log(self) -> str:
        """The stream that holds every event."""
        return f"{self._base}.log"

    @property
    def dead(self) -> str:
        """The queue of what was set aside."""
        return f"{self._base}.dead"

    def group(self, group: str) -> str:
        """Return the queue of a group. Raises InvalidQuery for a name that cannot be one."""
        name = f"{self._base}.{group}"
        if group in _RESERVED_GROUPS or not _GROUP.fullmatch(group) or len(name) > 200:
            raise InvalidQuery(
                f"{group[:80]!r} cannot be the name of a group. Use letters, digits, '-', '_' and single dots; "
                f"{' and '.join(_RESERVED_GROUPS)} are taken."
            )
        return name

    def private(self) -> str:
        """Return a new queue name for a subscription without a group."""
        return f"{self._base}.private.{uuid4().hex}"

    @property
    def _base(self) -> str:
        base = self.exchange.removesuffix(EXCHANGE_SUFFIX) or self.exchange
        # RabbitMQ keeps names that begin with "amq." to itself: on `amq.topic` the queues are `bloodbank.amq.topic.…`.
        return f"bloodbank.{base}" if base.startswith("amq.") else base


async def declare_topology(connection: Connection, names: Names, *, retention_days: float) -> None:
    """Declare the exchange and the log, before anything is published: no event is unroutable."""
    arguments = {"x-queue-type": "stream", "x-max-age": f"{math.ceil(retention_days * 86_400)}s"}
    async with scratch_channel(connection) as channel:
        await channel.exchange_declare(names.exchange, exchange_type="topic", durable=True)
    await declare_queue(connection, names.log, arguments)
    async with scratch_channel(connection) as channel:
        await channel.queue_bind(names.log, names.exchange, "#")


async def declare_group(connection: Connection, names: Names, queue: str, pattern: str) -> None:
    """Declare the queue of a group and bind it. Patterns of one group add up."""
    await declare_queue(connection, names.dead, {"x-queue-type": "quorum"})
    await declare_queue(connection, queue, {"x-queue-type": "quorum"} | _hand_over_to(names.dead))
    await _bind(connection, queue, names.exchange, pattern)


async def declare_private(connection: Connection, names: Names, queue: str, pattern: str) -> None:
    """Declare the queue of a subscription without a group.

    It outlives a lost connection for a while, and in a cluster the node that it was declared at, so that the
    subscription misses nothing.
    """
    await declare_queue(connection, names.dead, {"x-queue-type": "quorum"})
    await declare_queue(connection, queue, {"x-queue-type": "quorum", "x-expires": IDLE_PRIVATE_QUEUE_MS})
    await _bind(connection, queue, names.exchange, pattern)


async def declare_retry(connection: Connection, queue: str, delay_seconds: float) -> str:
    """Declare the queue whose messages go to `queue` after the delay; return its name.

    To be called before every message: an unused queue expires, and this begins its time anew.
    """
    delay_ms = retry_bucket_ms(delay_seconds)
    name = f"{queue}.retry.{delay_ms}"
    times = {"x-message-ttl": delay_ms, "x-expires": delay_ms + IDLE_RETRY_QUEUE_MS}
    await declare_queue(connection, name, {"x-queue-type": "quorum"} | times | _hand_over_to(queue))
    return name


async def declare_queue(connection: Connection, name: str, arguments: Mapping[str, Any]) -> None:
    """Declare a durable queue; one that exists otherwise, or that we may not declare, is used as it is."""
    async with scratch_channel(connection) as channel:
        try:
            await channel.queue_declare(name, durable=True, arguments=dict(arguments))
        except (ChannelPreconditionFailed, ChannelAccessRefused):
            async with scratch_channel(connection) as second:
                await second.queue_declare(name, passive=True)


async def _bind(connection: Connection, queue: str, exchange: str, pattern: str) -> None:
    async with scratch_channel(connection) as channel:
        await channel.queue_bind(queue, exchange, pattern)


def _hand_over_to(queue: str) -> dict[str, Any]:
    # At least once: the message stays until the other queue has it. RabbitMQ asks for reject-publish with it.
    return {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def retry_bucket_ms(delay_seconds: float) -> int:
    """Return the delay in milliseconds, rounded up to the next of few values.

    Raises InvalidQuery for a delay that is negative, no number, or longer than LONGEST_RETRY_SECONDS.
    """
    if not 0 <= delay_seconds <= LONGEST_RETRY_SECONDS:
        raise InvalidQuery(f"A delay must be between 0 and {LONGEST_RETRY_SECONDS:.0f} seconds, not {delay_seconds}.")
    steps = math.log(max(delay_seconds * 1000, SHORTEST_RETRY_MS) / SHORTEST_RETRY_MS, RETRY_STEP)
    return math.ceil(SHORTEST_RETRY_MS * RETRY_STEP ** math.ceil(steps - 1e-9))


def properties_again(delivered: DeliveredMessage, headers: Mapping[str, str | int]) -> Basic.Properties:
    """Return the properties of a delivery that is sent on, with further headers."""
    old = delivered.header.properties
    return Basic.Properties(
        content_type=old.content_type,
        content_encoding=old.content_encoding,
        headers={**_own_headers(old), **headers},
        delivery_mode=2,
        correlation_id=old.correlation_id,
        # The same id as without one, which is needed to tell when the broker returns it.
        message_id=old.message_id or str(_uuid_of_body(delivered.body)),
        timestamp=old.timestamp,
        message_type=old.message_type,
        app_id=old.app_id,
    )


def message_of(delivered: DeliveredMessage) -> Message:
    """Return the message of a delivery, whoever published it."""
    properties = delivered.header.properties
    headers: Mapping[str, Any] = properties.headers or {}
    return Message(
        event_id=_uuid(properties.message_id) or _uuid_of_body(delivered.body),
        routing_key=routing_key_of(delivered),
        body=delivered.body,
        correlation_id=_uuid(properties.correlation_id),
        app_id=properties.app_id or None,
        headers={
            name: value
            for name, value in headers.items()
            if isinstance(value, str) and not name.startswith("x-") and name not in _SENT_ON
        },
    )


def routing_key_of(delivered: DeliveredMessage) -> str:
    """Return the key that the event was published with, also after a retry."""
    original = _header(delivered, ROUTING_KEY_HEADER)
    return original if isinstance(original, str) else delivered.routing_key or ""


def attempt_of(delivered: DeliveredMessage) -> int:
    """Return which try a delivery is, 1 for the first."""
    # Only quorum queues count what came back.
    returned = _header(delivered, "x-delivery-count")
    before_retry = _header(delivered, ATTEMPTS_HEADER)
    return (
        1
        + max(returned if isinstance(returned, int) else 0, int(bool(delivered.redelivered)))
        + (before_retry if isinstance(before_retry, int) else 0)
    )


def published_at(delivered: DeliveredMessage) -> datetime | None:
    """Return when a message was published, by the clock of its publisher; None when nobody said."""
    milliseconds = _header(delivered, PUBLISHED_HEADER)
    if isinstance(milliseconds, int):
        try:
            return datetime.fromtimestamp(milliseconds / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            return None
    return delivered.header.properties.timestamp


def offset_of(delivered: DeliveredMessage) -> int:
    """Return the place of a log entry in its stream."""
    offset = _header(delivered, "x-stream-offset")
    if not isinstance(offset, int):
        raise TransportUnavailable("The log queue is no stream: its messages have no offset. Delete or rename it.")
    return offset


def is_marker(delivered: DeliveredMessage) -> bool:
    """Say whether a log entry is no event but the mark of an empty log."""
    return delivered.exchange == "" and _header(delivered, MARKER_HEADER) is not None


_SENT_ON = frozenset({ATTEMPTS_HEADER, ROUTING_KEY_HEADER, GROUP_HEADER, REASON_HEADER})


def _own_headers(properties: Basic.Properties) -> dict[str, Any]:
    # The broker adds its own (x-death, x-delivery-count); they belong to the delivery, not to the message.
    headers: Mapping[str, Any] = properties.headers or {}
    return {name: value for name, value in headers.items() if not name.startswith("x-")}


def _header(delivered: DeliveredMessage, name: str) -> object:
    headers: Mapping[str, Any] = delivered.header.properties.headers or {}
    return headers.get(name)


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


def _uuid_of_body(body: bytes) -> UUID:
    # uuid.uuid5 of Python 3.11 takes text only.
    return UUID(bytes=sha1(ids.NAMESPACE.bytes + body, usedforsecurity=False).digest()[:16], version=5)
