"""The application in this process, on an embedded bus, asked without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from fastapi import FastAPI

from bloodbank import EventLog, Publisher, Settings
from bloodbank.http.app import create_app
from bloodbank.http.bus import Bus

PROMPT: dict[str, Any] = {"provider": "anthropic", "prompt": "What did they say?"}
PROBLEM_FIELDS = {"type", "title", "status", "detail", "code", "instance"}


@asynccontextmanager
async def api(
    folder: Path, *, client: tuple[str, int] | None = ("127.0.0.1", 50_000), host: str = "localhost", **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application and yield a client. client: address that requests come from. host: Host header."""
    app = create_app(Settings(_env_file=None, data_dir=folder, **settings))
    async with app.router.lifespan_context(app), connect(app, client=client, host=host) as connected:
        yield connected


def connect(
    app: FastAPI, *, client: tuple[str, int] | None = ("127.0.0.1", 50_000), host: str = "localhost"
) -> httpx.AsyncClient:
    """Return a client of a running application."""
    # The address may be absent, as on a Unix socket; httpx does not say so in its types.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=client)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


def app_of(client: httpx.AsyncClient) -> FastAPI:
    """Return the application that a client of `connect` asks."""
    return client._transport.app  # type: ignore[attr-defined, no-any-return]


def bus_of(client: httpx.AsyncClient) -> Bus:
    """Return the open bus of the application."""
    bus: Bus = app_of(client).state.bus
    return bus


@asynccontextmanager
async def publishing_with(
    client: httpx.AsyncClient, publisher: Publisher, *, log: EventLog | None = None
) -> AsyncIterator[None]:
    """Within the block the application has another publisher, and another log where one is given."""
    state, bus = app_of(client).state, bus_of(client)
    state.bus = replace(bus, publisher=publisher, log=log or bus.log)
    try:
        yield
    finally:
        state.bus = bus


def filled(path: str) -> str:
    """Return a path of the description with something of the right kind in each place, which nobody knows."""
    return path.format(event_id=uuid4(), event_type="a.b", job_id=uuid4(), number=1, key="0" * 12)


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert that an answer is a problem of this kind, and return it."""
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem.keys() >= PROBLEM_FIELDS
    assert problem["status"] == status
    assert problem["type"] == f"urn:bloodbank:problem:{code}"
    assert "Traceback" not in response.text
    return problem
