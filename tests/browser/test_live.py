"""The live page: events as they come."""

from __future__ import annotations

import anyio
from anyio import to_thread
from playwright.async_api import Response, Route, expect

from tests.browser.graphs import made
from tests.browser.pages import PATIENCE_MS, connected, explorer, published, received, until_received
from tests.servers.api import ApiServer

expect.set_options(timeout=PATIENCE_MS)


async def test_an_event_appears_when_it_is_published_and_leads_to_its_page(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        await connected(page)
        (event_id,) = await published(server.url, made("memo.filed", title="The launch"))
        row = page.locator(".rows li").first
        await expect(row).to_contain_text("memo.filed")
        await row.locator("a").click()
        await expect(page).to_have_url(f"{server.url}/e/{event_id}")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("memo.filed")


async def test_all_that_comes_at_once_is_received_and_the_page_stays_small(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        await connected(page)
        ids = await published(server.url, *(made("memo.filed", number=number) for number in range(3000)))
        await until_received(page, len(ids))
        assert await received(page) == len(ids)
        newest = page.locator(".rows li").first.locator("a")
        await expect(newest).to_have_attribute("href", f"/e/{ids[-1]}")
        assert await page.locator(".rows li").count() <= 200
        assert await page.evaluate("document.getElementsByTagName('*').length") < 5000


async def test_a_paused_page_counts_what_waits_and_then_shows_it(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        await connected(page)
        await published(server.url, made("memo.filed"))
        await expect(page.locator(".rows li")).to_have_count(1)
        await page.get_by_role("button", name="Pause").click()
        await published(server.url, *(made("memo.filed") for _ in range(5)))
        await expect(page.locator(".held")).to_contain_text("5 new events wait")
        await expect(page.locator(".rows li")).to_have_count(1)
        await page.get_by_role("button", name="Go on").click()
        await expect(page.locator(".rows li")).to_have_count(6)


async def test_a_pattern_lets_through_what_fits_and_stands_in_the_address(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        await page.get_by_label("Types", exact=True).fill("memo.*")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{server.url}/?type=memo.*")
        await connected(page)
        await published(server.url, made("call.recorded"), made("memo.filed"), made("memo.failed"))
        await expect(page.locator(".rows li")).to_have_count(2)
        await expect(page.locator(".rows")).not_to_contain_text("call.recorded")


async def test_a_failure_says_so_in_a_word_and_in_red(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        await connected(page)
        await published(server.url, made("memo.failed", error={"code": "full", "message": "No room."}))
        row = page.locator(".rows li").first
        await expect(row).to_contain_text("failed")
        colour = await row.locator(".row-type").evaluate("(part) => getComputedStyle(part).color")
        red, green, blue = (int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")[:3])
        assert red > green + 60
        assert red > blue + 60


async def test_a_restart_of_the_server_loses_nothing(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        await connected(page)
        await published(server.url, *(made("memo.filed") for _ in range(10)))
        await until_received(page, 10)
        await to_thread.run_sync(server.restart)
        ids = await published(server.url, *(made("memo.filed") for _ in range(50)))
        await until_received(page, 60)
        await expect(page.locator(".stream-resumed")).to_contain_text("goes on where it stopped")
        await expect(page.locator(".rows li").first.locator("a")).to_have_attribute("href", f"/e/{ids[-1]}")
        assert await received(page) == 60


async def test_an_empty_bus_says_how_to_begin_and_plays_the_demo(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        await expect(page.get_by_role("heading", name="No event yet")).to_be_visible()
        await expect(page.locator(".empty code")).to_contain_text(f"curl {server.url}/events/llm/prompt")
        await page.get_by_role("button", name="Play the demo").click()
        await page.wait_for_url(f"{server.url}/e/*")
        await expect(page.get_by_test_id("graph")).to_be_visible()


async def test_whoever_went_elsewhere_while_the_demo_was_played_stays_there(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        held = anyio.Event()
        played = anyio.Event()

        async def hold(route: Route) -> None:
            await held.wait()
            await route.continue_()

        def answered(response: Response) -> None:
            if response.url.endswith("/demo"):
                played.set()

        await page.route("**/demo", hold)
        page.on("response", answered)
        await page.get_by_role("button", name="Play the demo").click()
        await page.get_by_role("link", name="State", exact=True).click()
        held.set()
        await played.wait()
        await page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        await expect(page.get_by_role("heading", name="State of the bus")).to_be_visible()
        assert page.url == f"{server.url}/state"


async def test_the_command_of_the_empty_page_publishes_an_event_that_appears(server: ApiServer) -> None:
    async with explorer(server.url) as page:
        command = await page.locator(".empty code").inner_text()
        done = await anyio.run_process(["sh", "-c", command])
        assert b'"published"' in done.stdout
        await expect(page.locator(".rows li").first).to_contain_text("llm.prompt")
        await expect(page.get_by_role("heading", name="No event yet")).not_to_be_visible()
