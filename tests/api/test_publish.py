"""Publishing over HTTP: the forms of an event, ids, parents and what becomes of each."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx
import pytest

from bloodbank import (
    EventEnvelope,
    Lineage,
    Publisher,
    PublishRejected,
    PublishResult,
    PublishUnknown,
    Settings,
    Status,
    TransportUnavailable,
    codec,
    create_envelope,
    event_id,
)
from bloodbank.http import batch, incoming
from bloodbank.http import body as reading
from tests.api.http_app import PROMPT, api, app_of, assert_problem, bus_of, publishing_with


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("publish")
    limits = {"body_limit_bytes": 4096, "batch_body_limit_bytes": 16_384, "batch_limit": 8, "json_depth_limit": 8}
    async with api(folder, **limits) as client:
        yield client


async def _read_back(client: httpx.AsyncClient, response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/events/{response.json()['event_id']}"
    found = await client.get(response.headers["location"])
    envelope: dict[str, Any] = found.json()
    return envelope


async def test_a_type_with_a_payload_is_filled_in(client: httpx.AsyncClient) -> None:
    response = await client.post("/events", json={"event_type": "llm.prompt", "payload": PROMPT})
    envelope = await _read_back(client, response)
    assert response.json() == {"event_id": envelope["event_id"], "status": "published", "lineage": "recorded"}
    assert envelope["source"] == {"host": "127.0.0.1", "type": "hook", "app": "http-api", "meta": None}
    assert (envelope["version"], envelope["correlation_ids"]) == ("2.0.0", [])
    assert envelope["payload"]["prompt"] == PROMPT["prompt"]


async def test_an_envelope_is_published_as_it_is(client: httpx.AsyncClient) -> None:
    sent = {
        "event_id": str(uuid4()),
        "event_type": "invoice.paid",
        "timestamp": "2026-08-04T15:04:05Z",
        "version": "2.0.0",
        "source": {"host": "laptop", "type": "agent", "app": "biller", "meta": {"run": 3}},
        "correlation_ids": [str(uuid4()), str(uuid4())],
        "agent_context": {"type": "claude-code"},
        "payload": {"cents": 5},
    }
    envelope = await _read_back(client, await client.post("/events", json=sent))
    assert envelope["agent_context"]["type"] == "claude-code"
    assert {**envelope, "agent_context": sent["agent_context"]} == sent


async def test_an_envelope_that_calls_itself_1_0_0_but_has_the_fields_of_2_is_taken(client: httpx.AsyncClient) -> None:
    fields = {"event_type": "llm.prompt", "payload": PROMPT, "version": "1.0.0"}
    assert (await _read_back(client, await client.post("/events", json=fields)))["version"] == "2.0.0"


async def test_an_envelope_of_version_1_is_upgraded(client: httpx.AsyncClient) -> None:
    parent, own = str(uuid4()), str(uuid4())
    fields = {"id": own, "event_type": "llm.prompt", "source": "notes", "correlation_id": parent, "data": PROMPT}
    envelope = await _read_back(client, await client.post("/events", json=fields))
    assert (envelope["event_id"], envelope["correlation_ids"], envelope["source"]["app"]) == (own, [parent], "notes")


@pytest.mark.parametrize(
    ("path", "payload", "event_type"),
    [
        ("/events/llm/prompt", PROMPT, "llm.prompt"),
        ("/events/llm/response", {"provider": "a", "response": "b"}, "llm.response"),
        ("/events/llm/error", {"provider": "a", "error_message": "b"}, "llm.error"),
        ("/events/artifact", {"action": "updated", "kind": "a", "uri": "b"}, "artifact.updated"),
        ("/events/artifact.deleted", {"kind": "a", "uri": "b"}, "artifact.deleted"),
        ("/events/invoice.paid", {"cents": 5}, "invoice.paid"),
    ],
)
async def test_a_route_of_a_type_takes_a_payload_or_a_request_object(
    client: httpx.AsyncClient, path: str, payload: dict[str, Any], event_type: str
) -> None:
    parent = str(uuid4())
    bare = await _read_back(client, await client.post(path, json=payload))
    full = await _read_back(client, await client.post(path, json={"payload": payload, "correlation_ids": [parent]}))
    assert bare["event_type"] == full["event_type"] == event_type
    assert payload.items() <= bare["payload"].items()
    assert (bare["payload"], full["correlation_ids"]) == (full["payload"], [parent])


async def test_a_payload_that_has_a_field_named_payload_among_others_is_a_payload(client: httpx.AsyncClient) -> None:
    sent = {"payload": "10 kg", "truck": 7}
    assert (await _read_back(client, await client.post("/events/truck.loaded", json=sent)))["payload"] == sent


async def test_the_action_says_the_type_of_an_artifact(client: httpx.AsyncClient) -> None:
    for body in ({"kind": "a", "uri": "b"}, {"action": "eaten"}, {"payload": [1]}):
        problem = assert_problem(await client.post("/events/artifact", json=body), 422, "invalid_event")
        assert problem["errors"][0]["path"] == "payload.action"


async def test_parents_of_body_and_header_are_united_in_order(client: httpx.AsyncClient) -> None:
    first, second, third = (str(uuid4()) for _ in range(3))
    response = await client.post(
        "/events/llm/prompt",
        json={"payload": PROMPT, "correlation_ids": [first, second]},
        headers={"X-Bloodbank-Parents": f"{third}, {first}"},
    )
    assert (await _read_back(client, response))["correlation_ids"] == [first, second, third]


@pytest.mark.parametrize("prompt_id", ["41", "", None])
async def test_a_prompt_id_that_is_no_event_id_is_no_parent(client: httpx.AsyncClient, prompt_id: str | None) -> None:
    body = {"provider": "a", "response": "b", "prompt_id": prompt_id}
    envelope = await _read_back(client, await client.post("/events/llm/response", json=body))
    assert envelope["correlation_ids"] == []


async def test_a_prompt_id_that_is_an_event_id_is_a_parent(client: httpx.AsyncClient) -> None:
    prompt = str(uuid4())
    body = {"provider": "a", "response": "b", "prompt_id": prompt}
    envelope = await _read_back(client, await client.post("/events/llm/response", json=body))
    assert envelope["correlation_ids"] == [prompt]


@pytest.mark.parametrize(
    "parents", ["nonsense", f"{uuid4()};{uuid4()}", "a" * 5000], ids=["no UUID", "another separator", "far too long"]
)
async def test_a_header_of_parents_that_is_none_is_400(client: httpx.AsyncClient, parents: str) -> None:
    response = await client.post("/events/llm/prompt", json=PROMPT, headers={"X-Bloodbank-Parents": parents})
    assert_problem(response, 400, "invalid_request")


async def test_an_idempotency_key_makes_the_id_and_a_retry_a_duplicate(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "call-17"}
    first = await client.post("/events/llm/prompt", json=PROMPT, headers=headers)
    again = await client.post("/events", json={"event_type": "llm.prompt", "payload": PROMPT}, headers=headers)
    expected = str(event_id("llm.prompt", idempotency_key="call-17"))
    assert (first.status_code, first.json()["event_id"]) == (201, expected)
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")


async def test_the_same_id_with_another_body_is_409_and_names_the_event(client: httpx.AsyncClient) -> None:
    own = str(uuid4())
    await client.post("/events/llm/prompt", json={"payload": PROMPT, "event_id": own})
    other = {"payload": PROMPT | {"prompt": "Another one"}, "event_id": own}
    problem = assert_problem(await client.post("/events/llm/prompt", json=other), 409, "event_conflict")
    assert problem["event_id"] == own


async def test_an_event_id_and_an_idempotency_key_contradict_each_other(client: httpx.AsyncClient) -> None:
    body = {"payload": PROMPT, "event_id": str(uuid4())}
    response = await client.post("/events/llm/prompt", json=body, headers={"Idempotency-Key": "k"})
    assert assert_problem(response, 422, "invalid_event")["errors"][0]["path"] == "event_id"


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\xe9"])
async def test_an_idempotency_key_that_is_none_is_400(client: httpx.AsyncClient, key: str) -> None:
    headers = {"Idempotency-Key": key.encode("latin-1")}
    response = await client.post("/events/llm/prompt", json=PROMPT, headers=headers)  # type: ignore[arg-type]
    assert_problem(response, 400, "invalid_request")


OWN = str(uuid4())


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"event_type": "llm.prompt", "payload": {"provider": "a"}}, "payload.prompt"),
        ({"event_type": "llm.prompt", "payload": PROMPT | {"promt": ""}}, "payload.promt"),
        ({"event_type": "llm.prompt"}, "payload"),
        ({"event_type": "llm.prompt", "payload": PROMPT, "prio": 1}, "prio"),
        ({"event_type": "llm.prompt", "payload": [1]}, "payload"),
        ({"event_type": "Prompt", "payload": {}}, "event_type"),
        ({"event_type": "a." + "b" * 254, "payload": {}}, "event_type"),
        ({"event_type": "a\u0000.b", "payload": {}}, "event_type"),
        ({"event_type": 7, "payload": {}}, "event_type"),
        ({"payload": {}}, "event_type"),
        ({"event_type": "a.b", "payload": {}, "event_id": "seven"}, "event_id"),
        ({"event_type": "a.b", "payload": {}, "correlation_ids": "no list"}, "correlation_ids"),
        ({"event_type": "a.b", "payload": {}, "correlation_ids": ["seven"]}, "correlation_ids.0"),
        ({"event_type": "a.b", "payload": {}, "correlation_ids": [str(uuid4()) for _ in range(65)]}, "correlation_ids"),
        ({"event_type": "a.b", "payload": {}, "correlation_ids": [1] * 1025}, "correlation_ids"),
        ({"event_type": "a.b", "payload": {}, "event_id": OWN, "correlation_ids": [OWN]}, ""),
        ({"event_type": "a.b", "payload": {}, "timestamp": "9999-12-31T23:59:59-12:00"}, "timestamp"),
        ({"event_type": "a.b", "payload": {}, "timestamp": "2026-08-04T15:04:05"}, "timestamp"),
        ({"event_type": "a.b", "payload": {}, "source": {"host": "x\u0000", "type": "hook"}}, "source.host"),
        ({"event_type": "a.b", "payload": {}, "version": "3.0.0"}, "version"),
        ({"event_type": "a.b", "payload": {"n": 2**64}}, "payload"),
        ({"event_type": "a.b", "data": 5}, "payload"),
    ],
)
async def test_an_invalid_event_is_422_with_the_path_of_what_is_wrong(
    client: httpx.AsyncClient, fields: dict[str, Any], path: str
) -> None:
    problem = assert_problem(await client.post("/events", json=fields), 422, "invalid_event")
    assert path in [error["path"] for error in problem["errors"]], problem


async def test_half_a_million_wrong_values_are_counted_and_not_listed(tmp_path: Any) -> None:
    async with api(tmp_path) as client:
        body = PROMPT | {"tags": [1] * 100_000}
        response = await client.post("/events/llm/prompt", json=body)
    assert "100000 values" in assert_problem(response, 422, "invalid_event")["detail"]
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": "\x00"}', "invalid_json"),
        (b'{"a": "\xff"}', "invalid_json"),
        (b'{"a": "\\ud800"}', "invalid_json"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "json_too_deep"),
        (b"[" * 2000 + b"]" * 2000, "json_too_deep"),
    ],
)
async def test_a_body_that_is_no_json_is_400(client: httpx.AsyncClient, body: bytes, code: str) -> None:
    for path in ("/events", "/events/batch", "/events/llm/prompt", "/events/a.b"):
        response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert_problem(response, 400, code)


async def test_the_depth_limit_itself_is_taken(client: httpx.AsyncClient) -> None:
    body = b'{"a":' * 8 + b"1" + b"}" * 8
    response = await client.post("/events/a.b", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 201, response.text


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"x"'])
async def test_a_body_that_is_no_object_is_422(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/events", content=body, headers={"Content-Type": "application/json"})
    assert_problem(response, 422, "invalid_event")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_declared_as_json_is_415(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.post("/events", content=b"{}", headers=headers)
    assert_problem(response, 415, "unsupported_media_type")


async def test_json_of_another_name_is_json(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/vnd.notes+json; charset=utf-8"}
    response = await client.post("/events/a.b", content=b"{}", headers=headers)
    assert response.status_code == 201


async def test_a_body_over_the_limit_is_413_whether_it_says_its_length_or_not(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    for content in (b" " * 5000, chunks()):
        response = await client.post("/events", content=content, headers=headers)
        assert_problem(response, 413, "body_too_large")


async def test_unknown_types_are_refused_where_the_settings_say_so(tmp_path: Any) -> None:
    async with api(tmp_path, unknown_event_types="refuse") as client:
        assert_problem(await client.post("/events/a.b", json={}), 422, "unknown_event_type")
        assert (await client.post("/events/llm/prompt", json=PROMPT)).status_code == 201


class _Answering(Publisher):
    """A publisher that always gives the same answer."""

    def __init__(self, settings: Settings, answer: PublishResult | Exception) -> None:
        super().__init__(settings)
        self._answer = answer

    async def publish(self, event: EventEnvelope[Any], /) -> PublishResult:  # type: ignore[override]
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TransportUnavailable("The broker is away. The event was not sent; try again."), 503, "transport_unavailable"),
        (PublishUnknown("No confirm within 5 s. Send it again."), 504, "publish_unknown"),
        (PublishRejected("The queue is full."), 422, "publish_rejected"),
    ],
)
async def test_a_publish_that_fails_says_what_became_of_the_event(
    client: httpx.AsyncClient, error: Exception, status: int, code: str
) -> None:
    async with publishing_with(client, _Answering(bus_of(client).settings, error)):
        response = await client.post("/events/llm/prompt", json={"payload": PROMPT, "event_id": OWN})
    problem = assert_problem(response, status, code)
    assert ("retry-after" in response.headers) is (status == 503)
    assert problem.get("event_id") == (None if status == 503 else OWN)


async def test_an_event_that_waits_for_the_broker_is_202(client: httpx.AsyncClient) -> None:
    queued = PublishResult(UUID(OWN), Status.QUEUED, Lineage.DEFERRED)
    async with publishing_with(client, _Answering(bus_of(client).settings, queued)):
        response = await client.post("/events/llm/prompt", json=PROMPT)
    assert (response.status_code, response.json()["status"]) == (202, "queued")


async def test_a_batch_accepts_and_refuses_each_event_by_itself(client: httpx.AsyncClient) -> None:
    own, parent = str(uuid4()), str(uuid4())
    good = {"event_type": "llm.prompt", "payload": PROMPT}
    events = [good | {"event_id": own}, {"event_type": "llm.prompt", "payload": {}}, 7, good | {"event_id": own}, good]
    response = await client.post("/events/batch", json={"events": events}, headers={"X-Bloodbank-Parents": parent})
    results = response.json()["results"]
    assert response.status_code == 200
    assert [result.get("status") for result in results] == ["published", None, None, "duplicate", "published"]
    assert [results[1]["problem"]["code"], results[2]["problem"]["status"]] == ["invalid_event", 422]
    assert (await client.get(f"/events/{own}")).json()["correlation_ids"] == [parent]


async def test_a_conflict_in_a_batch_names_the_event(client: httpx.AsyncClient) -> None:
    own = str(uuid4())
    events = [{"event_type": "a.b", "payload": {"n": n}, "event_id": own} for n in range(2)]
    results = (await client.post("/events/batch", json=events)).json()["results"]
    assert (results[1]["problem"]["code"], results[1]["problem"]["event_id"]) == ("event_conflict", own)


async def test_a_batch_has_limits_of_its_own(client: httpx.AsyncClient) -> None:
    event = {"event_type": "a.b", "payload": {"text": "x" * 3000}}
    large = {"event_type": "a.b", "payload": {"text": "x" * 5000}}
    results = (await client.post("/events/batch", json=[event, large, event])).json()["results"]
    assert results[1]["problem"]["code"] == "body_too_large"
    assert [results[0]["status"], results[2]["status"]] == ["published", "published"]
    assert_problem(await client.post("/events/batch", json=[event] * 6), 413, "body_too_large")
    assert_problem(await client.post("/events/batch", json=[1] * 9), 413, "batch_too_large")


async def test_a_batch_is_a_list_or_an_object_with_nothing_but_events(client: httpx.AsyncClient) -> None:
    assert (await client.post("/events/batch", json=[])).json() == {"results": []}
    for body in ({}, {"events": {}}, {"events": [], "more": 1}, 7):
        assert_problem(await client.post("/events/batch", json=body), 422, "invalid_event")
    response = await client.post("/events/batch", json=[], headers={"Idempotency-Key": "k"})
    assert_problem(response, 400, "invalid_request")


async def _post_raw(client: httpx.AsyncClient, messages: list[Any]) -> list[Any]:
    """Send the messages of a server to the application and return its answer; after them nothing comes."""
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/events/a.b", "query_string": b"", "headers": headers}
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else await anyio.sleep_forever()

    async def send(message: Any) -> None:
        sent.append(message)

    await app_of(client)(scope | {"client": ("127.0.0.1", 1), "root_path": ""}, receive, send)
    return sent


HALF_A_BODY = {"type": "http.request", "body": b'{"a":1}', "more_body": True}


async def test_a_client_that_leaves_early_publishes_nothing(client: httpx.AsyncClient) -> None:
    before = await bus_of(client).log.page(limit=1)
    sent = await _post_raw(client, [HALF_A_BODY, {"type": "http.disconnect"}])
    assert sent[0]["status"] == 400
    assert (await bus_of(client).log.page(limit=1)).items == before.items


async def test_a_body_that_never_ends_is_given_up(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BODY_TIMEOUT_SECONDS", 0.01)
    sent = await _post_raw(client, [HALF_A_BODY])
    assert sent[0]["status"] == 408
    assert b'"body_timeout"' in sent[1]["body"]


@pytest.mark.parametrize("address", ["x" * 300, "a\tb", ""])
async def test_a_proxy_that_forwards_no_address_leaves_the_source_unknown(tmp_path: Path, address: str) -> None:
    # uvicorn puts what X-Forwarded-For says in place of the address, whatever it is.
    async with api(tmp_path, client=(address, 0), allow_anonymous=True) as client:
        envelope = await _read_back(client, await client.post("/events/llm/prompt", json=PROMPT))
    assert envelope["source"]["host"] == "unknown"


async def test_a_large_batch_is_read_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    read_event = incoming.read_event

    def read(*arguments: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return read_event(*arguments)

    monkeypatch.setattr(incoming, "read_event", read)
    small = [{"event_type": "a.b", "payload": {}}]
    assert (await client.post("/events/batch", json=small)).status_code == 200
    monkeypatch.setattr(batch, "LARGE_BYTES", 1000)
    large = [{"event_type": "a.b", "payload": {"text": "x" * 1000}}] * 2
    assert [each["status"] for each in (await client.post("/events/batch", json=large)).json()["results"]] == [
        "published",
        "published",
    ]
    assert threads == [True, False, False]


async def test_many_large_events_let_others_run_while_they_are_serialised(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, turns, seen = codec.encode, 0, list[int]()

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.sleep(0)

    def encode_and_look(envelope: EventEnvelope[Any], **options: Any) -> Any:
        seen.append(turns)
        return encode(envelope, **options)

    monkeypatch.setattr(codec, "encode", encode_and_look)
    events = [create_envelope("a.b", {"text": "x" * 300_000}) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        results = await bus_of(client).publisher.publish_many(events)
        tasks.cancel_scope.cancel()
    assert [isinstance(result, PublishResult) for result in results] == [True] * 3
    assert seen[0] < seen[1] < seen[2]


async def test_a_body_that_says_it_is_too_long_is_not_waited_for(client: httpx.AsyncClient) -> None:
    async def never() -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b""

    headers = {"Content-Type": "application/json", "Content-Length": "4097"}
    with anyio.fail_after(5):
        assert_problem(await client.post("/events", content=never(), headers=headers), 413, "body_too_large")
