"""The application: routes, the layers around them, and the bus that is open while it runs."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bloodbank.config import Settings
from bloodbank.errors import BloodbankError
from bloodbank.http import (
    batch,
    debug,
    demo,
    dlq,
    events,
    explorer,
    health,
    jobs,
    lineage,
    outbox,
    problems,
    publish,
    replay,
    schemas,
    stats,
    stream,
    webhooks,
)
from bloodbank.http.access import AccessControl
from bloodbank.http.bounds import HeadLimits
from bloodbank.http.bus import open_bus
from bloodbank.http.description import DescribedApp
from bloodbank.http.shortcut import Shortcut

ROUTERS = (
    batch.router,
    publish.router,
    stream.router,  # before the route to an event, whose id might stand there
    events.router,
    lineage.router,
    debug.router,
    webhooks.router,
    outbox.router,
    dlq.router,
    jobs.router,
    replay.router,
    demo.router,
    stats.router,
    schemas.router,
    health.router,
)
DESCRIPTION = """Publish events, read them back, and ask why one happened or what it led to.

A 2xx answer to a publish means that the broker confirmed the event or that it is on disk. Every error is an
RFC 9457 problem with a stable `code` and a `detail` that says what to do."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return a new application.

    settings: default: the environment and `.env`, read when the server starts. A wrong one stops the start with
    one sentence.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with open_bus(settings, is_stopping=lambda: bool(app.state.is_stopping)) as bus:
            app.state.bus = bus
            # What is loaded by now stays; looking through it for garbage, again and again, stops everything for 40 ms.
            gc.freeze()
            try:
                yield
            finally:
                gc.unfreeze()
                app.state.bus = None

    app = DescribedApp(
        title="Bloodbank",
        summary="An event bus for agent pipelines that knows what caused what",
        description=DESCRIPTION,
        version=health.VERSION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=None if _has_listeners() else {"tracing": False, "metrics": False, "logs": False},
    )
    app.state.is_stopping = False
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.extend(explorer.ROUTES)
    problems.install(app)
    publishing = (*batch.router.routes, *publish.router.routes)
    # The last one added is the first that a request meets.
    app.add_middleware(Shortcut, routes=[route for route in publishing if isinstance(route, APIRoute)])
    app.add_middleware(AccessControl)
    app.add_middleware(HeadLimits)
    app.add_middleware(StartInOneSentence)
    return app


def _has_listeners() -> bool:
    """Say whether OpenTelemetry's SDK is installed. FastAPI would ask before each request whether somebody listens."""
    try:
        return find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:
        return False


class StartInOneSentence:
    """ASGI middleware for the lifespan: a start that fails as foreseen is told in a sentence, without a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests as they are, and of the lifespan all but the traceback."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_sentence(message: Message) -> None:
            error = sys.exception()
            if message["type"] == "lifespan.startup.failed" and isinstance(error, BloodbankError):
                message = {**message, "message": str(error)}
            await send(message)

        # Starlette raises the error again; the server has been told by then, and logs no traceback.
        await self._app(scope, receive, send_sentence)
