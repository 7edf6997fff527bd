"""What a slow index may and may not do to publishing; these wait for the time that is meant."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

from bloodbank import CorrelationTracker, Lineage
from bloodbank._sqlite import Database
from bloodbank.breaker import BreakerState
from bloodbank.stores.base import CorrelationStore, Link, Node
from bloodbank.stores.sqlite import SqliteStore
from tests.unit.faulty_store import FaultyStore
from tests.unit.test_correlation_tracking import link, quick_breaker


class SlowAnswers(FaultyStore):
    """Answers questions when it is let, also while it hangs for those who record."""

    def __init__(self, store: CorrelationStore) -> None:
        super().__init__(store)
        self.may_answer = asyncio.Event()

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        await self.may_answer.wait()
        return await self.store.nodes(event_ids)


async def test_an_old_question_that_is_answered_makes_no_publish_wait(tmp_path: Path) -> None:
    store = SlowAnswers(SqliteStore(Database(tmp_path / "index.db")))
    async with CorrelationTracker(store, timeout_seconds=0.5, breaker=quick_breaker(reset_seconds=60)) as tracker:
        question = asyncio.create_task(tracker.nodes([uuid4()]))
        await asyncio.sleep(0)
        store.mode = "hang"
        assert await tracker.record(link(uuid4())) is Lineage.DEFERRED
        store.may_answer.set()
        await question
        async with asyncio.timeout(5):
            assert await tracker.record(link(uuid4())) is Lineage.DEFERRED


class SlowRecords(FaultyStore):
    async def record(self, links: Sequence[Link]) -> None:
        await asyncio.sleep(0.06)
        await super().record(links)


async def test_a_burst_that_a_working_store_cannot_take_in_time_does_not_open_the_breaker(tmp_path: Path) -> None:
    store = SlowRecords(SqliteStore(Database(tmp_path / "index.db")))
    async with CorrelationTracker(store, timeout_seconds=0.2, batch_limit=1) as tracker:
        lineages = await tracker.record_many([link(uuid4()) for _ in range(10)])
        assert lineages[0] is Lineage.RECORDED
        assert lineages[-1] is Lineage.DEFERRED
        assert tracker.breaker_state is BreakerState.CLOSED
