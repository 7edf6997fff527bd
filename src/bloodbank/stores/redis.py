"""The index of causes in Redis 6 or later, standalone or behind a proxy that hides a failover.

Events lie in hashes that stay small, and these in generations that expire as a whole: docs/redis-layout.md has the
keys, the values and the reasons. Recording, walking and forgetting are scripts (`lua/`), which need keys of
several slots. `RedisStore(…, read_by_levels=True)` reads without a script, with one key a command: the way that is
left on a Redis Cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib import resources
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from uuid import UUID

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from bloodbank.config import Settings, redact_url
from bloodbank.errors import ConfigurationError, EventNotFound, NotOpen, StoreFormatError
from bloodbank.stores import base
from bloodbank.stores._redis_errors import DRIVER_ERRORS, store_error
from bloodbank.stores._redis_line import Line, Lines, pack_argument, pack_command
from bloodbank.stores._redis_reading import (
    IDS_PER_ROUND_TRIP,
    Command,
    Keys,
    LevelReader,
    Reader,
    ScriptReader,
    long_key,
)
from bloodbank.stores._redis_values import digest_of, pack_event, unpack
from bloodbank.stores.assembly import assemble, to_nodes
from bloodbank.stores.base import Claimed, ClaimState, Direction, Expand, Graph, Link, Node, Row

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 2
MAX_CONNECTIONS = 16
"""Connections of one store; a call beyond them waits for one, within its own time limit."""
SCRIPT_CONNECTIONS = 8
"""How many of them run the scripts that read; one more records, the rest are for plain commands."""
LINKS_PER_SCRIPT = 100
"""Events written by one run of the script, which blocks the server meanwhile: at most some milliseconds."""
KEYS_PER_SCAN = 50
"""Keys looked at in one step of a purge; each that is a bucket holds some 64 events."""
ROWS_ON_THE_LOOP = 1000
"""Larger graphs are put together in a thread: about 4 microseconds an event, in which nothing else would run."""


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Self:
        text = resources.files("bloodbank.stores").joinpath("lua", name).read_text("utf-8")
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_RECORD = _Script.load("record.lua")
_READ = _Script.load("read.lua")
_FORGET = _Script.load("forget.lua")
_CLAIM = _Script.load("claim.lua")
_RELEASE = _Script.load("release.lua")


@dataclass(frozen=True, slots=True)
class _Kept:
    """An event in its bucket, as a purge finds it."""

    bucket: bytes
    event_id: bytes
    value: bytes


class RedisStore:
    """A CorrelationStore in Redis; see `stores.base` for what its methods promise.

    Each round trip is bounded: opening by `connect_timeout_seconds`, everything else by
    `query_timeout_seconds`. A call that is cancelled or runs out of time closes its connection, and the next
    call gets another one.

    Raises ConfigurationError when no Redis is set, or when REDIS_URL has an option that nobody knows.
    """

    def __init__(self, settings: Settings, *, read_by_levels: bool = False) -> None:
        address = settings.redis_address()
        if address is None:
            raise ConfigurationError("No Redis is set. Set REDIS_URL or REDIS_HOST.")
        self._address = redact_url(address)
        self._connect_timeout = settings.connect_timeout_seconds
        self._query_timeout = settings.query_timeout_seconds
        self._ttl_milliseconds = max(1, round(settings.correlation_ttl_days * 86_400_000))
        self._keys = Keys(settings.redis_prefix.encode() + b":")
        self._read_by_levels = read_by_levels
        self._options = self._connection_options(address)
        self._client: Redis | None = None
        self._line: Line | None = None
        self._lines: Lines | None = None
        head = (b"EVALSHA", _RECORD.sha.encode(), b"2", self._keys.format, self._keys.generations, b"%d" % FORMAT)
        head += (b"%d" % self._ttl_milliseconds, self._keys.prefix)
        self._record_head = b"".join(map(pack_argument, head))
        self._record_head_count = len(head)

    async def __aenter__(self) -> Self:
        """Connect and look at the format. May be called again, also while it is open.

        Raises StoreUnavailable, StoreFormatError.
        """
        opened_here = self._client is None
        if self._client is None:
            pool = BlockingConnectionPool(**self._options)
            self._client = Redis.from_pool(pool)
            self._line, self._lines = Line(pool), Lines(pool, SCRIPT_CONNECTIONS)
        try:
            [found] = await self._round_trip([("GET", self._keys.format)], timeout_seconds=self._connect_timeout)
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
        answers = await self._run_packed(self._line, _RECORD, [self._record_command(part) for part in _parts(links)])
        if any(answers):
            for found in answers:
                self._refuse_format(found)

    def send(self, links: Sequence[Link], done: Callable[[bool], None]) -> Callable[[], None] | None:
        """Record without a task, see `stores.base.Sender`; where the connection that records is open and free."""
        if self._line is None:
            return None
        commands = [self._record_command(part) for part in _parts(links)]
        recorded = [None] * len(commands)
        return self._line.call(b"".join(commands), len(commands), lambda answers: done(answers == recorded))

    async def claim(self, wanted: Sequence[tuple[UUID, bytes]], *, owner: bytes, lease_seconds: float) -> list[Claimed]:
        """Claim events by a script; leases end by the clock of Redis. Raises StoreUnavailable, StoreFormatError."""
        head = (2, self._keys.format, self._keys.generations, FORMAT, self._keys.prefix)
        head += (bytes((len(owner),)) + owner, max(1, round(lease_seconds * 1000)))
        calls = [
            (*head, *(one for event_id, digest in part for one in (event_id.bytes, digest))) for part in _parts(wanted)
        ]
        answers: list[Any] = []
        for found, *part in await self._run(_CLAIM, calls):
            self._refuse_format(found)
            answers += part
        return [_claimed(event_id, answer) for (event_id, _), answer in zip(wanted, answers, strict=True)]

    async def release(self, event_ids: Sequence[UUID], *, owner: bytes) -> None:
        """Give back what this owner has claimed. Raises StoreUnavailable."""
        parts = [[self._keys.claim(event_id.bytes) for event_id in part] for part in _parts(event_ids)]
        await self._run(_RELEASE, [(len(keys), *keys, bytes((len(owner),)) + owner) for keys in parts])

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return what is known of some events; one round trip for each IDS_PER_ROUND_TRIP of them."""
        ids = [event_id.bytes for event_id in event_ids]
        reader = self._reader()
        rows: list[Row] = []
        for start in range(0, len(ids), IDS_PER_ROUND_TRIP):
            part = Expand(ids[start : start + IDS_PER_ROUND_TRIP], Direction.ANCESTORS, 0, hops_left=0, room=0)
            rows += [row for row, _ in (await reader.expand(part)).values()]
        return to_nodes(rows)

    async def walk(self, event_id: UUID, direction: Direction, *, max_depth: int, limit: int) -> Graph:
        """Return the graph around an event; a script goes ahead while there is room and time.

        Raises EventNotFound, StoreUnavailable.
        """
        trail = await _walked(base.walk(event_id, direction, max_depth=max_depth, limit=limit), self._reader())
        if trail is None:
            raise EventNotFound(f"The index knows no event {event_id}. It may not be recorded yet, or have expired.")
        if len(trail.depths) > ROWS_ON_THE_LOOP:
            return await asyncio.to_thread(assemble, trail)
        return assemble(trail)

    async def purge(self, *, before: datetime) -> int:
        """Forget the events accepted before a time; return how many.

        The slow path, for when events must go before they expire: it scans every key of the database, in steps
        that each hold the server up for some milliseconds.
        """
        moment = base.microseconds(before)
        # Keys of other types may end in an id, which may look like anything.
        pattern = re.sub(rb"([*?\[\]\\^])", rb"\\\1", self._keys.prefix) + b"*:e:*"
        forgotten = 0
        cursor = 0
        while True:
            scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", KEYS_PER_SCAN, "TYPE", "hash")
            [found, (cursor, buckets)] = await self._round_trip([("GET", self._keys.format), scan])
            self._refuse_format(found)
            calls = [self._forget_arguments(part) for part in _parts(await self._older(moment, buckets))]
            forgotten += sum(await self._run(_FORGET, calls))
            if cursor == 0:
                return forgotten

    async def _older(self, moment: int, buckets: Sequence[bytes]) -> list[tuple[bytes, Row]]:
        """Return the events accepted before a time (microseconds), each with its bucket."""
        contents = await self._round_trip([("HGETALL", bucket) for bucket in buckets])
        kept = [
            _Kept(bucket, event_id, value)
            for bucket, content in zip(buckets, contents, strict=True)
            for event_id, value in content.items()
        ]
        elsewhere = [one for one in kept if not one.value]
        values = await self._round_trip(
            [("GET", long_key(one.bucket.rpartition(b":e:")[0], one.event_id)) for one in elsewhere]
        )
        kept = [one for one in kept if one.value]
        kept += [_Kept(one.bucket, one.event_id, value) for one, value in zip(elsewhere, values, strict=True) if value]
        # Types and sources do not matter here, so that every number has an empty name.
        anything: defaultdict[bytes, tuple[str, str]] = defaultdict(lambda: ("", ""))
        rows = [(one.bucket, unpack(one.event_id, 0, one.value, b"", anything)) for one in kept]
        return [(bucket, row) for bucket, row in rows if row.accepted_at < moment]

    def _reader(self) -> Reader:
        if self._read_by_levels:
            return LevelReader(self._round_trip, self._keys, self._refuse_format)
        return ScriptReader(partial(self._run, _READ), self._keys, self._refuse_format)

    def _record_command(self, links: Sequence[Link]) -> bytes:
        kinds: dict[tuple[str, str], int] = {}
        events: list[bytes] = []
        for link in links:
            kind = kinds.setdefault((link.event_type, link.source), len(kinds) + 1)
            events.append(pack_event(link, kind))
        names = [pack_argument(name.encode()) for kind in kinds for name in kind]
        count = self._record_head_count + 1 + len(names)
        return b"".join((b"*%d\r\n" % count, self._record_head, pack_argument(b"".join(events)), *names))

    def _forget_arguments(self, events: Sequence[tuple[bytes, Row]]) -> Command:
        parts = [part for bucket, row in events for part in (bucket, row.event_id, b"".join(row.parents or ()))]
        return (1, self._keys.generations, self._keys.prefix, *parts)

    def _refuse_format(self, found: bytes | None) -> None:
        if found is not None and found != b"%d" % FORMAT:
            raise StoreFormatError(
                f"The index in Redis at {self._address} has format {found[:20].decode('ascii', 'replace')}, and this "
                f"version reads {FORMAT}. Nothing was changed. Set BLOODBANK_REDIS_PREFIX to another name, or delete "
                f"the keys {self._keys.prefix.decode()}*: the index then begins empty. Or wait until they expire, "
                "CORRELATION_TTL_DAYS after the last event."
            )

    async def _run(self, script: _Script, calls: Sequence[Command]) -> list[Any]:
        commands = [pack_command(("EVALSHA", script.sha, *arguments)) for arguments in calls]
        return await self._run_packed(self._lines, script, commands)

    async def _run_packed(self, line: Line | Lines | None, script: _Script, commands: Sequence[bytes]) -> list[Any]:
        answers = await self._send_packed(line, commands)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            # A new or restarted server. Running the calls again is safe: what they did does not happen twice.
            load = pack_command(("SCRIPT", "LOAD", script.text))
            answers = (await self._send_packed(line, [load, *commands]))[1:]
        return self._without_errors(answers)

    async def _round_trip(self, commands: Sequence[Command], *, timeout_seconds: float | None = None) -> list[Any]:
        return self._without_errors(await self._send(commands, timeout_seconds or self._query_timeout))

    def _without_errors(self, answers: list[Any]) -> list[Any]:
        for answer in answers:
            if isinstance(answer, DRIVER_ERRORS):
                raise store_error(answer, self._address) from answer
        return answers

    async def _send(self, commands: Sequence[Command], timeout_seconds: float) -> list[Any]:
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

    async def _send_packed(self, line: Line | Lines | None, commands: Sequence[bytes]) -> list[Any]:
        if not commands:
            return []
        if line is None:
            raise NotOpen("The Redis store is not open. Use it within `async with store:`.")
        try:
            async with asyncio.timeout(self._query_timeout):
                return await line.round_trip(b"".join(commands), len(commands))
        except DRIVER_ERRORS as error:
            raise store_error(error, self._address) from error

    async def _close(self) -> None:
        client, self._client, self._line, self._lines = self._client, None, None, None
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


async def _walked(walk: base.Walk, reader: Reader) -> base.Trail | None:
    """Answer what a walk asks until it ends."""
    request = next(walk)
    while True:
        answer = await reader.expand(request)
        try:
            request = walk.send(answer)
        except StopIteration as stop:
            return cast("base.Trail | None", stop.value)


def _claimed(event_id: UUID, answer: int | bytes | tuple[int, bytes]) -> Claimed:
    """Return what one answer of claim.lua says."""
    if isinstance(answer, bytes):
        return Claimed(ClaimState.RECORDED, digest_of(event_id.bytes, answer))
    if isinstance(answer, int):
        return Claimed(ClaimState.GRANTED)
    milliseconds_left, digest = answer
    return Claimed(ClaimState.HELD, digest, milliseconds_left / 1000)


def _parts(several: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(several), LINKS_PER_SCRIPT):
        yield several[start : start + LINKS_PER_SCRIPT]
