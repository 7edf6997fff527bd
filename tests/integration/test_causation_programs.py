"""A property: whatever handlers do among tasks, threads and pools, each event they publish has exactly its parents.

A program is a tree of steps that an event carries. Whoever interprets it also keeps, as plain arguments and never in a
context variable, which parents there are: what must stand in the envelopes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from bloodbank import (
    BlockingPublisher,
    CausalThreadPool,
    Consumer,
    EventEnvelope,
    Publisher,
    Settings,
    caused_by,
    create_envelope,
    new_event_id,
    uncaused,
)
from bloodbank._sqlite import Database
from bloodbank.causation import bound
from bloodbank.codec import decode
from bloodbank.transports.embedded import EmbeddedTransport
from tests.conformance.consumers import eventually

Steps = list[list[Any]]

MOST_STEPS = 12
OUTSIDE = [new_event_id() for _ in range(3)]
"""Events that nobody published here, as parents beside the one that is handled."""


def _steps(inner: st.SearchStrategy[Steps]) -> st.SearchStrategy[Steps]:
    alone = st.sampled_from(["task", "thread", "pool", "bound", "executor", "uncaused"])
    some = st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(["async", "plain"]), st.integers(0, 2), inner),
        st.tuples(alone, inner),
        st.tuples(st.just("gather"), inner, inner),
        st.tuples(st.just("caused"), st.integers(0, 2), inner),
        st.tuples(st.just("pause")),
    )
    return st.lists(some.map(list), max_size=4)


PROGRAMS = st.recursive(st.just([]), _steps, max_leaves=MOST_STEPS)


class World:
    """Runs programs, and knows which parents each event must have."""

    def __init__(self, publisher: Publisher) -> None:
        self.expected: dict[UUID, list[UUID]] = {}
        self.unhandled = 0
        self._publisher = publisher
        self._lock = threading.Lock()

    def _event(self, to: str, explicit: int, steps: Steps, parents: Sequence[UUID]) -> EventEnvelope[Any]:
        named = OUTSIDE[:explicit]
        event = create_envelope(f"work.{to}", {"steps": steps}, correlation_ids=named)
        with self._lock:
            self.expected[event.event_id] = list(dict.fromkeys([*named, *parents]))
            self.unhandled += 1
        return event

    def handled(self) -> None:
        with self._lock:
            self.unhandled -= 1

    async def run(self, steps: Steps, parents: Sequence[UUID]) -> None:
        for kind, *rest in steps:
            inner: Steps = rest[-1] if rest else []
            match kind:
                case "publish":
                    await self._publisher.publish(self._event(rest[0], rest[1], inner, parents))
                case "task":
                    await asyncio.create_task(self.run(inner, parents))
                case "gather":
                    await asyncio.gather(self.run(rest[0], parents), self.run(inner, parents))
                case "caused":
                    with caused_by(OUTSIDE[rest[0]]):
                        await self.run(inner, [*parents, OUTSIDE[rest[0]]])
                case "uncaused":
                    with uncaused():
                        await self.run(inner, [])
                case "pause":
                    await asyncio.sleep(0)
                case _:
                    await self._run_elsewhere(kind, inner, parents)

    async def _run_elsewhere(self, kind: str, inner: Steps, parents: Sequence[UUID]) -> None:
        blocking = BlockingPublisher(self._publisher, asyncio.get_running_loop())
        arguments = (blocking, inner, parents)
        match kind:
            case "thread":
                await asyncio.to_thread(self.run_plain, *arguments)
            case "pool":
                pool = CausalThreadPool(1)
                await asyncio.wrap_future(pool.submit(self.run_plain, *arguments))
                pool.shutdown()
            case "executor":
                pool = CausalThreadPool(1)
                await asyncio.get_running_loop().run_in_executor(pool, self.run_plain, *arguments)
                pool.shutdown()
            case "bound":
                pool = ThreadPoolExecutor(1)
                await asyncio.wrap_future(pool.submit(bound(self.run_plain), *arguments))
                pool.shutdown()
            case _:
                raise AssertionError(kind)

    def run_plain(self, publisher: BlockingPublisher, steps: Steps, parents: Sequence[UUID]) -> None:
        for kind, *rest in steps:
            inner: Steps = rest[-1] if rest else []
            match kind:
                case "publish":
                    publisher.publish(self._event(rest[0], rest[1], inner, parents))
                case "gather":
                    threads = [
                        threading.Thread(target=bound(self.run_plain), args=(publisher, part, parents)) for part in rest
                    ]
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join()
                case "caused":
                    with caused_by(OUTSIDE[rest[0]]):
                        self.run_plain(publisher, inner, [*parents, OUTSIDE[rest[0]]])
                case "uncaused":
                    with uncaused():
                        self.run_plain(publisher, inner, [])
                case "bound":
                    with ThreadPoolExecutor(1) as plain:
                        plain.submit(bound(self.run_plain), publisher, inner, parents).result()
                case "pause" | "task":
                    self.run_plain(publisher, inner, parents)
                case _:
                    with CausalThreadPool(1) as pool:
                        pool.submit(self.run_plain, publisher, inner, parents).result()


def _consumer(publisher: Publisher, world: World) -> Consumer:
    consumer = Consumer("work", publisher=publisher)

    @consumer.on("work.async", "async", concurrency=8, once=False)
    async def asynchronous(event: EventEnvelope[dict[str, Any]]) -> None:
        await world.run(event.payload["steps"], [event.event_id])
        world.handled()

    @consumer.on("work.plain", "plain", concurrency=4, once=False)
    def plain(event: EventEnvelope[dict[str, Any]], publisher: BlockingPublisher) -> None:
        world.run_plain(publisher, event.payload["steps"], [event.event_id])
        world.handled()

    return consumer


@given(programs=st.lists(PROGRAMS, min_size=2, max_size=4))
async def test_each_event_has_exactly_the_parents_it_must_have(programs: list[Steps]) -> None:
    async with Database.in_memory() as database:
        transport = EmbeddedTransport(database, retention_seconds=3600, lease_seconds=60, poll_seconds=0.02)
        async with transport, Publisher(Settings(_env_file=None), transport=transport) as publisher:
            world = World(publisher)
            # What surrounds the consumer is no cause of what its handlers do.
            with caused_by(OUTSIDE[0]):
                async with _consumer(publisher, world).running():
                    with uncaused():
                        # All at the same time, so that one could see what is another's.
                        await asyncio.gather(*(world.run([["publish", "async", 0, steps]], []) for steps in programs))
                    await eventually(lambda: world.unhandled == 0)
            published = [decode(entry.message.body) async for entry in transport.read_log()]
    assert {event.event_id: event.correlation_ids for event in published} == world.expected
