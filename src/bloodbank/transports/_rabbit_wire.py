"""Names, queues and message properties: what Bloodbank puts on a RabbitMQ broker.

    <exchange>            durable topic exchange; the routing key is the event type
    <base>.log            stream bound to `#`: every event, for the retention time
    <base>.<group>        quorum queue of a consumer group
    <base>.<group>.retry.<ms>   where deliveries wait before they come again to that group alone
    <base>.<group>.filling      quorum queue of one message, while a new group is filled from the log
    <base>.deadletters    stream of what consumers set aside, and of what became of it, for the retention time
    <base>.dead           quorum queue of what RabbitMQ itself gives up, and where version 0.2 set things aside
    <base>.groups         stream of which groups there are
    <base>.replays        durable topic exchange, to which groups are bound as to the first, and the log is not

In a cluster RabbitMQ keeps a quorum queue on three nodes and the stream on all that run when it is declared; their
leader is where the client that declares them is connected. Nothing is asked of it that would make a queue of a former
version look different.

`<base>` is the exchange's name without `.events.v1`, with `bloodbank.` before a name that begins with `amq.`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from typing import Any
from uuid import UUID, uuid4

from aiormq.abc import DeliveredMessage
from aiormq.connection import Connection
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp.commands import Basic

from bloodbank import ids
from bloodbank.errors import InvalidQuery, TransportUnavailable
from bloodbank.transports._amqp import scratch_channel
from bloodbank.transports._rabbit_frames import PUBLISHED_HEADER, Outgoing, cut, outgoing_with
from bloodbank.transports.base import Message, require_group

EXCHANGE_SUFFIX = ".events.v1"
ATTEMPTS_HEADER = "bloodbank-attempts"
ROUTING_KEY_HEADER = "bloodbank-routing-key"
GROUP_HEADER = "bloodbank-group"
REASON_HEADER = "bloodbank-reason"
ERROR_HEADER = "bloodbank-error"
TRACEBACK_HEADER = "bloodbank-traceback"
CONSUMER_HEADER = "bloodbank-consumer"
DEAD_HEADER = "bloodbank-dead-ms"
SETTLED_HEADER = "bloodbank-settled"
"""In the stream of dead letters: the offset of one that was put back or discarded."""
FIRST_HEADER = "bloodbank-first-ms"
REPLAYED_HEADER = "bloodbank-replayed"
PATTERN_HEADER = "bloodbank-pattern"
START_HEADER = "bloodbank-start-ms"
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

DEAD_SEGMENT_BYTES = 50_000_000
"""A stream forgets whole segments; dead letters are fewer and smaller than events."""
MILLISECOND = timedelta(milliseconds=1)
MOST_RETURNS = 2**31 - 1
"""How often an order may come back; RabbitMQ 4 gives a message up after 20 times unless told otherwise."""

MOST_NAME = 200
"""Longest name of a group's queue, so that those of its retries fit into the 255 bytes that AMQP allows."""
_FILLING = ".filling"


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
        """The queue of what RabbitMQ gave up, and of what version 0.2 set aside."""
        return f"{self._base}.dead"

    @property
    def dead_letters(self) -> str:
        """The stream of what was set aside."""
        return f"{self._base}.deadletters"

    @property
    def groups(self) -> str:
        """The stream of which groups there are."""
        return f"{self._base}.groups"

    @property
    def replays(self) -> str:
        """The exchange of what groups get again."""
        return f"{self._base}.replays"

    def group(self, group: str) -> str:
        """Return the queue of a group. Raises InvalidQuery for a name that cannot be one."""
        name = f"{self._base}.{group}"
        require_group(group)
        if len(name) > MOST_NAME:
            raise InvalidQuery(
                f"The group {group[:80]!r} has too long a name; its queue may have {MOST_NAME} characters."
            )
        return name

    def is_group(self, group: str) -> bool:
        """Say whether this can be the name of a group."""
        try:
            self.group(group)
        except InvalidQuery:
            return False
        return True

    def group_of(self, queue: str) -> str:
        """Return the group that a queue belongs to; the other way round of `group`."""
        return queue.removeprefix(f"{self._base}.")

    def private(self) -> str:
        """Return a new queue name for a subscription without a group."""
        return f"{self._base}.private.{uuid4().hex}"

    @property
    def _base(self) -> str:
        base = self.exchange.removesuffix(EXCHANGE_SUFFIX) or self.exchange
        # RabbitMQ keeps names that begin with "amq." to itself: on `amq.topic` the queues are `bloodbank.amq.topic.…`.
        return f"bloodbank.{base}" if base.startswith("amq.") else base


async def declare_topology(connection: Connection, names: Names, *, retention_days: float) -> None:
    """Declare the exchanges, the log and the dead letters, before anything is published: no event is unroutable."""
    arguments = {"x-queue-type": "stream", "x-max-age": f"{math.ceil(retention_days * 86_400)}s"}
    async with scratch_channel(connection) as channel:
        await channel.exchange_declare(names.exchange, exchange_type="topic", durable=True)
        await channel.exchange_declare(names.replays, exchange_type="topic", durable=True)
    await declare_queue(connection, names.log, arguments)
    segments = {"x-stream-max-segment-size-bytes": DEAD_SEGMENT_BYTES}
    await declare_queue(connection, names.dead_letters, arguments | segments)
    async with scratch_channel(connection) as channel:
        await channel.queue_bind(names.log, names.exchange, "#")


async def declare_group(connection: Connection, names: Names, queue: str, patterns: Sequence[str]) -> None:
    """Declare the queue of a group and bind it. Patterns of one group add up."""
    await declare_queue(connection, names.dead, {"x-queue-type": "quorum"})
    await declare_queue(connection, queue, {"x-queue-type": "quorum"} | _hand_over_to(names.dead))
    await _bind(connection, queue, names.exchange, patterns)
    await _bind(connection, queue, names.replays, patterns)


async def declare_private(connection: Connection, names: Names, queue: str, patterns: Sequence[str]) -> None:
    """Declare the queue of a subscription without a group.

    It outlives a lost connection for a while, and in a cluster the node that it was declared at, so that the
    subscription misses nothing.
    """
    await declare_queue(connection, queue, {"x-queue-type": "quorum", "x-expires": IDLE_PRIVATE_QUEUE_MS})
    await _bind(connection, queue, names.exchange, patterns)


async def declare_retry(connection: Connection, queue: str, delay_seconds: float) -> str:
    """Declare the queue whose messages go to `queue` after the delay; return its name.

    To be called before every message: an unused queue expires, and this begins its time anew.
    """
    delay_ms = retry_bucket_ms(delay_seconds)
    name = f"{queue}.retry.{delay_ms}"
    times = {"x-message-ttl": delay_ms, "x-expires": delay_ms + IDLE_RETRY_QUEUE_MS}
    await declare_queue(connection, name, {"x-queue-type": "quorum"} | times | _hand_over_to(queue))
    return name


async def declare_filling(connection: Connection, queue: str) -> bool:
    """Declare the queue for the order to fill a group's queue; say whether an order is there or in hands.

    Of those who consume it one at a time gets the order: when that one dies, the next does.
    """
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-max-length": 1,
        "x-single-active-consumer": True,
        "x-delivery-limit": MOST_RETURNS,
    }
    async with scratch_channel(connection) as channel:
        found = await channel.queue_declare(filling_of(queue), durable=True, arguments=arguments)
    return bool(found.message_count or found.consumer_count)


def filling_of(queue: str) -> str:
    """Return the name of the queue for the order to fill a group's queue."""
    return queue + _FILLING


async def exists(connection: Connection, queue: str) -> bool:
    """Say whether there is a queue of this name."""
    async with scratch_channel(connection) as channel:
        try:
            await channel.queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            return False
    return True


async def waiting_in(connection: Connection, queue: str) -> int:
    """Return how many messages a quorum queue would deliver now; 0 also where there is none of this name."""
    async with scratch_channel(connection) as channel:
        try:
            found = await channel.queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            return 0
    return found.message_count or 0


async def delete(connection: Connection, queue: str) -> None:
    """Delete a queue, with what is in it."""
    async with scratch_channel(connection) as channel:
        await channel.queue_delete(queue)


async def declare_queue(connection: Connection, name: str, arguments: Mapping[str, Any]) -> None:
    """Declare a durable queue; one that exists otherwise, or that we may not declare, is used as it is."""
    async with scratch_channel(connection) as channel:
        try:
            await channel.queue_declare(name, durable=True, arguments=dict(arguments))
        except (ChannelPreconditionFailed, ChannelAccessRefused):
            async with scratch_channel(connection) as second:
                await second.queue_declare(name, passive=True)


async def _bind(connection: Connection, queue: str, exchange: str, patterns: Sequence[str]) -> None:
    async with scratch_channel(connection) as channel:
        for pattern in patterns:
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


def properties_again(
    delivered: DeliveredMessage, headers: Mapping[str, str | int], *, afresh: bool = False
) -> Basic.Properties:
    """Return the properties of a delivery that is sent on, with further headers.

    afresh: without what was noted of earlier tries. A replay stays one.
    """
    old = delivered.header.properties
    noted = _SENT_ON - {REPLAYED_HEADER} if afresh else ()
    own = {name: value for name, value in _own_headers(old).items() if name not in noted}
    return Basic.Properties(
        content_type=old.content_type,
        content_encoding=old.content_encoding,
        headers={**own, **headers},
        delivery_mode=2,
        correlation_id=old.correlation_id,
        # The same id as without one, which is needed to tell when the broker returns it.
        message_id=old.message_id or str(_uuid_of_body(delivered.body)),
        timestamp=old.timestamp,
        message_type=old.message_type,
        app_id=old.app_id,
    )


def headers_bytes(delivered: DeliveredMessage, headers: Mapping[str, str | int]) -> int:
    """Return how many bytes the properties of a delivery have that is sent on with further headers."""
    return len(properties_again(delivered, headers).marshal())


def replayed(message: Message, queue: str | None, exchange: str) -> Outgoing:
    """Return a message that is delivered again: to a queue, or to those that are bound to an exchange, if any."""
    # Another program can have said a longer key in a header than one that AMQP carries.
    message = message._replace(routing_key=cut(message.routing_key))
    headers: dict[str, str | int] = {REPLAYED_HEADER: "1"}
    if queue is None:
        properties = _properties_of(message, headers)
        return outgoing_with(
            properties, message.body, exchange=exchange, routing_key=message.routing_key, mandatory=False
        )
    properties = _properties_of(message, headers | {ROUTING_KEY_HEADER: message.routing_key})
    return outgoing_with(properties, message.body, exchange="", routing_key=queue)


def message_of(delivered: DeliveredMessage) -> Message:
    """Return the message of a delivery, whoever published it."""
    properties = delivered.header.properties
    return message_from(
        properties.message_id,
        properties.correlation_id,
        properties.app_id,
        properties.headers or {},
        routing_key_of(delivered),
        delivered.body,
    )


def message_from(
    message_id: str | None,
    correlation_id: str | None,
    app_id: str | None,
    headers: Mapping[str, Any],
    routing_key: str,
    body: bytes,
) -> Message:
    """Return the message that properties and a body make."""
    return Message(
        event_id=_uuid(message_id) or _uuid_of_body(body),
        routing_key=routing_key,
        body=body,
        correlation_id=_uuid(correlation_id),
        app_id=app_id or None,
        headers={
            name: value
            for name, value in headers.items()
            if isinstance(value, str) and name not in _SENT_ON and not name.startswith("x-")
        },
    )


def routing_key_of(delivered: DeliveredMessage) -> str:
    """Return the key that the event was published with, also after a retry."""
    original = header_of(delivered, ROUTING_KEY_HEADER)
    return original if isinstance(original, str) else delivered.routing_key or ""


def attempt_from(headers: Mapping[str, Any], *, redelivered: bool) -> int:
    """Return which try a delivery is, 1 for the first."""
    # Only quorum queues count what came back.
    returned = headers.get("x-delivery-count")
    before_retry = headers.get(ATTEMPTS_HEADER)
    return (
        1
        + max(returned if isinstance(returned, int) else 0, int(redelivered))
        + (before_retry if isinstance(before_retry, int) else 0)
    )


def published_at(delivered: DeliveredMessage) -> datetime | None:
    """Return when a message was published, by the clock of its publisher; None when nobody said."""
    properties = delivered.header.properties
    return published_from(properties.headers or {}, properties.timestamp)


def published_from(headers: Mapping[str, Any], timestamp: datetime | None) -> datetime | None:
    """Return when a message was published that has these properties; see `published_at`."""
    milliseconds = headers.get(PUBLISHED_HEADER)
    return time_from(milliseconds) if isinstance(milliseconds, int) else timestamp


def offset_of(delivered: DeliveredMessage) -> int:
    """Return the place of a log entry in its stream."""
    return offset_from(delivered.header.properties.headers or {})


def offset_from(headers: Mapping[str, Any]) -> int:
    """Return the place in its stream of a log entry that has these headers."""
    offset = headers.get("x-stream-offset")
    if not isinstance(offset, int):
        raise TransportUnavailable("The log queue is no stream: its messages have no offset. Delete or rename it.")
    return offset


def is_marker(exchange: str, headers: Mapping[str, Any]) -> bool:
    """Say whether a log entry is no event but the mark of an empty log."""
    return exchange == "" and headers.get(MARKER_HEADER) is not None


def header_of(delivered: DeliveredMessage, name: str) -> object:
    """Return a header of a delivery, or None."""
    headers: Mapping[str, Any] = delivered.header.properties.headers or {}
    return headers.get(name)


def time_of(delivered: DeliveredMessage, name: str) -> datetime | None:
    """Return the time that a header holds in milliseconds since 1970; None when there is none."""
    milliseconds = header_of(delivered, name)
    return time_from(milliseconds) if isinstance(milliseconds, int) else None


def time_from(milliseconds: int) -> datetime | None:
    """Return the time that milliseconds since 1970 mean; None where it is none."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def milliseconds_of(moment: datetime) -> int:
    """Return an aware time as a header holds it."""
    return (moment - _EPOCH) // MILLISECOND


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SENT_ON = frozenset(
    {
        ATTEMPTS_HEADER,
        ROUTING_KEY_HEADER,
        GROUP_HEADER,
        REASON_HEADER,
        ERROR_HEADER,
        TRACEBACK_HEADER,
        CONSUMER_HEADER,
        DEAD_HEADER,
        FIRST_HEADER,
        REPLAYED_HEADER,
    }
)


def _own_headers(properties: Basic.Properties) -> dict[str, Any]:
    # The broker adds its own (x-death, x-delivery-count); they belong to the delivery, not to the message.
    headers: Mapping[str, Any] = properties.headers or {}
    return {name: value for name, value in headers.items() if not name.startswith("x-")}


def _properties_of(message: Message, headers: Mapping[str, str | int]) -> Basic.Properties:
    return Basic.Properties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={**message.headers, **headers},
        delivery_mode=2,
        correlation_id=None if message.correlation_id is None else str(message.correlation_id),
        message_id=str(message.event_id),
        timestamp=datetime.now(UTC),
        message_type=message.routing_key,
        app_id=cut(message.app_id) if message.app_id else None,
    )


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


def _uuid_of_body(body: bytes) -> UUID:
    # uuid.uuid5 of Python 3.11 takes text only.
    return UUID(bytes=sha1(ids.NAMESPACE.bytes + body, usedforsecurity=False).digest()[:16], version=5)
