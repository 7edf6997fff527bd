"""A server of the demo's own: a process on a free port of this machine, with its own data and webhook secret."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from bloodbank.errors import Unavailable

START_SECONDS = 30.0
DEPENDENCY_SECONDS = 8.0
"""How long a server that runs may miss its broker."""
STOP_SECONDS = 10.0
NO_ANSWER = "it does not answer"
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A running server without keys: it answers this machine alone. folder: its data. secret: signs webhooks."""

    url: str
    folder: Path
    secret: str


@asynccontextmanager
async def demo_server() -> AsyncGenerator[DemoServer]:
    """Start `bb serve` on the backends that the settings choose, wait until it is ready, and end it in any case.

    Raises Unavailable, with the end of the server's log, when it is not ready in time.
    """
    with tempfile.TemporaryDirectory(prefix="bloodbank-demo-") as name:
        url = f"http://127.0.0.1:{_free_port()}"
        server = DemoServer(url, Path(name), secrets.token_urlsafe(24))
        log = server.folder / "server.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bloodbank.cli.main", "serve"),
                env=_environment(server),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A session of its own: Ctrl-C reaches the demo alone, which then ends the server.
                start_new_session=True,
            )
        try:
            await _wait_until_ready(process, server, log)
            yield server
        finally:
            await _end(process)


def _environment(server: DemoServer) -> dict[str, str]:
    return os.environ | {
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": server.url.rpartition(":")[2],
        "BLOODBANK_DATA_DIR": str(server.folder),
        "BLOODBANK_API_KEYS": "",
        "BLOODBANK_ALLOW_ANONYMOUS": "false",
        "BLOODBANK_FIREFLIES_SECRETS": server.secret,
        "BLOODBANK_CORRELATION_TRACKING": "true",
        "PYTHONUNBUFFERED": "1",
    }


async def _wait_until_ready(process: asyncio.subprocess.Process, server: DemoServer, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    said = NO_ANSWER
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
        while process.returncode is None and time.monotonic() < deadline:
            try:
                response = await client.get(f"{server.url}/readyz")
            except httpx.TransportError:
                pass
            else:
                if response.is_success:
                    return
                if said == NO_ANSWER:
                    deadline = min(deadline, time.monotonic() + DEPENDENCY_SECONDS)
                said = _what_is_missing(response)
            await asyncio.sleep(POLL_SECONDS)
    if process.returncode is None:
        raise Unavailable(f"The demo's server does not get ready: {said}. Look with 'bb doctor'.")
    written = await asyncio.to_thread(log.read_text, errors="replace")
    raise Unavailable(f"The demo's server ended as it started. Its log ends with:\n{written[-1000:]}")


def _what_is_missing(response: httpx.Response) -> str:
    """Return what `/readyz` says of the dependencies that do not answer."""
    try:
        fields = cast("dict[str, Any]", response.json())
        parts: list[dict[str, Any]] = [fields["transport"], fields["store"]]
        return "; ".join(part["detail"].rstrip(".") for part in parts if not part["ok"])
    except (ValueError, LookupError, TypeError):
        return f"it answers with status {response.status_code}"


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
