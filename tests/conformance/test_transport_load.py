"""What every transport does under load while it is interrupted: what was accepted is there, and nothing else.

10,000 messages of 100 publishers at the same time, with consumers of three groups. In the middle the bus goes away,
twice: a broker is stopped and started again, and what is no server is held up until publishers are refused. After each
outage one of two transports, which publishers and consumers use in turn, is closed under them and opened again, as in
a process that begins anew. Where several processes can use the bus, another one publishes meanwhile.

A caller does what the protocol asks for: what is not certainly accepted is published again with the same id.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from uuid import UUID

import pytest

from bloodbank.errors import NotOpen, PublishUnknown, TransportUnavailable
from bloodbank.transports.base import Delivery, Features, Message, Receipt, Transport
from tests.conformance.backends import Bus
from tests.conformance.consumers import eventually
from tests.conformance.messages import FAILURE, ids, listed, message, publish_patiently, take_until, whole_log
from tests.conformance.peer import peer, printed_id

PUBLISHERS = 100
EACH = 100
OF_ANOTHER_PROCESS = 200
OUTAGES = 2
PREFETCH = 50
PUBLISH_SECONDS = 3.0
"""Short, so that a bus that is held up refuses soon; what is refused is published again."""
WHOLE_SECONDS = 110.0


class Place:
    """A transport on the bus that is closed and opened again under those who use it. accepted: what it has taken."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.accepted = 0
        self.transport = bus.transport()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Place]:
        await self.transport.__aenter__()
        try:
            yield self
        finally:
            await self.transport.__aexit__(None, None, None)

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Close it; open another one at the end of the block."""
        await self.transport.__aexit__(None, None, None)
        yield
        transport = self._bus.transport()
        await transport.__aenter__()
        self.transport = transport


class Load:
    """Publishes and consumes as the protocol asks for, and remembers what it was told.

    receipts: of what was accepted, by id. begun, accepted: when, as numbers that grow.
    failures: how many publishes were answered by an error. unknown: those of an id whose outcome nobody could tell.
    received: what each group was delivered, in order. ids: of the same.
    again: what was acknowledged when it was tried again. dead: what was set aside.
    """

    def __init__(self) -> None:
        self.receipts: dict[UUID, Receipt] = {}
        self.begun: dict[UUID, int] = {}
        self.accepted: dict[UUID, int] = {}
        self._clock = count()
        self.unknown: Counter[UUID] = Counter()
        self.failures = 0
        self.received: defaultdict[str, list[Message]] = defaultdict(list)
        self.ids: defaultdict[str, set[UUID]] = defaultdict(set)
        self.again: set[UUID] = set()
        self.dead: set[UUID] = set()

    async def publish(self, places: Sequence[Place], sent: Sequence[Message], first: int) -> None:
        """Publish one after the other, each until it is accepted; at the places in turn, the first at `first`."""
        for number, one in enumerate(sent, first):
            place = places[number % len(places)]
            self.begun[one.event_id] = next(self._clock)
            while one.event_id not in self.receipts:
                try:
                    receipt = await place.transport.publish(one, timeout_seconds=PUBLISH_SECONDS)
                except PublishUnknown:
                    self.unknown[one.event_id] += 1
                except (TransportUnavailable, NotOpen):
                    pass
                else:
                    self.receipts[one.event_id] = receipt
                    self.accepted[one.event_id] = next(self._clock)
                    place.accepted += 1
                    continue
                self.failures += 1
                await asyncio.sleep(0.02)

    async def consume(
        self, place: Place, pattern: str, group: str, settle: Callable[[Delivery], Awaitable[None]]
    ) -> None:
        """Take and settle, for ever; subscribe again when the transport was closed."""
        while True:
            with suppress(NotOpen, TransportUnavailable):
                async with place.transport.subscribe(pattern, group=group, prefetch=PREFETCH) as deliveries:
                    async for delivery in deliveries:
                        self.received[group].append(delivery.message)
                        self.ids[group].add(delivery.message.event_id)
                        # What cannot be settled comes again.
                        with suppress(TransportUnavailable):
                            await settle(delivery)
            await asyncio.sleep(0.02)

    async def be_picky(self, delivery: Delivery) -> None:
        """Set some aside, have some tried again, and acknowledge the rest."""
        sent = delivery.message
        if is_poison(sent):
            await delivery.dead_letter(FAILURE)
            self.dead.add(sent.event_id)
        elif is_retried(sent) and delivery.attempt == 1:
            await delivery.retry(0)
        else:
            await delivery.ack()
            if delivery.attempt > 1:
                self.again.add(sent.event_id)


def number_of(sent: Message) -> int:
    return int(sent.body)


def is_poison(sent: Message) -> bool:
    return number_of(sent) % 100 == 50


def is_retried(sent: Message) -> bool:
    return number_of(sent) % 10 == 5


def parts(sent: list[Message]) -> list[list[Message]]:
    """Return what each of the publishers sends."""
    return [sent[start : start + EACH] for start in range(0, len(sent), EACH)]


async def ack(delivery: Delivery) -> None:
    await delivery.ack()


@pytest.mark.timeout(180)
async def test_ten_thousand_messages_of_a_hundred_publishers_survive_two_outages(bus: Bus) -> None:
    load = Load()
    sent = [message(f"load.{number % 4}", b"%d" % number) for number in range(PUBLISHERS * EACH)]
    async with asyncio.timeout(WHOLE_SECONDS), Place(bus).opened() as steady, Place(bus).opened() as other:
        for group, pattern in (("one", "#"), ("picky", "load.*"), ("some", "load.1")):
            async with steady.transport.subscribe(pattern, group=group, prefetch=1):
                pass
        theirs = await _under_load(bus, load, sent, steady, other)
        await _assert_log(load, sent, theirs, steady.transport)
        await _assert_groups(load, sent, theirs, steady.transport)


async def _under_load(bus: Bus, load: Load, sent: list[Message], steady: Place, other: Place) -> set[UUID]:
    """Publish and consume all of it with the outages in the middle; return what another process published."""
    async with asyncio.TaskGroup() as tasks:
        consumers = [
            tasks.create_task(load.consume(steady, "#", "one", ack)),
            tasks.create_task(load.consume(other, "load.1", "some", ack)),
            *(
                tasks.create_task(load.consume(place, "load.*", "picky", load.be_picky))
                for place in (steady, other) * 2
            ),
        ]
        publishers = [
            tasks.create_task(load.publish((steady, other), part, first)) for first, part in enumerate(parts(sent))
        ]
        others = tasks.create_task(_published_by_another_process(bus, steady.transport.features))
        for number in range(OUTAGES):
            enough = (number + 1) * len(sent) // (OUTAGES + 1)
            await eventually(lambda enough=enough: len(load.receipts) >= enough)
            before = load.failures
            async with bus.service.outage():
                await eventually(lambda before=before: load.failures > before)
            before = other.accepted
            await eventually(lambda before=before: other.accepted > before + PUBLISHERS)
            before = load.failures
            async with other.closed():
                await eventually(lambda before=before: load.failures > before)
        await asyncio.gather(*publishers)
        theirs = await others
        mine = set(ids(sent))
        await eventually(lambda: load.ids["one"] >= mine | theirs)
        await eventually(lambda: load.ids["some"] >= {one.event_id for one in sent if one.routing_key == "load.1"})
        await eventually(lambda: load.ids["picky"] >= mine)
        await eventually(lambda: load.dead >= {one.event_id for one in sent if is_poison(one)})
        await eventually(lambda: load.again >= {one.event_id for one in sent if is_retried(one)})
        for consumer in consumers:
            consumer.cancel()
    return theirs


async def _published_by_another_process(bus: Bus, features: Features) -> set[UUID]:
    if not features.multi_process:
        return set()
    async with peer(bus, publish=OF_ANOTHER_PROCESS) as process:
        return {await printed_id(process) for _ in range(OF_ANOTHER_PROCESS)}


async def _assert_log(load: Load, sent: list[Message], theirs: set[UUID], transport: Transport) -> None:
    """Each is in the log with its body; more often only where nobody could tell whether it was, and nobody looks."""
    entries = [entry.message for entry in await whole_log(transport)]
    copies = Counter(ids(entries))
    assert set(copies) == {*ids(sent), *theirs}
    by_id = {one.event_id: one for one in sent}
    assert all(one == by_id[one.event_id] for one in entries if one.event_id not in theirs)
    if transport.features.detects_duplicates:
        assert set(copies.values()) == {1}
        duplicates = {event_id for event_id, receipt in load.receipts.items() if receipt.duplicate}
        assert duplicates <= set(load.unknown)
    else:
        assert {one for one in ids(sent) if copies[one] > 1 + load.unknown[one]} == set()
    if transport.features.ordered:
        _assert_order(entries, load)


async def _assert_groups(load: Load, sent: list[Message], theirs: set[UUID], transport: Transport) -> None:
    """Each group got what fits its patterns and nothing else, and the dead letters are those that it set aside."""
    assert load.ids["one"] == {*ids(sent), *theirs}
    assert load.ids["picky"] == set(ids(sent))
    assert load.ids["some"] == {one.event_id for one in sent if one.routing_key == "load.1"}
    by_id = {one.event_id: one for one in sent}
    for group, received in load.received.items():
        assert all(one == by_id[one.event_id] for one in received if one.event_id not in theirs), group
    dead = await listed(transport, "picky")
    assert {letter.message.event_id for letter in dead} == {one.event_id for one in sent if is_poison(one)}
    if transport.features.ordered:
        for group in ("one", "some"):
            _assert_order(load.received[group], load)
    # What was under way when the consumers ended may come again, and nothing that is not of this bus.
    await publish_patiently(transport, last := message("load.1"))
    for group in load.received:
        async with transport.subscribe("load.1", group=group, prefetch=PREFETCH) as deliveries:
            assert set(ids(await take_until(deliveries, last))) <= load.ids[group]


def _assert_order(received: Iterable[Message], load: Load) -> None:
    """What was accepted before another one was sent came before it, where each counts from when it first came."""
    first = [event_id for event_id in dict.fromkeys(one.event_id for one in received) if event_id in load.begun]
    accepted_later = len(load.begun) + len(load.accepted)
    for event_id in reversed(first):
        assert load.begun[event_id] < accepted_later, f"{event_id} came before one that was accepted earlier"
        accepted_later = min(accepted_later, load.accepted[event_id])
