"""The API as callers meet it: a real server process, on the embedded bus and on RabbitMQ with Redis."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from uuid import uuid4

import httpx
import pytest

from bloodbank import new_event_id
from tests.servers.api import ApiServer
from tests.servers.process import wait_until
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

SECRET = "sixteen-characters"
PROMPT = {"provider": "anthropic", "prompt": "What did they say?"}
UPLOAD = {"media_file": "call.mp3", "media_duration_seconds": 60, "media_type": "audio/mpeg"}
CHAIN = 10_000


def _distributed(rabbit: RabbitServer, redis: RedisServer, **settings: str) -> ApiServer:
    name = f"test{uuid4().hex[:12]}"
    return ApiServer(
        RABBIT_URL=rabbit.url,
        REDIS_URL=redis.url,
        EXCHANGE_NAME=f"{name}.events.v1",
        BLOODBANK_REDIS_PREFIX=name,
        BLOODBANK_FIREFLIES_SECRETS=SECRET,
        **settings,
    )


@pytest.fixture(
    scope="module",
    params=["embedded", pytest.param("distributed", marks=[pytest.mark.rabbit, pytest.mark.redis])],
)
def server(request: pytest.FixtureRequest) -> Iterator[ApiServer]:
    if request.param == "embedded":
        server = ApiServer(BLOODBANK_FIREFLIES_SECRETS=SECRET)
    else:
        servers = (request.getfixturevalue("_rabbit_session"), request.getfixturevalue("_redis_session"))
        for each in servers:
            each.start()
        server = _distributed(*servers)
    server.start()
    yield server
    server.close()


@pytest.fixture
def client(server: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
        yield client


def _publish(client: httpx.Client, event_type: str, payload: dict[str, Any], *parents: str) -> str:
    response = client.post(f"/events/{event_type}", json={"payload": payload, "correlation_ids": parents})
    assert (response.status_code, response.json()["lineage"]) == (201, "recorded"), response.text
    event_id: str = response.json()["event_id"]
    return event_id


def _sign(raw: bytes) -> dict[str, str]:
    signature = hmac.new(SECRET.encode(), raw, sha256).hexdigest()
    return {"Content-Type": "application/json", "X-Hub-Signature": f"sha256={signature}"}


def test_a_day_of_events_is_published_read_back_and_explained(client: httpx.Client) -> None:
    upload = _publish(client, "fireflies.transcript.upload", UPLOAD)
    raw = json.dumps(
        {"event": "meeting.transcribed", "timestamp": 1, "meeting_id": upload, "client_reference_id": upload}
    ).encode()
    webhook = client.post("/webhooks/fireflies", content=raw, headers=_sign(raw))
    assert webhook.status_code == 201, webhook.text
    transcribed = webhook.json()["event_id"]
    prompts = [_publish(client, "llm.prompt", PROMPT | {"model": model}, transcribed) for model in ("small", "large")]
    error = {"provider": "anthropic", "error_message": "Rate limit"}
    failed = _publish(client, "llm.error", error, prompts[0])
    answered = _publish(client, "llm.response", {"provider": "anthropic", "response": "Friday."}, prompts[1])
    artifact = _publish(client, "artifact.created", {"kind": "document", "uri": "notes.md"}, failed, answered)

    stored = client.get(f"/events/{artifact}").json()
    assert (stored["event_type"], stored["correlation_ids"]) == ("artifact.created", [failed, answered])
    up = client.get(f"/events/{artifact}/lineage", params={"direction": "ancestors"}).json()
    assert {node["id"]: node["depth"] for node in up["nodes"]} == {
        artifact: 0,
        failed: -1,
        answered: -1,
        **dict.fromkeys(prompts, -2),
        transcribed: -3,
        upload: -4,
    }
    assert [node["id"] for node in up["nodes"] if node["status"] == "failed"] == [failed]
    down = client.get(f"/debug/correlation/{upload}/chain", params={"direction": "descendants"}).json()
    assert (down["chain"][:2], down["chain"][-1], down["count"]) == ([upload, transcribed], artifact, 7)
    newest = client.get("/events", params={"limit": 7}).json()["items"]
    assert [event["event_id"] for event in newest] == [artifact, answered, failed, *prompts[::-1], transcribed, upload]

    again = client.post("/webhooks/fireflies", content=raw, headers=_sign(raw))
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")


def test_a_retry_is_a_duplicate_and_another_body_a_conflict(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    statuses = [
        client.post("/events/llm/prompt", json=body, headers=headers).status_code
        for body in (PROMPT, PROMPT, PROMPT | {"prompt": "Another"})
    ]
    assert statuses == [201, 200, 409]


def test_a_caller_of_version_1_is_understood(client: httpx.Client) -> None:
    first = {"event_type": "llm.prompt", "id": uuid4().hex, "source": "notes", "data": PROMPT, "version": "1.0"}
    answer = {"provider": "anthropic", "response": "Friday."}
    second = {"event_type": "llm.response", "id": "no uuid", "correlation_id": first["id"], "data": answer}
    parent, child = (client.post("/events", json=body).json()["event_id"] for body in (first, second))
    assert client.get(f"/debug/correlation/{child}").json()["parents"] == [parent]
    assert client.get(f"/events/{child}").json()["version"] == "2.0.0"


def test_a_caller_of_version_2_is_understood(client: httpx.Client) -> None:
    prompt = client.post("/events/llm/prompt", json=PROMPT).json()["event_id"]
    answer = {"provider": "anthropic", "response": "Friday.", "prompt_id": prompt}
    response = client.post("/events/llm/response", json=answer).json()["event_id"]
    envelope = {
        "event_id": str(uuid4()),
        "event_type": "artifact.created",
        "timestamp": "2025-11-02T09:30:00+00:00",
        "version": "1.0.0",
        "source": {"host": "laptop", "type": "agent", "app": "notes"},
        "correlation_ids": [response],
        "payload": {"kind": "document", "uri": "notes.md", "action": "created"},
    }
    assert client.post("/events", json=envelope).status_code == 201
    chain = client.get(f"/debug/correlation/{envelope['event_id']}/chain?direction=ancestors&max_depth=5").json()
    assert chain["chain"] == [prompt, response, envelope["event_id"]]
    assert client.get("/healthz").json()["ok"] is True


def test_a_chain_of_ten_thousand_is_answered_in_full_and_in_order(client: httpx.Client) -> None:
    ids = [str(new_event_id()) for _ in range(CHAIN)]
    events = [
        {"event_id": own, "event_type": "deep.step", "payload": {}, "correlation_ids": [parent] if parent else []}
        for own, parent in zip(ids, [None, *ids], strict=False)
    ]
    for start in range(0, CHAIN, 1000):
        results = client.post("/events/batch", json=events[start : start + 1000]).json()["results"]
        assert {result["status"] for result in results} == {"published"}
        assert {result["lineage"] for result in results} == {"recorded"}
    params = {"direction": "ancestors", "max_depth": CHAIN, "limit": CHAIN}
    answer = client.get(f"/events/{ids[-1]}/lineage", params=params).json()
    assert [node["id"] for node in answer["nodes"]] == ids
    assert answer["truncated"] == {"depth": False, "limit": False, "frontier": []}


def test_a_restart_keeps_events_and_their_lineage(server: ApiServer, client: httpx.Client) -> None:
    root = _publish(client, "a.root", {})
    child = _publish(client, "a.child", {}, root)
    server.restart()
    assert client.get(f"/events/{child}").json()["correlation_ids"] == [root]
    assert client.get(f"/debug/correlation/{child}/chain").json()["chain"] == [root, child]
    server.kill()
    server.start()
    assert client.get("/events", params={"limit": 1}).json()["items"][0]["event_id"] == child


OWN = "0198c2f4-7a51-7c3e-9d7e-5f0a4b8c1d20"
BAD_EVENTS: dict[str, tuple[Any, int]] = {
    "no json": (b"{event_type: llm.prompt}", 400),
    "nothing": (b"", 400),
    "a NUL byte": (b'{"event_type":"a.b","payload":{"x":"\x00"}}', 400),
    "no UTF-8": (b'{"event_type":"a.b","payload":{"x":"\xff\xfe"}}', 400),
    "nesting within the limit of the parser": (
        b'{"event_type":"a.b","payload":' + b'{"x":' * 100 + b"1" + b"}" * 101,
        400,
    ),
    "nesting beyond it": (b"[" * 100_000 + b"]" * 100_000, 400),
    "2 MB": (b'{"event_type":"a.b","payload":{"x":"' + b"y" * 2_000_000 + b'"}}', 413),
    "a wrong type": ({"event_type": "llm.prompt", "payload": {"provider": 7, "prompt": []}}, 422),
    "an unknown field": ({"event_type": "a.b", "payload": {}, "priority": 1}, 422),
    "an id that is no UUID": ({"event_type": "a.b", "payload": {}, "event_id": "seven"}, 422),
    "itself as parent": ({"event_type": "a.b", "payload": {}, "event_id": OWN, "correlation_ids": [OWN]}, 422),
    "65 parents": ({"event_type": "a.b", "payload": {}, "correlation_ids": [str(uuid4()) for _ in range(65)]}, 422),
    "a type of 256 bytes": ({"event_type": "a." + "b" * 254, "payload": {}}, 422),
    "a NUL in the type": ({"event_type": "a.\x00", "payload": {}}, 422),
    "a number beyond 64 bits": (b'{"event_type":"a.b","payload":{"n":123456789012345678901234567890}}', 422),
    "a number beyond a double": (b'{"event_type":"a.b","payload":{"n":1e999}}', 422),
    "a time outside of time": ({"event_type": "a.b", "payload": {}, "timestamp": "9999-12-31T23:59:59-12:00"}, 422),
    "half a million wrong values": (
        b'{"event_type":"llm.prompt","payload":{"provider":"a","prompt":"b","tags":[1' + b",1" * 500_000 + b"]}}",
        422,
    ),
}


def test_bad_input_is_refused_with_a_sentence_and_the_server_goes_on(client: httpx.Client) -> None:
    before = _publish(client, "a.b", {})
    for name, (body, status) in BAD_EVENTS.items():
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = client.post("/events", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == status, (name, response.text)
        assert response.headers["content-type"] == "application/problem+json", name
        assert "Nothing was published" in response.json()["detail"], (name, response.json()["detail"])
        assert client.get("/livez").status_code == 200, name
    wrong_signature = client.post("/webhooks/fireflies", json={}, headers={"X-Hub-Signature": "sha256=00"})
    assert wrong_signature.status_code == 401
    assert client.get("/events", params={"limit": 1}).json()["items"][0]["event_id"] == before


def test_a_body_without_a_length_is_cut_off_at_the_limit(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * 65_536

    response = client.post("/events", content=endless(), headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert client.get("/livez").status_code == 200


@pytest.mark.rabbit
@pytest.mark.redis
def test_a_frozen_broker_and_a_frozen_store_are_told_and_found_again(
    rabbit_server: RabbitServer, redis_server: RedisServer
) -> None:
    settings = {"BLOODBANK_PUBLISH_TIMEOUT_SECONDS": "1", "BLOODBANK_BREAKER_RESET_SECONDS": "0.5"}
    server = _distributed(rabbit_server, redis_server, **settings)
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            _store_is_frozen(client, redis_server)
            _broker_is_frozen(client, rabbit_server)
    finally:
        server.close()


def _store_is_frozen(client: httpx.Client, redis: RedisServer) -> None:
    root = _publish(client, "a.root", {})
    redis.freeze()
    try:
        deferred = client.post("/events/a.b", json={})
        assert (deferred.status_code, deferred.json()["lineage"]) == (201, "deferred")
        asked = client.get(f"/debug/correlation/{root}")
        assert (asked.status_code, asked.json()["code"]) == (503, "store_unavailable")
        assert int(asked.headers["retry-after"]) > 0
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["degraded"]) == (200, True)
    finally:
        redis.thaw()
    wait_until(lambda: not client.get("/readyz").json()["degraded"], seconds=20, what="the store is found again")
    assert client.get(f"/debug/correlation/{root}").status_code == 200


def _broker_is_frozen(client: httpx.Client, rabbit: RabbitServer) -> None:
    own = str(uuid4())
    rabbit.freeze()
    try:
        kept = client.post("/events/a.b", json={"payload": {}, "event_id": own})
        assert (kept.status_code, kept.json()["status"]) == (202, "queued"), kept.text
        again = client.post("/events/a.b", json={"payload": {}, "event_id": own})
        assert (again.status_code, again.json()["status"]) == (200, "duplicate"), again.text
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["degraded"], ready.json()["transport"]["ok"]) == (200, True, False)
        assert ready.json()["outbox"]["waiting"] == 1
        assert "guest:guest" not in ready.text
    finally:
        rabbit.thaw()
    wait_until(lambda: not client.get("/readyz").json()["outbox"]["waiting"], seconds=60, what="the outbox is empty")
    assert client.get(f"/events/{own}").json()["event_id"] == own
