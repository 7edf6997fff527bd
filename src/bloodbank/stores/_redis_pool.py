"""Connections to one Redis, or to the master that Sentinels name: from a URL to a pool, and its end."""

from __future__ import annotations

import logging
from typing import Any

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import parse_url

from bloodbank._redis_url import RedisServers
from bloodbank.errors import ConfigurationError
from bloodbank.stores._redis_errors import DRIVER_ERRORS
from bloodbank.stores._redis_sentinel import BlockingSentinelPool, connection_options, driver_options, sentinel_pool

logger = logging.getLogger(__name__)


class Pools:
    """Makes pools for one address, each with its own connections; none is connected.

    servers: the parts of the address where it names Sentinels. most: connections of a pool. timeout_seconds: longest
    wait for a free one.

    Raises ConfigurationError for an address with an option that nobody knows.
    """

    def __init__(
        self,
        address: str,
        servers: RedisServers | None,
        *,
        connect_timeout_seconds: float,
        timeout_seconds: float,
        most: int,
    ) -> None:
        self._servers = servers
        try:
            of_url = parse_url(address) if servers is None else driver_options(servers)
            own = {"max_connections": most, "timeout": timeout_seconds}
            self._options: dict[str, Any] = {**of_url, **connection_options(connect_timeout_seconds), **own}
            self.new().make_connection()
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"REDIS_URL: {error}. Correct it and start again.") from None

    def new(self) -> BlockingConnectionPool:
        """Return a pool."""
        if self._servers is None:
            return BlockingConnectionPool(**self._options)
        return sentinel_pool(self._servers, self._options)


async def close_pool(pool: BlockingConnectionPool) -> None:
    """Close all its connections, and those to Sentinels."""
    try:
        await pool.aclose()
        if isinstance(pool, BlockingSentinelPool):
            await pool.sentinel_manager.aclose()
    except DRIVER_ERRORS:
        logger.debug("A connection to Redis did not close in order.", exc_info=True)
