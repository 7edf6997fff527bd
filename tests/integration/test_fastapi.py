"""An application of FastAPI that publishes: its publisher, and the causes that requests name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import httpx
import orjson
import pytest
from fastapi import FastAPI, WebSocket

from bloodbank import NotOpen, Publisher, Settings, caused_by, create_envelope
from bloodbank.contrib.fastapi import RequestPublisher, open_publisher
from bloodbank.contrib.httpx_hook import pass_on_parents
from bloodbank.testing import InMemoryBus


def _with_routes(app: FastAPI) -> FastAPI:
    @app.post("/orders")
    async def place(payload: dict, publisher: RequestPublisher) -> str:
        return str((await publisher.publish(create_envelope("shop.order.placed", payload))).event_id)

    @app.post("/blocking")
    def made_in_a_thread(payload: dict, publisher: RequestPublisher) -> list[str]:
        return [str(parent) for parent in create_envelope("shop.order.placed", payload).correlation_ids]

    @app.websocket("/orders")
    async def place_many(socket: WebSocket, publisher: RequestPublisher) -> None:
        await socket.accept()
        await publisher.publish(create_envelope("shop.order.placed", await socket.receive_json()))

    return app


@asynccontextmanager
async def _asking(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application whose lifespan has begun; the transport of httpx has none."""

    async def with_state(scope: dict, receive: object, send: object) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    async with app.router.lifespan_context(app) as state:
        hooks = {"request": [pass_on_parents]}
        transport = httpx.ASGITransport(app=with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop", event_hooks=hooks) as client:
            yield client


async def test_what_a_request_publishes_has_the_parents_that_it_names() -> None:
    async with InMemoryBus() as bus:
        app = _with_routes(FastAPI(lifespan=partial(open_publisher, publisher=bus.publisher)))
        async with _asking(app) as client:
            first, second = await bus.publish("cart.filled"), await bus.publish("cart.paid")
            with caused_by(first, second):
                caused = await client.post("/orders", json={"n": 1})
            alone = await client.post("/orders", json={"n": 2})
            with caused_by(second):
                in_a_thread = await client.post("/blocking", json={})
            refused = await client.post("/orders", json={}, headers={"X-Bloodbank-Parents": "x"})
        placed = bus.assert_published("shop.order.placed", n=1)
        assert caused.json() == str(placed.event_id)
        bus.assert_caused_by(placed, first, second)
        bus.assert_caused_by(bus.assert_published("shop.order.placed", n=2))
        assert alone.status_code == 200
        assert in_a_thread.json() == [str(second.event_id)]
        assert (refused.status_code, "no UUID" in refused.json()["detail"]) == (400, True)
        assert len(bus.events) == 4


async def _over_a_websocket(app: FastAPI, sent: dict, **headers: str) -> list[dict]:
    """Send one message to the socket of an application; return what it sent."""
    scope = {
        "type": "websocket",
        "path": "/orders",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    received = iter([{"type": "websocket.connect"}, {"type": "websocket.receive", "text": orjson.dumps(sent).decode()}])
    answers: list[dict] = []

    async def receive() -> dict:
        return next(received)

    async def send(message: dict) -> None:
        answers.append(message)

    async with app.router.lifespan_context(app) as state:
        await app({**scope, "state": dict(state)}, receive, send)
    return answers


async def test_a_socket_names_the_parents_of_all_that_it_publishes() -> None:
    async with InMemoryBus() as bus:
        app = _with_routes(FastAPI(lifespan=partial(open_publisher, publisher=bus.publisher)))
        parent = await bus.publish("cart.filled")
        await _over_a_websocket(app, {"n": 1}, **{"x-bloodbank-parents": str(parent.event_id)})
        bus.assert_caused_by(bus.assert_published("shop.order.placed", n=1), parent)
        refused = await _over_a_websocket(app, {"n": 2}, **{"x-bloodbank-parents": "x"})
        assert [(message["type"], message["code"]) for message in refused] == [("websocket.close", 1008)]
        assert len(bus.events) == 2


async def test_an_application_opens_the_bus_that_its_settings_name(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path)
    app = _with_routes(FastAPI(lifespan=partial(open_publisher, settings=settings)))
    async with _asking(app) as client:
        answer = await client.post("/orders", json={"n": 1})
    async with Publisher(settings) as publisher:
        message = await publisher.transport.get(UUID(answer.json()))
    assert message.routing_key == "shop.order.placed"


async def test_an_application_without_the_lifespan_is_told_so() -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(_with_routes(FastAPI())), base_url="http://shop"
    ) as client:
        with pytest.raises(NotOpen, match="open_publisher"):
            await client.post("/orders", json={})
