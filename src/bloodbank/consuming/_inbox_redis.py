"""The inbox in Redis, which the processes of all machines share: one key an event and group, which expires by itself.

A key is `<prefix>:inbox:<group>:<id>`, the id as its 16 bytes, and lies by itself: nothing here needs two keys of one
slot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bloodbank.config import Settings, redact_url
from bloodbank.errors import ConfigurationError, NotOpen
from bloodbank.stores._redis_errors import DRIVER_ERRORS, store_error

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 4
"""Connections of one inbox: questions and notes, each one at a time, and one to spare for those that were given up."""


class RedisInbox:
    """An Inbox in Redis. Raises ConfigurationError when no Redis is set, or when REDIS_URL has an unknown option."""

    def __init__(self, settings: Settings) -> None:
        address = settings.redis_address()
        if address is None:
            raise ConfigurationError("No Redis is set. Set REDIS_URL or REDIS_HOST.")
        self._address = redact_url(address)
        self._prefix = f"{settings.redis_prefix}:inbox:".encode()
        self._keep_milliseconds = max(1, round(settings.inbox_days * 86_400_000))
        self._timeout_seconds = settings.query_timeout_seconds
        try:
            self._options: dict[str, Any] = {
                **parse_url(address),
                "protocol": 2,
                "driver_info": None,
                "decode_responses": False,
                "max_connections": MAX_CONNECTIONS,
                "timeout": self._timeout_seconds,
                "socket_connect_timeout": settings.connect_timeout_seconds,
                "socket_timeout": None,
                "retry": Retry(NoBackoff(), 0),
            }
            BlockingConnectionPool(**self._options).make_connection()
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"REDIS_URL: {error}. Correct it and start again.") from None
        self._client: Redis | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises StoreUnavailable."""
        self._client = Redis.from_pool(BlockingConnectionPool(**self._options))
        try:
            await self._send([("PING",)])
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            await client.aclose()
        except DRIVER_ERRORS:
            logger.debug("A connection to Redis did not close in order.", exc_info=True)

    async def seen(self, group: str, event_ids: Sequence[UUID]) -> set[UUID]:
        """Return those that the group has handled, in one round trip. Raises StoreUnavailable."""
        answers = await self._send([("EXISTS", self._key(group, event_id)) for event_id in event_ids])
        return {event_id for event_id, found in zip(event_ids, answers, strict=True) if found}

    async def mark(self, group: str, event_ids: Sequence[UUID]) -> None:
        """Note that the group has handled them, in one round trip. Raises StoreUnavailable."""
        keep = self._keep_milliseconds
        await self._send([("SET", self._key(group, event_id), b"", "PX", keep) for event_id in event_ids])

    def _key(self, group: str, event_id: UUID) -> bytes:
        return self._prefix + group.encode() + b":" + event_id.bytes

    async def _send(self, commands: Sequence[tuple[bytes | str | int, ...]]) -> list[Any]:
        if not commands:
            return []
        if self._client is None:
            raise NotOpen("The Redis inbox is not open. Use it within `async with inbox:`.")
        try:
            async with asyncio.timeout(self._timeout_seconds), self._client.pipeline(transaction=False) as pipeline:
                queue = cast("Any", pipeline).execute_command  # the driver leaves its type half open
                for command in commands:
                    queue(*command)
                return await pipeline.execute()
        except DRIVER_ERRORS as error:
            raise store_error(error, self._address) from error
