"""The index of causes in Redis 6 or later: one server, or the master that Sentinels name.

Events lie in hashes that stay small, and these in generations that expire as a whole: docs/redis-layout.md has the
keys, the values and the reasons. Recording, walking and forgetting are scripts (`lua/`), which need keys of
several slots: for a cluster there is `stores.redis_cluster`. `RedisStore(…, read_by_levels=True)` reads without a
script, with one key a command.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import NoScriptError

from bloodbank._redis_url import Servers, redis_servers
from bloodbank.config import Settings, redact_url
from bloodbank.errors import ConfigurationError, NotOpen, StoreUnavailable
from bloodbank.stores import base
from bloodbank.stores._redis_calls import (
    accepted_before,
    claim_arguments,
    claimed,
    packed_events,
    parts,
    refuse_format,
    release_arguments,
    walked,
)
from bloodbank.stores._redis_errors import DRIVER_ERRORS, store_error
from bloodbank.stores._redis_line import Line, Lines, pack_argument, pack_command
from bloodbank.stores._redis_pool import Pools, close_pool
from bloodbank.stores._redis_reading import IDS_PER_ROUND_TRIP, Command, Keys, LevelReader, Reader, ScriptReader
from bloodbank.stores._redis_scripts import CLAIM, FORGET, READ, RECORD, RELEASE, Script
from bloodbank.stores._redis_sentinel import BlockingSentinelPool
from bloodbank.stores.assembly import to_nodes
from bloodbank.stores.base import Claimed, Direction, Expand, Graph, Link, Node, Row

FORMAT = 2
CHECK_MILLISECONDS = 1000
"""How long what `check` writes stays."""
MAX_CONNECTIONS = 16
"""Connections of one store; a call beyond them waits for one, within its own time limit."""
SCRIPT_CONNECTIONS = 8
"""How many of them run the scripts that read; one more records, the rest are for plain commands."""
KEYS_PER_SCAN = 50
"""Keys looked at in one step of a purge; each that is a bucket holds some 64 events."""
SECONDS_WITHOUT_REPLICAS = 10.0
"""How long a master that has no replica is not asked whether it has one."""

_NOT_OPEN = "The Redis store is not open. Use it within `async with store:`."


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
        self._servers = redis_servers(address)
        if self._servers is not None and self._servers.kind is Servers.CLUSTER:
            raise ConfigurationError("RedisStore is for one server or for Sentinels; RedisClusterStore for a cluster.")
        self._pools = Pools(
            address,
            self._servers,
            connect_timeout_seconds=self._connect_timeout,
            timeout_seconds=self._query_timeout,
            most=MAX_CONNECTIONS,
        )
        self._replicas = settings.redis_replicas if self._servers is not None else 0
        self._wait = pack_command(("WAIT", self._replicas, max(1, round(settings.redis_replica_seconds * 1000))))
        self._alone_until = 0.0
        self._pool: BlockingConnectionPool | None = None
        self._client: Redis | None = None
        self._line: Line | None = None
        self._lines: Lines | None = None
        head = (b"EVALSHA", RECORD.sha.encode(), b"2", self._keys.format, self._keys.generations, b"%d" % FORMAT)
        head += (b"%d" % self._ttl_milliseconds, self._keys.prefix)
        self._record_head = b"".join(map(pack_argument, head))
        self._record_head_count = len(head)

    async def __aenter__(self) -> Self:
        """Connect and look at the format. May be called again, also while it is open.

        Raises StoreUnavailable, StoreFormatError.
        """
        opened_here = self._client is None
        if self._client is None:
            pool = self._pool = self._pools.new()
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
        """Write something that goes by itself: a replica, or a server without memory, answers and takes nothing.

        Raises StoreUnavailable.
        """
        await self._round_trip([("SET", self._keys.prefix + b"check", b"", "PX", CHECK_MILLISECONDS)])

    async def record(self, links: Sequence[Link]) -> None:
        """Record events and their edges, in one round trip. Raises StoreUnavailable, StoreFormatError."""
        if not links:
            return
        commands = [self._record_command(part) for part in parts(links)]
        waits = self._waits()
        answers = await self._run_packed(self._line, RECORD, [*commands, self._wait] if waits else commands)
        for found in answers[: len(commands)]:
            self._refuse_format(found)
        if waits and answers[-1] < self._replicas:
            await self._require_replicas(answers[-1])

    def send(self, links: Sequence[Link], done: Callable[[bool], None]) -> Callable[[], None] | None:
        """Record without a task, see `stores.base.Sender`; where the connection that records is open and free."""
        if self._line is None:
            return None
        commands = [self._record_command(part) for part in parts(links)]
        recorded: list[Any] = [None] * len(commands)
        if not self._waits():
            return self._line.call(b"".join(commands), len(commands), lambda answers: done(answers == recorded))

        def replicated(answers: list[Any] | Exception) -> None:
            done(isinstance(answers, list) and answers[:-1] == recorded and answers[-1] >= self._replicas)

        return self._line.call(b"".join([*commands, self._wait]), len(commands) + 1, replicated)

    async def claim(self, wanted: Sequence[tuple[UUID, bytes]], *, owner: bytes, lease_seconds: float) -> list[Claimed]:
        """Claim events by a script; leases end by the clock of Redis. Raises StoreUnavailable, StoreFormatError."""
        version = b"%d" % FORMAT
        calls = [claim_arguments(self._keys, version, part, owner, lease_seconds) for part in parts(wanted)]
        answers: list[Any] = []
        for found, *part in await self._run(CLAIM, calls):
            self._refuse_format(found)
            answers += part
        return [claimed(event_id, answer) for (event_id, _), answer in zip(wanted, answers, strict=True)]

    async def release(self, event_ids: Sequence[UUID], *, owner: bytes) -> None:
        """Give back what this owner has claimed. Raises StoreUnavailable."""
        await self._run(RELEASE, [release_arguments(self._keys, part, owner) for part in parts(event_ids)])

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
        return await walked(event_id, direction, self._reader(), max_depth=max_depth, limit=limit)

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
            older = await accepted_before(moment, buckets, self._round_trip)
            calls = [self._forget_arguments(part) for part in parts(older)]
            forgotten += sum(await self._run(FORGET, calls))
            if cursor == 0:
                return forgotten

    def _reader(self) -> Reader:
        if self._read_by_levels:
            return LevelReader(self._round_trip, self._keys, self._refuse_format)
        return ScriptReader(partial(self._run, READ), self._keys, self._refuse_format)

    def _record_command(self, links: Sequence[Link]) -> bytes:
        events, texts = packed_events(links)
        names = [pack_argument(text) for text in texts]
        count = self._record_head_count + 1 + len(names)
        return b"".join((b"*%d\r\n" % count, self._record_head, pack_argument(events), *names))

    def _forget_arguments(self, events: Sequence[tuple[bytes, Row]]) -> Command:
        rest = [one for bucket, row in events for one in (bucket, row.event_id, b"".join(row.parents or ()))]
        return (1, self._keys.generations, self._keys.prefix, *rest)

    def _refuse_format(self, found: bytes | None) -> None:
        refuse_format(found, b"%d" % FORMAT, self._keys.prefix, self._address)

    def _waits(self) -> bool:
        """Whether what is recorded now must reach replicas before it counts."""
        return self._replicas > 0 and asyncio.get_running_loop().time() >= self._alone_until

    async def _require_replicas(self, confirmed: int) -> None:
        """Raise StoreUnavailable unless the Sentinels know no more replicas than those that have it.

        Also where they name another master by now: the old one may still answer, and what it takes is lost.
        """
        if self._line is None or self._servers is None or not isinstance(self._pool, BlockingSentinelPool):
            raise NotOpen(_NOT_OPEN)
        here = self._line.address
        try:
            async with asyncio.timeout(self._connect_timeout):
                master, replicas = await self._pool.watched()
        except DRIVER_ERRORS as error:
            self._line.abort()
            raise store_error(error, self._address) from error
        if master == here and replicas <= confirmed:
            self._alone_until = asyncio.get_running_loop().time() + SECONDS_WITHOUT_REPLICAS
            return
        self._line.abort()
        raise StoreUnavailable(
            f"The master behind {self._address} recorded it, but {confirmed} replicas had it in time and "
            f"{self._replicas} should (BLOODBANK_REDIS_REPLICAS). Published events are safe in the log."
        )

    async def _run(self, script: Script, calls: Sequence[Command]) -> list[Any]:
        commands = [pack_command(("EVALSHA", script.sha, *arguments)) for arguments in calls]
        return await self._run_packed(self._lines, script, commands)

    async def _run_packed(self, line: Line | Lines | None, script: Script, commands: Sequence[bytes]) -> list[Any]:
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
            raise NotOpen(_NOT_OPEN)
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
            raise NotOpen(_NOT_OPEN)
        try:
            async with asyncio.timeout(self._query_timeout):
                return await line.round_trip(b"".join(commands), len(commands))
        except DRIVER_ERRORS as error:
            raise store_error(error, self._address) from error

    async def _close(self) -> None:
        self._client = self._line = self._lines = None
        pool, self._pool = self._pool, None
        if pool is not None:
            await close_pool(pool)
