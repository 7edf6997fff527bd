"""What is RabbitMQ's own: the wire, refusals, groups and the log."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from anyio.to_thread import run_sync

from bloodbank import ids
from bloodbank.errors import (
    BloodbankError,
    EventNotFound,
    NotOpen,
    PublishRejected,
    PublishUnknown,
    TransportUnavailable,
)
from bloodbank.transports.base import Message, Receipt
from bloodbank.transports.rabbit import RabbitTransport
from tests.integration.rabbit_bus import (
    eventually,
    logged,
    message,
    next_of,
    plain_client,
    transport_at,
)
from tests.servers.process import free_port
from tests.servers.rabbit import RabbitServer

pytestmark = pytest.mark.rabbit


@pytest.fixture
def exchange() -> str:
    return f"test{uuid4().hex[:12]}.events.v1"


@dataclass(frozen=True)
class StrictBroker:
    """A broker that takes messages of 10,000 bytes at most, in frames of 4,096, and speaks TLS too."""

    url: str
    tls_url: str


@pytest.fixture(scope="module")
def strict_broker(tmp_path_factory: pytest.TempPathFactory, _rabbit_session: RabbitServer) -> Iterator[StrictBroker]:
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    port = free_port()
    server = RabbitServer(
        f"max_message_size = 10000\n"
        f"frame_max = 4096\n"
        f"listeners.ssl.default = 127.0.0.1:{port}\n"
        f"ssl_options.certfile = {folder}/cert.pem\n"
        f"ssl_options.keyfile = {folder}/key.pem\n"
        f"ssl_options.cacertfile = {folder}/cert.pem\n"
    )
    try:
        server.start()
        yield StrictBroker(server.url, f"amqps://guest:guest@localhost:{port}/?cafile={folder}/cert.pem")
    finally:
        server.close()


async def test_a_plain_client_receives_exactly_the_events_it_is_bound_to(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    parent = ids.new_event_id()
    wanted = message(1, "fireflies.transcript.ready", correlation_id=parent, app_id="app", headers={"version": "2.0.0"})
    before = time.time()
    received: list[DeliveredMessage] = []

    async def receive(delivered: DeliveredMessage) -> None:
        received.append(delivered)

    async with transport_at(rabbit_server.url, exchange) as transport, plain_client(rabbit_server.url) as channel:
        queue = (await channel.queue_declare(exclusive=True)).queue or ""
        await channel.queue_bind(queue, exchange, "fireflies.#")
        await channel.basic_consume(queue, receive, no_ack=True)
        last = message(3, "fireflies.meeting.summarized")
        for event in (wanted, message(2, "llm.prompt"), last):
            await transport.publish(event, timeout_seconds=5)
        await eventually(lambda: len(received) >= 2)
    assert [UUID(one.header.properties.message_id) for one in received] == [wanted.event_id, last.event_id]
    properties = received[0].header.properties
    assert received[0].body == wanted.body
    assert received[0].routing_key == properties.message_type == "fireflies.transcript.ready"
    assert properties.content_type == "application/json"
    assert properties.content_encoding == "utf-8"
    assert properties.delivery_mode == 2
    assert properties.correlation_id == str(parent)
    assert properties.app_id == "app"
    assert properties.headers is not None
    assert properties.headers["version"] == "2.0.0"
    milliseconds = properties.headers["bloodbank-published-ms"]
    assert isinstance(milliseconds, int)
    assert before * 1000 - 1 <= milliseconds <= time.time() * 1000
    assert properties.timestamp is not None
    assert int(before) <= properties.timestamp.timestamp() <= time.time()


async def test_an_event_that_the_user_may_not_publish_is_rejected_alone(
    rabbit_server: RabbitServer, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = f"user{uuid4().hex[:8]}"

    def create_user() -> None:
        rabbit_server.ctl("add_user", user, "secret")
        rabbit_server.ctl("set_permissions", user, ".*", ".*", ".*")
        rabbit_server.ctl("set_topic_permissions", user, exchange, "^fireflies", ".*")

    await run_sync(create_user)
    async with transport_at(f"amqp://{user}:secret@127.0.0.1:{rabbit_server.port}/", exchange) as transport:
        with pytest.raises(PublishRejected, match=r"lacks a permission.*llm\.prompt"):
            await transport.publish(message(), timeout_seconds=5)
        outcomes: list[type[Receipt | BloodbankError]] = []

        async def publish_what_is_allowed() -> None:
            while True:
                [answer] = await transport.publish_many([message(1, "fireflies.x")], timeout_seconds=5)
                outcomes.append(type(answer))

        publishing = [asyncio.create_task(publish_what_is_allowed()) for _ in range(5)]
        for confirmed in range(1, 31):
            await eventually(lambda wanted=confirmed: outcomes.count(Receipt) >= wanted)
            with pytest.raises(PublishRejected):
                await transport.publish(message(), timeout_seconds=5)
        for task in publishing:
            task.cancel()
        await asyncio.wait(publishing)
        assert set(outcomes) <= {Receipt, PublishUnknown, TransportUnavailable}
        await transport.publish(message(1, "fireflies.x"), timeout_seconds=5)
    assert "was lost" not in caplog.text, "only the channel is closed, never the connection"


async def test_after_a_refused_event_the_broker_is_still_seen_to_answer(
    strict_broker: StrictBroker, exchange: str
) -> None:
    """Nobody publishes in between: a channel of the check's own gets the number of the one that the broker closed."""
    async with transport_at(strict_broker.url, exchange) as transport:
        await transport.publish(message(), timeout_seconds=30)
        with pytest.raises(PublishRejected):
            await transport.publish(message()._replace(body=b"x" * 20_000), timeout_seconds=30)
        for _ in range(3):
            await transport.check(timeout_seconds=30)
        await transport.publish(message(), timeout_seconds=30)
        await transport.check(timeout_seconds=30)


async def test_an_event_that_is_too_large_is_rejected_alone(strict_broker: StrictBroker, exchange: str) -> None:
    async with transport_at(strict_broker.url, exchange) as transport:
        large = Message(ids.new_event_id(), "llm.prompt", b"x" * 20_000)
        with pytest.raises(PublishRejected, match="larger than"):
            await transport.publish(large, timeout_seconds=5)
        answers = await transport.publish_many([message(), large, message()], timeout_seconds=5)
        assert type(answers[1]) is PublishRejected
        assert {type(answers[0]), type(answers[2])} <= {Receipt, PublishUnknown}
        event = message()
        await transport.publish(event, timeout_seconds=5)
        assert await transport.get(event.event_id) == event


async def settled_in_the_end(transport: RabbitTransport, events: list[Message]) -> dict[UUID, Receipt | BloodbankError]:
    """Publish; what is unknown is sent again, as long as that brings anything."""
    settled: dict[UUID, Receipt | BloodbankError] = {}
    while events:
        answers = await transport.publish_many(events, timeout_seconds=10)
        unknown: list[Message] = []
        for event, answer in zip(events, answers, strict=True):
            if isinstance(answer, (PublishUnknown, TransportUnavailable)):
                unknown.append(event)
            else:
                settled[event.event_id] = answer
        assert len(unknown) < len(events), "each round settles something"
        events = unknown
    return settled


async def test_one_bad_event_among_many_is_the_only_one_to_blame(strict_broker: StrictBroker, exchange: str) -> None:
    async with transport_at(strict_broker.url, exchange) as transport:
        bad = Message(ids.new_event_id(), "llm.prompt", b"x" * 20_000)
        good = [message(number) for number in range(499)]
        answers = await settled_in_the_end(transport, [*good[:250], bad, *good[250:]])
        assert isinstance(answers.pop(bad.event_id), PublishRejected)
        assert {type(answer) for answer in answers.values()} == {Receipt}
        assert {event.event_id for event in await logged(transport)} == {event.event_id for event in good}


async def test_an_exchange_that_the_user_may_not_write_to_rejects_all_and_not_one_by_one(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    user = f"user{uuid4().hex[:8]}"

    def create_user() -> None:
        rabbit_server.ctl("add_user", user, "secret")
        rabbit_server.ctl("set_permissions", user, ".*", f"^(?!{exchange}$).*", ".*")

    await run_sync(create_user)
    async with transport_at(f"amqp://{user}:secret@127.0.0.1:{rabbit_server.port}/", exchange) as transport:
        for _ in range(2):
            answers = await transport.publish_many([message(number) for number in range(50)], timeout_seconds=10)
            assert {type(answer) for answer in answers} == {PublishRejected}


async def test_a_body_is_split_as_the_broker_demands(strict_broker: StrictBroker, exchange: str) -> None:
    events = [Message(ids.new_event_id(), "llm.prompt", b"%d" % size + b"x" * size) for size in (4080, 4090, 9000)]
    for url in (strict_broker.url, strict_broker.tls_url):
        async with transport_at(url, exchange) as transport:
            for event in events:
                await transport.publish(event, timeout_seconds=10)
    async with transport_at(strict_broker.url, exchange) as transport:
        assert await logged(transport) == [*events, *events]


async def test_tls_is_spoken_and_the_certificate_is_checked(strict_broker: StrictBroker, exchange: str) -> None:
    url = strict_broker.tls_url
    async with transport_at(url, exchange) as transport:
        event = message()
        await transport.publish(event, timeout_seconds=5)
        assert await logged(transport) == [event]
    async with transport_at(url.partition("?")[0], exchange) as transport:
        with pytest.raises(TransportUnavailable, match="certificate"):
            await transport.check(timeout_seconds=5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("guest:guest@", "guest:wrong-password@"), "the user name or password is wrong"),
        (("/", "/no-such-host"), "the virtual host does not exist"),
    ],
)
async def test_a_wrong_address_is_told_in_words(
    rabbit_server: RabbitServer, exchange: str, change: tuple[str, str], sentence: str
) -> None:
    address = rabbit_server.url.removesuffix("/") + "/"
    head, tail = address[: len("amqp://")], address[len("amqp://") :]
    async with transport_at(head + tail.replace(*change), exchange) as transport:
        with pytest.raises(TransportUnavailable, match=sentence) as caught:
            await transport.check(timeout_seconds=5)
    assert "wrong-password" not in str(caught.value)


async def test_a_check_leaves_nothing_behind(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        await transport.check(timeout_seconds=5)
        assert await logged(transport) == []
        queues = await run_sync(lambda: json.loads(rabbit_server.ctl("list_queues", "name", "--formatter=json")))
    base = exchange.removesuffix(".events.v1")
    left = {queue["name"] for queue in queues if queue["name"].startswith(("amq.", base))}
    assert left == {f"{base}.log", f"{base}.deadletters"}


async def test_a_log_queue_that_exists_otherwise_is_used_as_it_is(rabbit_server: RabbitServer, exchange: str) -> None:
    queue = exchange.replace(".events.v1", ".log")
    async with plain_client(rabbit_server.url) as channel:
        await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "stream", "x-max-age": "7D"})
    async with transport_at(rabbit_server.url, exchange) as transport:
        event = message()
        await transport.publish(event, timeout_seconds=5)
        assert await logged(transport) == [event]


async def test_what_was_deleted_at_run_time_is_declared_again(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        await transport.publish(message(), timeout_seconds=5)
        async with plain_client(rabbit_server.url) as channel:
            await channel.exchange_delete(exchange)
        event = message()
        with pytest.raises(PublishUnknown, match="missing"):
            await transport.publish(event, timeout_seconds=5)
        await transport.publish(event, timeout_seconds=5)
        assert event in await logged(transport)


async def test_a_retry_comes_to_its_own_group_only(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("llm.#", group="first", prefetch=10) as first,
        transport.subscribe("llm.#", group="second", prefetch=10) as second,
    ):
        event = message(headers={"version": "2.0.0"}, app_id="app", correlation_id=uuid4())
        await transport.publish(event, timeout_seconds=5)
        started = time.monotonic()
        await (await next_of(first)).retry(0.3)
        again = await next_of(first)
        assert time.monotonic() - started >= 0.3
        assert again.message == event
        assert again.message.headers == event.headers
        assert again.message.app_id == "app"
        assert again.message.correlation_id == event.correlation_id
        assert again.attempt == 2
        await again.retry(0)
        assert (await next_of(first)).attempt == 3
        last = message(1)
        await transport.publish(last, timeout_seconds=5)
        assert [(await next_of(second)).message, (await next_of(second)).message] == [event, last]
        assert await logged(transport) == [event, last]


async def test_a_delivery_is_settled_once(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("#", group=None, prefetch=1) as deliveries,
    ):
        await transport.publish(message(), timeout_seconds=5)
        delivery = await next_of(deliveries)
        await delivery.ack()
        with pytest.raises(NotOpen, match="settled already"):
            await delivery.ack()
        await transport.publish(message(), timeout_seconds=5)
        await (await next_of(deliveries)).ack()


async def test_an_empty_log_ends_at_once_and_stays_empty(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        assert await logged(transport) == []
        assert await logged(transport) == []
        with pytest.raises(EventNotFound):
            await transport.get(uuid4())
        event = message()
        await transport.publish(event, timeout_seconds=5)
        assert await logged(transport) == [event]
        assert [entry.message async for entry in transport.read_log(after=-1)] == [event]


async def test_a_log_longer_than_the_window_is_read_to_its_end(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        events = [message(n) for n in range(2500)]
        await transport.publish_many(events, timeout_seconds=30)
        entries = [entry async for entry in transport.read_log()]
        assert [entry.message for entry in entries] == events
        middle = entries[1200]
        assert [entry async for entry in transport.read_log(after=middle.position)] == entries[1201:]
        assert [entry async for entry in transport.read_log(after=entries[-1].position)] == []
        assert [entry async for entry in transport.read_log(after=-7)] == entries[-7:]
        since = [entry async for entry in transport.read_log(since=middle.logged_at)]
        assert since == entries[-len(since) :]
        assert middle in since


async def test_a_time_after_the_end_of_the_log_reads_nothing(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        event = message()
        await transport.publish(event, timeout_seconds=5)
        [entry] = [entry async for entry in transport.read_log()]
        tomorrow = entry.logged_at.replace(year=entry.logged_at.year + 1)
        assert [entry async for entry in transport.read_log(since=tomorrow)] == []
        assert await transport.get(event.event_id, near=tomorrow) == event, "a wrong hint costs time only"


async def test_a_nacked_event_may_be_stored(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport, plain_client(rabbit_server.url) as channel:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        full = (await channel.queue_declare(exclusive=True, arguments=arguments)).queue or ""
        await channel.queue_bind(full, exchange, "#")
        await transport.publish(message(), timeout_seconds=5)
        event = message()
        with pytest.raises(PublishUnknown, match="did not take the message") as caught:
            await transport.publish(event, timeout_seconds=5)
        assert caught.value.reason == "nacked"
        assert await transport.get(event.event_id) == event


async def test_a_delivery_that_cannot_be_retried_comes_again_at_once(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    user = f"user{uuid4().hex[:8]}"

    def create_user() -> None:
        rabbit_server.ctl("add_user", user, "secret")
        rabbit_server.ctl("set_permissions", user, "^(?!.*retry).*$", ".*", ".*")

    await run_sync(create_user)
    async with (
        transport_at(f"amqp://{user}:secret@127.0.0.1:{rabbit_server.port}/", exchange) as transport,
        transport.subscribe("#", group="workers", prefetch=1) as deliveries,
    ):
        event = message()
        await transport.publish(event, timeout_seconds=5)
        delivery = await next_of(deliveries)
        with pytest.raises(TransportUnavailable, match="delay a delivery"):
            await delivery.retry(0.1)
        again = await next_of(deliveries)
        assert (again.message, again.attempt) == (event, 2)


async def test_a_group_whose_queue_was_deleted_begins_anew(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        plain_client(rabbit_server.url) as channel,
        transport.subscribe("#", group="workers", prefetch=1) as deliveries,
    ):
        queue = exchange.replace(".events.v1", ".workers")
        await transport.publish(message(), timeout_seconds=5)
        await (await next_of(deliveries)).ack()
        await channel.queue_delete(queue)
        waiting = asyncio.create_task(next_of(deliveries))
        event = message()
        while not waiting.done():
            await transport.publish(event, timeout_seconds=5)
            await asyncio.wait({waiting}, timeout=0.1)
        assert (await waiting).message == event


async def test_a_task_that_waits_for_a_delivery_ends_with_the_subscription(
    rabbit_server: RabbitServer, exchange: str
) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        async with transport.subscribe("#", group=None, prefetch=1) as deliveries:
            waiting = asyncio.create_task(next_of(deliveries))
            await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_an_id_or_a_time_from_before_1970_is_looked_for_too(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        await transport.publish(message(), timeout_seconds=5)
        with pytest.raises(EventNotFound):
            await transport.get(UUID("00000000-0000-7000-8000-000000000000"))
        for since in (datetime.min.replace(tzinfo=UTC), datetime.fromtimestamp(0, UTC)):
            assert len([entry async for entry in transport.read_log(since=since)]) == 1


@pytest.mark.parametrize("is_heard", [False, True])
async def test_a_subscription_whose_beginning_took_too_long_begins_again(
    rabbit_server: RabbitServer, exchange: str, is_heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    consume = Channel.basic_consume
    calls = 0

    async def hang_at_first(channel: Channel, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if not arguments[0].endswith(".workers"):
            return await consume(channel, *arguments, **options)
        calls += 1
        first = calls == 1
        answer = await consume(channel, *arguments, **options) if is_heard or not first else None
        if first:
            await asyncio.Event().wait()
        return answer

    async with transport_at(rabbit_server.url, exchange, connect_timeout_seconds=1) as transport:
        monkeypatch.setattr(Channel, "basic_consume", hang_at_first)
        async with transport.subscribe("#", group="workers", prefetch=10) as deliveries:
            event = message()
            await transport.publish(event, timeout_seconds=5)
            delivery = await next_of(deliveries)
            assert delivery.message == event
            await delivery.ack()
    assert calls == 2


async def test_a_confirm_without_a_log_is_no_receipt(rabbit_server: RabbitServer, exchange: str) -> None:
    """RabbitMQ confirms what no queue takes; several publishes of one id are each told apart."""
    async with transport_at(rabbit_server.url, exchange) as transport:
        await transport.publish(message(), timeout_seconds=5)
        async with plain_client(rabbit_server.url) as channel:
            await channel.queue_delete(exchange.removesuffix(".events.v1") + ".log")
        event = message()
        several = [event] * 20 + [message(n) for n in range(20)]
        answers = await transport.publish_many(several, timeout_seconds=5)
        assert {type(answer) for answer in answers} == {TransportUnavailable}
        await transport.publish(event, timeout_seconds=5)
        assert event in await logged(transport)


async def test_what_cannot_be_set_aside_comes_again(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("#", group="workers", prefetch=1) as deliveries,
        plain_client(rabbit_server.url) as channel,
    ):
        # No id of its own, as foreign clients send it.
        await channel.basic_publish(b"{}", exchange=exchange, routing_key="a.b")
        delivery = await next_of(deliveries)
        await channel.queue_delete(exchange.removesuffix(".events.v1") + ".deadletters")
        with pytest.raises(TransportUnavailable):
            await delivery.dead_letter("broken")
        again = await next_of(deliveries)
        assert again.message.event_id == delivery.message.event_id
        await again.ack()
