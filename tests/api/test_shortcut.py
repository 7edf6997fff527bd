"""The short way to the routes that publish and FastAPI's own: the same answer, the same event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bloodbank import EventEnvelope, Lineage, Publisher, PublishResult, Settings, Status
from bloodbank.config import Scope
from bloodbank.http import body as reading
from bloodbank.http.shortcut import Shortcut
from tests.api.http_app import PROMPT, api, app_of, assert_problem, bus_of, connect, publishing_with

OWN, PARENT = str(uuid4()), str(uuid4())
JSON = {"Content-Type": "application/json"}
PATHS = (
    "/events",
    "/events/batch",
    "/events/llm/prompt",
    "/events/llm/response",
    "/events/llm/error",
    "/events/artifact",
    "/events/invoice.paid",
    "/events/Wrong Type",
)


class Recording(Publisher):
    """A publisher that keeps what it is given and accepts it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.published: list[EventEnvelope[Any]] = []

    async def publish(self, event: EventEnvelope[Any], /) -> PublishResult:  # type: ignore[override]
        self.published.append(event)
        return PublishResult(event.event_id, Status.PUBLISHED, Lineage.DISABLED)

    async def publish_many(self, events: Any) -> list[Any]:
        return [await self.publish(event) for event in events]


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path_factory.mktemp("shortcut"), json_depth_limit=8, body_limit_bytes=4096) as client:
        yield client


@contextmanager
def the_long_way() -> Iterator[None]:
    """Within the block requests go through FastAPI's router."""

    async def pass_on(self: Shortcut, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    with patch.object(Shortcut, "__call__", pass_on):
        yield


async def _both(client: httpx.AsyncClient, path: str, content: bytes, headers: dict[str, str]) -> list[Any]:
    """Return what is answered and published on either way, without the ids and times that are new each time."""
    seen: list[Any] = []
    for way in (the_long_way, nullcontext):
        publisher = Recording(bus_of(client).settings)
        async with publishing_with(client, publisher):
            with way():
                response = await client.post(path, content=content, headers=headers)
        text, location = response.text, response.headers.get("location")
        for event in publisher.published:
            if "event_id" not in event.model_fields_set:
                text = text.replace(str(event.event_id), "new")
                location = location and location.replace(str(event.event_id), "new")
        events = [
            (event.model_dump(include=event.model_fields_set), event.model_fields_set) for event in publisher.published
        ]
        seen.append((response.status_code, list(response.headers), location, text, repr(events)))
    return seen


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "provider": st.sampled_from(["anthropic", "", 5]),
        "prompt": st.text(max_size=5),
        "response": st.text(max_size=5),
        "prompt_id": st.sampled_from([OWN, "no id", None]),
        "error_message": st.just("x"),
        "action": st.sampled_from(["created", "eaten", 1]),
        "kind": st.just("file"),
        "uri": st.just("file:///x"),
        "tags": st.just(["a"]) | VALUES,
        "metadata": VALUES,
    },
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "event_type": st.sampled_from(["llm.prompt", "invoice.paid", "Wrong", 7]),
        "payload": FIELDS | VALUES,
        "data": FIELDS,
        "event_id": st.sampled_from([OWN, "no id", 7]),
        "correlation_ids": st.sampled_from([[PARENT], [OWN], [], "none"]),
        "source": st.sampled_from([{"host": "h", "type": "agent"}, {"host": ""}, None]),
        "version": st.sampled_from(["1.0.0", "2.0.0", "3"]),
        "timestamp": st.sampled_from(["2026-08-04T15:04:05Z", "today"]),
        "agent_context": st.just({"type": "agno"}),
        "more": st.just(1),
    },
)
GOOD = st.fixed_dictionaries(
    {"provider": st.text(min_size=1, max_size=5), "prompt": st.text(max_size=5)},
    optional={"tags": st.lists(st.text(max_size=3)), "metadata": st.dictionaries(st.text(max_size=3), VALUES)},
)
GOOD_EVENTS = st.fixed_dictionaries(
    {"event_type": st.sampled_from(["llm.prompt", "invoice.paid"]), "payload": GOOD},
    optional={
        "event_id": st.sampled_from([OWN, str(uuid4())]),
        "correlation_ids": st.lists(st.sampled_from([PARENT, OWN]), max_size=3),
        "version": st.sampled_from(["1.0.0", "2.0.0"]),
        "source": st.just({"host": "h", "type": "agent"}),
    },
)
BODIES = st.one_of(
    GOOD.map(json.dumps),
    GOOD_EVENTS.map(json.dumps),
    st.lists(GOOD_EVENTS | EVENTS, max_size=3).map(json.dumps),
    FIELDS.map(json.dumps),
    EVENTS.map(json.dumps),
    VALUES.map(json.dumps),
    st.text(max_size=10),
    st.sampled_from(["", "[" * 9 + "]" * 9, '{"a":' * 9 + "1" + "}" * 9, '{"payload":{},"payload":{"a":1}}']),
)
HEADERS = st.fixed_dictionaries(
    {"Content-Type": st.just("application/json")},
    optional={
        "Idempotency-Key": st.sampled_from(["k-1", "a b", ""]),
        "X-Bloodbank-Parents": st.sampled_from([PARENT, f"{PARENT}, {OWN}", "nonsense", ""]),
        "Content-Encoding": st.sampled_from(["identity", "gzip", ""]),
    },
)


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PATHS), body=BODIES, headers=HEADERS)
@example(path="/events/llm/prompt", body=json.dumps(PROMPT), headers=JSON)
@example(path="/events/llm/prompt", body=json.dumps({"payload": PROMPT, "event_id": OWN}), headers=JSON)
@example(path="/events/batch", body=json.dumps([{"event_type": "llm.prompt", "payload": PROMPT}, 7]), headers=JSON)
async def test_either_way_a_request_means_the_same(
    client: httpx.AsyncClient, path: str, body: str, headers: dict[str, str]
) -> None:
    long, short = await _both(client, path, body.encode("utf-8", "surrogatepass"), headers)
    assert long == short


async def test_every_route_that_publishes_is_taken_the_short_way(client: httpx.AsyncClient) -> None:
    described = app_of(client).openapi()["paths"]
    publishing = [path for path, methods in described.items() if path.startswith("/events") and "post" in methods]
    taken: list[str] = []

    async def reach_the_router(*_: Any) -> None:
        taken.append("router")

    shortcut = Shortcut(reach_the_router, _routes(client))
    for path in publishing:
        scope = {"type": "http", "method": "POST", "path": path.replace("{event_type}", "a.b"), "root_path": ""}
        route = shortcut._route(scope)
        assert route is not None
        assert route.path == path
        assert scope["endpoint"] is route.endpoint
    assert len(publishing) == 7
    assert taken == []


def _routes(client: httpx.AsyncClient) -> list[APIRoute]:
    [middleware] = [each for each in app_of(client).user_middleware if each.cls is Shortcut]
    routes: list[APIRoute] = middleware.kwargs["routes"]  # type: ignore[assignment]
    return routes


async def test_the_routes_taken_need_nothing_that_only_fastapi_does(client: httpx.AsyncClient) -> None:
    for route in _routes(client):
        needs = route.dependant
        words = {each.name for each in needs.path_params}
        assert words == set(route.param_convertors), route.path
        assert needs.request_param_name == "request", route.path
        for none in (needs.query_params, needs.header_params, needs.cookie_params, needs.body_params):
            assert none == [], route.path
        assert needs.dependencies == [], route.path


@pytest.mark.parametrize("path", ["/events/llm", "/events/", "/events/a.b/c", "/events/llm/prompt/", "/EVENTS", "/"])
async def test_a_path_beside_the_routes_is_left_to_the_router(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(f"http://localhost{path}", json=PROMPT)
    with the_long_way():
        expected = await client.post(f"http://localhost{path}", json=PROMPT)
    assert (response.status_code, response.text) == (expected.status_code, expected.text)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_another_method_is_405_and_told_what_is_served(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, "/events/llm/prompt")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


async def test_behind_a_prefix_the_route_is_found_and_the_location_has_the_prefix(client: httpx.AsyncClient) -> None:
    transport = httpx.ASGITransport(app_of(client), root_path="/bus")
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as behind:
        for path in ("/bus/events/llm/prompt", "/bus/events/a.b", "/events/llm/prompt"):
            response = await behind.post(path, json=PROMPT)
            assert response.status_code == 201, response.text
            assert response.headers["location"] == f"/bus/events/{response.json()['event_id']}"
        assert_problem(await behind.post("/busevents/llm/prompt", json=PROMPT), 404, "route_not_found")


async def test_keys_and_head_limits_come_first(tmp_path: Path) -> None:
    keys = {"reader": frozenset({Scope.READ}), "writer": frozenset({Scope.PUBLISH})}
    async with api(tmp_path, api_keys=keys) as client:
        ask = {"Authorization": "Bearer reader"}
        assert_problem(await client.post("/events/llm/prompt", json=PROMPT), 401, "key_required")
        assert_problem(await client.post("/events/llm/prompt", json=PROMPT, headers=ask), 403, "insufficient_scope")
        many = [("X-API-Key", "writer"), *((f"X-{n}", "") for n in range(100))]
        assert_problem(await client.post("/events/a.b", json=PROMPT, headers=many), 431, "too_many_headers")
        response = await client.post("/events/llm/prompt", json=PROMPT, headers={"X-API-Key": "writer"})
        assert response.status_code == 201
    async with connect(app_of(client)) as late:
        assert_problem(await late.post("/events/llm/prompt", json=PROMPT), 503, "not_open")


class _Body:
    """What a server gives an application: the messages one after the other, each when it is there."""

    def __init__(self, *messages: dict[str, Any], turns: int = 0) -> None:
        self._messages = list(messages)
        self._turns = turns
        self.was_cancelled = False

    async def __call__(self) -> dict[str, Any]:
        try:
            for _ in range(self._turns):
                await anyio.sleep(0)
            if not self._messages:
                await anyio.sleep_forever()
        except BaseException:
            self.was_cancelled = True
            raise
        return self._messages.pop(0)


def _part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def _post(client: httpx.AsyncClient, receive: _Body, path: str = "/events/a.b") -> tuple[int, dict[str, Any]]:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers, "root_path": ""}
    await app_of(client)(scope | {"client": ("127.0.0.1", 1)}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize(
    "parts",
    [
        [_part(b'{"a":1}')],
        [_part(b'{"a":', more=True), _part(b"1}")],
        [_part(b"", more=True), _part(b'{"a":1}', more=True), _part(b"")],
        [_part(bytes([byte]), more=True) for byte in b'{"a":1}'] + [{"type": "http.request"}],
    ],
)
async def test_a_body_may_come_at_once_or_in_parts_soon_or_late(
    client: httpx.AsyncClient, parts: list[dict[str, Any]], turns: int
) -> None:
    status, answer = await _post(client, _Body(*parts, turns=turns))
    assert status == 201, answer
    envelope = await bus_of(client).log.get(UUID(answer["event_id"]))
    assert envelope.payload == {"a": 1}


@pytest.mark.parametrize("turns", [0, 2])
async def test_a_body_in_parts_is_refused_as_soon_as_it_is_too_large(client: httpx.AsyncClient, turns: int) -> None:
    status, answer = await _post(client, _Body(*[_part(b" " * 3000, more=True)] * 2, turns=turns))
    assert (status, answer["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("turns", [0, 2])
async def test_a_client_that_leaves_publishes_nothing(client: httpx.AsyncClient, turns: int) -> None:
    for messages in ([{"type": "http.disconnect"}], [_part(b'{"a":1}', more=True), {"type": "http.disconnect"}]):
        status, answer = await _post(client, _Body(*messages, turns=turns))
        assert (status, answer["code"]) == (400, "invalid_request")


async def test_a_body_that_does_not_begin_is_given_up_and_no_longer_waited_for(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BODY_TIMEOUT_SECONDS", 0.01)
    receive = _Body()
    status, answer = await _post(client, receive)
    assert (status, answer["code"]) == (408, "body_timeout")
    assert receive.was_cancelled


async def test_a_request_that_is_cancelled_while_its_body_is_awaited_ends(client: httpx.AsyncClient) -> None:
    receive = _Body()
    with anyio.move_on_after(0.01) as limit:
        await _post(client, receive)
    assert limit.cancelled_caught
    assert receive.was_cancelled
