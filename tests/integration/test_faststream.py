"""A real FastStream application on a real RabbitMQ, with Bloodbank's events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from faststream import AckPolicy, FastStream
from faststream.rabbit import RabbitBroker, RabbitMessage, RabbitQueue

from bloodbank import (
    ConfigurationError,
    EventEnvelope,
    InvalidEvent,
    Publisher,
    Settings,
    create_envelope,
    new_event_id,
)
from bloodbank.codec import decode
from bloodbank.contrib.faststream import BloodbankMiddleware, BusPublisher, CurrentEvent
from bloodbank.events import LLMPrompt, LLMResponse
from bloodbank.transports.base import Message
from tests.conformance.consumers import events_of, eventually
from tests.servers.rabbit import RabbitServer

pytestmark = pytest.mark.rabbit

PROMPT = {"provider": "anthropic", "prompt": "Why?"}


class Application:
    """A FastStream application on an exchange of its own, and a publisher beside it. It quits its queues at its end."""

    def __init__(self, url: str, folder: Path, **options: Any) -> None:
        settings = Settings(_env_file=None, rabbit_url=url, exchange_name=f"test.{uuid4().hex}.v1", data_dir=folder)
        self.settings = settings
        self.bus = BloodbankMiddleware("answers", settings, **options)
        self.broker = RabbitBroker(self.bus.url, middlewares=[self.bus])
        self.publisher = self.bus.publisher

    def queue(self, routing_key: str) -> RabbitQueue:
        arguments = {"x-expires": 60_000}
        return RabbitQueue(f"test.{uuid4().hex}", routing_key=routing_key, durable=True, arguments=arguments)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Publisher]:
        app = FastStream(self.broker, lifespan=self.bus.lifespan, logger=None)
        async with app.lifespan_context():
            await app.start()
            try:
                yield self.publisher
            finally:
                await app.stop()


@pytest.fixture
def application(rabbit_server: RabbitServer, tmp_path: Path) -> Application:
    return Application(rabbit_server.url, tmp_path)


async def _first(publisher: Publisher, event_type: str) -> list[EventEnvelope[Any]]:
    """Wait for an event of a type, and return what there is of it."""
    async with asyncio.timeout(60):
        while not (found := await events_of(publisher, event_type)):
            await asyncio.sleep(0.02)
    return found


async def test_payloads_and_events_are_injected_by_annotation(application: Application) -> None:
    got: dict[str, Any] = {}

    @application.broker.subscriber(application.queue("llm.prompt"), application.bus.exchange)
    async def of_payload(prompt: LLMPrompt, event: CurrentEvent) -> None:
        got["payload"] = prompt, event

    @application.broker.subscriber(application.queue("llm.#"), application.bus.exchange)
    async def of_event(event: EventEnvelope[LLMPrompt]) -> None:
        got["event"] = event

    @application.broker.subscriber(application.queue("#"), application.bus.exchange)
    def of_both(payload: dict, whole: EventEnvelope[Any]) -> None:
        got["both"] = payload, whole

    @application.broker.subscriber(application.queue("*.prompt"), application.bus.exchange)
    async def of_fields(provider: str, prompt: Annotated[str, "what is asked"], publisher: BusPublisher) -> None:
        got["fields"] = provider, prompt, publisher

    async with application.running() as publisher:
        sent = create_envelope("llm.prompt", PROMPT)
        await publisher.publish(sent)
        await eventually(lambda: len(got) == 4)
    prompt, event = got["payload"]
    assert (type(prompt), prompt.prompt, event.event_id) == (LLMPrompt, "Why?", sent.event_id)
    assert isinstance(event.payload, dict)
    assert (type(got["event"].payload), got["event"].event_id) == (LLMPrompt, sent.event_id)
    assert (got["both"][0]["prompt"], got["both"][1].event_id) == ("Why?", sent.event_id)
    assert got["fields"] == ("anthropic", "Why?", publisher)


async def test_what_a_handler_publishes_has_the_event_as_its_parent_and_is_in_the_index(
    application: Application,
) -> None:
    broker, bus = application.broker, application.bus
    got: list[EventEnvelope[Any]] = []

    @broker.publisher("llm.returned", bus.exchange)
    @broker.subscriber(application.queue("llm.prompt"), bus.exchange)
    async def answer(prompt: LLMPrompt, publisher: BusPublisher) -> LLMResponse:
        await broker.publish(LLMResponse(provider="anthropic", response="So."), "llm.response", bus.exchange)
        await broker.publish(create_envelope("llm.made", {"n": 1}), exchange=bus.exchange)
        await publisher.publish(create_envelope("llm.ours", {"n": 2}))
        return LLMResponse(provider="anthropic", response="Returned.")

    @broker.subscriber(application.queue("#"), bus.exchange)
    async def note(event: EventEnvelope[Any]) -> None:
        got.append(event)

    kinds = {"llm.response", "llm.made", "llm.ours", "llm.returned"}
    async with application.running() as publisher:
        prompt = await publisher.publish(create_envelope("llm.prompt", PROMPT))
        await eventually(lambda: {event.event_type for event in got} >= kinds)
        [response] = await events_of(publisher, "llm.response")
        assert response.payload["response"] == "So."
        assert response.source.app == "answers"
        caused = [event for event in got if event.event_type in kinds]
        assert all(event.correlation_ids == [prompt.event_id] for event in caused)
        async with asyncio.timeout(60):
            while set(await publisher.tracker.get_children(prompt.event_id)) != {event.event_id for event in caused}:
                await asyncio.sleep(0.01)


async def test_an_event_that_comes_again_is_handled_once(application: Application) -> None:
    seen: list[UUID] = []
    attempts: list[UUID] = []

    @application.broker.subscriber(application.queue("a.once"), application.bus.exchange)
    async def once(event: EventEnvelope[Any]) -> None:
        seen.append(event.event_id)

    @application.broker.subscriber(application.queue("a.*"), application.bus.exchange, ack_policy=AckPolicy.MANUAL)
    async def by_hand(event: EventEnvelope[Any], message: RabbitMessage) -> None:
        attempts.append(event.event_id)
        if attempts.count(event.event_id) == 1:
            await message.nack()
        else:
            await message.ack()

    async with application.running() as publisher:
        event, last = create_envelope("a.once", {}), create_envelope("a.once", {})
        copy = Message(event.event_id, event.event_type, event.model_dump_json().encode())
        for _ in range(3):
            await publisher.transport.publish(copy, timeout_seconds=30)
        await publisher.publish(last)
        await eventually(lambda: last.event_id in seen and attempts.count(last.event_id) == 2)
        await eventually(lambda: attempts.count(event.event_id) == 2)
    assert seen == [event.event_id, last.event_id]
    # What was given back came again, and what was handled did not.
    assert sorted(attempts) == sorted([event.event_id, last.event_id] * 2)


async def test_a_handler_that_failed_gets_the_event_again_and_tells_the_cause_of_its_second_try(
    application: Application,
) -> None:
    broker, bus = application.broker, application.bus
    runs: list[UUID] = []

    @broker.subscriber(application.queue("a.b"), bus.exchange, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def fail_once(event: EventEnvelope[Any]) -> None:
        runs.append(event.event_id)
        if len(runs) == 1:
            raise ValueError("not yet")
        await broker.publish({"n": 1}, "a.done", bus.exchange)

    async with application.running() as publisher:
        event = await publisher.publish(create_envelope("a.b", {}))
        done = await _first(publisher, "a.done")
    assert runs == [event.event_id] * 2
    assert [told.correlation_ids for told in done] == [[event.event_id]]


async def test_messages_that_are_no_events_stay_what_they_are_and_carry_the_causes_on(
    application: Application,
) -> None:
    broker, bus = application.broker, application.bus
    work = RabbitQueue(f"test.{uuid4().hex}", auto_delete=True)
    seen: list[object] = []

    @broker.subscriber(application.queue("a.b"), bus.exchange)
    async def hand_over(event: EventEnvelope[Any]) -> None:
        await broker.publish({"rows": [1, 2]}, work)

    @broker.publisher("a.none", bus.exchange)
    @broker.subscriber(work)
    async def do(message: dict) -> None:
        seen.append(message)
        await broker.publish({"n": 1}, "a.done", bus.exchange)

    async with application.running() as publisher:
        event = await publisher.publish(create_envelope("a.b", {}))
        done = await _first(publisher, "a.done")
        # A handler that returns nothing publishes nothing.
        assert await events_of(publisher, "a.none") == []
    assert seen == [{"rows": [1, 2]}]
    assert done[0].correlation_ids == [event.event_id]


async def test_what_is_no_event_is_refused_before_it_is_published(application: Application) -> None:
    broker, exchange = application.broker, application.bus.exchange
    async with application.running() as publisher:
        for body, key, options in (
            ({"provider": "anthropic"}, "llm.prompt", {}),
            ([1, 2], "a.b", {}),
            ({}, "one-word", {}),
            ({}, "a.b", {"message_id": "no uuid"}),
            (create_envelope("a.b", {}), "a.c", {}),
        ):
            with pytest.raises(InvalidEvent):
                await broker.publish(body, key, exchange, **options)
        chosen = new_event_id()
        await broker.publish({"n": 1}, "a.b", exchange, message_id=str(chosen))
        entries = [entry async for entry in publisher.transport.read_log()]
        assert [entry.message.event_id for entry in entries] == [chosen]
        message = entries[0].message
        assert (message.app_id, decode(message.body).payload) == ("answers", {"n": 1})


async def test_a_message_that_claims_to_be_an_event_and_is_none_is_rejected(
    application: Application,
) -> None:
    seen: list[object] = []

    @application.broker.subscriber(application.queue("#"), application.bus.exchange)
    async def note(payload: dict) -> None:
        seen.append(payload)

    async with application.running() as publisher:
        broken = Message(new_event_id(), "a.b", b'{"event_type": "a.b"}', headers={"bloodbank-version": "2.0.0"})
        await publisher.transport.publish(broken, timeout_seconds=30)
        await publisher.publish(create_envelope("a.c", {"n": 1}))
        await eventually(lambda: seen)
    assert seen == [{"n": 1}]


async def test_without_the_lifespan_it_works_and_says_what_is_missing(
    application: Application, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[object] = []

    @application.broker.subscriber(application.queue("a.b"), application.bus.exchange)
    async def note(payload: dict) -> None:
        seen.append(payload)

    async with application.bus.lifespan():
        pass  # declares the exchange
    with caplog.at_level(logging.WARNING, "bloodbank.contrib.faststream"):
        async with application.broker as broker:
            await broker.start()
            await broker.publish({"n": 1}, "a.b", application.bus.exchange)
            await eventually(lambda: seen)
    assert len([record for record in caplog.records if "lifespan" in record.message]) == 1


def test_it_needs_a_broker_to_meet_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="RABBIT_URL"):
        BloodbankMiddleware("answers", Settings(_env_file=None, data_dir=tmp_path))
