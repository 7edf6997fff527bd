"""Publishing from a FastAPI application: one open publisher an application, and the causes that a request names.

    app = FastAPI(lifespan=open_publisher)

    @app.post("/orders")
    async def place(order: Order, publisher: RequestPublisher) -> None:
        await publisher.publish(create_envelope("shop.order.placed", order))

Sources: https://fastapi.tiangolo.com/advanced/events/ and https://fastapi.tiangolo.com/tutorial/dependencies/
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, cast

from fastapi import Depends, HTTPException, WebSocketException, status
from fastapi.requests import HTTPConnection
from starlette.applications import Starlette

from bloodbank.causation import PARENTS_HEADER, caused_by, parents_of_request
from bloodbank.config import Settings, load_settings
from bloodbank.errors import InvalidEvent, NotOpen
from bloodbank.publisher import Publisher

STATE_KEY = "bloodbank_publisher"
"""Attribute of `request.state` that holds the publisher, beside what an application keeps there itself."""


@asynccontextmanager
async def open_publisher(
    app: Starlette, *, settings: Settings | None = None, publisher: Publisher | None = None
) -> AsyncGenerator[Mapping[str, Publisher]]:
    """A lifespan: within the block the application has an open publisher. Gives what the lifespan has to yield.

        FastAPI(lifespan=open_publisher)
        FastAPI(lifespan=partial(open_publisher, settings=settings))

    In a lifespan of your own: `async with open_publisher(app) as state: yield {**state, "mine": …}`.

    settings: default: the environment and `.env`, read when the application starts. The index of causes is kept where
        they say so.
    publisher: an open one, which is used and not closed: that of a test's bus, for example.

    Raises ConfigurationError, and what `Publisher.start` raises.
    """
    async with AsyncExitStack() as stack:
        if publisher is None:
            settings = settings or load_settings()
            own = Publisher(settings, enable_correlation_tracking=settings.correlation_tracking)
            publisher = await stack.enter_async_context(own)
        yield {STATE_KEY: publisher}


async def _request_publisher(connection: HTTPConnection) -> AsyncGenerator[Publisher]:
    publisher = cast("Publisher | None", getattr(connection.state, STATE_KEY, None))
    if publisher is None:
        raise NotOpen(
            "The application has no publisher. Give FastAPI(lifespan=open_publisher), or yield from your own lifespan "
            "what open_publisher gives."
        )
    try:
        parents = parents_of_request(connection.headers.getlist(PARENTS_HEADER))
    except InvalidEvent as error:
        if connection.scope["type"] == "websocket":
            raise WebSocketException(status.WS_1008_POLICY_VIOLATION, "X-Bloodbank-Parents cannot be read") from error
        raise HTTPException(status.HTTP_400_BAD_REQUEST, str(error)) from error
    with caused_by(*parents):
        yield publisher


RequestPublisher = Annotated[Publisher, Depends(_request_publisher)]
"""The application's publisher. Envelopes that are made while the request is handled have the events that its
X-Bloodbank-Parents names as parents; a header that cannot be read is answered 400."""
