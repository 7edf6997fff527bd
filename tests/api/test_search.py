"""Searching in the log over HTTP, by the beginning of an id, by source and by text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from bloodbank import event_log
from bloodbank.transports.base import LogEntry
from tests.api.http_app import api, assert_problem

SEARCH_LIMIT = 150


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("search")
    async with api(folder, page_limit=10, search_limit_events=SEARCH_LIMIT) as client:
        yield client


async def _publish(client: httpx.AsyncClient, event_type: str, app: str | None = None, **payload: Any) -> str:
    body: dict[str, Any] = {"event_type": event_type, "payload": payload}
    if app:
        body["source"] = {"host": "desk", "type": "agent", "app": app}
    event_id: str = (await client.post("/events", json=body)).json()["event_id"]
    return event_id


async def _search(client: httpx.AsyncClient, **params: str) -> tuple[list[str], dict[str, Any]]:
    answer = (await client.get("/events", params=params)).json()
    return [item["event_id"] for item in answer["items"]], answer


async def test_text_source_and_id_are_found_whatever_the_case(client: httpx.AsyncClient) -> None:
    first = await _publish(client, "find.one", "Billing", note="Invoice \u00c9tude 7")
    second = await _publish(client, "find.two", "billing", inner={"list": ["an INVOICE"]})
    assert (await _search(client, text="invoice"))[0] == [second, first]
    assert (await _search(client, text="\u00e9tude"))[0] == [first]
    assert (await _search(client, source="BILLING"))[0] == [second, first]
    assert (await _search(client, source="desk", type="find.two"))[0] == [second]
    assert (await _search(client, source="bill"))[0] == []
    assert (await _search(client, id_prefix=first.upper()))[0] == [first]
    assert second in (await _search(client, id_prefix=second[:10]))[0]
    assert (await _search(client, text="invoice", source="billing", id_prefix=second))[0] == [second]
    assert (await _search(client, text="invoice", until="2001-01-01T00:00:00Z"))[0] == []


async def test_a_search_says_how_far_it_looked_and_goes_on_with_its_cursor(client: httpx.AsyncClient) -> None:
    oldest = await _publish(client, "far.away", note="needle in the log")
    for _ in range(4):
        batch = [{"event_type": "far.hay", "payload": {"number": number}} for number in range(50)]
        assert (await client.post("/events/batch", json=batch)).status_code == 200
    ids, answer = await _search(client, text="needle")
    assert (ids, answer["searched"]) == ([], SEARCH_LIMIT)
    ids, answer = await _search(client, text="needle", cursor=answer["next"])
    assert ids == [oldest]
    assert answer["searched"] <= SEARCH_LIMIT
    while answer["next"] is not None:
        ids, answer = await _search(client, text="needle", cursor=answer["next"])
        assert ids == []


async def test_a_full_page_counts_what_was_looked_at(client: httpx.AsyncClient) -> None:
    ids = [await _publish(client, "count.one", note="counted here") for _ in range(3)]
    await _publish(client, "count.other")
    found, answer = await _search(client, text="counted here", limit="2")
    assert (found, answer["searched"]) == (ids[:0:-1], 3)
    found, answer = await _search(client, text="counted here", limit="1", cursor=answer["next"])
    assert (found, answer["searched"]) == (ids[:1], 1)


async def test_a_list_that_is_no_search_says_nothing_of_one(client: httpx.AsyncClient) -> None:
    await _publish(client, "a.b")
    assert (await client.get("/events", params={"limit": 1})).json().keys() == {"items", "next"}


@pytest.mark.parametrize(
    ("params", "about"),
    [
        ({"id_prefix": "019"}, "id_prefix"),
        ({"id_prefix": ""}, "id_prefix"),
        ({"id_prefix": "xyz0"}, "digits"),
        ({"id_prefix": "0" * 65}, "id_prefix"),
        ({"text": "a"}, "text"),
        ({"text": ""}, "text"),
        ({"text": "a" * 256}, "text"),
        ({"source": ""}, "source"),
        ({"source": "a" * 256}, "source"),
    ],
)
async def test_a_search_that_cannot_be_made_is_400(
    client: httpx.AsyncClient, params: dict[str, str], about: str
) -> None:
    response = await client.get("/events", params=params)
    assert about in assert_problem(response, 400, "invalid_query")["detail"]


async def test_large_events_are_looked_through_a_few_at_a_time_and_all_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "LARGEST_WINDOW_BYTES", 50_000)
    held: list[int] = []
    look = event_log._look  # pyright: ignore[reportPrivateUsage]

    def looking(entries: Sequence[LogEntry], *others: Any) -> Any:
        held.append(sum(len(entry.message.body) for entry in entries))
        return look(entries, *others)

    monkeypatch.setattr(event_log, "_look", looking)
    async with api(tmp_path) as client:
        events = [{"event_type": "call.recorded", "payload": {"text": "x" * 9_000, "n": f"<{n}>"}} for n in range(60)]
        await client.post("/events/batch", json=events)
        for query in ("text=<0>", "type=call.recorded&text=<0>"):
            answer = (await client.get(f"/events?{query}")).json()
            assert (len(answer["items"]), answer["searched"]) == (1, 60)
        assert len((await client.get("/events?limit=60")).json()["items"]) == 60
    assert max(held) <= 50_000
