"""The way to a master that Sentinels name: they are asked at each new connection, so that a failover is followed."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import TimeoutError as DriverTimeoutError

from bloodbank._redis_url import RedisServers

Address = tuple[str, int]


class BlockingSentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the master; a call that finds none free waits for one."""

    service_name: str
    sentinel_manager: QuickSentinel

    async def watched(self) -> Watched:
        """Return what the Sentinels say now. Raises RedisError, OSError."""
        return await self.sentinel_manager.watched(self.service_name)


class Watched(NamedTuple):
    """What the Sentinels say now. replicas: those that they can reach."""

    master: Address
    replicas: int


class QuickSentinel(Sentinel):
    """Asks all Sentinels at the same time, so that one that is frozen costs nothing while another one answers."""

    async def discover_master(self, service_name: str) -> Address:
        """Return host and port of the master that the first one to answer names. Raises MasterNotFoundError."""
        master, _ = await self._first_state(service_name)
        return master

    async def watched(self, service_name: str) -> Watched:
        """Return the master and how many replicas it has. Raises MasterNotFoundError, RedisError, OSError."""
        master, sentinel = await self._first_state(service_name)
        driver = cast("Any", sentinel)  # partly typed
        replicas = await driver.sentinel_slaves(service_name)
        return Watched(master, len(cast("Any", self).filter_slaves(replicas)))

    async def _first_state(self, service_name: str) -> tuple[Address, Redis]:
        asking = [asyncio.create_task(self._ask(one, service_name)) for one in self.sentinels]
        reasons: list[str] = []
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    return await answer
                except (DriverConnectionError, DriverTimeoutError, OSError) as error:
                    reasons.append(str(error) or type(error).__name__)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        raise MasterNotFoundError(f"no Sentinel names a living master {service_name!r} ({'; '.join(reasons)})")

    async def _ask(self, sentinel: Redis, service_name: str) -> tuple[Address, Redis]:
        masters: Any = await sentinel.sentinel_masters()
        state = masters.get(service_name)
        if state is None:
            raise MasterNotFoundError("one does not know the name")
        if not cast("Any", self).check_master_state(state, service_name):
            raise MasterNotFoundError("one takes it for dead")
        return (state["ip"], state["port"]), sentinel


def sentinel_pool(servers: RedisServers, options: dict[str, Any]) -> BlockingSentinelPool:
    """Return a pool for the master, not connected. Raises TypeError, ValueError for options that nobody knows.

    options: of the pool and its connections, see `driver_options`; the limits for sockets are those of the Sentinels
    too. The pool's `sentinel_manager` is to be closed after the pool.
    """
    ours = ("socket_connect_timeout", "protocol", "driver_info", "retry")
    for_sentinels = {name: options[name] for name in ours if name in options}
    for_sentinels |= {name: value for name, value in options.items() if name.startswith("ssl_")}
    sentinel = QuickSentinel(
        list(servers.hosts),
        sentinel_kwargs=for_sentinels
        | {
            "ssl": servers.tls,
            "username": servers.sentinel_username,
            "password": servers.sentinel_password,
            # None: whoever waits has a time limit; with one here, the driver may not notice that it was cancelled.
            "socket_timeout": None,
        },
    )
    of_pool = {name: value for name, value in options.items() if name not in ("host", "port", "connection_class")}
    if servers.tls:
        of_pool["connection_class"] = SentinelManagedSSLConnection
    return BlockingSentinelPool(servers.master, sentinel, **of_pool)


def connection_options(connect_timeout_seconds: float) -> dict[str, Any]:
    """Return what all our connections have in common, as the driver names it."""
    return {
        # RESP2: with 3 the driver asks each new connection for notices that are of no use here.
        "protocol": 2,
        # Without this the driver looks its own version up on disk for each connection, on the event loop.
        "driver_info": None,
        "decode_responses": False,
        "socket_connect_timeout": connect_timeout_seconds,
        # One limit stands around each round trip; one for each read would bound none of them.
        "socket_timeout": None,
        # The tracker above decides whether and when to try again.
        "retry": Retry(NoBackoff(), 0),
    }


def driver_options(servers: RedisServers) -> dict[str, Any]:
    """Return credentials, database and options of a URL, as the driver names them. Raises ValueError."""
    host, port = servers.hosts[0]
    return dict(parse_url(servers.url_of(host, port)))
