"""The explorer: 1,000 events a second for a minute, read by a page and by a client of the stream; large graphs drawn.

Chromium's own tracing says how long the main thread of the page was blocked, its debugger how large the heap is.
Needs Chromium and the built explorer: `make bench-explorer` has both made.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import anyio
import httpx
from playwright.async_api import Browser, CDPSession, Page

from bench._harness import Options, Row, main, meets, row_of
from tests.browser.chromium import chromium
from tests.browser.graphs import publish_graph
from tests.servers.api import ApiServer

EVENTS_A_SECOND = 1000
WARM_SECONDS = 15.0
"""Before the heap is looked at for the first time: caches and lists are full by then."""
TRACED_SECONDS = 60.0
ARRIVAL_SECONDS = 20.0
"""How long what was published last may be on its way to the readers."""
DRAW_SECONDS = 30.0
GRAPHS = {"500 events": 500, "5,000 events, siblings grouped": 5000}
WIDEST = {"500 events": 9, "5,000 events, siblings grouped": 100}
TARGETS = {"500 events": "value <= 1", "5,000 events, siblings grouped": "value <= 3"}
TRACE_CATEGORIES = ("toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline")
TASKS = ("RunTask", "ThreadControllerImpl::RunTask")
RECEIVED = "[data-received]"


async def measure(options: Options) -> list[Row]:
    """Load the live page for over a minute, then draw each graph `options.rounds` times."""
    server = ApiServer()
    try:
        await anyio.to_thread.run_sync(server.start)
        async with chromium() as browser:
            rows = [Row("Chromium", browser.version, "version")]
            rows += await _live(browser, server)
            for name, count in GRAPHS.items():
                focus = await publish_graph(server.url, count, widest=WIDEST[name])
                seconds = [await _draw(browser, server.url, focus, count) for _ in range(options.rounds)]
                rows.append(row_of(f"graph: {name}, address to last painted edge", seconds, "s", target=TARGETS[name]))
            return rows
    finally:
        await anyio.to_thread.run_sync(server.close)


async def _live(browser: Browser, server: ApiServer) -> list[Row]:
    page = await browser.new_page()
    await page.goto(server.url)
    await page.wait_for_selector(RECEIVED)
    debugger = await page.context.new_cdp_session(page)
    async with _reader(server.url) as seen, _steady(server.url, WARM_SECONDS + TRACED_SECONDS + 5) as accepted:
        await asyncio.sleep(WARM_SECONDS)
        before = await _heap_bytes(debugger)
        samples, trace = await _trace(browser, page, debugger)
        after = await _heap_bytes(debugger)
        ids = await accepted()
        await _arrived(lambda: len(seen), len(ids))
        await _arrived_in_page(page, len(ids))
    received = int(await page.locator(RECEIVED).get_attribute("data-received") or 0)
    nodes = await page.evaluate("document.getElementsByTagName('*').length")
    await page.close()
    traced, longest, busy = _main_thread(trace)
    return [
        _row("live: events published", len(ids), "events"),
        _row(
            "live: lost or twice in a client of the stream",
            len((Counter(ids) - seen) + (seen - Counter(ids))),
            "events",
            "value <= 0",
        ),
        _row("live: received by the page, of those published", received / len(ids), "", "value >= 1"),
        _row("live: seconds of the trace", traced, "s", "value >= 59"),
        _row("live: longest block of the main thread", longest * 1000, "ms", "value <= 200"),
        _row("live: main thread busy", busy / traced * 100, "%"),
        _row("live: heap after garbage collection, after 15 s", before / 1e6, "MB"),
        _row("live: the same a minute later, as a share", after / before, "", "value <= 1.1"),
        _row("live: highest heap before collection", max(samples) / 1e6, "MB"),
        _row("live: elements in the page at the end", nodes, "elements"),
    ]


def _row(name: str, value: float, unit: str, target: str | None = None) -> Row:
    holds = None if target is None else meets(target, value=value, ratio=None)
    return Row(name, value, unit, target=target, holds=holds)


@asynccontextmanager
async def _steady(url: str, seconds: float) -> AsyncIterator[Any]:
    """Run the load as a process; yield a function that waits for its end and returns the ids that were accepted."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench._steady", url, str(EVENTS_A_SECOND), str(seconds)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    reading = asyncio.create_task(process.communicate())

    async def accepted() -> list[UUID]:
        output, errors = await reading
        if process.returncode:
            raise RuntimeError(f"The load ended with {process.returncode}: {errors.decode()[-500:]}")
        return [UUID(line) for line in output.decode().split()]

    try:
        yield accepted
    finally:
        if process.returncode is None:
            process.kill()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await process.wait()


@asynccontextmanager
async def _reader(url: str) -> AsyncIterator[Counter[UUID]]:
    """Read the stream as a client of its own; yield what it has seen, by id."""
    seen: Counter[UUID] = Counter()
    ready = asyncio.Event()

    async def read() -> None:
        async with (
            httpx.AsyncClient(timeout=60.0, trust_env=False) as client,
            client.stream("GET", f"{url}/events/stream") as response,
        ):
            response.raise_for_status()
            kind = ""
            async for line in response.aiter_lines():
                if line.startswith("event:"):
                    kind = line[6:].strip()
                    ready.set()
                elif line.startswith("data:") and kind == "event":
                    seen[UUID(json.loads(line[5:])["event_id"])] += 1

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        async with asyncio.timeout(ARRIVAL_SECONDS):
            await ready.wait()
        yield seen
        reading.cancel()


async def _arrived(count: Any, wanted: int) -> None:
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while count() < wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


async def _arrived_in_page(page: Page, wanted: int) -> None:
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while time.monotonic() < deadline:
        if int(await page.locator(RECEIVED).get_attribute("data-received") or 0) >= wanted:
            return
        await asyncio.sleep(0.2)


async def _heap_bytes(debugger: CDPSession) -> float:
    """Return the size of what lives in the page's heap, after a collection."""
    await debugger.send("HeapProfiler.collectGarbage")
    return await _heap_used(debugger)


async def _heap_used(debugger: CDPSession) -> float:
    usage: Mapping[str, float] = await debugger.send("Runtime.getHeapUsage")
    return usage["usedSize"]


async def _trace(browser: Browser, page: Page, debugger: CDPSession) -> tuple[list[float], list[dict[str, Any]]]:
    """Trace the browser; return the heap's size each second, and the events of the trace."""
    samples: list[float] = []
    with TemporaryDirectory(prefix="bloodbank-bench-") as folder:
        file = Path(folder) / "trace.json"
        await browser.start_tracing(page=page, path=file, categories=list(TRACE_CATEGORIES))
        deadline = time.monotonic() + TRACED_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            samples.append(await _heap_used(debugger))
        await browser.stop_tracing()
        text = await anyio.to_thread.run_sync(file.read_bytes)
    return samples, json.loads(text)["traceEvents"]


def _main_thread(trace: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Return the seconds that the trace covers, the longest task of a page's main thread and all its tasks together."""
    mains = {
        (event["pid"], event["tid"])
        for event in trace
        if event.get("name") == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in trace:
        place = (event["pid"], event["tid"])
        if event.get("name") in TASKS and event.get("ph") == "X" and place in mains:
            tasks.setdefault(place, []).append((event["ts"] / 1e6, event.get("dur", 0) / 1e6))
    if not tasks:
        raise RuntimeError("The trace has no tasks of a page's main thread.")
    # Tabs of Chromium's own hardly do anything: the page is the busiest.
    page = max(tasks.values(), key=lambda found: sum(seconds for _, seconds in found))
    begun, ended = min(at for at, _ in page), max(at + seconds for at, seconds in page)
    # Nested tasks are in the time of the outer ones.
    outer, busy = begun, 0.0
    for at, seconds in sorted(page):
        busy += max(0.0, at + seconds - max(at, outer))
        outer = max(outer, at + seconds)
    return ended - begun, max(seconds for _, seconds in page), busy


async def _draw(browser: Browser, url: str, focus: str, count: int) -> float:
    """Open the graph of an event in a page of its own; return seconds until all its events are painted."""
    page = await browser.new_page()
    try:
        # What the page itself needs is loaded before: here the drawing is measured.
        await page.goto(f"{url}/state")
        await page.wait_for_load_state("networkidle")
        seconds: float = await page.evaluate(
            """async ([address, limit, count]) => {
                const begun = performance.now();
                history.pushState(null, "", address);
                dispatchEvent(new PopStateEvent("popstate"));
                const deadline = begun + limit * 1000;
                for (;;) {
                    await new Promise(requestAnimationFrame);
                    const graph = document.querySelector('[data-testid="graph"]');
                    if (graph && Number(graph.getAttribute("data-events")) === count) break;
                    if (performance.now() > deadline) throw new Error("no graph in time");
                }
                // The frame in which it stands is painted when the one after it begins.
                await new Promise(requestAnimationFrame);
                await new Promise((done) => { const { port1, port2 } = new MessageChannel();
                    port1.onmessage = done; port2.postMessage(0); });
                return (performance.now() - begun) / 1000;
            }""",
            [f"/e/{focus}?depth=10000", DRAW_SECONDS, count],
        )
        return seconds
    finally:
        await page.close()


if __name__ == "__main__":
    main(measure, count=EVENTS_A_SECOND, rounds=5, packages=("playwright",))
