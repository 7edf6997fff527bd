"""Reading over HTTP: events, lists, lineage, the debug endpoints, schemas and health."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from bloodbank import CorrelationTracker, Publisher
from bloodbank._sqlite import Database
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.transports import _embedded_log
from bloodbank.transports.base import Message
from tests.api.http_app import PROMPT, api, assert_problem, bus_of, publishing_with
from tests.unit.faulty_store import FaultyStore


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    limits = {"page_limit": 10, "lineage_depth_limit": 20, "lineage_node_limit": 30}
    async with api(tmp_path_factory.mktemp("read"), service_name="notes", environment="test", **limits) as client:
        yield client


async def _publish(client: httpx.AsyncClient, event_type: str, parents: Sequence[str] = ()) -> str:
    body = {"event_type": event_type, "payload": {}, "correlation_ids": list(parents)}
    event_id: str = (await client.post("/events", json=body)).json()["event_id"]
    return event_id


@asynccontextmanager
async def _store_away(client: httpx.AsyncClient, tmp_path: Any) -> AsyncIterator[None]:
    bus = bus_of(client)
    store = FaultyStore(SqliteStore(Database(tmp_path / "other.db")), "down")
    async with (
        CorrelationTracker(store) as tracker,
        Publisher(bus.settings, transport=bus.publisher.transport, tracker=tracker) as publisher,
        publishing_with(client, publisher),
    ):
        yield


async def test_an_event_is_read_by_its_id(client: httpx.AsyncClient) -> None:
    event_id = await _publish(client, "a.read")
    found = (await client.get(f"/events/{event_id}")).json()
    assert (found["event_id"], found["event_type"], found["version"]) == (event_id, "a.read", "2.0.0")


async def test_the_list_is_newest_first_and_goes_on_with_the_cursor(client: httpx.AsyncClient) -> None:
    ids = [await _publish(client, "list.paged") for _ in range(5)]
    first = (await client.get("/events", params={"type": "list.*", "limit": 3})).json()
    assert [item["event_id"] for item in first["items"]] == ids[:1:-1]
    params = {"type": "list.*", "limit": 3, "cursor": first["next"]}
    second = (await client.get("/events", params=params)).json()
    assert [item["event_id"] for item in second["items"]] == ids[1::-1]
    while second["next"] is not None:
        second = (await client.get("/events", params={"type": "list.*", "cursor": second["next"]})).json()
        assert second["items"] == []


async def test_the_list_is_cut_by_time(client: httpx.AsyncClient) -> None:
    await _publish(client, "time.cut")
    for params in ({"since": "2999-01-01T00:00:00Z"}, {"until": "2001-01-01T00:00:00+00:00"}):
        assert (await client.get("/events", params={"type": "time.*", **params})).json()["items"] == []
    params = {"type": "time.*", "since": "2001-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z"}
    assert len((await client.get("/events", params=params)).json()["items"]) == 1


async def test_a_wrong_clock_does_not_cut_the_list_off(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[str] = []
    for number in range(6):
        with monkeypatch.context() as clock:
            if number == 3:
                clock.setattr(_embedded_log, "now_microseconds", lambda: 0)
            answer = await client.post("/events", json={"event_type": "clock.wrong", "payload": {"number": number}})
        published.append(answer.json()["event_id"])
    listed = (await client.get("/events", params={"type": "clock.*", "since": "2020-01-01T00:00:00Z"})).json()
    assert [item["event_id"] for item in listed["items"]] == [published[n] for n in (5, 4, 2, 1, 0)]
    assert listed["next"] is None


@pytest.mark.parametrize(
    ("params", "about"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "11"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": "9" * 3000}, "limit"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-08-04T15:04:05"}, "since"),
        ({"type": "a..b"}, "pattern"),
        ({"type": ""}, "pattern"),
        ({"type": "a\x00b"}, "pattern"),
        ({"type": "a" * 256}, "type"),
        ({"cursor": "!"}, "cursor"),
        ({"cursor": "\xe9"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": base64.b64encode(b"-5").decode()}, "cursor"),
        ({"cursor": base64.b64encode(b"9" * 20).decode()}, "cursor"),
        ({"cursor": "a" * 33}, "cursor"),
    ],
)
async def test_a_list_that_cannot_be_made_is_400(client: httpx.AsyncClient, params: dict[str, str], about: str) -> None:
    response = await client.get("/events", params=params)
    assert about in assert_problem(response, 400, "invalid_query")["detail"]


async def test_a_cursor_beyond_the_end_of_the_log_ends_the_list(client: httpx.AsyncClient) -> None:
    await _publish(client, "a.read")
    cursor = base64.b64encode(str(2**53).encode()).decode()
    assert (await client.get("/events", params={"cursor": cursor})).status_code == 200


READING = ("/events/{}", "/events/{}/lineage", "/debug/correlation/{}", "/debug/correlation/{}/chain")


@pytest.mark.parametrize("path", READING)
async def test_an_id_that_is_no_uuid_is_400_and_an_unknown_one_404(client: httpx.AsyncClient, path: str) -> None:
    problem = assert_problem(await client.get(path.format("seven")), 400, "invalid_query")
    assert problem["errors"][0]["path"] == "path.event_id"
    assert_problem(await client.get(path.format(uuid4())), 404, "event_not_found")


async def test_lineage_tells_the_graph_around_an_event(client: httpx.AsyncClient) -> None:
    missing = str(uuid4())
    root = await _publish(client, "graph.root")
    left, right = [await _publish(client, "graph.side", [root, *more]) for more in ((), (missing,))]
    focus = await _publish(client, "graph.joined", [left, right])
    failed = await _publish(client, "graph.failed", [focus])
    answer = (await client.get(f"/events/{focus}/lineage")).json()
    assert (answer["focus"], answer["direction"], answer["cycle"]) == (focus, "both", False)
    assert (answer["roots"], answer["missing"]) == ([root], [missing])
    depths = {node["id"]: node["depth"] for node in answer["nodes"]}
    assert depths == {root: -2, missing: -2, left: -1, right: -1, focus: 0, failed: 1}
    assert answer["truncated"] == {"depth": False, "limit": False, "frontier": []}
    edges = {(edge["parent"], edge["child"]) for edge in answer["edges"]}
    assert edges == {(root, left), (root, right), (missing, right), (left, focus), (right, focus), (focus, failed)}


async def test_a_node_says_what_is_known_of_it(client: httpx.AsyncClient) -> None:
    missing = str(uuid4())
    focus = await _publish(client, "node.failed", [missing])
    nodes = {node["id"]: node for node in (await client.get(f"/events/{focus}/lineage")).json()["nodes"]}
    assert nodes[focus].pop("timestamp")
    assert nodes[focus] == {
        "id": focus,
        "depth": 0,
        "event_type": "node.failed",
        "source": "http-api",
        "status": "failed",
        "known": True,
        "parents_total": 1,
        "children_total": 0,
    }
    assert nodes[missing] == {
        "id": missing,
        "depth": -1,
        "event_type": None,
        "timestamp": None,
        "source": None,
        "status": None,
        "known": False,
        "parents_total": 0,
        "children_total": 1,
    }


async def test_lineage_is_bounded_and_says_where_to_go_on(client: httpx.AsyncClient) -> None:
    root = await _publish(client, "deep.root")
    child = await _publish(client, "deep.child", [root])
    await _publish(client, "deep.grandchild", [child])
    path = f"/events/{root}/lineage"
    shallow = (await client.get(path, params={"direction": "descendants", "max_depth": 1})).json()
    assert shallow["truncated"] == {"depth": True, "limit": False, "frontier": [child]}
    small = (await client.get(path, params={"direction": "descendants", "limit": 1})).json()
    assert small["truncated"] == {"depth": False, "limit": True, "frontier": [root]}


@pytest.mark.parametrize("path", ["/events/{}/lineage", "/debug/correlation/{}/chain"])
@pytest.mark.parametrize(
    "params",
    [{"max_depth": 0}, {"max_depth": 21}, {"limit": 0}, {"limit": 31}, {"direction": "up"}, {"max_depth": "x"}],
)
async def test_a_question_out_of_bounds_is_400(client: httpx.AsyncClient, path: str, params: dict[str, Any]) -> None:
    event_id = await _publish(client, "a.read")
    assert_problem(await client.get(path.format(event_id), params=params), 400, "invalid_query")


async def test_the_debug_endpoints_tell_all_around_an_event(client: httpx.AsyncClient) -> None:
    root = await _publish(client, "debug.root")
    parent = await _publish(client, "debug.parent", [root])
    focus = await _publish(client, "debug.focus", [parent])
    child = await _publish(client, "debug.child", [focus])
    answer = (await client.get(f"/debug/correlation/{focus}")).json()
    assert answer["metadata"].pop("timestamp")
    assert answer == {
        "event_id": focus,
        "parents": [parent],
        "children": [child],
        "ancestors": [root, parent],
        "descendants": [child],
        "metadata": {
            "known": True,
            "event_type": "debug.focus",
            "source": "http-api",
            "children_total": 1,
            "truncated": False,
        },
    }
    up = {"event_id": focus, "direction": "ancestors", "chain": [root, parent, focus], "count": 3, "truncated": False}
    assert (await client.get(f"/debug/correlation/{focus}/chain")).json() == up
    params = {"direction": "descendants", "limit": 1}
    down = {"event_id": focus, "direction": "descendants", "chain": [focus], "count": 1, "truncated": True}
    assert (await client.get(f"/debug/correlation/{focus}/chain", params=params)).json() == down


async def test_both_is_no_direction_of_a_chain(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/debug/correlation/{uuid4()}/chain", params={"direction": "both"})
    assert_problem(response, 400, "invalid_query")


async def test_a_root_is_an_answer_and_not_a_failure(client: httpx.AsyncClient) -> None:
    root = await _publish(client, "a.root")
    assert (await client.get(f"/debug/correlation/{root}")).json()["parents"] == []
    assert (await client.get(f"/debug/correlation/{root}/chain")).json()["chain"] == [root]
    assert (await client.get(f"/events/{root}/lineage")).json()["roots"] == [root]


async def test_without_tracking_events_are_kept_and_lineage_is_503(tmp_path: Any) -> None:
    async with api(tmp_path, correlation_tracking=False) as client:
        published = await client.post("/events/llm/prompt", json=PROMPT)
        event_id = published.json()["event_id"]
        assert (published.status_code, published.json()["lineage"]) == (201, "disabled")
        assert (await client.get(f"/events/{event_id}")).status_code == 200
        for path in READING[1:]:
            response = await client.get(path.format(event_id))
            assert_problem(response, 503, "tracking_disabled")
            assert int(response.headers["retry-after"]) >= 1
        ready = (await client.get("/readyz")).json()
    assert (ready["degraded"], ready["store"]["ok"], ready["store"]["what"]) == (False, True, "off")


async def test_a_store_that_is_away_defers_lineage_and_its_questions(client: httpx.AsyncClient, tmp_path: Any) -> None:
    async with _store_away(client, tmp_path):
        published = await client.post("/events/llm/prompt", json=PROMPT)
        assert (published.status_code, published.json()["lineage"]) == (201, "deferred")
        for path in READING[1:]:
            response = await client.get(path.format(published.json()["event_id"]))
            assert_problem(response, 503, "store_unavailable")
            assert int(response.headers["retry-after"]) >= 1
        ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["degraded"]) == (200, True, True)
    assert ready.json()["store"]["detail"]


async def test_the_schemas_are_listed_and_read(client: httpx.AsyncClient) -> None:
    items = (await client.get("/schemas")).json()["items"]
    prompt = next(item for item in items if item["event_type"] == "llm.prompt")
    assert prompt == {"event_type": "llm.prompt", "title": "LLMPrompt", "description": "A prompt was sent to a model."}
    schema = (await client.get("/schemas/llm.prompt")).json()
    assert schema["required"] == ["provider", "prompt"]
    assert_problem(await client.get("/schemas/no.such"), 404, "schema_not_found")


async def test_health_tells_what_serves(client: httpx.AsyncClient) -> None:
    health = (await client.get("/healthz")).json()
    assert health.pop("version")
    assert health == {"ok": True, "service": "notes", "environment": "test"}
    assert (await client.get("/livez")).json() == {"ok": True}


async def test_a_server_whose_bus_answers_is_ready(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz")
    answer = response.json()
    assert (response.status_code, answer["ready"], answer["degraded"]) == (200, True, False)
    assert answer["transport"]["what"].startswith("embedded log in")
    assert answer["store"]["what"].startswith("SQLite in")


async def test_a_server_whose_bus_is_away_is_not_ready(client: httpx.AsyncClient, tmp_path: Any) -> None:
    bus = bus_of(client)
    settings = bus.settings.model_copy(update={"data_dir": tmp_path})
    async with Publisher(settings) as closed:
        transport = closed.transport
    async with Publisher(bus.settings, transport=transport) as publisher, publishing_with(client, publisher):
        response = await client.get("/readyz")
    assert (response.status_code, response.json()["ready"]) == (503, False)
    assert response.json()["transport"]["detail"]


async def test_a_message_that_is_no_event_is_not_found(client: httpx.AsyncClient) -> None:
    event_id = uuid4()
    foreign = Message(event_id=event_id, routing_key="a.foreign", body=b"not JSON")
    await bus_of(client).publisher.transport.publish(foreign, timeout_seconds=5)
    problem = assert_problem(await client.get(f"/events/{event_id}"), 404, "event_not_found")
    assert "no event" in problem["detail"]
    assert (await client.get("/events", params={"type": "a.foreign"})).json()["items"] == []


@pytest.mark.parametrize("pattern", ["BAD PATTERN", "A.*", "a b", "\u0410.#"])
async def test_a_pattern_that_no_type_can_fit_is_refused(client: httpx.AsyncClient, pattern: str) -> None:
    response = await client.get("/events", params={"type": pattern})
    assert_problem(response, 400, "invalid_query")
