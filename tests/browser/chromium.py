"""Debian's Chromium, driven through playwright: one process for each block, nothing of it left behind."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, async_playwright

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
BUILT = ROOT / "src" / "bloodbank" / "http" / "static" / "index.html"
AXE = ROOT / "ui" / "node_modules" / "axe-core" / "axe.min.js"

OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # Names resolve to nothing: a page that asks another host fails, wherever the test runs.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class ChromiumMissing(RuntimeError):
    """There is no Chromium on the path; the message says how to get it."""


def program() -> str:
    """Return the path of Chromium; raises ChromiumMissing."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    raise ChromiumMissing("chromium is not installed. Run: sudo apt-get install chromium, or `make test`, which does")


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser without a window and yield it; end it in any case."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program(), args=list(OPTIONS))
        try:
            yield browser
        finally:
            await browser.close()
