"""The index, rebuilt from the log, is the one that was recorded event by event; on every bus and every index."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from bloodbank import CorrelationTracker, EventEnvelope, Publisher, Settings, Source, codec, create_envelope
from bloodbank.ids import new_event_id
from bloodbank.reindex import Progress, link_in, reindex
from bloodbank.stores.base import Direction, Graph, Link, Node
from bloodbank.transports.base import LogEntry, Message, Transport
from tests.conformance.backends import Bus, Index
from tests.conformance.graphs import EVERYTHING
from tests.unit.faulty_store import FaultyStore

PATIENCE_SECONDS = 60.0
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SETTINGS = Settings(_env_file=None, tracker_batch_limit=7)
PATIENCE: Any = {"timeout_seconds": 30.0, "query_timeout_seconds": 60.0}
"""Limits of trackers: a busy machine is no outage."""
Graphs = dict[tuple[UUID, Direction], Graph]


@pytest.fixture
async def tracker(index: Index) -> AsyncIterator[CorrelationTracker]:
    async with CorrelationTracker(index.store(), **PATIENCE) as opened:
        yield opened


def _timeless(node: Node) -> Node:
    """Leave out when the bus accepted it, which the log tells by another clock than the publisher."""
    return node if node.link is None else node._replace(link=node.link._replace(accepted_at=LONG_AGO))


async def _graphs(tracker: CorrelationTracker, ids: Sequence[UUID]) -> Graphs:
    """Return every walk there is."""
    answers: Graphs = {}
    for event_id in ids:
        for way in (Direction.ANCESTORS, Direction.DESCENDANTS):
            graph = await tracker.walk(event_id, way, max_depth=EVERYTHING, limit=EVERYTHING)
            steps = tuple(step._replace(node=_timeless(step.node)) for step in graph.steps)
            answers[event_id, way] = Graph(
                graph.focus, way, steps, graph.edges, graph.roots, graph.missing, graph.cycle, graph.truncated
            )
    return answers


async def _forget_all(index: Index, ids: Sequence[UUID]) -> None:
    async with index.store() as store:
        await store.purge(before=datetime.now(UTC) + timedelta(days=1))
        assert not [node for node in (await store.nodes(ids)).values() if node.known or node.children_total]


def _event(event_id: UUID, parents: Sequence[UUID], **payload: Any) -> EventEnvelope[Any]:
    source = Source(host="here", type="agent", app="writer")  # pyright: ignore[reportArgumentType]
    return create_envelope("note.written", payload, source=source, correlation_ids=parents, event_id=event_id)


def _v1(event_id: UUID, parent: UUID | None) -> Message:
    fields = {"id": str(event_id), "event_type": "old.note", "ts": "2024-05-01T10:00:00+02:00", "version": "1.0.0"}
    body = fields | {"source": "old app", "correlation_id": parent and str(parent), "data": {"text": "old"}}
    return Message(event_id, "old.note", orjson.dumps(body))


class _Life:
    """A bus that is used: events that name parents, some published only later, some never, amid what is none."""

    def __init__(self, seed: int, transport: Transport, tracker: CorrelationTracker) -> None:
        self._random = random.Random(seed)
        self._publisher = Publisher(SETTINGS, transport=transport, tracker=tracker)
        self._transport = transport
        self._tracker = tracker
        self._repeats = not transport.features.detects_duplicates
        self.ids = [new_event_id() for _ in range(60)]
        self.foreign = 0

    async def live(self) -> None:
        order = [(number, event_id) for number, event_id in enumerate(self.ids) if self._random.random() < 0.9]
        self._random.shuffle(order)
        published: list[tuple[UUID, list[UUID]]] = []
        async with self._publisher:
            for number, event_id in order:
                parents = self._random.sample(self.ids[:number], min(number, self._random.randint(0, 4)))
                if self._random.random() < 0.2:
                    await self._publish_v1(event_id, parents[0] if parents else None)
                else:
                    await self._publisher.publish(_event(event_id, parents, number=number))
                    published.append((event_id, parents))
                if self._random.random() < 0.2:
                    await self._publish_foreign()
                if self._repeats and published and self._random.random() < 0.3:
                    await self._repeat(*self._random.choice(published))

    async def _publish_v1(self, event_id: UUID, parent: UUID | None) -> None:
        message = _v1(event_id, parent)
        await self._transport.publish(message, timeout_seconds=10)
        envelope = codec.decode(message.body)
        await self._tracker.record(codec.link_of(envelope, codec.encode(envelope).digest))

    async def _publish_foreign(self) -> None:
        body = self._random.choice([b"\x00\xff", b"[1]", b'{"event_type": "no.envelope"}', b""])
        await self._transport.publish(Message(uuid4(), "foreign.message", body), timeout_seconds=10)
        self.foreign += 1

    async def _repeat(self, event_id: UUID, parents: Sequence[UUID]) -> None:
        """Put an id into the log again, with other parents: as if an outage had hidden the first one."""
        others = [parent for parent in self.ids[:20] if parent not in parents and parent != event_id]
        await self._transport.publish(codec.encode(_event(event_id, others[:3], again=True)), timeout_seconds=10)


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_rebuilt_index_gives_the_answers_that_it_gave_before(
    transport: Transport, index: Index, tracker: CorrelationTracker, seed: int
) -> None:
    life = _Life(seed, transport, tracker)
    await life.live()
    seen = sorted(await tracker.nodes(life.ids))
    before = await _graphs(tracker, seen)
    assert any(graph.missing for graph in before.values())
    await _forget_all(index, life.ids)

    result = await reindex(transport, tracker, SETTINGS)

    assert await _graphs(tracker, seen) == before
    assert sorted(await tracker.nodes(life.ids)) == seen
    assert (result.skipped, result.fraction) == (life.foreign, 1.0)
    assert result.entries == result.recorded + result.skipped
    again = await reindex(transport, tracker, SETTINGS)
    assert await _graphs(tracker, seen) == before
    assert again == result


async def test_events_are_indexed_as_accepted_when_the_log_took_them(
    transport: Transport, tracker: CorrelationTracker
) -> None:
    async with Publisher(SETTINGS, transport=transport) as publisher:
        results = await publisher.publish_many([_event(new_event_id(), []) for _ in range(20)])
    entries = [entry async for entry in transport.read_log()]
    await reindex(transport, tracker, SETTINGS)
    nodes = await tracker.nodes([entry.message.event_id for entry in entries])
    assert len(results) == len(entries) == 20
    assert {i: node.link.accepted_at for i, node in nodes.items() if node.link} == {
        entry.message.event_id: entry.logged_at for entry in entries
    }


async def test_an_empty_log_makes_an_empty_index(transport: Transport, tracker: CorrelationTracker) -> None:
    assert await reindex(transport, tracker, SETTINGS) == Progress()


async def test_a_dry_run_counts_and_records_nothing(transport: Transport, tracker: CorrelationTracker) -> None:
    events = [_event(new_event_id(), []) for _ in range(20)]
    async with Publisher(SETTINGS, transport=transport) as publisher:
        await publisher.publish_many(events)
    await transport.publish(Message(uuid4(), "foreign.message", b"?"), timeout_seconds=10)
    result = await reindex(transport, None, SETTINGS)
    position = [entry.position async for entry in transport.read_log()][-1]
    assert (result.entries, result.recorded, result.skipped) == (21, 20, 1)
    assert result.skipped_positions == (position,)
    assert await tracker.nodes([event.event_id for event in events]) == {}


async def test_what_is_published_meanwhile_is_in_the_index_too_and_does_not_prolong_the_run(
    bus: Bus, transport: Transport, index: Index, tracker: CorrelationTracker
) -> None:
    ids = [new_event_id() for _ in range(60)]
    async with Publisher(SETTINGS, transport=transport) as untracked:
        await untracked.publish_many([_event(event_id, ids[n - 1 : n]) for n, event_id in enumerate(ids[:40])])
    gate = FaultyStore(index.store())
    held = asyncio.Event()

    def hold(progress: Progress) -> None:
        if progress.entries <= SETTINGS.tracker_batch_limit and not held.is_set():
            gate.mode = "down"
        if progress.waiting is not None:
            held.set()

    async with CorrelationTracker(gate, **PATIENCE) as gated, bus.transport() as other:
        run = asyncio.create_task(reindex(transport, gated, SETTINGS, on_progress=hold))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await held.wait()
        async with Publisher(SETTINGS, transport=other, tracker=tracker) as publisher:
            for number, event_id in enumerate(ids[40:], 40):
                result = await publisher.publish(_event(event_id, ids[number - 1 : number]))
                assert result.lineage == "recorded"
        gate.mode = "up"
        async with asyncio.timeout(PATIENCE_SECONDS):
            progress = await run
    chain = await tracker.get_correlation_chain(ids[-1], max_depth=EVERYTHING)
    assert chain == ids
    assert progress.entries == 40
    assert max(gate.batches) <= SETTINGS.tracker_batch_limit


async def test_reading_begins_at_a_time(transport: Transport, tracker: CorrelationTracker) -> None:
    async with Publisher(SETTINGS, transport=transport) as publisher:
        await publisher.publish_many([_event(new_event_id(), []) for _ in range(20)])
    last = [entry async for entry in transport.read_log()][-1]
    recent = await reindex(transport, tracker, SETTINGS, since=last.logged_at)
    later = await reindex(transport, tracker, SETTINGS, since=last.logged_at + timedelta(days=1))
    assert 1 <= recent.entries <= 20
    assert recent.position == last.position
    assert later.entries == 0
    assert last.message.event_id in await tracker.nodes([last.message.event_id])


@pytest.mark.parametrize("kept", [True, False])
def test_a_link_has_the_digest_that_tells_duplicates(kept: bool) -> None:
    event = _event(new_event_id(), [new_event_id()], number=1.5, deep={"b": [None], "a": "ä"})
    message = codec.encode(event)
    entry = LogEntry(1, LONG_AGO, message if kept else message._replace(digest=b""))
    assert link_in(entry) == codec.link_of(event, message.digest, LONG_AGO)


def test_what_a_foreign_envelope_leaves_out_is_the_same_each_time_it_is_read() -> None:
    message_id, parent = uuid4(), uuid4()
    body = {
        "event_type": "foreign.note",
        "source": {"host": "there", "type": "agent"},
        "correlation_ids": [str(parent), str(message_id)],
        "payload": {},
    }
    entry = LogEntry(1, LONG_AGO, Message(message_id, "foreign.note", orjson.dumps(body)))
    first = link_in(entry)
    assert first == link_in(entry)
    assert first[:5] == Link(message_id, (parent,), "foreign.note", LONG_AGO, "there", LONG_AGO)[:5]
