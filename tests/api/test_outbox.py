"""The outbox over HTTP: for administrators alone, and only what was set aside is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from bloodbank.config import Scope
from tests.api.http_app import api, assert_problem
from tests.servers.outbox import fill_outbox
from tests.servers.process import free_port

KEYS = {
    "publish-key": frozenset({Scope.PUBLISH, Scope.READ}),
    "admin-key-1": frozenset({Scope.ADMIN}),
}
ADMIN = {"X-API-Key": "admin-key-1"}


@pytest.fixture
async def ids(tmp_path: Path) -> list[UUID]:
    """Two that wait, two that were set aside."""
    return await fill_outbox(tmp_path, 2, {"big.one": "too large", "secret.one": "access refused"})


@pytest.fixture
async def client(tmp_path: Path, ids: list[UUID]) -> AsyncIterator[httpx.AsyncClient]:
    away = f"amqp://127.0.0.1:{free_port()}/"
    async with api(tmp_path, rabbit_url=away, api_keys=KEYS) as connected:
        yield connected


async def _listed(client: httpx.AsyncClient, **parameters: Any) -> dict[str, Any]:
    response = await client.get("/outbox", params=parameters, headers=ADMIN)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def _ids_in(page: dict[str, Any]) -> list[UUID]:
    return [UUID(item["event_id"]) for item in page["items"]]


async def test_only_administrators_get_to_the_outbox(client: httpx.AsyncClient, ids: list[UUID]) -> None:
    routes = [("GET", "/outbox"), ("POST", f"/outbox/{ids[2]}/retry"), ("DELETE", f"/outbox/{ids[3]}")]
    for method, path in [*routes, ("POST", "/outbox/retry")]:
        refused = await client.request(method, path, headers={"X-API-Key": "publish-key"})
        assert "'admin'" in assert_problem(refused, 403, "insufficient_scope")["detail"]
    assert (await _listed(client))["totals"]["set_aside"] == 2
    for method, path in routes:
        assert (await client.request(method, path, headers=ADMIN)).status_code == 200


async def test_a_page_has_what_waits_and_what_was_set_aside_with_the_reason(
    client: httpx.AsyncClient, ids: list[UUID]
) -> None:
    page = await _listed(client)
    assert _ids_in(page) == ids
    assert [(item["set_aside"], item["reason"]) for item in page["items"]] == [
        (False, None),
        (False, None),
        (True, "too large"),
        (True, "access refused"),
    ]
    assert page["totals"]["waiting_bytes"] == sum(item["size_bytes"] for item in page["items"][:2])
    assert (page["on"], page["totals"]["waiting"], page["totals"]["set_aside"], page["next"]) == (True, 2, 2, None)
    assert page["totals"]["oldest_accepted_at"] == page["items"][0]["accepted_at"]
    assert _ids_in(await _listed(client, set_aside=True)) == ids[2:]
    assert _ids_in(await _listed(client, set_aside=False)) == ids[:2]


async def test_pages_follow_one_another(client: httpx.AsyncClient, ids: list[UUID]) -> None:
    found: list[UUID] = []
    cursor: str | None = None
    for _ in range(4):
        page = await _listed(client, limit=1, **({"cursor": cursor} if cursor else {}))
        found += _ids_in(page)
        cursor = page["next"]
    assert (found, cursor) == (ids, None)
    broken = await client.get("/outbox", params={"cursor": "?"}, headers=ADMIN)
    assert_problem(broken, 400, "invalid_query")
    assert_problem(await client.get("/outbox", params={"limit": 10_000}, headers=ADMIN), 400, "invalid_query")


async def test_what_was_set_aside_waits_again(client: httpx.AsyncClient, ids: list[UUID]) -> None:
    one = await client.post(f"/outbox/{ids[3]}/retry", headers=ADMIN)
    assert one.json() == {"retried": 1}
    assert _ids_in(await _listed(client, set_aside=False)) == [*ids[:2], ids[3]]
    others = await client.post("/outbox/retry", headers=ADMIN)
    assert others.json() == {"retried": 1}
    assert (await client.post("/outbox/retry", headers=ADMIN)).json() == {"retried": 0}
    assert _ids_in(await _listed(client, set_aside=False)) == ids


async def test_what_was_set_aside_can_be_deleted_and_what_waits_cannot(
    client: httpx.AsyncClient, ids: list[UUID]
) -> None:
    assert (await client.delete(f"/outbox/{ids[2]}", headers=ADMIN)).json() == {
        "event_id": str(ids[2]),
        "dropped": True,
    }
    for event_id in (ids[0], ids[2], uuid4()):
        assert_problem(await client.delete(f"/outbox/{event_id}", headers=ADMIN), 404, "event_not_found")
        assert_problem(await client.post(f"/outbox/{event_id}/retry", headers=ADMIN), 404, "event_not_found")
    assert _ids_in(await _listed(client)) == [*ids[:2], ids[3]]


async def test_where_there_is_no_outbox_the_answers_say_so(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        page = (await client.get("/outbox")).json()
        assert (page["on"], page["items"], page["next"]) == (False, [], None)
        assert (await client.post("/outbox/retry")).json() == {"retried": 0}
        assert_problem(await client.post(f"/outbox/{uuid4()}/retry"), 404, "event_not_found")
        assert_problem(await client.delete(f"/outbox/{uuid4()}"), 404, "event_not_found")
