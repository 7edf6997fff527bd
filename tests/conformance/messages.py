"""Messages to send, and waiting for them with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from hashlib import blake2b
from typing import TypeVar
from uuid import UUID

from bloodbank.errors import PublishUnknown, TransportUnavailable
from bloodbank.ids import new_event_id
from bloodbank.transports.base import DeadLetter, Delivery, Failure, LogEntry, Message, Receipt, Transport

T = TypeVar("T")

TIMEOUT_SECONDS = 10.0
DEADLINE_SECONDS = 45.0
FAILURE = Failure("the invoice has no number", "ValueError", "Traceback:\n  …\nValueError: \x00 é", "billing.post")


def message(key: str = "test.event", body: bytes = b"{}", *, event_id: UUID | None = None) -> Message:
    return Message(event_id or new_event_id(), key, body, digest=blake2b(body, digest_size=16).digest())


def messages(count: int, key: str = "test.event") -> list[Message]:
    return [message(key, f'{{"n":{number}}}'.encode()) for number in range(count)]


async def publish(transport: Transport, *several: Message) -> list[Receipt]:
    """Publish in order and return the receipts; fail for one that was refused."""
    outcomes = await transport.publish_many(several, timeout_seconds=TIMEOUT_SECONDS)
    for outcome in outcomes:
        assert isinstance(outcome, Receipt), outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Receipt)]


async def publish_patiently(transport: Transport, several: Message) -> Receipt:
    """Publish as an outbox would: again with the same id until it works or the deadline is over."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                return await transport.publish(several, timeout_seconds=TIMEOUT_SECONDS)
            except (TransportUnavailable, PublishUnknown):
                await asyncio.sleep(0.1)


async def soon(awaitable: Awaitable[T]) -> T:
    """Wait for something that must come before the deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await awaitable


async def take(deliveries: AsyncIterator[Delivery], count: int) -> list[Delivery]:
    """Return the next deliveries, unsettled."""
    return [await soon(anext(deliveries)) for _ in range(count)]


async def take_and_ack(deliveries: AsyncIterator[Delivery], count: int) -> list[Message]:
    """Return the next messages, each acknowledged before the next is taken."""
    taken: list[Message] = []
    for _ in range(count):
        delivery = await soon(anext(deliveries))
        taken.append(delivery.message)
        await delivery.ack()
    return taken


async def take_until(deliveries: AsyncIterator[Delivery], last: Message) -> list[Message]:
    """Return and acknowledge what comes, up to and without the message that is known to come last."""
    taken: list[Message] = []
    while (received := (await take_and_ack(deliveries, 1))[0]).event_id != last.event_id:
        taken.append(received)
    return taken


async def whole_log(transport: Transport) -> list[LogEntry]:
    async def read() -> list[LogEntry]:
        return [entry async for entry in transport.read_log()]

    return await soon(read())


async def listed(transport: Transport, group: str | None = None, after: int | None = None) -> list[DeadLetter]:
    async def read() -> list[DeadLetter]:
        return [letter async for letter in transport.dead_letters(group=group, after=after)]

    return await soon(read())


async def set_aside(
    transport: Transport, *several: Message, group: str | None = "workers", failure: Failure | str = FAILURE
) -> None:
    """Publish messages, which a consumer of the group sets aside."""
    async with transport.subscribe("#", group=group, prefetch=50) as deliveries:
        await publish(transport, *several)
        for _ in several:
            await (await soon(anext(deliveries))).dead_letter(failure)


def ids(several: list[Message] | list[Delivery] | list[LogEntry]) -> list[UUID]:
    return [(one if isinstance(one, Message) else one.message).event_id for one in several]
