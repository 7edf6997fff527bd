"""A publishing process: `python -m tests.chaos.load NAME FOLDER SEED RATE [URL]`, through the SDK or over HTTP.

It publishes until the file `stop` is there, goes on until everything it tried is answered, writes `settled`, and
stays, for what waits in its outbox, until the file `finish` is there.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import wraps
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import httpx

from bloodbank import Publisher, create_envelope
from bloodbank.errors import BloodbankError
from bloodbank.publisher import PublishResult
from bloodbank.transports.rabbit import RabbitTransport
from tests.chaos.author import Author
from tests.chaos.ledger import Event

SLOTS = 12
"""Batches and bursts in flight."""
SETTLE_SECONDS = 60.0
TICK_SECONDS, LATE_SECONDS = 0.02, 0.05
REQUEST_SECONDS = 20.0

Answer = tuple[bool, Sequence[Any]]


class Sender(Protocol):
    """What carries events to the bus."""

    async def one(self, event: Event) -> Answer: ...

    async def many(self, events: Sequence[Event]) -> list[Answer]: ...

    async def unjournalled(self) -> int:
        """Return how many events the index lacks that no journal has: it is to be rebuilt, and says so."""
        ...


class Lateness:
    """Seconds that the event loop lost because the machine was busy: what no timeout of the code can help."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def watch(self) -> None:
        while True:
            due = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            late = time.monotonic() - due
            if late > LATE_SECONDS:
                self.seconds += late


class Confirms:
    """How long single publishes waited for the broker, measured around the transport's own method."""

    def __init__(self) -> None:
        self._seconds: dict[UUID, float] = {}
        publish = RabbitTransport.publish

        @wraps(publish)
        async def timed(transport: RabbitTransport, message: Any, *, timeout_seconds: float) -> Any:
            began = time.monotonic()
            try:
                return await publish(transport, message, timeout_seconds=timeout_seconds)
            finally:
                spent = time.monotonic() - began
                self._seconds[message.event_id] = self._seconds.get(message.event_id, 0.0) + spent

        RabbitTransport.publish = timed

    def take(self, event_id: UUID) -> float:
        return self._seconds.pop(event_id, 0.0)


class SdkSender:
    """Publishes through `Publisher`."""

    def __init__(self, publisher: Publisher, author: Author, lateness: Lateness) -> None:
        self._publisher = publisher
        self._author = author
        self._lateness = lateness
        self._confirms = Confirms()

    async def one(self, event: Event) -> Answer:
        began, late = time.monotonic(), self._lateness.seconds
        try:
            outcome: PublishResult | BloodbankError = await self._publisher.publish(_envelope(event))
        except BloodbankError as error:
            outcome = error
        waited = time.monotonic() - began
        confirming = self._confirms.take(event.event_id)
        self._author.write("wait", began, waited, confirming, self._lateness.seconds - late)
        return _answer(outcome)

    async def many(self, events: Sequence[Event]) -> list[Answer]:
        outcomes = await self._publisher.publish_many([_envelope(event) for event in events])
        return [_answer(outcome) for outcome in outcomes]

    async def unjournalled(self) -> int:
        return self._publisher.tracker.unjournalled_total


class HttpSender:
    """Publishes over HTTP, as a client that knows nothing of the SDK."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def one(self, event: Event) -> Answer:
        try:
            answer = await self._client.post("/events", json=_fields(event))
        except httpx.HTTPError:
            return False, ("connection_lost",)
        return _accepted(answer.json()) if answer.is_success else (False, (_code(answer),))

    async def many(self, events: Sequence[Event]) -> list[Answer]:
        try:
            answer = await self._client.post("/events/batch", json=[_fields(event) for event in events])
        except httpx.HTTPError:
            return [(False, ("connection_lost",))] * len(events)
        if not answer.is_success:
            return [(False, (_code(answer),))] * len(events)
        return [
            (False, (result["problem"]["code"],)) if "problem" in result else _accepted(result)
            for result in answer.json()["results"]
        ]

    async def unjournalled(self) -> int:
        return int((await self._client.get("/readyz")).json()["store"]["unjournalled_total"])


class Load:
    """Sends what the author makes, at a steady rate, many at a time."""

    def __init__(self, author: Author, sender: Sender, folder: Path, rate: float) -> None:
        self._author = author
        self._sender = sender
        self._folder = folder
        self._rate = rate

    async def run(self) -> None:
        slots = asyncio.Semaphore(SLOTS)
        turn = 0
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not self._told("stop"):
                await slots.acquire()
                turn += 1
                count = (40, 160, 1, 80)[turn % 4]
                if (shared := self._author.next_shared()) is not None:
                    group.create_task(self._send([shared], None, one_by_one=True))
                events = _once(self._author.next_events(count))
                group.create_task(self._send(events, slots, one_by_one=turn % 4 == 0))
                due = max(due + len(events) / self._rate, time.monotonic() - 0.5)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
        await self._answer_all()
        self._author.write("unjournalled", await self._sender.unjournalled())
        self._author.write("settled", len(self._author.unanswered))
        while not self._told("finish"):
            await asyncio.sleep(0.1)

    async def _answer_all(self) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._author.unanswered and time.monotonic() < deadline:
            if events := _once(self._author.next_again(200)):
                await self._send(events, None, one_by_one=False)
            else:
                await asyncio.sleep(0.05)

    async def _send(self, events: Sequence[Event], slots: asyncio.Semaphore | None, *, one_by_one: bool) -> None:
        try:
            if one_by_one:
                await asyncio.gather(*[self._send_one(event) for event in events])
            elif events:
                self._author.settle(events, await self._sender.many(events))
        finally:
            if slots is not None:
                slots.release()

    async def _send_one(self, event: Event) -> None:
        self._author.settle([event], [await self._sender.one(event)])

    def _told(self, word: str) -> bool:
        return (self._folder / word).exists()


def _once(events: Sequence[Event]) -> list[Event]:
    return list({event.event_id: event for event in events}.values())


def _envelope(event: Event) -> Any:
    return event.made or create_envelope(
        event.event_type, event.payload, correlation_ids=event.parents, event_id=event.event_id
    )


def _fields(event: Event) -> dict[str, Any]:
    return {
        "event_id": str(event.event_id),
        "event_type": event.event_type,
        "correlation_ids": [str(parent) for parent in event.parents],
        "payload": event.payload,
    }


def _answer(outcome: PublishResult | BloodbankError) -> Answer:
    if isinstance(outcome, PublishResult):
        return True, (outcome.status.value, outcome.lineage.value)
    return False, (outcome.code,)


def _accepted(result: dict[str, Any]) -> Answer:
    return True, (result["status"], result["lineage"])


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError):
        return f"http_{answer.status_code}"


async def _main(name: str, folder: Path, seed: int, rate: float, url: str | None) -> None:
    author = Author(name, folder, seed)
    async with AsyncExitStack() as stack:
        lateness = Lateness()
        watching = asyncio.create_task(lateness.watch())
        stack.callback(watching.cancel)
        sender: Sender
        if url is None:
            publisher = await stack.enter_async_context(Publisher(enable_correlation_tracking=True))
            sender = SdkSender(publisher, author, lateness)
        else:
            limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
            client = httpx.AsyncClient(base_url=url, timeout=REQUEST_SECONDS, limits=limits)
            sender = HttpSender(await stack.enter_async_context(client))
        author.write("ready")
        await Load(author, sender, folder, rate).run()
    author.write("end")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(
        _main(
            sys.argv[1],
            Path(sys.argv[2]),
            int(sys.argv[3]),
            float(sys.argv[4]),
            sys.argv[5] if len(sys.argv) > 5 else None,
        )
    )
