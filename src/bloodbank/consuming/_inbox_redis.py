"""The inbox in Redis, which the processes of all machines share: one key an event and group, which expires by itself.

A key is `<prefix>:inbox:<group>:<id>`, the id as its 16 bytes, and lies by itself: nothing here needs two keys of one
slot, so that one server, the master that Sentinels name and a cluster are asked the same commands. A note does not
wait for replicas: a failover may lose the latest ones, and their events are handled again if they come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self
from uuid import UUID

from redis.asyncio import BlockingConnectionPool

from bloodbank._redis_url import RedisServers, Servers, redis_servers
from bloodbank.config import Settings, redact_url
from bloodbank.errors import ConfigurationError, NotOpen
from bloodbank.stores._redis_errors import DRIVER_ERRORS, store_error
from bloodbank.stores._redis_line import Line, pack_argument, pack_command
from bloodbank.stores._redis_nodes import Nodes
from bloodbank.stores._redis_pool import Pools, close_pool

MAX_CONNECTIONS = 2
"""Connections of one inbox to one server: one for questions, one for notes, so that neither waits for the other."""


class RedisInbox:
    """An Inbox in Redis. Raises ConfigurationError when no Redis is set, or when REDIS_URL has an unknown option."""

    def __init__(self, settings: Settings) -> None:
        address = settings.redis_address()
        if address is None:
            raise ConfigurationError("No Redis is set. Set REDIS_URL or REDIS_HOST.")
        servers = redis_servers(address)
        keep_milliseconds = max(1, round(settings.inbox_days * 86_400_000))
        self._seen = _Verb(b"EXISTS")
        self._mark = _Verb(b"SET", b"", b"PX", b"%d" % keep_milliseconds)
        self._prefix = f"{settings.redis_prefix}:inbox:".encode()
        self._way: _Way
        if servers is not None and servers.kind is Servers.CLUSTER:
            self._way = _ToCluster(address, servers, settings)
        else:
            self._way = _ToOneServer(address, servers, settings, (self._seen, self._mark))

    async def __aenter__(self) -> Self:
        """Connect. Raises StoreUnavailable."""
        try:
            await self._way.open()
        except BaseException:
            await self._way.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        await self._way.close()

    async def seen(self, group: str, event_ids: Sequence[UUID]) -> set[UUID]:
        """Return those that the group has handled, in one round trip. Raises StoreUnavailable."""
        answers = await self._way.send(self._seen, self._keys(group, event_ids))
        return {event_id for event_id, found in zip(event_ids, answers, strict=True) if found}

    async def mark(self, group: str, event_ids: Sequence[UUID]) -> None:
        """Note that the group has handled them, in one round trip. Raises StoreUnavailable."""
        await self._way.send(self._mark, self._keys(group, event_ids))

    def _keys(self, group: str, event_ids: Sequence[UUID]) -> list[bytes]:
        before = self._prefix + group.encode() + b":"
        return [before + event_id.bytes for event_id in event_ids]


class _Verb:
    """A command of one key. rest: the arguments behind the key."""

    def __init__(self, name: bytes, *rest: bytes) -> None:
        self._name = name
        self._rest = rest
        self._head = b"*%d\r\n" % (2 + len(rest)) + pack_argument(name)
        self._tail = b"".join(map(pack_argument, rest))

    def command(self, key: bytes) -> tuple[bytes, ...]:
        """Return it as the driver takes it."""
        return (self._name, key, *self._rest)

    def packed(self, key: bytes) -> bytes:
        """Return it as it goes over the wire."""
        return b"%b$%d\r\n%b\r\n%b" % (self._head, len(key), key, self._tail)


class _Way(Protocol):
    """How commands come to where the keys are. All raise StoreUnavailable."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, verb: _Verb, keys: Sequence[bytes]) -> list[Any]:
        """Return one answer a key."""
        ...


class _ToOneServer:
    """A connection for each verb, written to directly: the driver's pipeline costs more than all else of an event."""

    def __init__(self, address: str, servers: RedisServers | None, settings: Settings, verbs: Sequence[_Verb]) -> None:
        self._address = redact_url(address)
        self._verbs = verbs
        self._timeout_seconds = settings.query_timeout_seconds
        self._pools = Pools(
            address,
            servers,
            connect_timeout_seconds=settings.connect_timeout_seconds,
            timeout_seconds=settings.query_timeout_seconds,
            most=MAX_CONNECTIONS,
        )
        self._pool: BlockingConnectionPool | None = None
        self._lines: dict[_Verb, Line] = {}

    async def open(self) -> None:
        """Connect for questions; the connection for notes is made by the first one."""
        pool = self._pool = self._pools.new()
        self._lines = {verb: Line(pool) for verb in self._verbs}
        await self._round_trip(self._lines[self._verbs[0]], pack_command(("PING",)), 1)

    async def close(self) -> None:
        """Close both; idempotent."""
        pool, self._pool = self._pool, None
        self._lines = {}
        if pool is not None:
            await close_pool(pool)

    async def send(self, verb: _Verb, keys: Sequence[bytes]) -> list[Any]:
        """Send all at once; see `_Way`."""
        line = self._lines.get(verb)
        if line is None:
            raise NotOpen("The Redis inbox is not open. Use it within `async with inbox:`.")
        if not keys:
            return []
        return await self._round_trip(line, b"".join(map(verb.packed, keys)), len(keys))

    async def _round_trip(self, line: Line, commands: bytes, count: int) -> list[Any]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answers = await line.round_trip(commands, count)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        except DRIVER_ERRORS as error:
            raise store_error(error, self._address) from error
        return answers


class _ToCluster:
    """Each key to the node that serves its slot, those of different nodes at the same time."""

    def __init__(self, address: str, servers: RedisServers, settings: Settings) -> None:
        try:
            self._nodes = Nodes(
                servers,
                redact_url(address),
                connect_timeout_seconds=settings.connect_timeout_seconds,
                query_timeout_seconds=settings.query_timeout_seconds,
                replicas=0,
                replica_seconds=settings.redis_replica_seconds,
            )
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"REDIS_URL: {error}. Correct it and start again.") from None

    async def open(self) -> None:
        """Look at the cluster."""
        await self._nodes.open()

    async def close(self) -> None:
        """Close all connections; idempotent."""
        await self._nodes.close()

    async def send(self, verb: _Verb, keys: Sequence[bytes]) -> list[Any]:
        """Send all at once; see `_Way`."""
        return await self._nodes.ask([verb.command(key) for key in keys])
