"""Every view, light and dark: nothing serious for axe, reachable by keyboard, and pictures of it.

With BLOODBANK_TEST_SCREENSHOTS=docs/images the pictures are written there; `make screenshots` does that.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from playwright.async_api import Page, expect

from bloodbank import Consumer, EventEnvelope, Retry, Settings
from bloodbank.events.artifact import ArtifactCreated
from tests.browser.chromium import ROOT
from tests.browser.graphs import made
from tests.browser.pages import (
    PATIENCE_MS,
    Theme,
    asked,
    connected,
    explorer,
    findings,
    graph,
    played,
    published,
    until_received,
)
from tests.servers.api import ApiServer
from tests.servers.process import started

expect.set_options(timeout=PATIENCE_MS)

THEMES: tuple[Theme, ...] = ("light", "dark")
VIEWS = ("live", "event", "timeline", "transcript", "answer", "find", "state")
DAY = (
    ("ask.received", "desk", {"text": "When does the launch happen?"}),
    ("llm.prompt", "scribe", {"provider": "anthropic", "prompt": "Summarise the call about the launch."}),
    ("llm.response", "scribe", {"provider": "anthropic", "response": "They ship on Friday; Grace writes the notes."}),
    ("memo.filed", "clerk", {"title": "The launch", "pages": 2}),
    ("llm.prompt", "planner", {"provider": "openai", "prompt": "List what has to be done before Friday."}),
    ("llm.response", "planner", {"provider": "openai", "response": "Release notes, a checklist, a mail to customers."}),
    ("mail.sent", "clerk", {"to": "customers", "subject": "We ship on Friday"}),
    ("mail.failed", "clerk", {"error": {"code": "timeout", "message": "No answer within 30 s."}}),
)
LARGEST_PICTURE_BYTES = 250_000
PARTS = ("Live", "Find", "State", "Copy id", "Copy curl", "Zoom in", "Save", "This event", "Raw JSON")


SHOWN = {"transcript": "fireflies.transcript.ready", "answer": "llm.response"}
"""Views that are about a payload."""


@pytest.fixture(scope="module")
def busy_server() -> Iterator[ApiServer]:
    """A server whose day has been played."""
    with started(ApiServer()) as server:
        yield server


@pytest.fixture(scope="module")
async def focus(busy_server: ApiServer) -> str:
    """An event of a day that was played, with a group of consumers that gave one of its events up."""
    return await _gave_up(busy_server)


async def _gave_up(server: ApiServer) -> str:
    """Play a day, let a group of consumers give one of its events up, and return the id of an event."""
    event_id = await played(server.url)
    consumer = Consumer("indexer", settings=Settings(_env_file=None, data_dir=server.folder))

    @consumer.on("artifact.created", start="beginning", retry=Retry(attempts=1))
    async def index(event: EventEnvelope[ArtifactCreated]) -> None:
        raise ConnectionError(f"The index is read-only, so {event.payload.uri} was not added.")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        with anyio.fail_after(30):
            while not (await asked(server.url, "/dlq"))["items"]:
                await anyio.sleep(0.05)
        consumer.stop()
    return event_id


def _days(count: int) -> list[dict[str, Any]]:
    """Return the events of some days; each has the one before it as its cause."""
    events: list[dict[str, Any]] = []
    for _ in range(count):
        causes: list[str] = []
        for event_type, app, payload in DAY:
            event = made(event_type, *causes, **payload)
            events.append(event | {"source": {"host": "laptop", "type": "agent", "app": app}})
            causes = [event["event_id"]]
    return events


@asynccontextmanager
async def view(server: ApiServer, focus: str, name: str, theme: Theme) -> AsyncIterator[Page]:
    """Open a view and wait until it shows what it is about."""
    paths = {"live": "/", "event": f"/e/{focus}", "timeline": f"/e/{focus}?view=timeline", "find": "/find?text=notes"}
    path = paths.get(name, f"/{name}")
    if name in SHOWN:
        (shown,) = (await asked(server.url, f"/events?type={SHOWN[name]}&limit=1"))["items"]
        path = f"/e/{shown['event_id']}"
    async with explorer(server.url, path, theme=theme) as page:
        if name == "live":
            await connected(page)
            events = _days(4)
            await published(server.url, *events)
            await until_received(page, len(events))
            await page.mouse.move(0, 0)
        elif name == "find":
            await expect(page.locator(".found-status")).to_be_visible()
            await expect(page.get_by_role("region", name="Results")).to_have_attribute("aria-busy", "false")
        elif name == "state":
            await expect(page.get_by_text("ConnectionError").first).to_be_visible()
            await expect(page.get_by_text("indexer").first).to_be_visible()
        else:
            await graph(page).wait_for()
            await expect(page.locator(".event-payload")).not_to_contain_text("Loading")
            if name in SHOWN:
                await page.locator(".event-payload").scroll_into_view_if_needed()
                await page.locator(".event-body").evaluate("(body) => body.scrollIntoView({block: 'start'})")
        yield page


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", VIEWS)
async def test_axe_finds_nothing_serious_and_a_picture_is_taken(
    busy_server: ApiServer, focus: str, name: str, theme: Theme, tmp_path: Path
) -> None:
    folder = ROOT / os.environ["BLOODBANK_TEST_SCREENSHOTS"] if "BLOODBANK_TEST_SCREENSHOTS" in os.environ else tmp_path
    async with view(busy_server, focus, name, theme) as page:
        assert await findings(page) == []
        picture = await page.screenshot(
            path=folder / f"explorer-{name}-{theme}.png", animations="disabled", caret="hide"
        )
    assert 10_000 < len(picture) < LARGEST_PICTURE_BYTES


@pytest.mark.parametrize("theme", THEMES)
async def test_axe_finds_nothing_serious_in_the_empty_page_and_the_prompt_for_a_key(theme: Theme) -> None:
    for settings, shown in (({}, "No event yet"), ({"BLOODBANK_API_KEYS": f"{'k' * 24}:read"}, "asks for a key")):
        server = ApiServer(**settings)
        try:
            await anyio.to_thread.run_sync(server.start)
            async with explorer(server.url, theme=theme) as page:
                await expect(page.get_by_text(shown).first).to_be_visible()
                assert await findings(page) == []
        finally:
            await anyio.to_thread.run_sync(server.close)


async def test_every_part_of_the_event_page_is_reached_with_the_tab_key(busy_server: ApiServer, focus: str) -> None:
    async with view(busy_server, focus, "event", "light") as page:
        reached: list[str] = []
        for _ in range(120):
            await page.keyboard.press("Tab")
            where, outlined = await page.evaluate(
                """() => {
                    const at = document.activeElement;
                    // Behind the last part the focus leaves the page.
                    if (at === document.body) return [null, true];
                    const style = getComputedStyle(at);
                    return [at.getAttribute("aria-label") ?? at.textContent.trim().slice(0, 40),
                            style.outlineStyle !== "none" || style.boxShadow !== "none" || at.matches("svg *")];
                }"""
            )
            assert outlined, f"the focus on {where!r} is not seen"
            if where is None or (reached and where == reached[0]):
                break
            reached.append(where)
        text = " | ".join(reached)
        missing = [part for part in PARTS if part not in text]
        assert not missing, text


async def test_the_state_page_gives_a_dead_letter_back(server: ApiServer) -> None:
    focus = await _gave_up(server)
    async with view(server, focus, "state", "light") as page:
        (letter,) = (await asked(server.url, "/dlq"))["items"]
        await page.get_by_role("button", name="Retry", exact=True).click()
        with anyio.fail_after(20):
            while (await asked(server.url, "/dlq"))["items"] == [letter]:
                await anyio.sleep(0.05)
