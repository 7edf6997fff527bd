"""The index as version 2 kept it in Redis, written anew: text keys, a JSON value, a set for the children."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from redis.asyncio import Redis

from bloodbank.stores.base import Link

FORWARD = "bloodbank:correlation:forward:"
REVERSE = "bloodbank:correlation:reverse:"


async def record(client: Redis, links: Sequence[Link], ttl_seconds: int) -> None:
    """Write events with what they name and what names them, in one pipeline."""
    async with client.pipeline(transaction=False) as pipeline:
        for link in links:
            value = {
                "parent_event_ids": [str(parent) for parent in link.parents],
                "created_at": link.accepted_at.isoformat(),
                "metadata": {
                    "event_type": link.event_type,
                    "source": link.source,
                    "timestamp": link.timestamp.isoformat(),
                },
            }
            pipeline.setex(f"{FORWARD}{link.event_id}", ttl_seconds, json.dumps(value))
            for parent in link.parents:
                pipeline.sadd(f"{REVERSE}{parent}", str(link.event_id))
                pipeline.expire(f"{REVERSE}{parent}", ttl_seconds)
        await pipeline.execute()


async def ancestors_of_a_chain(client: Redis, event_id: UUID) -> int:
    """Ask for an event, then for its parent, and so on, a round trip a hop; return how many there were."""
    waiting, seen = [str(event_id)], 0
    while waiting:
        value = await client.get(FORWARD + waiting.pop())
        if value is not None:
            seen += 1
            waiting += json.loads(value)["parent_event_ids"]
    return seen
