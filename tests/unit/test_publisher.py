"""The publisher over a transport that does not notice duplicates, as RabbitMQ's: then the index tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from bloodbank import BloodbankError, CorrelationTracker, Publisher, Settings, create_envelope
from bloodbank._sqlite import Database
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.transports.base import Message, Receipt
from bloodbank.transports.embedded import EmbeddedTransport


class Forgetful(EmbeddedTransport):
    """Takes every message, whatever came before, and keeps them in a list."""

    sent: list[Message]

    @property
    def features(self) -> object:
        return replace(super().features, detects_duplicates=False)

    async def publish(self, message: Message, *, timeout_seconds: float) -> Receipt:
        self.sent.append(message)
        await asyncio.sleep(0)
        return Receipt(message.event_id)

    async def publish_many(
        self, messages: Sequence[Message], *, timeout_seconds: float
    ) -> list[Receipt | BloodbankError]:
        return [await self.publish(message, timeout_seconds=timeout_seconds) for message in messages]


@pytest.fixture
def transport(tmp_path: Path) -> Forgetful:
    made = Forgetful(Database(tmp_path / "log.db"), retention_seconds=60, lease_seconds=1, poll_seconds=1)
    made.sent = []
    return made


@pytest.fixture
async def publisher(tmp_path: Path, transport: Forgetful) -> AsyncIterator[Publisher]:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    async with (
        CorrelationTracker(SqliteStore(Database(tmp_path / "index.db"))) as tracker,
        Publisher(settings, transport=transport, tracker=tracker) as publisher,
    ):
        yield publisher


def _said(answers: Sequence[object]) -> list[str]:
    return [answer.code if isinstance(answer, BloodbankError) else str(answer.status) for answer in answers]  # type: ignore[attr-defined]


async def test_an_id_that_is_published_several_times_at_once_is_sent_once(
    publisher: Publisher, transport: Forgetful
) -> None:
    same, other = uuid4(), uuid4()
    events = [create_envelope("a.b", {}, event_id=same) for _ in range(3)]
    events += [create_envelope("a.b", {"n": 1}, event_id=same), create_envelope("a.b", {}, event_id=other)]
    answers = await asyncio.gather(*map(publisher.publish, events), return_exceptions=True)
    assert sorted(_said(answers)) == ["duplicate", "duplicate", "event_conflict", "published", "published"]
    assert sorted(message.event_id for message in transport.sent) == sorted([same, other])


async def test_an_id_that_stands_in_a_batch_several_times_is_sent_once(
    publisher: Publisher, transport: Forgetful
) -> None:
    same = uuid4()
    events = [create_envelope("a.b", {"n": n}, event_id=same) for n in (0, 0, 1)]
    assert _said(await publisher.publish_many(events)) == ["published", "duplicate", "event_conflict"]
    assert _said(await publisher.publish_many(events[:1])) == ["duplicate"]
    assert len(transport.sent) == 1


async def test_an_envelope_that_is_published_again_is_a_duplicate_also_with_an_id_of_our_making(
    publisher: Publisher, transport: Forgetful
) -> None:
    first, second = create_envelope("a.b", {}), create_envelope("a.b", {})
    assert _said([await publisher.publish(first), await publisher.publish(first)]) == ["published", "duplicate"]
    assert _said(await publisher.publish_many([second])) == ["published"]
    assert _said(await publisher.publish_many([second])) == ["duplicate"]
    assert len(transport.sent) == 2
