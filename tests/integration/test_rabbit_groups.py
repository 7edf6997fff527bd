"""The names of groups on RabbitMQ: each once in a stream, however often consumers come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest
from aiormq.channel import Channel
from aiormq.connection import Connection

from bloodbank.transports import _rabbit_groups
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._rabbit_log import Start
from bloodbank.transports.base import GroupState
from bloodbank.transports.rabbit import RabbitTransport
from tests.conformance.messages import DEADLINE_SECONDS, messages, publish
from tests.integration.rabbit_bus import transport_at
from tests.servers.rabbit import RabbitServer

pytestmark = pytest.mark.rabbit


@pytest.fixture
def exchange() -> str:
    return f"test.{uuid4().hex}.v1"


async def _until(transport: RabbitTransport, told: Callable[[list[GroupState]], bool]) -> list[GroupState]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not told(groups := await transport.groups()):
            await asyncio.sleep(0.05)
    return groups


async def _entries(transport: RabbitTransport) -> list[tuple[object, object]]:
    """Return what the stream of names holds."""
    stream = transport._stream(transport._names.groups)
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [
            (wire.header_of(entry, wire.GROUP_HEADER), wire.header_of(entry, wire.PATTERN_HEADER))
            async for entry in stream.read_as_delivered(Start())
        ]


async def test_a_name_is_written_once_for_many_consumers(rabbit_server: RabbitServer, exchange: str) -> None:
    for pattern in ("a.#", "b.#", "a.#", "a.#"):
        async with (
            transport_at(rabbit_server.url, exchange) as transport,
            transport.subscribe(pattern, group="workers", prefetch=1),
        ):
            await _until(transport, lambda groups, p=pattern: any(p in group.patterns for group in groups))
            written = await _entries(transport)
    assert written == [("workers", "a.#"), ("workers", "b.#")]


async def test_a_group_whose_queue_was_deleted_is_not_told(rabbit_server: RabbitServer, exchange: str) -> None:
    async with transport_at(rabbit_server.url, exchange) as transport:
        for group in ("gone", "here"):
            async with transport.subscribe("#", group=group, prefetch=1):
                await _until(transport, lambda groups, g=group: any(one.name == g for one in groups))
        await wire.delete(await transport._consuming.connection(), transport._names.group("gone"))
        await publish(transport, *messages(2))
        groups = await _until(transport, lambda groups: [group.name for group in groups] == ["here"])
        assert groups[0].waiting == 2


async def test_a_queue_that_is_not_there_is_asked_for_once_in_a_while_and_found_when_its_group_comes_back(
    rabbit_server: RabbitServer, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker closes a channel for each such question, and writes an error into its log."""
    opened: list[Connection] = []
    opens = _rabbit_groups.open_channel

    async def counted(connection: Connection) -> Channel:
        opened.append(connection)
        return await opens(connection)

    monkeypatch.setattr(_rabbit_groups, "open_channel", counted)
    async with transport_at(rabbit_server.url, exchange) as transport:
        async with transport.subscribe("#", group="gone", prefetch=1):
            await _until(transport, lambda groups: len(groups) == 1)
        await wire.delete(await transport._consuming.connection(), transport._names.group("gone"))
        assert await transport.groups() == []
        opened.clear()
        for _ in range(5):
            assert await transport.groups() == []
        assert opened == []
        async with transport.subscribe("#", group="gone", prefetch=1):
            await _until(transport, lambda groups: len(groups) == 1)


async def test_a_stream_of_names_that_was_deleted_is_filled_again(rabbit_server: RabbitServer, exchange: str) -> None:
    async with (
        transport_at(rabbit_server.url, exchange) as transport,
        transport.subscribe("#", group="workers", prefetch=1),
    ):
        await _until(transport, lambda groups: len(groups) == 1)
        await wire.delete(await transport._consuming.connection(), transport._names.groups)
        await _until(transport, lambda groups: groups == [])
        # As when the broker is found again.
        transport._groups.look_again()
        await _until(transport, lambda groups: len(groups) == 1)
