"""The publisher on RabbitMQ, which knows no duplicates by itself: the index tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from bloodbank import (
    BloodbankError,
    EventConflict,
    Lineage,
    Publisher,
    Settings,
    Status,
    create_envelope,
    event_id,
)
from tests.servers.rabbit import RabbitServer

PROMPT = {"provider": "anthropic", "prompt": "What was decided?"}
OTHER = {**PROMPT, "prompt": "Something else."}

pytestmark = pytest.mark.rabbit


@pytest.fixture
def settings(rabbit_server: RabbitServer, tmp_path: Path) -> Settings:
    exchange = f"test.{uuid4().hex}.events.v1"
    return Settings(_env_file=None, rabbit_url=rabbit_server.url, exchange_name=exchange, data_dir=tmp_path)


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[Publisher]:
    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        yield publisher


async def positions_of(publisher: Publisher) -> list[str]:
    return [str(entry.message.event_id) async for entry in publisher.transport.read_log()]


async def test_the_same_event_again_is_a_duplicate_and_is_not_sent_again(publisher: Publisher) -> None:
    envelope = create_envelope("llm.prompt", PROMPT)
    first = await publisher.publish(envelope)
    second = await publisher.publish(envelope)
    assert (first.status, first.lineage) == (Status.PUBLISHED, Lineage.RECORDED)
    assert (second.status, second.lineage) == (Status.DUPLICATE, Lineage.RECORDED)
    assert await positions_of(publisher) == [str(envelope.event_id)]


async def test_an_id_with_another_body_is_a_conflict_and_the_first_stays(publisher: Publisher) -> None:
    fixed = event_id("llm.prompt", n=1)
    await publisher.publish(create_envelope("llm.prompt", PROMPT, event_id=fixed))
    with pytest.raises(EventConflict, match=str(fixed)):
        await publisher.publish(create_envelope("llm.prompt", OTHER, event_id=fixed))
    assert await positions_of(publisher) == [str(fixed)]


async def test_one_id_published_many_times_at_once_is_published_once(publisher: Publisher) -> None:
    fixed = event_id("llm.prompt", n=2)
    results = await asyncio.gather(
        *(publisher.publish(create_envelope("llm.prompt", PROMPT, event_id=fixed)) for _ in range(20))
    )
    statuses = [result.status for result in results]
    assert (statuses.count(Status.PUBLISHED), statuses.count(Status.DUPLICATE)) == (1, 19)
    assert await positions_of(publisher) == [str(fixed)]


async def test_a_caller_that_gives_up_lets_the_next_publish_of_its_id_go(publisher: Publisher) -> None:
    fixed = event_id("llm.prompt", n=3)
    first, second = (create_envelope("llm.prompt", PROMPT, event_id=fixed) for _ in range(2))
    waiting = asyncio.create_task(publisher.publish(first))
    await asyncio.sleep(0)
    waiting.cancel()
    result = await publisher.publish(second)
    assert result.status in (Status.PUBLISHED, Status.DUPLICATE)
    assert str(fixed) in await positions_of(publisher)


async def test_a_batch_answers_what_is_known_and_sends_the_rest(publisher: Publisher) -> None:
    known, taken, new = (event_id("llm.prompt", n=n) for n in (4, 5, 6))
    await publisher.publish(create_envelope("llm.prompt", PROMPT, event_id=known))
    await publisher.publish(create_envelope("llm.prompt", PROMPT, event_id=taken))
    answers = await publisher.publish_many(
        [
            create_envelope("llm.prompt", PROMPT, event_id=known),
            create_envelope("llm.prompt", OTHER, event_id=taken),
            create_envelope("llm.prompt", PROMPT, event_id=new),
            create_envelope("llm.prompt", PROMPT, event_id=new),
            create_envelope("llm.prompt", OTHER, event_id=new),
            create_envelope("llm.prompt", PROMPT),
        ]
    )
    kinds = [answer.code if isinstance(answer, BloodbankError) else str(answer.status) for answer in answers]
    assert kinds == ["duplicate", "event_conflict", "published", "duplicate", "event_conflict", "published"]
    assert len(await positions_of(publisher)) == 4


async def test_a_retry_from_another_process_is_found_by_the_index(publisher: Publisher, settings: Settings) -> None:
    fixed = event_id("llm.prompt", n=7)
    await publisher.publish(create_envelope("llm.prompt", PROMPT, event_id=fixed))
    async with Publisher(settings, enable_correlation_tracking=True) as another:
        result = await another.publish(create_envelope("llm.prompt", PROMPT, event_id=fixed))
    assert result.status is Status.DUPLICATE


async def test_without_tracking_an_id_is_sent_again(settings: Settings) -> None:
    fixed = event_id("llm.prompt", n=8)
    async with Publisher(settings) as publisher:
        for _ in range(2):
            result = await publisher.publish(create_envelope("llm.prompt", PROMPT, event_id=fixed))
            assert (result.status, result.lineage) == (Status.PUBLISHED, Lineage.DISABLED)
        assert await positions_of(publisher) == [str(fixed)] * 2
