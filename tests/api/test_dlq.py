"""Dead letters, jobs and replay over HTTP: for administrators alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest

from bloodbank import create_envelope
from bloodbank.config import Scope
from bloodbank.transports.base import Failure, Message, Transport
from bloodbank.wiring import DATABASE_FILE
from tests.api.http_app import api, assert_problem, bus_of
from tests.conformance.backends import LockedFile
from tests.conformance.messages import FAILURE, ids, message, messages, set_aside, take, take_and_ack

KEYS = {
    "publish-key": frozenset({Scope.PUBLISH, Scope.READ}),
    "admin-key-1": frozenset({Scope.ADMIN}),
}
ADMIN = {"X-API-Key": "admin-key-1"}
ITEM = {
    "number", "group", "event_id", "event_type", "error", "reason", "traceback", "consumer", "attempts", "first_at",
    "dead_at",
}  # fmt: skip
DEADLINE_SECONDS = 60.0


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path, api_keys=KEYS) as connected:
        connected.headers.update(ADMIN)
        yield connected


@pytest.fixture
def transport(client: httpx.AsyncClient) -> Transport:
    return bus_of(client).publisher.transport


async def _get(client: httpx.AsyncClient, path: str, **parameters: Any) -> dict[str, Any]:
    response = await client.get(path, params=parameters)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def _ended(client: httpx.AsyncClient, begun: httpx.Response) -> dict[str, Any]:
    """Return the outcome of a job that an answer tells of."""
    assert begun.status_code == 202, begun.text
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not (job := await _get(client, f"/jobs/{begun.json()['job']}"))["finished"]:
            await asyncio.sleep(0.01)
    return job


async def test_only_administrators_get_to_dead_letters_jobs_and_replay(
    client: httpx.AsyncClient, transport: Transport
) -> None:
    await set_aside(transport, *messages(2))
    one, two = [item["number"] for item in (await _get(client, "/dlq"))["items"]]
    [group] = (await _get(client, "/dlq/groups"))["items"]
    routes = [
        ("GET", "/dlq"),
        ("GET", "/dlq/groups"),
        ("GET", f"/dlq/{one}"),
        ("POST", f"/dlq/{one}/retry"),
        ("DELETE", f"/dlq/{two}"),
        ("POST", f"/dlq/groups/{group['key']}/retry"),
        ("DELETE", f"/dlq/groups/{group['key']}"),
        ("GET", f"/jobs/{uuid4()}"),
        ("POST", "/replay"),
    ]
    for method, path in routes:
        refused = await client.request(method, path, headers={"X-API-Key": "publish-key"})
        assert "'admin'" in assert_problem(refused, 403, "insufficient_scope")["detail"]
    assert len((await _get(client, "/dlq"))["items"]) == 2


async def test_a_list_tells_all_but_the_bodies_and_one_tells_its_body_too(
    client: httpx.AsyncClient, transport: Transport
) -> None:
    poison = Message(uuid4(), "a.b", b"\xff" + b"x" * 20_000)
    await set_aside(transport, sent := message("invoice.paid", b'{"secret":1}'))
    await set_aside(transport, poison, group=None, failure=Failure("no JSON", "poison"))
    first, second = (await _get(client, "/dlq"))["items"]
    assert first.keys() == second.keys() == ITEM
    expected = {
        "group": "workers",
        "event_id": str(sent.event_id),
        "event_type": "invoice.paid",
        "error": "ValueError",
        "reason": FAILURE.reason,
        "traceback": FAILURE.traceback,
        "consumer": "billing.post",
        "attempts": 1,
    }
    assert first.items() >= expected.items()
    assert (second["group"], second["error"]) == (None, "poison")
    assert await _get(client, f"/dlq/{first['number']}") == first | {
        "body": '{"secret":1}',
        "body_cut": False,
        "body_bytes": 12,
    }
    shown = await _get(client, f"/dlq/{second['number']}")
    assert (shown["body"], shown["body_cut"], shown["body_bytes"]) == ("\ufffd" + "x" * 15_999, True, 20_001)


async def test_pages_follow_one_another_and_can_be_of_one_group(
    client: httpx.AsyncClient, transport: Transport
) -> None:
    await set_aside(transport, *messages(3))
    await set_aside(transport, message(), group="others")
    found: list[int] = []
    cursor: str | None = None
    while not found or cursor is not None:
        page = await _get(client, "/dlq", limit=2, **({"cursor": cursor} if cursor else {}))
        found += [item["number"] for item in page["items"]]
        cursor = page["next"]
    assert found == sorted(set(found))
    assert len(found) == 4
    workers, others = (await _get(client, "/dlq/groups"))["items"]
    assert (workers["count"], workers["group"], workers["error"]) == (3, "workers", "ValueError")
    assert workers["sample"].keys() == ITEM
    assert workers["last_at"] == workers["sample"]["dead_at"]
    assert [item["number"] for item in (await _get(client, "/dlq", group="workers"))["items"]] == found[:3]
    assert [item["number"] for item in (await _get(client, "/dlq", key=others["key"]))["items"]] == found[3:]
    for wrong in ({"cursor": "?"}, {"limit": 10_000}, {"limit": 0}):
        assert_problem(await client.get("/dlq", params=wrong), 400, "invalid_query")


async def test_one_is_given_back_with_its_parents_or_discarded(client: httpx.AsyncClient) -> None:
    bus = bus_of(client)
    transport = bus.publisher.transport
    parent = uuid4()
    event = create_envelope("invoice.paid", {"number": 7}, correlation_ids=[parent])
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await bus.publisher.publish(event)
        await (await take(deliveries, 1))[0].dead_letter(FAILURE)
        await set_aside(transport, message(), group="others")
        await take_and_ack(deliveries, 1)
        one, two = [item["number"] for item in (await _get(client, "/dlq"))["items"]]
        assert (await client.post(f"/dlq/{one}/retry")).json() == {"retried": 1}
        [again] = await take_and_ack(deliveries, 1)
        assert (again.event_id, again.correlation_id) == (event.event_id, parent)
    assert (await client.delete(f"/dlq/{two}")).json() == {"number": two, "discarded": True}
    for method, path in (("POST", "/{}/retry"), ("DELETE", "/{}"), ("GET", "/{}")):
        for number in (one, two, 2**53):
            response = await client.request(method, f"/dlq{path.format(number)}")
            assert_problem(response, 404, "dead_letter_not_found")
        assert_problem(await client.request(method, f"/dlq{path.format('x')}"), 400, "invalid_query")


async def test_what_belongs_to_no_group_cannot_be_given_back(client: httpx.AsyncClient, transport: Transport) -> None:
    await set_aside(transport, message(), group=None)
    [item] = (await _get(client, "/dlq"))["items"]
    refused = assert_problem(await client.post(f"/dlq/{item['number']}/retry"), 400, "invalid_query")
    assert "without a group" in refused["detail"]


async def test_a_group_is_given_back_or_discarded_by_a_job(client: httpx.AsyncClient, transport: Transport) -> None:
    sent = messages(450)
    await set_aside(transport, *sent)
    await set_aside(transport, message(), failure="because")
    kept, other = (await _get(client, "/dlq/groups"))["items"]
    begun = await client.post(f"/dlq/groups/{kept['key']}/retry")
    assert (begun.json()["total"], begun.json()["kind"]) == (450, "retry")
    job = await _ended(client, begun)
    assert job == begun.json() | {"done": 450, "finished": True}
    async with transport.subscribe("#", group="workers", prefetch=100) as deliveries:
        assert ids(await take_and_ack(deliveries, 450)) == ids(sent)
    assert (await _ended(client, await client.delete(f"/dlq/groups/{other['key']}")))["done"] == 1
    assert (await _get(client, "/dlq"))["items"] == []
    for key in (kept["key"], "0" * 12):
        assert_problem(await client.post(f"/dlq/groups/{key}/retry"), 404, "dead_letter_not_found")
        assert_problem(await client.delete(f"/dlq/groups/{key}"), 404, "dead_letter_not_found")
    assert_problem(await client.get(f"/jobs/{uuid4()}"), 404, "job_not_found")


async def test_a_job_whose_bus_goes_away_says_that_it_failed(
    client: httpx.AsyncClient, transport: Transport, tmp_path: Path
) -> None:
    await set_aside(transport, *messages(3))
    [group] = (await _get(client, "/dlq/groups"))["items"]
    lock = LockedFile(tmp_path)
    lock.path = tmp_path / DATABASE_FILE
    async with lock.outage():
        begun = await client.post(f"/dlq/groups/{group['key']}/retry")
        job = await _ended(client, begun)
    assert (job["total"], job["done"], job["failed"]) == (3, 0, 3)
    assert job["error"]["code"] == "transport_unavailable"
    assert DATABASE_FILE in job["error"]["detail"]
    again = await _ended(client, await client.post(f"/dlq/groups/{group['key']}/retry"))
    assert (again["done"], again["failed"], again["error"]) == (3, 0, None)


async def test_events_of_the_log_are_replayed_to_whom_one_says(client: httpx.AsyncClient, transport: Transport) -> None:
    publisher = bus_of(client).publisher
    cause = create_envelope("chain.step", {"n": 0})
    effect = create_envelope("chain.step", {"n": 1}, correlation_ids=[cause.event_id])
    for event in (cause, effect, create_envelope("other.thing", {})):
        await publisher.publish(event)
    async with (
        transport.subscribe("chain.*", group="rag", prefetch=20) as rag,
        transport.subscribe("other.*", group="others", prefetch=20) as others,
    ):
        counted = await _ended(client, await client.post("/replay", json={"type": "chain.*", "dry_run": True}))
        assert (counted["kind"], counted["total"], counted["done"]) == ("count", 2, 0)
        done = await _ended(client, await client.post("/replay", json={"to_all": True}))
        assert (done["kind"], done["total"], done["done"]) == ("replay", 3, 3)
        taken = await take(rag, 2)
        assert [delivery.replayed for delivery in taken] == [True, True]
        await take_and_ack(others, 1)
        one = {"event_id": str(cause.event_id), "to": "others"}
        assert (await _ended(client, await client.post("/replay", json=one)))["done"] == 1
        whole = one | {"descendants": True}
        assert (await _ended(client, await client.post("/replay", json=whole)))["done"] == 2
        assert ids(await take_and_ack(others, 3)) == [cause.event_id, cause.event_id, effect.event_id]


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({}, 400, "invalid_query", "who gets"),
        ({"to": "rag", "to_all": True}, 400, "invalid_query", "either"),
        ({"to_all": True, "descendants": True}, 400, "invalid_query", "event_id"),
        ({"to_all": True, "event_id": str(uuid4()), "type": "a.b"}, 400, "invalid_query", "either"),
        ({"to": "nobody"}, 400, "invalid_query", "no group 'nobody'"),
        ({"to_all": True, "since": "2026-01-01T00:00:00"}, 400, "invalid_query", "since"),
        ({"to_all": True, "type": ".."}, 400, "invalid_query", "pattern"),
        ({"to_all": True, "more": 1}, 400, "invalid_query", "more"),
        ({"to_all": True, "event_id": str(uuid4())}, 404, "event_not_found", ""),
        ([], 422, "invalid_event", "object"),
    ],
)
async def test_a_replay_that_cannot_be_is_refused_before_it_begins(
    client: httpx.AsyncClient, body: Any, status: int, code: str, said: str
) -> None:
    assert said in assert_problem(await client.post("/replay", json=body), status, code)["detail"]


async def test_a_replay_takes_json_alone_so_that_no_web_page_can_begin_one(client: httpx.AsyncClient) -> None:
    response = await client.post("/replay", content='{"to_all": true}', headers={"Content-Type": "text/plain"})
    assert_problem(response, 415, "unsupported_media_type")


async def test_the_server_waits_for_no_job_when_it_stops(tmp_path: Path) -> None:
    reached = anyio.Event()

    async def endless(report: Any) -> Any:
        reached.set()
        await anyio.sleep_forever()

    async with api(tmp_path, query_timeout_seconds=0.01) as client:
        job = await bus_of(client).jobs.begin("retry", endless)
        assert reached.is_set()
        assert (await _get(client, f"/jobs/{job.job_id}"))["total"] is None
    assert job.error is not None
    assert "server stopped" in str(job.error)
