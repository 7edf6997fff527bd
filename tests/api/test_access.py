"""Who may ask: keys with scopes, or whoever is on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from bloodbank.config import Scope
from bloodbank.http.access import is_loopback
from bloodbank.http.app import ROUTERS, create_app
from bloodbank.http.keys import KeyRing
from tests.api.http_app import PROMPT, api, app_of, assert_problem, connect, filled

STRANGER = ("203.0.113.9", 40_000)
OPEN = {"/healthz", "/livez", "/docs", "/openapi.json", "/webhooks/fireflies"}
KEYS = {
    "publish-key": frozenset({Scope.PUBLISH}),
    "read-key-1": frozenset({Scope.READ}),
    "admin-key": frozenset({Scope.ADMIN}),
}


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path_factory.mktemp("keys"), client=STRANGER, host="bus.example", api_keys=KEYS) as client:
        yield client


@pytest.fixture(scope="module")
async def unguarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path_factory.mktemp("none")) as client:
        yield client


def _routes() -> list[tuple[str, str]]:
    described = create_app().openapi()["paths"]
    paths = [(method.upper(), path) for path, operations in described.items() for method in operations]
    return [
        *((method, filled(path)) for method, path in paths),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/no/such/route"),
    ]


async def test_every_route_asks_for_a_key_but_the_open_ones(guarded: httpx.AsyncClient) -> None:
    for method, path in _routes():
        response = await guarded.request(method, path)
        if path in OPEN:
            assert response.status_code != 401, path
        else:
            assert_problem(response, 401, "key_required")
            assert response.headers["www-authenticate"] == 'Bearer realm="bloodbank"'


async def test_without_keys_every_route_refuses_strangers_but_the_open_ones(unguarded: httpx.AsyncClient) -> None:
    async with connect(app_of(unguarded), client=STRANGER) as stranger:
        for method, path in _routes():
            response = await stranger.request(method, path)
            if path in {"/healthz", "/livez"}:
                assert response.status_code == 200, path
            elif path.startswith("/webhooks/"):
                assert_problem(response, 403, "webhook_secret_missing")
            else:
                assert_problem(response, 403, "loopback_only")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer wrong-key"},
        {"Authorization": "Basic cmVhZC1rZXktMQ=="},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong-key", "X-API-Key": "read-key-1"},
        {"X-API-Key": "read-key-"},
        {"X-API-Key": ""},
        {"X-API-Key": b"read-key-\xff"},
    ],
)
async def test_a_wrong_key_is_401(guarded: httpx.AsyncClient, headers: Any) -> None:
    response = await guarded.get("/events", headers=headers)
    assert_problem(response, 401, "key_required")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("key", "may_publish", "may_read"),
    [("publish-key", True, False), ("read-key-1", False, True), ("admin-key", True, True)],
)
async def test_a_key_may_do_what_its_scopes_say(
    guarded: httpx.AsyncClient, key: str, may_publish: bool, may_read: bool
) -> None:
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"Authorization": f"bearer  {key}"}):
        published = await guarded.post("/events/llm/prompt", json=PROMPT, headers=headers)
        read = await guarded.get("/events", headers=headers)
        assert (published.status_code, read.status_code) == (201 if may_publish else 403, 200 if may_read else 403)
        for response, scope in ((published, "publish"), (read, "read")):
            if response.status_code == 403:
                assert scope in assert_problem(response, 403, "insufficient_scope")["detail"]
                assert f'scope="{scope}"' in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8682", "LOCALHOST.", "127.0.0.1:1", "[::1]:8682", "bus.localhost"]
)
async def test_without_keys_loopback_names_are_answered(unguarded: httpx.AsyncClient, host: str) -> None:
    assert (await unguarded.get("/events", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8682", "localhost.evil.example", "", "127.0.0.1.nip.io", "10.0.0.1", "a:b:c"]
)
async def test_a_web_page_that_points_its_own_name_here_is_refused(unguarded: httpx.AsyncClient, host: str) -> None:
    assert_problem(await unguarded.get("/events", headers={"Host": host}), 403, "loopback_only")


async def test_a_client_without_an_address_is_no_loopback_client(unguarded: httpx.AsyncClient) -> None:
    async with connect(app_of(unguarded), client=None) as nameless:
        assert_problem(await nameless.get("/events"), 403, "loopback_only")


async def test_strangers_are_answered_where_the_settings_allow_it(tmp_path: Any) -> None:
    async with api(tmp_path, client=STRANGER, host="bus.example", allow_anonymous=True) as client:
        assert (await client.post("/events/llm/prompt", json=PROMPT)).status_code == 201


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.8.9.1", True), ("::ffff:127.0.0.1", True), ("::1", True), ("::ffff:10.0.0.1", False), ("0.0.0.0", False)],
)
def test_loopback_addresses(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_empty_ring_is_false_and_knows_no_key() -> None:
    ring = KeyRing({})
    assert not ring
    assert ring.scopes_of(b"") is None


async def test_before_the_start_only_livez_answers() -> None:
    async with connect(create_app()) as client:
        assert_problem(await client.get("/events"), 503, "not_open")
        assert_problem(await client.get("/healthz"), 503, "not_open")
        assert (await client.get("/livez")).status_code == 200


def test_no_route_hides_from_the_description() -> None:
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) == sum(map(len, create_app().openapi()["paths"].values()))


async def test_one_of_two_host_headers_is_not_enough(unguarded: httpx.AsyncClient) -> None:
    for hosts in (["localhost", "evil.example"], ["evil.example", "localhost"]):
        response = await unguarded.get("/events", headers=[("Host", host) for host in hosts])
        assert_problem(response, 403, "loopback_only")


async def test_a_request_without_a_host_header_is_refused(unguarded: httpx.AsyncClient) -> None:
    request = unguarded.build_request("GET", "/events")
    del request.headers["host"]
    assert_problem(await unguarded.send(request), 403, "loopback_only")


@pytest.mark.parametrize("path", ["/webhooks", "/webhooksfireflies", "/healthz/", "/livez/x", "/docs/", "//healthz"])
async def test_what_only_begins_like_an_open_path_asks_for_a_key(guarded: httpx.AsyncClient, path: str) -> None:
    # Not as a relative address: httpx would take two slashes for a host.
    assert_problem(await guarded.get(f"http://bus.example{path}"), 401, "key_required")


async def test_below_a_path_of_the_proxy_the_same_paths_are_open(guarded: httpx.AsyncClient) -> None:
    transport = httpx.ASGITransport(app_of(guarded), client=STRANGER, root_path="/bus")
    async with httpx.AsyncClient(transport=transport, base_url="http://bus.example/bus") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert_problem(await client.get("/events"), 401, "key_required")
        assert (await client.get("/events", headers={"X-API-Key": "read-key-1"})).status_code == 200


CROSS_SITE: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "Cross-Site", "Origin": "http://localhost"},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "null"},
    {"Origin": "file://"},
    {"Origin": "localhost"},
    {"Origin": ""},
]
SAME_SITE: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "HTTP://LOCALHOST"},
    {"Origin": "https://localhost"},
]


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
async def test_without_keys_a_page_of_another_site_can_change_nothing(
    unguarded: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    for method, path in _routes():
        if method not in ("GET", "HEAD"):
            assert_problem(await unguarded.request(method, path, headers=headers), 403, "cross_site")
    # It may ask; the browser keeps the answer from the page.
    assert (await unguarded.get("/events", headers=headers)).status_code == 200


@pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
async def test_without_keys_a_page_of_another_site_takes_no_place_of_a_stream(
    unguarded: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    # A cursor that is none: what is let through ends here.
    address = "/events/stream?after=none!"
    assert_problem(await unguarded.get(address, headers=headers), 403, "cross_site")
    assert_problem(await unguarded.get(address), 400, "invalid_query")


@pytest.mark.parametrize("headers", SAME_SITE, ids=str)
async def test_without_keys_programs_and_our_own_pages_may(
    unguarded: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    sent = {"event_type": "call.recorded", "payload": {}}
    assert (await unguarded.post("/events", json=sent, headers=headers)).status_code == 201


async def test_with_keys_a_page_of_another_site_needs_one(guarded: httpx.AsyncClient) -> None:
    sent = {"event_type": "call.recorded", "payload": {}}
    headers = {"Origin": "http://app.example", "Sec-Fetch-Site": "cross-site"}
    assert_problem(await guarded.post("/events", json=sent, headers=headers), 401, "key_required")
    headers |= {"X-API-Key": "publish-key"}
    assert (await guarded.post("/events", json=sent, headers=headers)).status_code == 201


async def test_a_webhook_comes_from_no_page_also_with_keys(guarded: httpx.AsyncClient) -> None:
    response = await guarded.post("/webhooks/fireflies", json={}, headers={"Sec-Fetch-Site": "cross-site"})
    assert_problem(response, 403, "cross_site")
