"""The search."""

from __future__ import annotations

import re

from playwright.async_api import expect

from tests.browser.graphs import made
from tests.browser.pages import PATIENCE_MS, explorer, published
from tests.servers.api import ApiServer

expect.set_options(timeout=PATIENCE_MS)


async def test_a_text_finds_the_events_that_say_it(server: ApiServer) -> None:
    ids = await published(server.url, made("memo.filed", title="The launch"), made("memo.filed", title="The budget"))
    async with explorer(server.url) as page:
        await page.get_by_role("searchbox", name="Find an event by id or text").fill("the LAUNCH")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{server.url}/find?text=the+LAUNCH")
        found = page.get_by_role("region", name="Results").locator("li")
        await expect(found).to_have_count(1)
        await expect(found.locator(f'a[href="/e/{ids[0]}"]')).to_be_visible()


async def test_an_id_opens_its_event_and_its_beginning_finds_it(server: ApiServer) -> None:
    (event_id,) = await published(server.url, made("memo.filed"))
    async with explorer(server.url) as page:
        field = page.get_by_role("searchbox", name="Find an event by id or text")
        await field.fill(event_id[:13])
        await page.keyboard.press("Enter")
        await page.locator(f'.found a[href="/e/{event_id}"]').click()
        await expect(page).to_have_url(f"{server.url}/e/{event_id}")
        await page.goto(server.url)
        await page.locator(".rows li").first.wait_for()
        await page.keyboard.press("Control+k")
        await page.keyboard.type(event_id)
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{server.url}/e/{event_id}")


async def test_type_and_text_together_narrow_the_search_and_stand_in_the_address(server: ApiServer) -> None:
    await published(server.url, made("memo.filed", t="launch"), made("memo.sent", t="launch"), made("memo.sent", t="x"))
    async with explorer(server.url, "/find") as page:
        await expect(page.locator(".found li")).to_have_count(3)
        await page.get_by_label("Type").fill("memo.sent")
        await page.get_by_label("Text").last.fill("launch")
        await page.get_by_role("button", name="Find").click()
        await expect(page.locator(".found li")).to_have_count(1)
        await page.reload()
        await expect(page.locator(".found li")).to_have_count(1)


async def test_two_chosen_events_are_asked_how_they_are_related(server: ApiServer) -> None:
    call = made("call.recorded")
    left, right = made("memo.filed", call["event_id"]), made("memo.sent", call["event_id"])
    await published(server.url, call, left, right)
    async with explorer(server.url, "/find") as page:
        for name in ("memo.filed", "memo.sent"):
            await page.get_by_role("checkbox", name=re.compile(f"Choose {name}")).check()
        relation = page.locator(f'a[href="/e/{call["event_id"]}"]')
        await expect(relation.first).to_be_visible()
        await expect(page.get_by_text(re.compile("common", re.IGNORECASE)).first).to_be_visible()
