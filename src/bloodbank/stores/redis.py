"""The index of causes in Redis 6 or later, standalone or behind a proxy that hides a failover.

Keys, where `bb` is the setting BLOODBANK_REDIS_PREFIX and an id is its 16 bytes:

    bb:format   "1". Another value belongs to another version and is refused.
    bb:e:<id>   an event: a string, packed as `_HEAD` says. Written once, never changed.
    bb:c:<id>   the children of an event: a sorted set of ids, all with score 0, hence in order of id.

Every key expires CORRELATION_TTL_DAYS after its last writing: an event after it was recorded, the children of
an event after the last child came. A child that expired while its siblings keep the set alive is still named
there, and answers like any event of which only the name is known.

Reads use one key a command, so they work on a Redis Cluster as they are. Recording does not: one script
writes an event together with its edges, whose keys lie in several slots. Two pipelined rounds (`SET NX GET`,
then the edges of what was written) would do there, and leave edges out when the writer dies between them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import resources
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from bloodbank.config import Settings, redact_url
from bloodbank.errors import (
    BloodbankError,
    ConfigurationError,
    EventNotFound,
    NotOpen,
    StoreFormatError,
    StoreUnavailable,
)
from bloodbank.stores import base
from bloodbank.stores.base import Direction, Expand, Graph, Link, Node

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_CONNECTIONS = 16
"""Connections of one store; a call beyond them waits for one, within its own time limit."""
IDS_PER_ROUND_TRIP = 1000
"""Events asked in one pipeline; larger questions take several, so that others get their turn at the server."""
LINKS_PER_SCRIPT = 100
"""Events written by one run of the script, which blocks the server meanwhile: at most some milliseconds."""

DRIVER_ERRORS = (RedisError, RedisClusterException, OSError)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# Format, event time and acceptance in microseconds since 1970, bytes of the type, bytes of the digest, parents.
# Then follow the parents, 16 bytes each, the digest, the type, and the source up to the end.
_HEAD = struct.Struct(">BqqHBH")


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Self:
        text = resources.files("bloodbank.stores").joinpath("lua", name).read_text("utf-8")
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_RECORD = _Script.load("record.lua")
_FORGET = _Script.load("forget.lua")

_Command = tuple[str | bytes | int, ...]


class RedisStore:
    """A CorrelationStore in Redis; see `stores.base` for what its methods promise.

    Each round trip is bounded: opening by `connect_timeout_seconds`, everything else by
    `query_timeout_seconds`. A call that is cancelled or runs out of time closes its connection, and the next
    call gets another one.

    Raises ConfigurationError when no Redis is set, or when REDIS_URL has an option that nobody knows.
    """

    def __init__(self, settings: Settings) -> None:
        address = settings.redis_address()
        if address is None:
            raise ConfigurationError("No Redis is set. Set REDIS_URL or REDIS_HOST.")
        self._address = redact_url(address)
        self._connect_timeout = settings.connect_timeout_seconds
        self._query_timeout = settings.query_timeout_seconds
        self._ttl_milliseconds = max(1, round(settings.correlation_ttl_days * 86_400_000))
        prefix = settings.redis_prefix.encode()
        self._format_key = prefix + b":format"
        self._event_prefix = prefix + b":e:"
        self._children_prefix = prefix + b":c:"
        self._options = self._connection_options(address)
        self._client: Redis | None = None

    async def __aenter__(self) -> Self:
        """Connect and look at the format. May be called again, also while it is open.

        Raises StoreUnavailable, StoreFormatError.
        """
        opened_here = self._client is None
        if self._client is None:
            self._client = Redis.from_pool(BlockingConnectionPool(**self._options))
        try:
            [found] = await self._round_trip([("GET", self._format_key)], timeout_seconds=self._connect_timeout)
            self._refuse_format(found)
        except BaseException:
            if opened_here:
                await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        await self._close()

    async def check(self) -> None:
        """Make one round trip. Raises StoreUnavailable."""
        await self._round_trip([("PING",)])

    async def record(self, links: Sequence[Link]) -> None:
        """Record events and their edges, in one round trip. Raises StoreUnavailable, StoreFormatError."""
        if not links:
            return
        for found in await self._run(_RECORD, [self._record_arguments(part) for part in _parts(links)]):
            self._refuse_format(found)

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return what is known of some events; one round trip for each IDS_PER_ROUND_TRIP of them."""
        expansion = await self._expand(Expand(event_ids, Direction.ANCESTORS, 0))
        return {event_id: node for event_id, (node, _) in expansion.items()}

    async def walk(self, event_id: UUID, direction: Direction, *, max_depth: int, limit: int) -> Graph:
        """Return the graph around an event; one round trip for each level of up to IDS_PER_ROUND_TRIP events.

        Raises EventNotFound, StoreUnavailable.
        """
        steps = base.walk(event_id, direction, max_depth=max_depth, limit=limit)
        request = next(steps)
        while True:
            answer = await self._expand(request)
            try:
                request = steps.send(answer)
            except StopIteration as stop:
                graph = cast("Graph | None", stop.value)
                break
        if graph is None:
            raise EventNotFound(f"The index knows no event {event_id}. It may not be recorded yet, or have expired.")
        return graph

    async def purge(self, *, before: datetime) -> int:
        """Forget the events accepted before a time; return how many.

        The slow path, for when keys must go before they expire: it scans every key of the database, in steps
        that each hold the server up for about a millisecond.
        """
        forgotten = 0
        cursor = 0
        while True:
            scan = ("SCAN", cursor, "MATCH", self._event_prefix + b"*", "COUNT", IDS_PER_ROUND_TRIP)
            [found, (cursor, keys)] = await self._round_trip([("GET", self._format_key), scan])
            self._refuse_format(found)
            links = [link for link in await self._links(keys) if link.accepted_at < before]
            if links:
                forgotten += sum(await self._run(_FORGET, [self._forget_arguments(part) for part in _parts(links)]))
            if cursor == 0:
                return forgotten

    async def _links(self, keys: Sequence[bytes]) -> list[Link]:
        names = [key.removeprefix(self._event_prefix) for key in keys]
        ids = [UUID(bytes=name) for name in names if len(name) == 16]
        values = await self._round_trip([("GET", self._event_key(event_id)) for event_id in ids])
        return [unpack(event_id, value) for event_id, value in zip(ids, values, strict=True) if value is not None]

    async def _expand(self, request: Expand) -> base.Expansion:
        expansion: dict[UUID, tuple[Node, Sequence[UUID]]] = {}
        for start in range(0, len(request.event_ids), IDS_PER_ROUND_TRIP):
            ids = request.event_ids[start : start + IDS_PER_ROUND_TRIP]
            if request.direction is Direction.ANCESTORS:
                expansion.update(await self._with_parents(ids, request.neighbour_limit))
            else:
                expansion.update(await self._with_children(ids, request.neighbour_limit))
        return expansion

    async def _with_parents(
        self, ids: Sequence[UUID], neighbour_limit: int
    ) -> Mapping[UUID, tuple[Node, Sequence[UUID]]]:
        answers = await self._round_trip(
            [command for i in ids for command in (("GET", self._event_key(i)), ("ZCARD", self._children_key(i)))]
        )
        expansion: dict[UUID, tuple[Node, Sequence[UUID]]] = {}
        for event_id, value, total in zip(ids, answers[::2], answers[1::2], strict=True):
            if value is not None or total:
                node = Node(event_id, unpack(event_id, value) if value is not None else None, total)
                expansion[event_id] = (node, sorted(set(node.parents))[:neighbour_limit])
        return expansion

    async def _with_children(
        self, ids: Sequence[UUID], neighbour_limit: int
    ) -> Mapping[UUID, tuple[Node, Sequence[UUID]]]:
        # ZRANGE tells the number of children too, unless it was cut: then, and only then, ZCARD is asked.
        ranges = ((("GET", self._event_key(i)), ("ZRANGE", self._children_key(i), 0, neighbour_limit)) for i in ids)
        answers = await self._round_trip([command for pair in ranges for command in pair])
        children = cast("list[list[bytes]]", answers[1::2])
        cut = [event_id for event_id, found in zip(ids, children, strict=True) if len(found) > neighbour_limit]
        totals = dict(zip(cut, await self._round_trip([("ZCARD", self._children_key(i)) for i in cut]), strict=True))
        expansion: dict[UUID, tuple[Node, Sequence[UUID]]] = {}
        for event_id, value, found in zip(ids, answers[::2], children, strict=True):
            if value is not None or found:
                link = unpack(event_id, value) if value is not None else None
                node = Node(event_id, link, totals.get(event_id, len(found)))
                expansion[event_id] = (node, [UUID(bytes=child) for child in found[:neighbour_limit]])
        return expansion

    def _record_arguments(self, links: Sequence[Link]) -> _Command:
        keys: list[bytes] = [self._format_key]
        values: list[bytes | int] = [b"%d" % FORMAT, self._ttl_milliseconds]
        for link in links:
            keys.extend(self._keys_of(link))
            values.extend((link.event_id.bytes, pack(link), len(link.parents)))
        return (len(keys), *keys, *values)

    def _forget_arguments(self, links: Sequence[Link]) -> _Command:
        keys = [key for link in links for key in self._keys_of(link)]
        values = [value for link in links for value in (link.event_id.bytes, len(link.parents))]
        return (len(keys), *keys, *values)

    def _keys_of(self, link: Link) -> list[bytes]:
        return [self._event_key(link.event_id), *map(self._children_key, link.parents)]

    def _event_key(self, event_id: UUID) -> bytes:
        return self._event_prefix + event_id.bytes

    def _children_key(self, event_id: UUID) -> bytes:
        return self._children_prefix + event_id.bytes

    def _refuse_format(self, found: bytes | None) -> None:
        if found is not None and found != b"%d" % FORMAT:
            raise StoreFormatError(
                f"The index in Redis at {self._address} has format {found[:20]!r}, and this version reads {FORMAT}. "
                "Nothing was changed. Use the version that wrote it, or set BLOODBANK_REDIS_PREFIX to another "
                "name and rebuild the index from the log."
            )

    async def _run(self, script: _Script, calls: Sequence[_Command]) -> list[Any]:
        commands: list[_Command] = [("EVALSHA", script.sha, *arguments) for arguments in calls]
        answers = await self._send(commands, self._query_timeout)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # A new or restarted server. Running the calls again is safe: what they did does not happen twice.
            answers = (await self._send([("SCRIPT LOAD", script.text), *commands], self._query_timeout))[1:]
        return self._without_errors(answers)

    async def _round_trip(self, commands: Sequence[_Command], *, timeout_seconds: float | None = None) -> list[Any]:
        return self._without_errors(await self._send(commands, timeout_seconds or self._query_timeout))

    def _without_errors(self, answers: list[Any]) -> list[Any]:
        for answer in answers:
            if isinstance(answer, DRIVER_ERRORS):
                raise store_error(answer, self._address) from answer
        return answers

    async def _send(self, commands: Sequence[_Command], timeout_seconds: float) -> list[Any]:
        """Send commands in one pipeline; return an answer for each, which may be an exception."""
        if not commands:
            return []
        if self._client is None:
            raise NotOpen("The Redis store is not open. Use it within `async with store:`.")
        try:
            async with asyncio.timeout(timeout_seconds), self._client.pipeline(transaction=False) as pipeline:
                queue = cast("Any", pipeline).execute_command  # the driver leaves its type half open
                for command in commands:
                    queue(*command)
                return await pipeline.execute(raise_on_error=False)
        except DRIVER_ERRORS as error:
            raise store_error(error, self._address) from error

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        try:
            await client.aclose()
        except DRIVER_ERRORS:
            logger.debug("A connection to Redis did not close in order.", exc_info=True)

    def _connection_options(self, address: str) -> dict[str, Any]:
        try:
            options: dict[str, Any] = {
                **parse_url(address),
                # RESP2: with 3 the driver asks each new connection for notices that are of no use here.
                "protocol": 2,
                # Without this the driver looks its own version up on disk for each connection, on the event loop.
                "driver_info": None,
                "decode_responses": False,
                "max_connections": MAX_CONNECTIONS,
                "timeout": self._query_timeout,
                "socket_connect_timeout": self._connect_timeout,
                # One limit stands around each round trip; one for each read would bound none of them.
                "socket_timeout": None,
                # The tracker above decides whether and when to try again.
                "retry": Retry(NoBackoff(), 0),
            }
            BlockingConnectionPool(**options).make_connection()
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"REDIS_URL: {error}. Correct it and start again.") from None
        return options


def pack(link: Link) -> bytes:
    """Return the value of an event: a fixed head, then what varies in length."""
    event_type = link.event_type.encode()
    head = _HEAD.pack(
        FORMAT,
        (link.timestamp - _EPOCH) // _MICROSECOND,
        (link.accepted_at - _EPOCH) // _MICROSECOND,
        len(event_type),
        len(link.digest),
        len(link.parents),
    )
    return b"".join((head, *(parent.bytes for parent in link.parents), link.digest, event_type, link.source.encode()))


def unpack(event_id: UUID, value: bytes) -> Link:
    """Return the event that `pack` wrote. Raises StoreFormatError when it did not write this."""
    try:
        version, timestamp, accepted_at, type_length, digest_length, parents = _HEAD.unpack_from(value)
        if version != FORMAT:
            raise ValueError(f"format {version}")
        digest_at = _HEAD.size + 16 * parents
        type_at = digest_at + digest_length
        source_at = type_at + type_length
        if len(value) < source_at:
            raise ValueError(f"{len(value)} bytes where {source_at} are announced")
        return Link(
            event_id=event_id,
            parents=tuple(UUID(bytes=value[at : at + 16]) for at in range(_HEAD.size, digest_at, 16)),
            event_type=value[type_at:source_at].decode(),
            timestamp=_EPOCH + timestamp * _MICROSECOND,
            source=value[source_at:].decode(),
            accepted_at=_EPOCH + accepted_at * _MICROSECOND,
            digest=value[digest_at:type_at],
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise StoreFormatError(
            f"What Redis keeps of event {event_id} cannot be read: {error}. Set BLOODBANK_REDIS_PREFIX to a name that "
            "nothing else uses, and rebuild the index from the log."
        ) from error


_UNREACHABLE = "cannot be reached: {detail}. Start it, or correct REDIS_URL or REDIS_HOST and REDIS_PORT"
_CREDENTIALS = "refuses the credentials. Correct REDIS_PASSWORD, or the user and password in REDIS_URL"
_FORBIDDEN = "does not let this user run what the index needs: {detail}. Allow it to read, write and run scripts"
_FULL = "is out of memory. Give it more (maxmemory), or shorten CORRELATION_TTL_DAYS"
_BUSY = "cannot answer now: {detail}. It will when that is over"
_READ_ONLY = "is a replica, which takes no writes. Point REDIS_URL at the primary"
_CLUSTER = "is part of a Redis Cluster, which this index cannot use: {detail}. Point REDIS_URL at a standalone Redis"
_REFUSED = "did not do what was asked: {detail}"

MEANINGS: Mapping[str, str] = {
    name: meaning
    for meaning, names in {
        _UNREACHABLE: ("OSError", "ConnectionError", "TimeoutError"),
        _CREDENTIALS: (
            "AuthenticationError",
            "AuthenticationWrongNumberOfArgsError",
            "AuthorizationError",
            "ExternalAuthProviderError",
        ),
        _FORBIDDEN: ("NoPermissionError",),
        _FULL: ("OutOfMemoryError",),
        _BUSY: ("BusyLoadingError", "MasterDownError", "MaxConnectionsError", "TryAgainError"),
        _READ_ONLY: ("ReadOnlyError",),
        _CLUSTER: (
            "AskError",
            "ClusterCrossSlotError",
            "ClusterDownError",
            "ClusterError",
            "CrossSlotTransactionError",
            "InvalidPipelineStack",
            "MovedError",
            "RedisClusterException",
            "SlotNotCoveredError",
        ),
        _REFUSED: (
            "DataError",
            "ExecAbortError",
            "InvalidResponse",
            "LockError",
            "LockNotOwnedError",
            "ModuleError",
            "NoScriptError",
            "NoSuchFieldsetError",
            "PubSubError",
            "RedisError",
            "ResponseError",
            "WatchError",
        ),
    }.items()
    for name in names
}
"""What each class of the driver's exceptions means, by name, since not every version of it has them all."""


def store_error(error: Exception, address: str) -> BloodbankError:
    """Return our error for one of the driver's. `address`: without credentials."""
    detail = str(error)[:200].rstrip(".") or "no answer in time"
    if detail.startswith("WRONGTYPE"):
        return StoreFormatError(
            f"Redis at {address} keeps something else under the keys of the index. Nothing was changed. Set "
            "BLOODBANK_REDIS_PREFIX to a name that nothing else uses."
        )
    meaning = next(MEANINGS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in MEANINGS)
    return StoreUnavailable(
        f"Redis at {address} {meaning.format(detail=detail)}. Published events are safe in the log."
    )


def _parts(links: Sequence[Link]) -> Iterator[Sequence[Link]]:
    for start in range(0, len(links), LINKS_PER_SCRIPT):
        yield links[start : start + LINKS_PER_SCRIPT]
