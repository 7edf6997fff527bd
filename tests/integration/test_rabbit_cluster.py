"""A cluster of three RabbitMQ nodes that loses one: nothing confirmed is lost, and everybody goes on elsewhere."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from anyio.to_thread import run_sync

from bloodbank.errors import PublishUnknown, TransportUnavailable
from bloodbank.transports.rabbit import RabbitTransport
from tests.integration.rabbit_bus import eventually, logged, message, publish_until_it_works, transport_at
from tests.servers.rabbit_cluster import RabbitCluster

pytestmark = [pytest.mark.rabbit, pytest.mark.timeout(900)]

IN_FLIGHT = 100
PATIENCE_SECONDS = 150.0
PATIENT: Any = {"connect_timeout_seconds": 30.0, "query_timeout_seconds": 60.0}
"""A busy machine is no reason to leave a node."""


@pytest.fixture
def exchange() -> str:
    return f"test{uuid4().hex[:12]}.events.v1"


@pytest.fixture(scope="module")
def _cluster_of_module() -> Iterator[RabbitCluster]:
    cluster = RabbitCluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(_cluster_of_module: RabbitCluster) -> RabbitCluster:
    """Three running nodes; what a test before did to them is undone."""
    _cluster_of_module.heal()
    return _cluster_of_module


class Load:
    """Publishes, IN_FLIGHT at a time; what is not confirmed is sent again with the same id."""

    def __init__(self, transport: RabbitTransport) -> None:
        self.accepted: list[UUID] = []
        self._transport = transport
        self._confirmed_at: list[float] = []
        self._left = 0

    async def publish(self, count: int) -> float:
        """Return when so many events are confirmed: the longest time that there was no confirm, in seconds."""
        self._left = count
        self._confirmed_at = [time.monotonic()]
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(self._publish_while_there_are_some())
        times = self._confirmed_at
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    async def publish_while(self, count: int, happens: Callable[[], object]) -> float:
        """Publish, and have something happen (in a thread) when a tenth of it is confirmed."""
        wanted = len(self.accepted) + count // 10
        publishing = asyncio.create_task(self.publish(count))
        await eventually(lambda: len(self.accepted) >= wanted, seconds=PATIENCE_SECONDS)
        await run_sync(happens)
        return await publishing

    async def _publish_while_there_are_some(self) -> None:
        while self._left > 0:
            self._left -= 1
            event = message()
            while True:
                try:
                    await self._transport.publish(event, timeout_seconds=10)
                except (TransportUnavailable, PublishUnknown):
                    await asyncio.sleep(0.01)
                else:
                    self.accepted.append(event.event_id)
                    self._confirmed_at.append(time.monotonic())
                    break


class Consumption:
    """Consumes until it is ended, and writes down what it got."""

    def __init__(self, transport: RabbitTransport, group: str | None) -> None:
        self.got: set[UUID] = set()
        self._transport = transport
        self._group = group
        self._begun = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        consuming = asyncio.create_task(self._consume())
        begun = asyncio.create_task(self._begun.wait())
        try:
            await asyncio.wait({consuming, begun}, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert self._begun.is_set(), "it did not begin to consume"
            yield
        finally:
            begun.cancel()
            consuming.cancel()
            await asyncio.wait({begun, consuming})

    async def _consume(self) -> None:
        async with self._transport.subscribe("#", group=self._group, prefetch=200) as deliveries:
            self._begun.set()
            async for delivery in deliveries:
                self.got.add(delivery.message.event_id)
                try:
                    await delivery.ack()
                except TransportUnavailable:
                    continue  # it comes again


def connected_node(cluster: RabbitCluster, caplog: pytest.LogCaptureFixture, purpose: str) -> int:
    """Return to which node the last connection was made, as the log says."""
    lines = [record.getMessage() for record in caplog.records]
    pattern = re.compile(rf"Connected to RabbitMQ at amqp://127\.0\.0\.1:(\d+)/ \(bloodbank {purpose}\)")
    ports = [int(found[1]) for line in lines if (found := pattern.match(line))]
    return [node.port for node in cluster.nodes].index(ports[-1])


async def missing_in_log(cluster: RabbitCluster, exchange: str, accepted: list[UUID]) -> set[UUID]:
    """Return what is not in the log. A replica may still be behind, so it is read until nothing is missing, or long."""
    missing = set(accepted)
    # A replica that hangs behind says nothing for as long as a question may take: rather ask several times.
    often = PATIENT | {"query_timeout_seconds": 15.0}
    async with transport_at(cluster.url, exchange, **often) as reader:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while missing and time.monotonic() < deadline:
            try:
                missing = set(accepted) - {event.event_id for event in await logged(reader)}
            except TransportUnavailable:
                await asyncio.sleep(0.2)
    return missing


def queues(exchange: str) -> tuple[str, str, str]:
    """Return the names of the log, of the group `workers` and of the dead queue."""
    base = exchange.removesuffix(".events.v1")
    return f"{base}.log", f"{base}.workers", f"{base}.dead"


EVERYWHERE = frozenset(range(3))


async def all_online(cluster: RabbitCluster, names: Sequence[str], nodes: frozenset[int] = EVERYWHERE) -> None:
    """Wait until these queues are on these nodes, and no other."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        for name in names:
            while (await run_sync(cluster.members, name)).online != nodes:
                await asyncio.sleep(0.2)


async def leader_of(cluster: RabbitCluster, name: str) -> int:
    """Wait until a queue is on all nodes and has a leader; return its node.

    A replica needs some seconds after its node has started; before, the death of another is one too many.
    """
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            found = await run_sync(cluster.members, name)
            if found.leader is not None and found.online == EVERYWHERE:
                return found.leader
            await asyncio.sleep(0.2)


async def test_the_leaders_of_log_and_group_die_and_nothing_confirmed_is_lost(
    cluster: RabbitCluster, exchange: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        transport_at(cluster.url, exchange, **PATIENT) as publisher,
        transport_at(cluster.url, exchange, **PATIENT) as consumer,
    ):
        load, workers, single = Load(publisher), Consumption(consumer, "workers"), Consumption(consumer, None)
        async with workers.running(), single.running():
            gaps = [await load.publish(1000)]
            await run_sync(cluster.write_registers)
            for queue in queues(exchange)[:2]:
                await all_online(cluster, queues(exchange)[:2])
                leader = await leader_of(cluster, queue)
                gaps.append(await load.publish_while(2500, cluster.nodes[leader].power_cut))
                await run_sync(cluster.start)
            await eventually(lambda: workers.got >= set(load.accepted), seconds=PATIENCE_SECONDS)
            await eventually(lambda: single.got >= set(load.accepted), seconds=PATIENCE_SECONDS)
        with capsys.disabled():
            print(
                f"\n  longest time without a confirm: {gaps[0]:.2f} s with all nodes, {gaps[1]:.2f} s when the leader "
                f"of the log was killed, {gaps[2]:.2f} s when that of a group was; {len(load.accepted)} events"
            )
        assert await missing_in_log(cluster, exchange, load.accepted) == set()


async def test_a_publisher_at_a_node_that_lives_goes_on_when_the_leader_of_the_log_dies_at_another(
    cluster: RabbitCluster, exchange: str
) -> None:
    """RabbitMQ nacks all that comes on its channel from then on; a new channel works."""
    async with transport_at(cluster.nodes[1].url, exchange, **PATIENT) as first:
        await publish_until_it_works(first, message())
    leader = await leader_of(cluster, queues(exchange)[0])
    await run_sync(cluster.write_registers)
    async with transport_at(cluster.nodes[(leader + 1) % 3].url, exchange, **PATIENT) as transport:
        load = Load(transport)
        await load.publish_while(2500, cluster.nodes[leader].power_cut)
    await run_sync(cluster.start)
    assert await missing_in_log(cluster, exchange, load.accepted) == set()


async def test_a_node_that_is_cut_off_pauses_and_its_clients_go_on_at_another(
    cluster: RabbitCluster, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="bloodbank")
    async with transport_at(cluster.url, exchange, **PATIENT) as transport:
        load, workers = Load(transport), Consumption(transport, "workers")
        async with workers.running():
            await load.publish(500)
            cut_off = connected_node(cluster, caplog, "publishing")
            await load.publish_while(2000, lambda: cluster.partition(cut_off))
            await eventually(lambda: connected_node(cluster, caplog, "publishing") != cut_off, seconds=PATIENCE_SECONDS)
            await load.publish(500)
            await run_sync(cluster.rejoin, cut_off)
            await load.publish(500)
            await eventually(lambda: workers.got >= set(load.accepted), seconds=PATIENCE_SECONDS)
        assert await missing_in_log(cluster, exchange, load.accepted) == set()


async def test_what_was_confirmed_is_there_after_all_nodes_but_one_were_gone(
    cluster: RabbitCluster, exchange: str
) -> None:
    async with transport_at(cluster.url, exchange, **PATIENT) as transport:
        load, workers = Load(transport), Consumption(transport, "workers")
        async with workers.running():
            await load.publish(500)
            await run_sync(cluster.write_registers)
            for node in cluster.nodes[1:]:
                await run_sync(node.power_cut)
            with pytest.raises((TransportUnavailable, PublishUnknown)):
                await transport.publish(message(), timeout_seconds=3)
            await run_sync(cluster.start)
            await load.publish(500)
            await eventually(lambda: workers.got >= set(load.accepted), seconds=PATIENCE_SECONDS)
        assert await missing_in_log(cluster, exchange, load.accepted) == set()


async def test_log_and_groups_are_on_all_nodes_also_those_declared_while_one_was_down(
    cluster: RabbitCluster, exchange: str
) -> None:
    other = f"other{exchange}"
    async with (
        transport_at(cluster.url, exchange, **PATIENT) as transport,
        transport.subscribe("#", group="workers", prefetch=1),
    ):
        await all_online(cluster, queues(exchange))
        await run_sync(cluster.write_registers)
        await run_sync(cluster.nodes[2].power_cut)
        async with (
            transport_at(cluster.url, other, **PATIENT) as late,
            late.subscribe("#", group="workers", prefetch=1),
        ):
            await publish_until_it_works(late, message())
            await run_sync(cluster.write_registers)
            await all_online(cluster, queues(other), frozenset({0, 1}))
            await run_sync(cluster.start)
            await all_online(cluster, queues(other))
