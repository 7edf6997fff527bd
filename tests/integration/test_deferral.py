"""What the index does not take: on disk before the answer, and in the index once that is back."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloodbank import CorrelationTracker, Lineage, StoreUnavailable
from bloodbank._sqlite import Database
from bloodbank.breaker import BreakerState
from bloodbank.errors import BloodbankError
from bloodbank.healing import FAILURES_A_LOOK
from bloodbank.journal import SqliteJournal
from bloodbank.stores.base import Claimed, ClaimState, CorrelationStore, Link
from bloodbank.stores.sqlite import SqliteStore
from tests.unit.faulty_store import FaultyStore
from tests.unit.test_correlation_tracking import link, quick_breaker

DEADLINE_SECONDS = 30.0
PATIENT = 10.0
"""A time limit, in seconds, that is not reached unless something hangs on purpose."""


async def eventually(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


class CountingJournal(SqliteJournal):
    """Remembers how many links each call appended."""

    def __init__(self, database: Database, *, limit: int = 10_000) -> None:
        super().__init__(database, limit=limit)
        self.appends: list[int] = []

    async def append(self, links: Sequence[Link]) -> int:
        self.appends.append(len(links))
        return await super().append(links)


@pytest.fixture
def store(tmp_path: Path) -> FaultyStore:
    return FaultyStore(SqliteStore(Database(tmp_path / "index.db")))


@pytest.fixture
def outbox(tmp_path: Path) -> Database:
    return Database(tmp_path / "outbox.db")


@pytest.fixture
def journal(outbox: Database) -> CountingJournal:
    return CountingJournal(outbox)


def tracker_of(
    store: CorrelationStore, journal: SqliteJournal | None, *, timeout_seconds: float = PATIENT, reset: float = 0.02
) -> CorrelationTracker:
    return CorrelationTracker(
        store, timeout_seconds=timeout_seconds, breaker=quick_breaker(reset_seconds=reset), journal=journal
    )


@pytest.fixture
async def away(store: FaultyStore, journal: CountingJournal) -> AsyncIterator[CorrelationTracker]:
    """A tracker whose store is away until its mode is "up", and whose breaker is open."""
    store.mode = "down"
    async with tracker_of(store, journal) as tracker:
        assert tracker.breaker_state is not BreakerState.CLOSED
        yield tracker


def on_disk(path: Path) -> set[UUID]:
    """Return the ids in the journal, as another process sees them now."""
    with closing(sqlite3.connect(path)) as other:
        return {UUID(bytes=row[0]) for row in other.execute("SELECT event_id FROM journal")}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program that writes, for as long as the block takes."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def edges_in(tracker: CorrelationTracker, links: Sequence[Link]) -> set[UUID]:
    """Return the ids of those links that the index has with all their parents."""
    nodes = await tracker.nodes([one.event_id for one in links])
    return {one.event_id for one in links if one.event_id in nodes and nodes[one.event_id].link == one}


class TestBeforeTheAnswer:
    async def test_deferred_is_answered_after_the_link_is_on_disk(
        self, away: CorrelationTracker, outbox: Database
    ) -> None:
        for _ in range(20):
            seen: list[set[UUID]] = []
            lost = link(uuid4(), uuid4())
            answer = away.enqueue(lost)
            answer.add_done_callback(lambda _, seen=seen: seen.append(on_disk(outbox.path)))
            assert await answer is Lineage.DEFERRED
            await asyncio.sleep(0)
            assert lost.event_id in seen[0]

    async def test_nobody_is_answered_while_the_disk_is_busy(
        self, away: CorrelationTracker, journal: CountingJournal, outbox: Database
    ) -> None:
        with locked(outbox.path):
            answers = [away.enqueue(link(uuid4())) for _ in range(3)]
            await eventually(lambda: journal.appends == [3])
            assert not any(answer.done() for answer in answers)
        assert set(await asyncio.gather(*answers)) == {Lineage.DEFERRED}
        assert away.unjournalled_total == 0

    async def test_what_comes_in_one_turn_goes_in_one_append(
        self, away: CorrelationTracker, journal: CountingJournal
    ) -> None:
        answers = await asyncio.gather(*(away.record(link(uuid4())) for _ in range(50)))
        assert set(answers) == {Lineage.DEFERRED}
        assert journal.appends == [50]
        assert (away.journalled, away.deferred_total, away.unjournalled_total) == (50, 50, 0)

    async def test_a_batch_that_the_store_refuses_or_drops_is_journalled(
        self, store: FaultyStore, journal: CountingJournal, outbox: Database
    ) -> None:
        async with tracker_of(store, journal, reset=60) as tracker:
            for mode in ("bug", "down"):
                store.mode = mode
                lost = [link(uuid4()) for _ in range(3)]
                assert set(await tracker.record_many(lost)) == {Lineage.DEFERRED}
                assert {one.event_id for one in lost} <= on_disk(outbox.path)

    async def test_what_runs_out_of_time_is_journalled(
        self, store: FaultyStore, journal: CountingJournal, outbox: Database
    ) -> None:
        async with tracker_of(store, journal, timeout_seconds=1, reset=60) as tracker:
            store.mode = "hang"
            first, behind = tracker.enqueue(link(uuid4())), tracker.enqueue(link(uuid4()))
            assert [await first, await behind] == [Lineage.DEFERRED] * 2
            assert len(on_disk(outbox.path)) == 2

    async def test_what_a_full_queue_does_not_take_is_journalled_and_recorded(
        self, store: FaultyStore, journal: CountingJournal
    ) -> None:
        async with CorrelationTracker(store, timeout_seconds=PATIENT, queue_limit=5, journal=journal) as tracker:
            lost = [link(uuid4(), uuid4()) for _ in range(6)]
            assert await tracker.record_many(lost) == [Lineage.DEFERRED] * 6
            await eventually(lambda: tracker.journalled == 0)
            assert await edges_in(tracker, lost) == {one.event_id for one in lost}


class TiringStore(FaultyStore):
    """Goes away after some batches."""

    batches_left = 3

    async def record(self, links: Sequence[Link]) -> None:
        if self.batches_left == 0:
            self.mode = "down"
        self.batches_left -= 1
        await super().record(links)


class TestHealing:
    async def test_what_was_deferred_is_in_the_index_once_the_store_is_back(
        self, away: CorrelationTracker, store: FaultyStore, journal: CountingJournal
    ) -> None:
        lost = [link(uuid4(), uuid4(), uuid4(), second=place) for place in range(250)]
        await away.record_many(lost)
        store.mode = "up"
        await eventually(lambda: away.breaker_state is BreakerState.CLOSED)
        await eventually(lambda: away.journalled == 0)
        assert await journal.count() == 0
        assert await edges_in(away, lost) == {one.event_id for one in lost}
        assert max(store.batches) <= 100

    async def test_what_another_process_left_is_recorded_at_start(self, store: FaultyStore, outbox: Database) -> None:
        lost = [link(uuid4(), uuid4()) for _ in range(5)]
        async with SqliteJournal(outbox, limit=100) as left:
            await left.append(lost)
        async with tracker_of(store, SqliteJournal(outbox, limit=100)) as tracker:
            assert tracker.journalled == 5
            await eventually(lambda: tracker.journalled == 0)
            assert await edges_in(tracker, lost) == {one.event_id for one in lost}

    async def test_what_another_process_leaves_later_is_found(
        self, store: FaultyStore, journal: CountingJournal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bloodbank.healing.LOOK_SECONDS", 0.05)
        async with tracker_of(store, journal) as tracker:
            lost = link(uuid4(), uuid4())
            await journal.append([lost])

            async def is_recorded() -> bool:
                return bool(await edges_in(tracker, [lost]))

            await eventually(is_recorded)

    async def test_new_events_are_recorded_while_the_journal_is_long(
        self, store: FaultyStore, journal: CountingJournal
    ) -> None:
        async with journal:
            await journal.append([link(uuid4()) for _ in range(8000)])
        async with tracker_of(store, journal) as tracker:
            for _ in range(5):
                assert await tracker.record(link(uuid4())) is Lineage.RECORDED
            assert tracker.journalled > 0, "they did not wait for the journal"
            await eventually(lambda: tracker.journalled == 0)

    async def test_a_store_that_goes_away_again_ends_it_until_the_next_time(
        self, tmp_path: Path, journal: CountingJournal
    ) -> None:
        store = TiringStore(SqliteStore(Database(tmp_path / "index.db")))
        lost = [link(uuid4()) for _ in range(1000)]
        async with journal:
            await journal.append(lost)
        async with tracker_of(store, journal) as tracker:
            await eventually(lambda: store.mode == "down")
            while tracker.breaker_state is BreakerState.CLOSED:
                await tracker.find([uuid4()])
            assert await journal.count() == 700, "what was recorded is removed, and nothing else"
            store.mode, store.batches_left = "up", 1000
            await eventually(lambda: tracker.journalled == 0)
            assert await edges_in(tracker, lost) == {one.event_id for one in lost}

    async def test_closing_leaves_in_the_journal_what_cannot_be_recorded(
        self, store: FaultyStore, outbox: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        lost = [link(uuid4(), uuid4()) for _ in range(5)]
        tracker = CorrelationTracker(
            store, timeout_seconds=1, breaker=quick_breaker(60), batch_limit=2, journal=CountingJournal(outbox)
        )
        await tracker.start()
        store.mode = "hang"
        answers = [tracker.enqueue(one) for one in lost]
        await tracker.close()
        assert [answer.result() for answer in answers] == [Lineage.DEFERRED] * 5
        assert on_disk(outbox.path) == {one.event_id for one in lost}
        assert "not recorded" not in caplog.text
        store.mode = "up"
        async with tracker_of(store, CountingJournal(outbox)) as tracker:
            await eventually(lambda: tracker.journalled == 0)
            assert await edges_in(tracker, lost) == {one.event_id for one in lost}

    async def test_two_trackers_on_one_journal_record_everything(self, store: FaultyStore, tmp_path: Path) -> None:
        async def one_process(faulty: FaultyStore, lost: Sequence[Link]) -> None:
            async with tracker_of(faulty, SqliteJournal(Database(tmp_path / "outbox.db"), limit=10_000)) as tracker:
                await tracker.record_many(lost)
                faulty.mode = "up"

                async def is_empty() -> bool:
                    return tracker.breaker_state is BreakerState.CLOSED and tracker.journalled == 0

                await eventually(is_empty)

        stores = [FaultyStore(SqliteStore(Database(tmp_path / "index.db")), "down") for _ in range(2)]
        lost = [[link(uuid4(), uuid4()) for _ in range(700)] for _ in stores]
        await asyncio.gather(*map(one_process, stores, lost))
        everything = [one for some in lost for one in some]
        async with tracker_of(store, SqliteJournal(Database(tmp_path / "outbox.db"), limit=10_000)) as tracker:

            async def all_there() -> bool:
                return await edges_in(tracker, everything) == {one.event_id for one in everything}

            await eventually(all_there)


class PickyStore(FaultyStore):
    """Refuses some links for ever, in one of the ways in which a store can."""

    def __init__(self, store: CorrelationStore, error: Exception) -> None:
        super().__init__(store)
        self.error = error
        self.refused: set[UUID] = set()
        self.refuses_all = False

    async def record(self, links: Sequence[Link]) -> None:
        await self._gate()
        if self.refuses_all or self.refused & {one.event_id for one in links}:
            raise self.error
        await self.store.record(links)


@pytest.fixture(params=[StoreUnavailable("Redis did not do what was asked"), ValueError("odd"), BloodbankError("no")])
def picky(request: pytest.FixtureRequest, tmp_path: Path) -> PickyStore:
    return PickyStore(SqliteStore(Database(tmp_path / "index.db")), request.param)


class TestRefusedLinks:
    async def test_a_refused_link_does_not_block_the_others_and_is_not_lost(
        self, picky: PickyStore, outbox: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        lost = [link(uuid4(), uuid4()) for _ in range(150)]
        odd = [lost[0], lost[70], lost[149]]
        picky.refused = {one.event_id for one in odd}
        async with SqliteJournal(outbox, limit=1000) as left:
            await left.append(lost)
        async with tracker_of(picky, SqliteJournal(outbox, limit=1000)) as tracker:
            await eventually(lambda: tracker.journalled <= 1)
            # The last one in the journal is told from a store that takes nothing by an event that it takes.
            assert await tracker.record(link(uuid4())) is Lineage.RECORDED
            tracker._healing.wake()
            await eventually(lambda: tracker.set_aside_total == 3)
            others = [one for one in lost if one not in odd]
            assert await edges_in(tracker, others) == {one.event_id for one in others}
            assert tracker.breaker_state is BreakerState.CLOSED
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(told) == 3
        assert all(any(str(one.event_id) in message for message in told) for one in odd)
        picky.refused = set()
        async with tracker_of(picky, SqliteJournal(outbox, limit=1000)) as tracker:
            await eventually(lambda: tracker.journalled == 0)
            assert await edges_in(tracker, lost) == {one.event_id for one in lost}

    async def test_a_store_that_refuses_everything_sets_nothing_aside(
        self, picky: PickyStore, outbox: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        lost = [link(uuid4()) for _ in range(3 * FAILURES_A_LOOK)]
        picky.refuses_all = True
        async with SqliteJournal(outbox, limit=1000) as left:
            await left.append(lost)
        async with tracker_of(picky, SqliteJournal(outbox, limit=1000)) as tracker:
            for _ in range(2):
                calls = picky.calls
                tracker._healing.wake()
                await eventually(lambda calls=calls: picky.calls >= calls + FAILURES_A_LOOK)
            await eventually(lambda: "takes none of it" in caplog.text)
            assert (tracker.journalled, tracker.set_aside_total) == (len(lost), 0)
            picky.refuses_all = False
            tracker._healing.wake()
            await eventually(lambda: tracker.journalled == 0)
            assert tracker.set_aside_total == 0
            assert await edges_in(tracker, lost) == {one.event_id for one in lost}


class TestWhatTheJournalDoesNotTake:
    async def test_a_full_journal_counts_the_rest_for_good_and_tells_since_when(
        self, store: FaultyStore, outbox: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.mode = "down"
        lost = [link(uuid4(), uuid4(), second=place) for place in range(10)]
        async with tracker_of(store, SqliteJournal(outbox, limit=4), reset=60) as tracker:
            assert await tracker.record_many(lost) == [Lineage.DEFERRED] * 10
            assert (tracker.journalled, tracker.unjournalled_total, tracker.deferred_total) == (4, 6, 10)
            since = tracker.unjournalled_since
            assert since is not None
            assert since < lost[4].accepted_at
        assert f"bb reindex --since {since.isoformat(timespec='seconds')}" in caplog.text
        async with tracker_of(store, SqliteJournal(outbox, limit=4), reset=60) as tracker:
            assert (tracker.unjournalled_total, tracker.unjournalled_since) == (6, since)
            await tracker.clear_unjournalled(since=lost[5].accepted_at, until=lost[9].accepted_at)
            assert tracker.unjournalled_total == 6
            await tracker.clear_unjournalled(since=since, until=lost[9].accepted_at)
            assert (tracker.unjournalled_total, tracker.unjournalled_since) == (0, None)

    async def test_a_disk_that_fails_defers_and_is_remembered_when_it_is_well_again(
        self, away: CorrelationTracker, outbox: Database, journal: CountingJournal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bloodbank.healing.LOOK_SECONDS", 0.05)

        def allow_no_more(connection: sqlite3.Connection) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")

        await outbox.write(allow_no_more)
        lost = [link(uuid4(), *[uuid4() for _ in range(20)], second=place) for place in range(200)]
        assert await away.record_many(lost) == [Lineage.DEFERRED] * 200
        assert (away.journalled, away.unjournalled_total) == (0, 200)
        await outbox.write(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
        away._healing.wake()

        async def is_remembered() -> bool:
            missed = (await journal.status()).missed
            return missed is not None and missed.total == 200

        await eventually(is_remembered)
        assert away.unjournalled_total == 200
        again = link(uuid4())
        assert await away.record(again) is Lineage.DEFERRED
        assert again.event_id in on_disk(outbox.path)

    async def test_a_disk_that_hangs_costs_one_bounded_wait_and_then_nothing(
        self, store: FaultyStore, journal: CountingJournal, outbox: Database
    ) -> None:
        store.mode = "down"
        async with tracker_of(store, journal, timeout_seconds=0.5, reset=60) as tracker:
            with locked(outbox.path):
                answers: list[asyncio.Future[Lineage]] = []
                for count in range(1, 4):
                    answers.append(tracker.enqueue(link(uuid4())))
                    await eventually(lambda count=count: len(journal.appends) == count)
                assert set(await asyncio.gather(*answers)) == {Lineage.DEFERRED}
                assert await tracker.record(link(uuid4())) is Lineage.DEFERRED
                assert len(journal.appends) == 3, "the journal is left alone"
            assert tracker.unjournalled_total == 4

    async def test_a_journal_that_cannot_be_opened_at_start_is_opened_later(
        self, store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bloodbank.healing.LOOK_SECONDS", 0.05)
        in_the_way = tmp_path / "data"
        in_the_way.write_text("a file where a folder should be")
        store.mode = "down"
        journal = SqliteJournal(Database(in_the_way / "outbox.db"), limit=100)
        async with tracker_of(store, journal) as tracker:
            assert await tracker.record(link(uuid4())) is Lineage.DEFERRED
            assert tracker.unjournalled_total == 1
            in_the_way.unlink()

            async def is_journalled() -> bool:
                assert await tracker.record(link(uuid4())) is Lineage.DEFERRED
                return tracker.journalled > 0

            await eventually(is_journalled)

    async def test_without_a_journal_what_is_deferred_is_counted_as_such(self, store: FaultyStore) -> None:
        store.mode = "down"
        async with tracker_of(store, None, reset=60) as tracker:
            lost = link(uuid4())
            answer = tracker.enqueue(lost)
            assert answer.result() is Lineage.DEFERRED
            assert (tracker.journalled, tracker.unjournalled_total) == (0, 1)
            assert tracker.unjournalled_since is not None
            assert tracker.unjournalled_since < lost.accepted_at


class TestClaims:
    async def test_of_two_trackers_one_is_granted_until_it_releases(self, store: FaultyStore) -> None:
        async with tracker_of(store, None) as first, tracker_of(store, None) as second:
            wanted = [(uuid4(), b"d" * 16)]
            assert [one.state for one in await first.claim(wanted, lease_seconds=60) or ()] == [ClaimState.GRANTED]
            assert [one.state for one in await first.claim(wanted, lease_seconds=60) or ()] == [ClaimState.GRANTED]
            held = await second.claim(wanted, lease_seconds=60)
            assert held is not None
            assert (held[0].state, held[0].digest) == (ClaimState.HELD, b"d" * 16)
            await second.release([wanted[0][0]])
            assert (await second.claim(wanted, lease_seconds=60) or held)[0].state is ClaimState.HELD
            await first.release([wanted[0][0]])
            assert (await second.claim(wanted, lease_seconds=60) or held)[0].state is ClaimState.GRANTED

    async def test_what_is_recorded_is_told_to_who_claims(self, store: FaultyStore) -> None:
        async with tracker_of(store, None) as tracker:
            recorded = link(uuid4())._replace(digest=b"r" * 16)
            await tracker.record(recorded)
            answers = await tracker.claim([(recorded.event_id, b"other")], lease_seconds=60)
            assert answers == [Claimed(ClaimState.RECORDED, b"r" * 16)]

    @pytest.mark.parametrize("mode", ["down", "unreadable"])
    async def test_a_store_that_is_away_or_unreadable_grants_nothing_and_raises_nothing(
        self, store: FaultyStore, mode: str
    ) -> None:
        async with tracker_of(store, None) as tracker:
            store.mode = mode
            assert await tracker.claim([(uuid4(), b"")], lease_seconds=60) is None
            await tracker.release([uuid4()])
        await tracker.release([uuid4()])

    async def test_what_waits_for_the_store_is_let_go_when_the_breaker_opens(
        self, store: FaultyStore, journal: CountingJournal
    ) -> None:
        async with tracker_of(store, journal, timeout_seconds=PATIENT, reset=60) as tracker:
            store.mode = "hang"
            waiting = [
                asyncio.create_task(tracker.claim([(uuid4(), b"")], lease_seconds=60)),
                asyncio.create_task(tracker.find([uuid4()])),
                asyncio.create_task(tracker.release([uuid4()])),
                asyncio.create_task(tracker.record(link(uuid4()))),
            ]
            await eventually(lambda: store.calls >= 5)
            store.mode = "down"
            began = asyncio.get_running_loop().time()
            for _ in range(3):
                assert await tracker.find([uuid4()]) is None
            assert await asyncio.gather(*waiting) == [None, None, None, Lineage.DEFERRED]
            assert asyncio.get_running_loop().time() - began < PATIENT / 2
            calls = store.calls
            assert await tracker.claim([(uuid4(), b"")], lease_seconds=60) is None
            assert store.calls == calls, "an open breaker asks nothing"


STEPS = st.lists(
    st.one_of(st.sampled_from(["up", "down", "bug", "again", "closed"]), st.integers(1, 40)), min_size=1, max_size=12
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS)
def test_whatever_the_store_does_all_edges_are_in_the_index_in_the_end(tmp_path: Path, steps: list[str | int]) -> None:
    folder = tmp_path / str(uuid4())
    recorded: list[Link] = []

    async def live() -> set[UUID]:
        store = FaultyStore(SqliteStore(Database(folder / "index.db")))

        def new_tracker() -> CorrelationTracker:
            return tracker_of(store, SqliteJournal(Database(folder / "outbox.db"), limit=10_000))

        tracker = new_tracker()
        await tracker.start()
        for step in steps:
            if isinstance(step, int):
                parents = [one.event_id for one in recorded[-3:]]
                some = [link(uuid4(), *parents, second=len(recorded)) for _ in range(step)]
                recorded.extend(some)
                await tracker.record_many(some)
            elif step == "again":
                await tracker.record_many(recorded[-5:])
            elif step == "closed":
                await tracker.close()
                # A store with a defect ends the start; one that is away does not.
                store.mode = "down" if store.mode == "bug" else store.mode
                tracker = new_tracker()
                await tracker.start()
            else:
                store.mode = step
        store.mode = "up"
        # As the next look would, ten seconds later.
        await eventually(lambda: tracker.breaker_state is BreakerState.CLOSED)
        tracker._healing.wake()
        await eventually(lambda: tracker.journalled == 0)
        found = await edges_in(tracker, recorded)
        assert tracker.unjournalled_total == 0
        await tracker.close()
        return found

    assert asyncio.run(live()) == {one.event_id for one in recorded}
