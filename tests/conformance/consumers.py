"""What the tests of consumers share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from bloodbank import EventEnvelope, Publisher, create_envelope
from bloodbank.codec import decode
from bloodbank.transports.base import DeadLetter

PATIENCE_SECONDS = 60.0


class Order(BaseModel):
    """A payload whose type no registry knows."""

    number: int
    key: str = "a"


def order(number: int = 0, key: str = "a", **fields: Any) -> EventEnvelope[Any]:
    return create_envelope("shop.order.placed", {"number": number, "key": key}, **fields)


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def events_of(publisher: Publisher, event_type: str) -> list[EventEnvelope[Any]]:
    """Return what the log holds of a type, oldest first."""
    entries = [entry.message async for entry in publisher.transport.read_log()]
    return [decode(message.body) for message in entries if message.routing_key == event_type]


async def dead_letters(publisher: Publisher, group: str) -> list[DeadLetter]:
    return [letter async for letter in publisher.transport.dead_letters(group=group)]


async def eventually_dead(publisher: Publisher, group: str, count: int = 1) -> list[DeadLetter]:
    """Return the dead letters of a group when there are so many."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(found := await dead_letters(publisher, group)) < count:
            await asyncio.sleep(0.05)
    return found
