"""The page of an event: its graph, its payload, and walking through them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from anyio import to_thread
from playwright.async_api import expect

from tests.browser.graphs import made, publish_graph, publish_star
from tests.browser.pages import PATIENCE_MS, asked, drawn, explorer, graph, played, published, until_drawn
from tests.servers.api import ApiServer

expect.set_options(timeout=PATIENCE_MS)


async def test_the_graph_of_the_demo_day_has_the_events_and_edges_of_the_api(server: ApiServer) -> None:
    focus = await played(server.url)
    answer = await asked(server.url, f"/events/{focus}/lineage?direction=both")
    async with explorer(server.url, f"/e/{focus}?depth=50") as page:
        await until_drawn(page, len(answer["nodes"]))
        nodes, edges = await drawn(page)
    assert nodes == {node["id"] for node in answer["nodes"]}
    assert edges == {(edge["parent"], edge["child"]) for edge in answer["edges"]}
    assert len(nodes) > 7


async def test_two_generations_down_are_drawn_and_plus_draws_the_next(server: ApiServer) -> None:
    chain = [made("step.a")]
    for name in ("step.b", "step.c", "step.d", "step.e"):
        chain.append(made(name, chain[-1]["event_id"]))
    ids = await published(server.url, *chain)
    async with explorer(server.url, f"/e/{ids[0]}") as page:
        await until_drawn(page, 3)
        assert (await drawn(page))[0] == set(ids[:3])
        await graph(page).locator(f'[data-id="{ids[2]}"]').focus()
        await page.keyboard.press("+")
        await until_drawn(page, 4)
        assert (await drawn(page))[1] == set(pairwise(ids[:4]))
        # What is far up is drawn without asking.
        await page.goto(f"{server.url}/e/{ids[4]}")
        await until_drawn(page, 5)


async def test_arrow_keys_walk_to_causes_and_effects_and_enter_opens(server: ApiServer) -> None:
    first, second = made("call.recorded"), made("call.recorded")
    both = made("memo.filed", first["event_id"], second["event_id"])
    after = made("memo.sent", both["event_id"])
    await published(server.url, first, second, both, after)
    focused = "document.activeElement.dataset.id"
    async with explorer(server.url, f"/e/{both['event_id']}") as page:
        await until_drawn(page, 4)
        await graph(page).locator(f'[data-id="{both["event_id"]}"]').focus()
        await page.keyboard.press("ArrowDown")
        assert await page.evaluate(focused) == after["event_id"]
        await page.keyboard.press("ArrowUp")
        await page.keyboard.press("ArrowUp")
        cause = await page.evaluate(focused)
        assert cause in {first["event_id"], second["event_id"]}
        await page.keyboard.press("ArrowRight" if cause == first["event_id"] else "ArrowLeft")
        sibling = await page.evaluate(focused)
        if sibling == cause:  # it stands at the other side
            await page.keyboard.press("ArrowLeft" if cause == first["event_id"] else "ArrowRight")
            sibling = await page.evaluate(focused)
        assert {cause, sibling} == {first["event_id"], second["event_id"]}
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(f"/e/{sibling}"))


async def test_all_generations_may_be_drawn_and_stand_in_the_address(server: ApiServer) -> None:
    chain = [made("step.a")]
    for _ in range(7):
        chain.append(made("step.b", chain[-1]["event_id"]))
    ids = await published(server.url, *chain)
    async with explorer(server.url, f"/e/{ids[0]}") as page:
        await until_drawn(page, 3)
        await page.get_by_role("toolbar", name="Graph").get_by_label("Effects").select_option(label="all")
        await until_drawn(page, len(ids))
        await page.reload()
        await until_drawn(page, len(ids))


async def test_a_link_opens_the_same_view_again(server: ApiServer) -> None:
    focus = await played(server.url)
    async with explorer(server.url, f"/e/{focus}") as page:
        toolbar = page.get_by_role("toolbar", name="Graph")
        await toolbar.get_by_role("button", name="Timeline").click()
        await toolbar.get_by_role("button", name="Source", exact=False).click()
        await expect(page).to_have_url(re.compile("view=timeline"))
        await expect(page).to_have_url(re.compile("colour=source"))
        link = page.url
        shown = await drawn(page)
        await page.goto(f"{server.url}/state")
        await page.goto(link)
        await until_drawn(page, len(shown[0]))
        assert await drawn(page) == shown
        await expect(toolbar.get_by_role("button", name="Timeline")).to_have_attribute("aria-pressed", "true")


async def test_a_cause_that_nobody_has_seen_is_dashed_and_said(server: ApiServer) -> None:
    ghost = "5f0c1c5e-52a4-4d0b-9c3f-8a0f4f0e7a11"
    (event_id,) = await published(server.url, made("memo.filed", ghost))
    async with explorer(server.url, f"/e/{event_id}") as page:
        await until_drawn(page, 2)
        box = graph(page).locator(f'[data-id="{ghost}"]')
        await expect(box).to_have_attribute("data-known", "false")
        dashes = await box.evaluate(
            "(box) => [...box.querySelectorAll('*')].map((each) => getComputedStyle(each).strokeDasharray)"
        )
        assert [dash for dash in dashes if dash != "none"]
        await expect(page.locator(".event-side")).to_contain_text("never seen")


async def test_a_failure_is_marked_and_its_error_is_shown(server: ApiServer) -> None:
    call = made("call.recorded")
    failed = made("memo.failed", call["event_id"], error={"code": "timeout", "message": "No answer within 30 s."})
    await published(server.url, call, failed)
    async with explorer(server.url, f"/e/{failed['event_id']}") as page:
        await expect(page.locator(".event-head")).to_contain_text("failed")
        await expect(page.locator(".event-payload")).to_contain_text("No answer within 30 s.")
        await until_drawn(page, 2)
        box = graph(page).locator(f'[data-id="{failed["event_id"]}"]')
        await expect(box).to_have_attribute("data-status", "failed")


async def test_a_prompt_and_its_answer_stand_side_by_side(server: ApiServer) -> None:
    prompt = made("llm.prompt", provider="anthropic", prompt="What did they say?")
    answer = made("llm.response", prompt["event_id"], provider="anthropic", response="We ship on Friday.")
    await published(server.url, prompt, answer)
    async with explorer(server.url, f"/e/{answer['event_id']}") as page:
        left, right = page.get_by_text("What did they say?").first, page.get_by_text("We ship on Friday.").first
        await expect(left).to_be_visible()
        await expect(right).to_be_visible()
        boxes = [await each.bounding_box() for each in (left, right)]
        assert boxes[0] is not None
        assert boxes[1] is not None
        assert boxes[0]["x"] + 100 < boxes[1]["x"]


async def test_files_of_the_graph_hold_it(server: ApiServer, tmp_path: Path) -> None:
    focus = await played(server.url)
    async with explorer(server.url, f"/e/{focus}") as page:
        nodes, _ = await drawn(page)
        for kind, beginning in (("SVG", b"<svg"), ("PNG", b"\x89PNG"), ("Mermaid", b"")):
            await page.locator(".graph-menu summary").click()
            async with page.expect_download() as download:
                await page.get_by_role("button", name=kind).click()
            file = tmp_path / kind
            await (await download.value).save_as(file)
            content = await to_thread.run_sync(file.read_bytes)
            assert beginning in content[:200]
            if kind != "PNG":
                assert all(node[:8].encode() in content for node in nodes)


async def test_five_hundred_events_are_drawn_each(server: ApiServer) -> None:
    focus = await publish_graph(server.url, 500, widest=12)
    async with explorer(server.url, f"/e/{focus}?depth=100") as page:
        await graph(page).wait_for()
        await expect(graph(page)).to_have_attribute("data-events", "500")
        answer = await asked(server.url, f"/events/{focus}/lineage?direction=both&max_depth=200&limit=500")
        assert len(answer["nodes"]) == 500


async def test_five_thousand_events_are_grouped_and_groups_open(server: ApiServer) -> None:
    focus = await publish_star(server.url, 5000)
    async with explorer(server.url, f"/e/{focus}") as page:
        await graph(page).wait_for()
        before = int(await graph(page).get_attribute("data-nodes") or 0)
        assert 1 < before < 50
        await expect(graph(page)).to_have_attribute("data-events", "5000")
        boxes = graph(page).locator("[data-count]:not([data-count='1'])")
        await boxes.first.focus()
        await page.keyboard.press("Enter")
        await expect(graph(page)).not_to_have_attribute("data-nodes", str(before))
        assert int(await graph(page).get_attribute("data-nodes") or 0) > before


async def test_an_event_that_nobody_knows_is_said_in_words(server: ApiServer) -> None:
    async with explorer(server.url, "/e/5f0c1c5e-52a4-4d0b-9c3f-8a0f4f0e7a11") as page:
        await expect(page.get_by_role("heading", level=1)).to_have_text("Nobody has heard of this event")
    async with explorer(server.url, "/e/nonsense") as page:
        await expect(page.get_by_role("heading", level=1)).to_have_text("No event id")
