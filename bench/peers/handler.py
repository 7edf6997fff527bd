"""What an ordinary FastAPI service with aio-pika looks like: validate, wrap, publish, wait for the confirm.

Run it with uvicorn; RABBIT_URL and EXCHANGE_NAME say where it publishes to.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import aio_pika
from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

SOURCE = {"host": "bench", "type": "agent", "app": "bench"}


class Prompt(BaseModel):
    """The payload, with the same fields that Bloodbank's model checks."""

    provider: str = Field(min_length=1)
    model: str | None = None
    prompt: str
    project: str | None = None
    working_dir: str | None = None
    domain: str | None = None
    tags: list[str] = Field(default_factory=list)
    temperature: float | None = Field(None, ge=0)
    tools: list[dict[str, Any]] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)


class Envelope(BaseModel):
    """The event that is published."""

    event_id: str = Field(default_factory=lambda: str(uuid4()))
    event_type: str
    timestamp: datetime = Field(default_factory=lambda: datetime.now(UTC))
    version: str = "2.0.0"
    source: dict[str, str]
    correlation_ids: list[str] = Field(default_factory=list)
    payload: Prompt


class Published(BaseModel):
    """The answer."""

    event_id: str
    status: str


@asynccontextmanager
async def _connected(app: FastAPI) -> AsyncIterator[None]:
    connection = await aio_pika.connect_robust(os.environ["RABBIT_URL"])
    async with connection:
        channel = await connection.channel(publisher_confirms=True)
        app.state.exchange = await channel.get_exchange(os.environ["EXCHANGE_NAME"])
        yield


app = FastAPI(lifespan=_connected)


@app.get("/livez")
async def livez() -> dict[str, str]:
    """Answer when the server has started."""
    return {"status": "ok"}


@app.post("/events/llm/prompt", status_code=201)
async def publish_prompt(prompt: Prompt, request: Request) -> Published:
    """Publish a prompt and answer when the broker has confirmed it."""
    envelope = Envelope(event_type="llm.prompt", source=SOURCE, payload=prompt)
    message = aio_pika.Message(
        envelope.model_dump_json().encode(),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=envelope.event_id,
    )
    await request.app.state.exchange.publish(message, routing_key=envelope.event_type)
    return Published(event_id=envelope.event_id, status="published")
