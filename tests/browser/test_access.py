"""Keys, a store that is away, and a server that is away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from anyio import to_thread
from playwright.async_api import expect

from tests.browser.graphs import made
from tests.browser.pages import PATIENCE_MS, connected, explorer, graph, published
from tests.servers.api import ApiServer
from tests.servers.process import started
from tests.servers.redis import RedisServer

expect.set_options(timeout=PATIENCE_MS)

READER, WRITER = "reader-key-of-this-test", "writer-key-of-this-test"


@pytest.fixture
def guarded() -> Iterator[ApiServer]:
    """A server that asks for keys."""
    with started(ApiServer(BLOODBANK_API_KEYS=f"{READER}:read,{WRITER}:publish")) as server:
        yield server


@pytest.fixture
def store() -> Iterator[RedisServer]:
    """A Redis of this test's own."""
    with started(RedisServer()) as server:
        yield server


async def test_a_server_with_keys_is_asked_for_one_that_is_right_and_may_read(guarded: ApiServer) -> None:
    async with explorer(guarded.url) as page:
        prompt = page.get_by_role("dialog", name="This server asks for a key")
        await expect(prompt).to_be_visible()
        await prompt.get_by_label("API key").fill("nonsense")
        await prompt.get_by_role("button", name="Use this key").click()
        await expect(prompt.get_by_role("alert")).not_to_be_empty()
        await prompt.get_by_label("API key").fill(WRITER)
        await prompt.get_by_role("button", name="Use this key").click()
        await expect(page.locator(".stream-state")).to_contain_text("lacks the scope 'read'")
        await page.get_by_role("button", name="Use another key").first.click()
        await expect(prompt).to_be_visible()
        await prompt.get_by_label("API key").fill(READER)
        await page.keyboard.press("Enter")
        await connected(page)
        await published(guarded.url, made("memo.filed"), key=WRITER)
        await expect(page.locator(".rows li").first).to_contain_text("memo.filed")
        await expect(prompt).not_to_be_visible()
        await page.reload()
        await connected(page)
        assert READER not in page.url


async def test_all_of_an_events_page_comes_when_the_key_was_given(guarded: ApiServer) -> None:
    (event_id,) = await published(guarded.url, made("memo.filed"), key=WRITER)
    async with explorer(guarded.url, f"/e/{event_id}") as page:
        prompt = page.get_by_role("dialog", name="This server asks for a key")
        await prompt.get_by_label("API key").fill(READER)
        await page.keyboard.press("Enter")
        await expect(page.locator(".event-payload")).to_contain_text("We ship on Friday.")
        await expect(graph(page)).to_have_attribute("data-nodes", "1")
        await expect(page.locator(".graph-problem")).to_have_count(0)


async def test_a_store_that_is_away_is_said_and_found_again(store: RedisServer) -> None:
    server = ApiServer(REDIS_HOST="127.0.0.1", REDIS_PORT=str(store.port), BLOODBANK_BREAKER_RESET_SECONDS="0.5")
    try:
        await to_thread.run_sync(server.start)
        (event_id,) = await published(server.url, made("memo.filed"))
        await to_thread.run_sync(store.stop)
        async with explorer(server.url, f"/e/{event_id}") as page:
            await expect(page.locator(".graph")).to_contain_text("could not be loaded")
            # The log still has the event.
            await expect(page.locator(".event-payload")).to_contain_text("We ship on Friday.")
            await page.goto(f"{server.url}/state")
            card = page.locator("article", has_text="Index of causes")
            await expect(card).to_contain_text("does not work")
            await to_thread.run_sync(store.start)
            await expect(card).to_contain_text("works")
            await expect(card).not_to_contain_text("does not work")
            await page.goto(f"{server.url}/e/{event_id}")
            await graph(page).wait_for()
    finally:
        await to_thread.run_sync(server.close)


async def test_a_server_that_is_away_is_said(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        await connected(page)
        await to_thread.run_sync(server.stop)
        await expect(page.locator(".stream-lost")).to_be_visible()
        await to_thread.run_sync(server.start)
        await expect(page.locator(".stream-resumed, .stream-open")).to_be_visible()
