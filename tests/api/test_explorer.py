"""The page of the explorer: who gets it, what a browser may do with it, and what is said where it was not built."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bloodbank.config import Scope
from bloodbank.http import explorer
from bloodbank.http.app import create_app
from tests.api.http_app import api, app_of, assert_problem, connect

STRANGER = ("203.0.113.9", 40_000)
ADDRESSES = ("/", "/e/01a20922-4493-7000-8000-000000000000", "/e/anything", "/find", "/find?text=x", "/state")
PAGE = b'<!doctype html><script type="module" src="/assets/index-Ab_1-2.js"></script>'
SCRIPT = b"console.log(1);"


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path_factory.mktemp("explorer")) as connected:
        yield connected


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a page that refers to a script, in place of the one that `make ui` fills."""
    folder = tmp_path / "static"
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_bytes(PAGE)
    (folder / "assets" / "index-Ab_1-2.js").write_bytes(SCRIPT)
    (folder / "assets" / "index.html").write_text("not served")
    (tmp_path / "secret.js").write_text("not served")
    monkeypatch.setattr(explorer, "BUILT", folder)
    return folder


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(explorer, "BUILT", tmp_path / "static")
    return tmp_path / "static"


@pytest.mark.parametrize("address", ADDRESSES)
async def test_every_address_of_the_explorer_is_the_same_page(
    client: httpx.AsyncClient, built: Path, address: str
) -> None:
    response = await client.get(address)
    assert (response.status_code, response.content) == (200, PAGE)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"


async def test_files_of_the_page_may_be_kept_for_ever(client: httpx.AsyncClient, built: Path) -> None:
    response = await client.get("/assets/index-Ab_1-2.js")
    assert (response.status_code, response.content) == (200, SCRIPT)
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("address", ["/", "/assets/index-Ab_1-2.js"])
async def test_a_browser_may_load_and_ask_this_server_and_nothing_else(
    client: httpx.AsyncClient, built: Path, address: str
) -> None:
    headers = (await client.get(address)).headers
    allowed = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert allowed == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "font-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"


async def test_a_page_that_was_not_built_says_how_to(client: httpx.AsyncClient, unbuilt: Path) -> None:
    for address in ADDRESSES:
        response = await client.get(address)
        assert response.status_code == 200
        assert "make ui" in response.text
        assert "content-security-policy" in response.headers
    assert_problem(await client.get("/assets/index-Ab_1-2.js"), 404, "route_not_found")


async def test_what_is_built_while_the_server_runs_is_there_at_once(client: httpx.AsyncClient, unbuilt: Path) -> None:
    assert "make ui" in (await client.get("/")).text
    unbuilt.mkdir()
    (unbuilt / "index.html").write_bytes(PAGE)
    assert (await client.get("/")).content == PAGE


@pytest.mark.parametrize(
    "path",
    [
        "/assets/missing.js",
        "/assets/",
        "/assets/index.html",
        "/assets/..%2Findex.html",
        "/assets/..%2F..%2Fsecret.js",
        "/assets/%2e%2e/%2e%2e/secret.js",
        "/assets/..%5C..%5Csecret.js",
        "/assets/.js",
        "/assets/index-Ab_1-2.js%00.js",
        "/assets/index-Ab_1-2.js/",
        "/e/",
        "/e/a/b",
        "/state/",
        "/index.html",
    ],
)
async def test_nothing_but_the_files_of_the_page_is_served(client: httpx.AsyncClient, built: Path, path: str) -> None:
    assert_problem(await client.get(f"http://localhost{path}"), 404, "route_not_found")


async def test_the_page_needs_no_key_and_what_it_asks_does(tmp_path: Path, built: Path) -> None:
    keys = {"read-key-1": frozenset({Scope.READ})}
    async with api(tmp_path / "data", client=STRANGER, host="bus.example", api_keys=keys) as guarded:
        for address in (*ADDRESSES, "/assets/index-Ab_1-2.js"):
            assert (await guarded.get(address)).status_code == 200
        assert_problem(await guarded.get("/events"), 401, "key_required")
        for path in ("/finder", "/find/x", "/stateful", "/eX", "/assetsX"):
            assert_problem(await guarded.get(path), 401, "key_required")


async def test_without_keys_strangers_and_foreign_names_do_not_get_the_page(
    client: httpx.AsyncClient, built: Path
) -> None:
    async with connect(app_of(client), client=STRANGER) as stranger:
        assert_problem(await stranger.get("/"), 403, "loopback_only")
    assert_problem(await client.get("/", headers={"Host": "evil.example"}), 403, "loopback_only")


async def test_the_page_answers_head_and_no_other_method(client: httpx.AsyncClient, built: Path) -> None:
    response = await client.head("/")
    assert (response.status_code, response.content) == (200, b"")
    assert_problem(await client.post("/"), 405, "method_not_allowed")


def test_the_page_is_no_part_of_the_described_api() -> None:
    assert not {path for path in create_app().openapi()["paths"] if explorer.is_explorer(path)}


async def test_a_name_that_is_too_long_for_a_file_is_not_found(client: httpx.AsyncClient, built: Path) -> None:
    assert_problem(await client.get(f"/assets/{'a' * 300}.js"), 404, "route_not_found")
