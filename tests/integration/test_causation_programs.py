"""A property: whatever handlers do among tasks, threads, pools and processes, each event has exactly its parents."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from bloodbank import BlockingPublisher, Consumer, EventEnvelope, Publisher, Settings, caused_by, new_event_id, uncaused
from bloodbank._sqlite import Database
from bloodbank.codec import decode
from tests.conformance.consumers import eventually
from tests.integration.causal_programs import (
    OUTSIDE,
    PROCESS_SECONDS,
    PROGRAMS,
    PROGRAMS_WITH_PROCESSES,
    Steps,
    World,
    embedded,
)

SEVERAL_PARENTS_AND_NONE: Steps = [
    [
        "caused",
        2,
        [["process", [["publish", "async", 2, []], ["uncaused", [["process", [["publish", "plain", 0, []]]]]]]]],
    ]
]
"""A process with two parents, which starts one that has none."""


def _consumer(publisher: Publisher, world: World) -> Consumer:
    consumer = Consumer("work", publisher=publisher)

    @consumer.on("work.async", "async", concurrency=8, once=False)
    async def asynchronous(event: EventEnvelope[dict[str, Any]]) -> None:
        await world.run(event.payload["steps"], [event.event_id])
        world.handled(event)

    @consumer.on("work.plain", "plain", concurrency=4, once=False)
    def plain(event: EventEnvelope[dict[str, Any]], publisher: BlockingPublisher) -> None:
        world.run_plain(publisher, event.payload["steps"], [event.event_id])
        world.handled(event)

    return consumer


async def _assert_parents(database: Database, path: Path | None, programs: list[Steps]) -> None:
    """Run all programs at the same time, so that one could see what is another's; compare the log with the model."""
    transport = embedded(database)
    async with transport, Publisher(Settings(_env_file=None), transport=transport) as publisher:  # pyright: ignore
        world = World(publisher, path)
        # What surrounds the consumer is no cause of what its handlers do.
        with caused_by(OUTSIDE[0]):
            async with _consumer(publisher, world).running():
                with uncaused():
                    await asyncio.gather(
                        *(
                            world.run([["publish", ("async", "plain")[number % 2], 0, steps]], [])
                            for number, steps in enumerate(programs)
                        )
                    )
                await eventually(lambda: world.is_all_handled)
        world.close()
        published = [decode(entry.message.body) async for entry in transport.read_log()]
    assert {event.event_id: event.correlation_ids for event in published} == world.expected


@given(programs=st.lists(PROGRAMS, min_size=2, max_size=4))
async def test_each_event_has_exactly_the_parents_it_must_have(programs: list[Steps]) -> None:
    async with Database.in_memory() as database:
        await _assert_parents(database, None, programs)


# Each example starts several processes: few of them, and none to make a failure shorter.
@pytest.mark.timeout(240)
@settings(
    max_examples=4,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(programs=st.lists(PROGRAMS_WITH_PROCESSES, min_size=2, max_size=2))
@example(programs=[SEVERAL_PARENTS_AND_NONE])
async def test_so_it_is_across_processes(tmp_path: Path, programs: list[Steps]) -> None:
    path = tmp_path / f"{new_event_id()}.db"
    await _assert_parents(Database(path, busy_seconds=PROCESS_SECONDS), path, programs)
