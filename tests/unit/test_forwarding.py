"""What the forwarder does with one event that a broker never confirms: a transport that holds back some of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from bloodbank import BloodbankError, Publisher, PublishRejected, PublishUnknown, Settings, Status, create_envelope
from bloodbank._sqlite import Database
from bloodbank.errors import TransportUnavailable
from bloodbank.outbox import Outbox
from bloodbank.transports.base import Message, Receipt
from bloodbank.transports.embedded import EmbeddedTransport

DEADLINE_SECONDS = 30.0


class Moody(EmbeddedTransport):
    """Answers each message as its type says: `no.confirm`, `no.room`; all of them `away` while that is set."""

    away = False
    first_is_lost = False
    checks = 0

    @property
    def features(self) -> object:
        return replace(super().features, detects_duplicates=False)

    async def check(self, *, timeout_seconds: float) -> None:
        self.checks += 1
        if self.away:
            raise TransportUnavailable("The broker is away.")

    async def publish(self, message: Message, *, timeout_seconds: float) -> Receipt:
        [outcome] = await self.publish_many([message], timeout_seconds=timeout_seconds)
        if isinstance(outcome, BloodbankError):
            raise outcome
        return outcome

    async def publish_many(
        self, messages: Sequence[Message], *, timeout_seconds: float
    ) -> list[Receipt | BloodbankError]:
        await asyncio.sleep(0)
        if self.away:
            return [TransportUnavailable("The broker is away.")] * len(messages)
        if self.first_is_lost:
            self.first_is_lost = False
            return [PublishUnknown("The connection was lost.", reason="lost")] * len(messages)
        stored = await super().publish_many(messages, timeout_seconds=timeout_seconds)
        wrong: dict[str, BloodbankError] = {
            "no.confirm": PublishUnknown("No confirm came.", reason="timed_out"),
            "no.room": PublishRejected("It is too large."),
        }
        return [wrong.get(message.routing_key, outcome) for message, outcome in zip(messages, stored, strict=True)]


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[Moody]:
    async with Moody(Database(tmp_path / "log.db"), retention_seconds=600, lease_seconds=5, poll_seconds=1) as opened:
        yield opened


@pytest.fixture
async def publisher(tmp_path: Path, transport: Moody) -> AsyncIterator[Publisher]:
    settings = Settings(_env_file=None, data_dir=tmp_path, publish_timeout_seconds=0.2)
    async with (
        Outbox(Database(tmp_path / "outbox.db"), limit_bytes=10_000_000) as outbox,
        Publisher(settings, transport=transport, outbox=outbox) as publisher,
    ):
        yield publisher


async def _are_logged(transport: Moody, ids: list[UUID]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not set(ids) <= {entry.message.event_id async for entry in transport.read_log()}:
            await asyncio.sleep(0.02)


async def test_one_event_that_gets_no_confirm_does_not_hold_up_the_others(
    publisher: Publisher, transport: Moody
) -> None:
    transport.away = True
    silent = await publisher.publish(create_envelope("no.confirm", {}))
    others = [(await publisher.publish(create_envelope("a.b", {"n": n}))).event_id for n in range(5)]
    assert silent.status is Status.QUEUED
    transport.away = False
    await _are_logged(transport, others)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await publisher.publish(create_envelope("a.b", {}))).status is not Status.PUBLISHED:
            await asyncio.sleep(0.02)
    assert publisher.outbox is not None
    [left] = await publisher.outbox.entries()
    assert left.event_id == silent.event_id, "it is never given up"


async def test_an_event_of_a_lost_connection_that_is_refused_then_may_be_stored(
    publisher: Publisher, transport: Moody
) -> None:
    transport.first_is_lost = True
    with pytest.raises(PublishUnknown, match="too large"):
        await publisher.publish(create_envelope("no.room", {}))


async def test_what_was_set_aside_and_is_published_again_is_sent_again(publisher: Publisher, transport: Moody) -> None:
    assert publisher.outbox is not None
    transport.away = True
    event = create_envelope("no.room", {})
    assert (await publisher.publish(event)).status is Status.QUEUED
    transport.away = False
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (await publisher.outbox.totals()).set_aside:
            await asyncio.sleep(0.02)
    transport.away = True
    assert (await publisher.publish(event)).status is Status.QUEUED
    assert (await publisher.outbox.totals()).set_aside == 0


async def test_while_the_broker_is_away_the_file_is_left_alone(
    publisher: Publisher, transport: Moody, tmp_path: Path
) -> None:
    """A claim takes room, and on a full disk that which is kept for emptying it."""

    async def checked_again() -> None:
        before = transport.checks
        async with asyncio.timeout(DEADLINE_SECONDS):
            while transport.checks == before:
                await asyncio.sleep(0.005)

    transport.away = True
    waiting = await publisher.publish(create_envelope("a.b", {}))
    assert waiting.status is Status.QUEUED
    async with Database(tmp_path / "outbox.db") as same_file:
        # The attempt that found the broker away has claimed the event; what it wrote is there before the next check.
        await checked_again()
        before = await same_file.change_count()
        await checked_again()
        await checked_again()
        assert await same_file.change_count() == before
    transport.away = False
    await _are_logged(transport, [waiting.event_id])
