"""A page of the explorer, watched: it may ask nobody but its server, and may not break a rule of its own policy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import httpx
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, Request

from tests.browser.chromium import AXE, chromium

Theme = Literal["light", "dark"]

WIDTH, HEIGHT = 1280, 800
PATIENCE_MS = 20_000
"""A busy machine is no defect."""
SERIOUS = {"serious", "critical"}
QUIET = ("the server responded with a status of", "net::ERR_CONNECTION_REFUSED", "net::ERR_INCOMPLETE_CHUNKED_ENCODING")
"""What the browser itself says on the console of answers that the page tells of in its own words."""


@asynccontextmanager
async def explorer(server_url: str, path: str = "/", *, theme: Theme = "light") -> AsyncIterator[Page]:
    """Open a page of the explorer in a browser of its own; at the end nothing may have left the host, and no script
    may have failed."""
    async with chromium() as browser, watched(browser, server_url, theme=theme) as page:
        await page.goto(server_url + path)
        yield page


@asynccontextmanager
async def watched(browser: Browser, server_url: str, *, theme: Theme = "light") -> AsyncIterator[Page]:
    """Yield an empty page of a browser, with the same rules."""
    context = await browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT},
        color_scheme=theme,
        reduced_motion="reduce",
        timezone_id="UTC",
        locale="en-GB",
    )
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    asked: list[str] = []
    wrong: list[str] = []

    def on_request(request: Request) -> None:
        asked.append(request.url)

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in QUIET):
            wrong.append(message.text)

    def on_error(error: Exception) -> None:
        wrong.append(str(error))

    page.on("request", on_request)
    page.on("console", on_console)
    page.on("pageerror", on_error)
    try:
        yield page
    finally:
        await context.close()
    elsewhere = [url for url in asked if not url.startswith((f"{server_url}/", "data:", "blob:"))]
    assert not elsewhere, f"the explorer asks its own server alone, and not {elsewhere}"
    assert not wrong, wrong


async def published(server_url: str, *events: dict[str, Any], key: str | None = None) -> list[str]:
    """Publish events over HTTP, a hundred a request; return their ids."""
    ids: list[str] = []
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(timeout=60.0, trust_env=False, headers=headers) as client:
        for first in range(0, len(events), 100):
            answer = await client.post(f"{server_url}/events/batch", json={"events": events[first : first + 100]})
            results = answer.raise_for_status().json()["results"]
            refused = [result for result in results if result.get("status") != "published"]
            assert refused == [], refused[0]
            ids += [result["event_id"] for result in results]
    return ids


async def asked(server_url: str, path: str) -> Any:
    """Return what the API answers."""
    async with httpx.AsyncClient(timeout=60.0, trust_env=False) as client:
        return (await client.get(server_url + path)).raise_for_status().json()


async def played(server_url: str) -> str:
    """Have the demo played; return the id of the event that is worth looking at."""
    async with httpx.AsyncClient(timeout=60.0, trust_env=False) as client:
        answer = await client.post(f"{server_url}/demo")
        focus: str = answer.raise_for_status().json()["focus"]
        return focus


async def received(page: Page) -> int:
    """Return how many events the live page has received."""
    return int(await page.locator("[data-received]").get_attribute("data-received") or 0)


async def until_received(page: Page, count: int) -> None:
    """Wait until the live page has received so many events."""
    with anyio.fail_after(PATIENCE_MS / 1000):
        while await received(page) < count:
            await anyio.sleep(0.05)


async def connected(page: Page) -> None:
    """Wait until the live page is connected to the stream."""
    await page.locator(".stream-open, .stream-resumed").wait_for()


def graph(page: Page) -> Locator:
    """Return the drawing."""
    return page.get_by_test_id("graph")


async def drawn(page: Page) -> tuple[set[str], set[tuple[str, str]]]:
    """Return the ids of the events that are drawn, and (cause, effect) of the edges."""
    await graph(page).wait_for()
    nodes, edges = await graph(page).evaluate(
        """(svg) => [
            [...svg.querySelectorAll("[data-id]")].map((node) => node.dataset.id),
            [...svg.querySelectorAll("[data-parent]")].map((edge) => [edge.dataset.parent, edge.dataset.child]),
        ]"""
    )
    assert len(nodes) == len(set(nodes)), "each event is drawn once"
    found = {(parent, child) for parent, child in edges}
    assert len(found) == len(edges), "each edge is drawn once"
    return set(nodes), found


async def until_drawn(page: Page, count: int) -> None:
    """Wait until so many boxes are drawn."""
    await page.locator(f'[data-testid="graph"][data-nodes="{count}"]').wait_for()


async def findings(page: Page) -> Sequence[str]:
    """Return what axe finds that is serious or critical, one line each. Its rules are those of WCAG 2.2 A and AA."""
    script = await anyio.Path(AXE).read_text()
    # Evaluated by the debugger, which the page's policy does not bind.
    await page.evaluate(script)
    answer = json.loads(
        await page.evaluate(
            """async () => JSON.stringify((await axe.run(document, {resultTypes: ["violations"]})).violations)"""
        )
    )
    return [
        f"{found['impact']} {found['id']}: {found['help']}: {node['html'][:200]} {node['failureSummary']}"
        for found in answer
        if found["impact"] in SERIOUS
        for node in found["nodes"]
    ]
