"""Messages of other programs whose properties nobody can read: they keep nobody from what stands beside them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from aiormq.channel import Channel
from anyio.to_thread import run_sync
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader
from typer.testing import CliRunner

from bloodbank import create_envelope
from bloodbank.cli.main import app
from bloodbank.codec import encode
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._rabbit_frames import PUBLISHED_HEADER
from bloodbank.transports._rabbit_received import Received
from bloodbank.transports.base import Delivery, Message
from bloodbank.transports.rabbit import RabbitTransport
from tests.integration.rabbit_bus import (
    NO_TEXT,
    PATIENCE_SECONDS,
    next_of,
    plain_client,
    publish_of_bytes,
    transport_at,
)
from tests.servers.rabbit import RabbitServer

TYPES = ["a.before", "a.torn", "a.after"]
SAID_AT = datetime(2026, 1, 2, tzinfo=UTC)
TORN: dict[str, dict[str, Any]] = {
    "routing key": {"routing_key": NO_TEXT},
    "message id": {"message_id": NO_TEXT, "timestamp": SAID_AT},
    "name of a header": {"headers": {NO_TEXT: "x"}},
    "user and nested header": {"app_id": NO_TEXT, "reply_to": NO_TEXT, "headers": {"x": [{NO_TEXT: 1}], "y": "z"}},
    "long texts": {"routing_key": "a." + 50 * "TORN", "message_id": 62 * "TORN", "app_id": 62 * "TORN"},
    "key in a header": {"headers": {wire.ROUTING_KEY_HEADER: "a." + 300 * "é"}},
}


@pytest.fixture
def exchange() -> str:
    return f"test{uuid4().hex[:12]}.events.v1"


@pytest.fixture(params=TORN)
def torn(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The properties of a message of another program."""
    return {"routing_key": "a.torn"} | TORN[request.param]


async def publish_around(server: RabbitServer, transport: RabbitTransport, torn: dict[str, Any]) -> list[Message]:
    """Publish an event, an envelope with properties that cannot be read, and an event; return the three."""
    before, between, after = (encode(create_envelope(name, {})) for name in TYPES)
    await transport.publish(before, timeout_seconds=PATIENCE_SECONDS)
    async with plain_client(server.url) as client:
        await publish_of_bytes(client, between.body, transport_exchange(transport), **torn)
    await transport.publish(after, timeout_seconds=PATIENCE_SECONDS)
    return [before, between, after]


def transport_exchange(transport: RabbitTransport) -> str:
    return transport._names.exchange  # pyright: ignore[reportPrivateUsage]


async def bodies_of(deliveries: AsyncIterator[Delivery], count: int) -> list[bytes]:
    found: list[bytes] = []
    for _ in range(count):
        delivery = await next_of(deliveries)
        found.append(delivery.message.body)
        await delivery.ack()
    return found


@pytest.mark.rabbit
async def test_all_of_the_log_is_read(rabbit_server: RabbitServer, exchange: str, torn: dict[str, Any]) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        begun = datetime.now(UTC) - timedelta(seconds=1)
        sent = await publish_around(rabbit_server, transport, torn)
        entries = [entry async for entry in transport.read_log()]
        assert [entry.message.body for entry in entries] == [message.body for message in sent]
        assert [entry.position for entry in entries] == sorted(entry.position for entry in entries)
        assert [entries[0].message.event_id, entries[2].message.event_id] == [sent[0].event_id, sent[2].event_id]
        assert entries[1].message.routing_key.startswith("a.")
        assert entries[1].logged_at == torn.get("timestamp", entries[0].logged_at)
        assert len([entry async for entry in transport.read_log(since=begun)]) == 3
        assert len([entry async for entry in transport.read_log(after=entries[0].position)]) == 2
        assert len([entry async for entry in transport.read_log(after=-2)]) == 2
        assert (await transport.get(sent[2].event_id)).body == sent[2].body
        assert (await transport.get(entries[1].message.event_id)).body == sent[1].body


@pytest.mark.rabbit
async def test_the_log_is_followed(rabbit_server: RabbitServer, exchange: str, torn: dict[str, Any]) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport, asyncio.timeout(PATIENCE_SECONDS):
        sent = await publish_around(rabbit_server, transport, torn)
        async with aclosing(transport.read_log(follow=True)) as entries:
            found = [(await anext(entries)).message.body for _ in range(3)]
            sent += await publish_around(rabbit_server, transport, torn)
            found += [(await anext(entries)).message.body for _ in range(3)]
    assert found == [message.body for message in sent]


@pytest.mark.rabbit
async def test_a_new_group_gets_all_of_its_past(
    rabbit_server: RabbitServer, exchange: str, torn: dict[str, Any]
) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        sent = await publish_around(rabbit_server, transport, torn)
        async with transport.subscribe("#", group="new", prefetch=5, start="beginning") as deliveries:
            assert await bodies_of(deliveries, 3) == [message.body for message in sent]


@pytest.mark.rabbit
@pytest.mark.parametrize("to", [["--to", "shop"], ["--yes"]], ids=["one group", "all"])
async def test_bb_replays_and_indexes_all_of_it(
    rabbit_server: RabbitServer,
    exchange: str,
    torn: dict[str, Any],
    to: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bb(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    monkeypatch.chdir(tmp_path)
    for name in ("REDIS_URL", "REDIS_HOST", "BLOODBANK_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RABBIT_URL", rabbit_server.url)
    monkeypatch.setenv("EXCHANGE_NAME", exchange)
    monkeypatch.setenv("BLOODBANK_DATA_DIR", str(tmp_path))
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("#", group="shop", prefetch=5) as deliveries,
    ):
        sent = await publish_around(rabbit_server, transport, torn)
        bodies = [message.body for message in sent]
        assert await bodies_of(deliveries, 3) == bodies
        assert (await run_sync(bb, "replay", *to)).startswith("3 events replayed")
        assert await bodies_of(deliveries, 3) == bodies
        assert "\n3 events are in the index." in await run_sync(bb, "reindex")
        assert "a.torn" in await run_sync(bb, "events", "list")


@pytest.mark.rabbit
async def test_what_was_retried_keeps_what_can_be_read(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("#", group="shop", prefetch=5) as deliveries,
        plain_client(rabbit_server.url) as client,
    ):
        parent = uuid4()
        headers = {"kept": "x", NO_TEXT: "y", "nested": [{NO_TEXT: 1}]}
        torn = {"message_id": NO_TEXT, "correlation_id": str(parent), "app_id": "shop", "headers": headers}
        await publish_of_bytes(client, b"torn", exchange, "a.torn", **torn)
        first = await next_of(deliveries)
        await first.retry(0)
        second = await next_of(deliveries)
        await second.ack()
        assert (first.attempt, second.attempt) == (1, 2)
        assert second.message.event_id == first.message.event_id
        assert (second.message.correlation_id, second.message.app_id) == (parent, "shop")
        assert dict(second.message.headers) == {"kept": "x"}


@pytest.mark.rabbit
async def test_what_rabbitmq_gave_up_is_listed_and_put_back(
    rabbit_server: RabbitServer, exchange: str, torn: dict[str, Any]
) -> None:
    queue = exchange.removesuffix(".events.v1") + ".dead"
    of_the_group = {wire.GROUP_HEADER: "shop", wire.DEAD_HEADER: 1_767_312_000_123}
    bodies = [b"before", b"between", b"after"]
    async with transport_at(rabbit_server.url, exchange) as transport:
        async with transport.subscribe("#", group="shop", prefetch=1):
            await asyncio.sleep(0)
        async with plain_client(rabbit_server.url) as client:
            for body, properties in zip(bodies, [{}, torn, {}], strict=True):
                headers = properties.get("headers", {}) | of_the_group
                others = {name: properties[name] for name in properties if name != "routing_key"}
                await publish_of_bytes(client, body, "", queue, **(others | {"headers": headers}))
        async with asyncio.timeout(PATIENCE_SECONDS):
            letters = [letter async for letter in transport.dead_letters(group="shop")]
        assert [letter.message.body for letter in letters] == bodies
        assert await transport.redeliver([letter.number for letter in letters]) == 3
        async with transport.subscribe("#", group="shop", prefetch=1) as deliveries:
            assert await bodies_of(deliveries, 3) == bodies


def header_of_bytes(flags: int, *parts: bytes) -> bytes:
    payload = struct.pack(">HHQH", 60, 0, 0, flags) + b"".join(parts)
    return struct.pack(">BHI", 2, 7, len(payload)) + payload + b"\xce"


def short(data: bytes) -> bytes:
    return bytes([len(data)]) + data


SHORT = st.binary(max_size=255)
VALUES = st.one_of(
    SHORT.map(lambda data: b"S" + struct.pack(">I", len(data)) + data),
    SHORT.map(lambda data: b"x" + struct.pack(">I", len(data)) + data),
    st.lists(SHORT, max_size=2).map(
        lambda names: (lambda table: b"F" + struct.pack(">I", len(table)) + table)(
            b"".join(short(name) + b"t\x01" for name in names)
        )
    ),
    st.binary(min_size=8, max_size=8).map(lambda data: b"T" + data),
    st.binary(min_size=8, max_size=8).map(lambda data: b"l" + data),
    st.binary(min_size=5, max_size=5).map(lambda data: b"D" + data),
    st.sampled_from([b"t\x01", b"b\xff", b"B\xff", b"s\xff\xff", b"u\xff\xff", b"I\xff\xff\xff\xff", b"V"]),
    st.sampled_from([b"f\x00\x00\x00\x00", b"d" + 8 * b"\xff", b"A\x00\x00\x00\x02t\x01"]),
)


@given(
    st.lists(st.tuples(SHORT, VALUES), max_size=4),
    st.tuples(SHORT, SHORT, SHORT, SHORT, SHORT, SHORT, SHORT, SHORT, SHORT),
    st.binary(min_size=8, max_size=8),
)
def test_properties_of_any_bytes_are_read_and_can_be_sent_on(
    table: list[tuple[bytes, bytes]], texts: tuple[bytes, ...], timestamp: bytes
) -> None:
    headers = (
        b"".join(short(name) + value for name, value in table) + short(b"x-stream-offset") + b"l" + 7 * b"\0" + b"\5"
    )
    type_, encoding, correlation, reply, expiration, message_id, kind, user, app_id = map(short, texts)
    size = struct.pack(">I", len(headers))
    before = (type_, encoding, size, headers, b"\x02", b"\x09", correlation, reply, expiration)
    received = Received(
        b"c", 1, False, "", "a.b", header_of_bytes(0xFFF8, *before, message_id, timestamp, kind, user, app_id), b"{}"
    )
    properties = received.properties()
    assert wire.offset_from(properties.headers) == 5
    assert properties.published_at is None or properties.published_at.tzinfo is UTC
    message = received.message(properties)
    delivered = received.delivered(cast("Channel", None))
    assert wire.offset_of(delivered) == 5
    assert wire.message_of(delivered).event_id == message.event_id
    wire.properties_again(delivered, {wire.GROUP_HEADER: "shop"}).marshal()
    wire.replayed(message, "queue", "exchange")


def test_what_is_passed_over_leaves_the_rest_of_the_headers() -> None:
    headers: dict[str, Any] = {
        "a": [1, {"torn": 2}],
        "b": "c",
        "n": 5,
        "t": datetime(2026, 1, 1, tzinfo=UTC),
        "yes": True,
    }
    properties = Basic.Properties(headers=headers | {PUBLISHED_HEADER: 1_700_000_000_123}, message_id="torn")
    frame = marshal(ContentHeader(body_size=0, properties=properties), 7).replace(b"torn", b"\xff\xff\xff\xff")
    received = Received(b"c", 1, False, "", "a.b", frame, b"")
    found = received.properties()
    assert found.headers["b"] == "c"
    assert found.headers["yes"] is True
    assert found.published_at == datetime.fromtimestamp(1_700_000_000.123, UTC)
