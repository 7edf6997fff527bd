"""Fireflies webhooks: signatures, both versions, redeliveries, and the parent."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any
from uuid import uuid4

import httpx
import pytest

from bloodbank import CorrelationTracker, EventLog, Publisher
from bloodbank._sqlite import Database
from bloodbank.http import webhooks
from bloodbank.http.fireflies import read_notice
from bloodbank.stores.sqlite import SqliteStore
from tests.api.http_app import api, app_of, assert_problem, bus_of, connect, publishing_with
from tests.unit.faulty_store import FaultyStore

OLD, NEW = "the-old-secret-16", "the-new-secret-16"
PATH = "/webhooks/fireflies"


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    settings = {"fireflies_secrets": (OLD, NEW), "api_keys": {"some-api-key": frozenset({"admin"})}}
    folder = tmp_path_factory.mktemp("webhooks")
    async with api(folder, client=("203.0.113.9", 443), host="bus.example", **settings) as client:
        client.headers["X-API-Key"] = "some-api-key"
        yield client


def _v2(event: str = "meeting.transcribed", **fields: Any) -> dict[str, Any]:
    return {"event": event, "timestamp": 1_785_855_845_123, "meeting_id": uuid4().hex, **fields}


async def _deliver(
    client: httpx.AsyncClient, body: object, *, secret: str = NEW, prefix: str = "sha256=", **headers: str
) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body, indent=1).encode()
    signature = prefix + hmac.new(secret.encode(), raw, sha256).hexdigest()
    sent = {"Content-Type": "application/json", "X-Hub-Signature": signature, **headers}
    # The signature is the key: none other is sent.
    async with connect(app_of(client), client=("203.0.113.9", 443), host="bus.example") as fireflies:
        return await fireflies.post(PATH, content=raw, headers=sent)


async def _read(client: httpx.AsyncClient, response: httpx.Response) -> dict[str, Any]:
    envelope: dict[str, Any] = (await client.get(f"/events/{response.json()['event_id']}")).json()
    return envelope


@pytest.mark.parametrize("event", ["transcribed", "summarized"])
async def test_version_2_becomes_an_event_of_its_meeting(client: httpx.AsyncClient, event: str) -> None:
    body = _v2(f"meeting.{event}", client_reference_id="my own reference", something_new={"a": 1})
    response = await _deliver(client, body)
    envelope = await _read(client, response)
    assert (response.status_code, response.json()["status"]) == (201, "published")
    assert envelope["event_type"] == f"fireflies.meeting.{event}"
    assert envelope["payload"] == {
        "meeting_id": body["meeting_id"],
        "client_reference_id": "my own reference",
        "occurred_at": "2026-08-04T15:04:05.123000Z",
    }
    assert envelope["correlation_ids"] == []


async def test_version_1_with_a_bare_signature_becomes_an_event(client: httpx.AsyncClient) -> None:
    body = {"meetingId": uuid4().hex, "eventType": "Transcription completed", "clientReferenceId": None}
    response = await _deliver(client, body, prefix="")
    envelope = await _read(client, response)
    assert response.status_code == 201
    assert envelope["event_type"] == "fireflies.meeting.transcribed"
    assert envelope["payload"]["meeting_id"] == body["meetingId"]


async def test_a_redelivery_is_a_duplicate_whichever_secret_signed_it(client: httpx.AsyncClient) -> None:
    body = _v2()
    first = await _deliver(client, body, secret=OLD)
    again = await _deliver(client, body, secret=NEW)
    assert (first.status_code, again.status_code, again.json()["status"]) == (201, 200, "duplicate")
    assert first.json()["event_id"] == again.json()["event_id"]


async def test_a_redelivery_that_differs_is_a_duplicate_and_no_conflict(client: httpx.AsyncClient) -> None:
    body = {"meetingId": uuid4().hex, "eventType": "Transcription completed"}
    await _deliver(client, body)
    again = await _deliver(client, body | {"clientReferenceId": "now it has one"})
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")


async def test_a_later_summary_of_a_meeting_is_another_event(client: httpx.AsyncClient) -> None:
    body = _v2("meeting.summarized")
    first = await _deliver(client, body)
    second = await _deliver(client, body | {"timestamp": body["timestamp"] + 1})
    assert first.json()["event_id"] != second.json()["event_id"]
    assert second.status_code == 201


async def test_a_late_delivery_is_taken(client: httpx.AsyncClient) -> None:
    year_ago = int(time.time() * 1000) - 365 * 86_400_000
    assert (await _deliver(client, _v2() | {"timestamp": year_ago})).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        _v2("test") | {"meeting_id": "test_00000000"},
        _v2("meeting.bot_joined"),
        _v2("meeting.something_new"),
        {"meetingId": "m", "eventType": "Something new"},
        _v2() | {"meeting_id": 7},
        _v2() | {"meeting_id": ""},
        _v2() | {"timestamp": "soon"},
        _v2() | {"timestamp": True},
        _v2() | {"timestamp": 10**18},
        _v2() | {"client_reference_id": 7},
        {"event": ["a list"]},
        {},
    ],
)
async def test_what_is_not_known_is_recorded_as_it_came(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await _deliver(client, body)
    envelope = await _read(client, response)
    assert response.status_code == 202, response.text
    assert envelope["event_type"] == "fireflies.webhook.received"
    assert envelope["payload"]["body"] == body
    again = await _deliver(client, body)
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")


@pytest.mark.parametrize("signature", ["", "sha256=", "0" * 64, "sha256=" + "0" * 64, "sha1=" + "0" * 40, "\xe9"])
async def test_a_wrong_signature_is_401(client: httpx.AsyncClient, signature: str) -> None:
    headers = {"X-Hub-Signature": signature.encode("latin-1")}
    response = await client.post(PATH, json=_v2(), headers=headers)  # type: ignore[arg-type]
    assert_problem(response, 401, "invalid_signature")
    assert "www-authenticate" in response.headers


async def test_the_signature_is_over_the_raw_bytes(client: httpx.AsyncClient) -> None:
    body = _v2()
    compact = json.dumps(body, separators=(",", ":")).encode()
    signature = hmac.new(NEW.encode(), compact, sha256).hexdigest()
    headers = {"X-Hub-Signature": signature, "Content-Type": "application/json"}
    spaced = json.dumps(body, indent=2).encode()
    assert_problem(await client.post(PATH, content=spaced, headers=headers), 401, "invalid_signature")
    assert (await client.post(PATH, content=compact, headers=headers)).status_code == 201


async def test_upper_case_digits_are_a_signature(client: httpx.AsyncClient) -> None:
    raw = json.dumps(_v2()).encode()
    signature = "SHA256=" + hmac.new(NEW.encode(), raw, sha256).hexdigest().upper()
    assert (await _deliver(client, raw, **{"X-Hub-Signature": signature})).status_code == 201


async def test_a_signed_body_that_is_no_json_object_is_refused(client: httpx.AsyncClient) -> None:
    assert_problem(await _deliver(client, b"{"), 400, "invalid_json")
    assert_problem(await _deliver(client, []), 422, "invalid_event")
    assert_problem(await _deliver(client, {"event": "test", "n": 2**64}), 422, "invalid_event")
    assert_problem(await _deliver(client, {}, **{"Content-Type": "text/plain"}), 415, "unsupported_media_type")


async def test_without_a_secret_webhooks_are_refused_unless_the_settings_allow_them(tmp_path: Any) -> None:
    async with api(tmp_path / "closed") as client:
        assert_problem(await client.post(PATH, json=_v2()), 403, "webhook_secret_missing")
    async with api(tmp_path / "open", fireflies_allow_unsigned=True) as client:
        assert (await client.post(PATH, json=_v2())).status_code == 201


async def test_a_secret_is_asked_for_also_where_unsigned_webhooks_are_allowed(tmp_path: Any) -> None:
    async with api(tmp_path, fireflies_allow_unsigned=True, fireflies_secrets=(NEW,)) as client:
        assert_problem(await client.post(PATH, json=_v2()), 401, "invalid_signature")


async def _upload(client: httpx.AsyncClient) -> str:
    payload = {"media_file": "call.mp3", "media_duration_seconds": 60, "media_type": "audio/mpeg"}
    event_id: str = (await client.post("/events/fireflies.transcript.upload", json=payload)).json()["event_id"]
    return event_id


async def _parents(client: httpx.AsyncClient, reference: str) -> list[str]:
    response = await _deliver(client, _v2(client_reference_id=reference))
    assert response.status_code == 201, response.text
    parents: list[str] = (await _read(client, response))["correlation_ids"]
    return parents


async def test_the_upload_whose_id_is_the_reference_is_the_parent(client: httpx.AsyncClient) -> None:
    upload = await _upload(client)
    assert await _parents(client, upload) == [upload]


async def test_no_other_event_and_no_unknown_id_is_made_the_parent(client: httpx.AsyncClient) -> None:
    other = (await client.post("/events/a.b", json={})).json()["event_id"]
    assert await _parents(client, other) == []
    assert await _parents(client, str(uuid4())) == []


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


async def test_the_log_tells_the_parent_where_the_index_is_away(client: httpx.AsyncClient, tmp_path: Any) -> None:
    upload = await _upload(client)
    async with _store_away(client, tmp_path):
        assert await _parents(client, upload) == [upload]


async def test_the_log_tells_the_parent_where_tracking_is_off(client: httpx.AsyncClient) -> None:
    upload, bus = await _upload(client), bus_of(client)
    async with (
        Publisher(bus.settings, transport=bus.publisher.transport) as publisher,
        publishing_with(client, publisher),
    ):
        assert await _parents(client, upload) == [upload]


async def test_an_event_is_worth_more_than_its_edge(
    client: httpx.AsyncClient, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    upload, bus = await _upload(client), bus_of(client)
    async with Publisher(bus.settings.model_copy(update={"data_dir": tmp_path / "closed"})) as closed:
        log = EventLog(closed.transport, None, bus.settings)
    async with _store_away(client, tmp_path), publishing_with(client, bus_of(client).publisher, log=log):
        response = await _deliver(client, _v2(client_reference_id=upload))
    envelope = await _read(client, response)
    assert (response.status_code, envelope["correlation_ids"]) == (201, [])
    assert envelope["payload"]["client_reference_id"] == upload
    assert "published without a parent" in caplog.text
    assert webhooks.__name__ in {record.name for record in caplog.records}


def test_ids_of_webhooks_never_change() -> None:
    v2 = read_notice({"event": "meeting.transcribed", "timestamp": 1, "meeting_id": "m"})
    v1 = read_notice({"eventType": "Transcription completed", "meetingId": "m"})
    assert str(v2.event_id) == "9043208d-1c8b-5601-8367-30fdca83e1aa"
    assert str(v1.event_id) == "b2369f78-3606-54dd-97ca-7c6fc5168a5d"
