"""`GET /stats`: counts, lag, outbox and dead letters, and what is said when something cannot be asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bloodbank import create_envelope
from bloodbank.errors import TransportUnavailable
from bloodbank.http import statistics
from bloodbank.http.feed import Feed
from bloodbank.http.shapes import Stats
from tests.api.http_app import api, app_of, bus_of
from tests.api.logs import Away
from tests.api.sse import DEADLINE_SECONDS, event_source
from tests.conformance.messages import messages, set_aside


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path) as client:
        yield client


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "FRESH_SECONDS", 0.0)


async def _stats(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/stats")
    assert response.status_code == 200, response.text
    Stats.model_validate(response.json())
    told: dict[str, Any] = response.json()
    return told


async def _send(client: httpx.AsyncClient, count: int, event_type: str = "call.recorded") -> None:
    await bus_of(client).publisher.publish_many([create_envelope(event_type, {}) for _ in range(count)])


async def _counted(client: httpx.AsyncClient, total: int) -> dict[str, Any]:
    """Ask until so many events were counted."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            told = await _stats(client)
            if sum(one["total"] for one in told["types"]) >= total:
                return told
            await asyncio.sleep(0)


async def test_a_bus_on_which_nothing_happened(client: httpx.AsyncClient) -> None:
    told = await _stats(client)
    assert (told["types"], told["groups"], told["dead_letters"], told["outbox"]) == ([], [], 0, None)
    assert told["per_second"] == [0] * 60
    assert told["events_per_second"] == {"last_second": 0.0, "last_minute": 0.0}
    assert told["trouble"] is told["dead_letters_detail"] is told["groups_detail"] is None


async def test_events_are_counted_by_type_and_second(client: httpx.AsyncClient) -> None:
    began = datetime.now(UTC)
    await _stats(client)
    await _send(client, 5)
    await _send(client, 2, "note.written")
    told = await _counted(client, 7)
    assert [(one["event_type"], one["last_minute"], one["total"]) for one in told["types"]] == [
        ("call.recorded", 5, 5),
        ("note.written", 2, 2),
    ]
    assert datetime.fromisoformat(told["types"][0]["last_seen"]) >= began - timedelta(milliseconds=1)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while sum((told := await _stats(client))["per_second"]) < 7:
            await asyncio.sleep(0.05)
    assert told["events_per_second"]["last_minute"] == pytest.approx(7 / 60)


async def test_what_happened_shortly_before_the_first_question_counts(client: httpx.AsyncClient) -> None:
    await _send(client, 3)
    told = await _stats(client)
    assert [(one["event_type"], one["total"]) for one in told["types"]] == [("call.recorded", 3)]
    assert datetime.fromisoformat(told["since"]) <= datetime.now(UTC) - timedelta(seconds=50)


async def test_a_stream_and_counts_share_one_reader(client: httpx.AsyncClient) -> None:
    async with event_source(app_of(client)) as source:
        await source.next_of("hello")
        await _send(client, 4)
        await source.ids(4)
        assert (await _stats(client))["types"][0]["total"] == 4
    # It goes on without listeners.
    await _send(client, 2)
    await _counted(client, 6)


async def test_groups_and_dead_letters_are_told(client: httpx.AsyncClient) -> None:
    transport = bus_of(client).publisher.transport
    await set_aside(transport, *messages(2, "shop.order"), group="billing")
    await _send(client, 3)
    told = await _stats(client)
    assert told["dead_letters"] == 2
    assert told["groups"] == [{"group": "billing", "patterns": ["#"], "waiting": 3, "more": False, "delivered": 0}]


async def test_what_cannot_be_asked_is_said_and_the_rest_is_told(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = bus_of(client).publisher.transport
    await _send(client, 3)
    await _stats(client)

    async def away() -> None:
        raise TransportUnavailable("The broker is on holiday.")

    async def slow() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(statistics, "TIMEOUT_SECONDS", 0.01)
    monkeypatch.setattr(transport, "groups", away)
    monkeypatch.setattr(transport, "dead_letter_count", slow)
    told = await _stats(client)
    assert (told["groups"], told["groups_detail"]) == ([], "The broker is on holiday.")
    assert told["dead_letters"] is None
    assert "No answer within 0.01 s" in told["dead_letters_detail"]
    assert told["types"][0]["total"] == 3


async def test_many_who_ask_at_once_cost_one_question(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = bus_of(client).publisher.transport
    asked = 0
    count = transport.dead_letter_count

    async def counted() -> int:
        nonlocal asked
        asked += 1
        return await count()

    monkeypatch.setattr(statistics, "FRESH_SECONDS", 60.0)
    monkeypatch.setattr(transport, "dead_letter_count", counted)
    await asyncio.gather(*(_stats(client) for _ in range(20)))
    assert asked == 1


async def test_what_was_published_while_the_log_could_not_be_read_is_not_taken_for_what_happens_now(
    client: httpx.AsyncClient,
) -> None:
    transport = bus_of(client).publisher.transport
    ahead = timedelta()
    async with Feed(transport, bus_of(client).settings, clock=lambda: datetime.now(UTC) + ahead) as feed:
        away = Away(client)
        await feed.start()
        away.is_away.set()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while feed.trouble is None:
                await asyncio.sleep(0)
        await _send(client, 25)
        ahead = timedelta(seconds=30)
        away.is_away.clear()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while feed.ring.head < 25:
                await asyncio.sleep(0)
        await _send(client, 1)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while feed.ring.head < 26:
                await asyncio.sleep(0)
        ahead += timedelta(seconds=1)
        counts = feed.rates.per_second()
    assert (sum(counts), sum(counts[-20:])) == (26, 1)
