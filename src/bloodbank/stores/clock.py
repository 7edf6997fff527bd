"""The clock of Redis, which leases and expiry go by."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from redis.asyncio import Redis

from bloodbank._redis_url import Servers, redis_servers
from bloodbank.stores._redis_errors import DRIVER_ERRORS
from bloodbank.stores._redis_sentinel import connection_options, driver_options, sentinel_pool


async def redis_time(address: str, connect_timeout_seconds: float) -> datetime:
    """Return the time of the server, of the master that Sentinels name, or of the first node that answers.

    Each attempt to connect is bounded, the whole is not. Raises RedisError, OSError, TypeError, ValueError.
    """
    servers = redis_servers(address)
    if servers is None:
        return await _time_of(Redis.from_url(address))  # pyright: ignore[reportUnknownMemberType], untyped options
    if servers.kind is Servers.SENTINEL:
        options = driver_options(servers) | connection_options(connect_timeout_seconds)
        pool = sentinel_pool(servers, {**options, "max_connections": 1, "timeout": connect_timeout_seconds})
        try:
            return await _time_of(Redis.from_pool(pool))
        finally:
            await pool.sentinel_manager.aclose()
    *others, last = servers.hosts
    for host, port in others:
        try:
            return await _time_of(Redis.from_url(servers.url_of(host, port)))  # pyright: ignore[reportUnknownMemberType]
        except DRIVER_ERRORS:
            continue  # The next one may answer; what the last one says is raised.
    return await _time_of(Redis.from_url(servers.url_of(*last)))  # pyright: ignore[reportUnknownMemberType]


async def _time_of(client: Redis) -> datetime:
    try:
        seconds, microseconds = await cast("Any", client).time()
    finally:
        await client.aclose()
    return datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)
