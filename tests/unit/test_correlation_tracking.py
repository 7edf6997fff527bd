"""Correlation tracking from the tracker to the debug endpoints, on the embedded store, in eight suites."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from bloodbank import (
    BloodbankError,
    CorrelationTracker,
    EventConflict,
    EventNotFound,
    InvalidQuery,
    Lineage,
    NotOpen,
    Publisher,
    Settings,
    Status,
    StoreUnavailable,
    TrackingDisabled,
    caused_by,
    create_envelope,
    event_id,
    new_event_id,
    wiring,
)
from bloodbank._sqlite import Database
from bloodbank.breaker import BreakerState, CircuitBreaker
from bloodbank.http.app import create_app
from bloodbank.stores.base import Direction, Link
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.transports.base import Features, Message, Receipt
from bloodbank.transports.embedded import EmbeddedTransport
from tests.unit.faulty_store import FaultyStore

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
PROMPT = {"provider": "anthropic", "prompt": "What was decided?"}


def link(child: UUID, *parents: UUID, event_type: str = "llm.prompt", second: int = 0) -> Link:
    when = START + timedelta(seconds=second)
    return Link(child, parents, event_type, when, "tests", when)


def quick_breaker(reset_seconds: float = 0.02) -> CircuitBreaker:
    return CircuitBreaker(failure_threshold=3, reset_seconds=reset_seconds)


async def wait_until(condition: object, within_seconds: float = 2.0) -> None:
    deadline = time.monotonic() + within_seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.002)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> FaultyStore:
    return FaultyStore(SqliteStore(Database(tmp_path / "index.db")))


@pytest.fixture
async def tracker(store: FaultyStore) -> AsyncIterator[CorrelationTracker]:
    async with CorrelationTracker(store, timeout_seconds=5, breaker=quick_breaker()) as tracker:
        yield tracker


@pytest.fixture
async def publisher(settings: Settings) -> AsyncIterator[Publisher]:
    async with Publisher(settings, enable_correlation_tracking=True) as publisher:
        yield publisher


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        yield client


class TestTrackerInitialisation:
    async def test_a_tracker_opens_its_store_and_closes_it(self, store: FaultyStore) -> None:
        async with CorrelationTracker(store) as tracker:
            await tracker.check()
            assert tracker.breaker_state is BreakerState.CLOSED
        with pytest.raises(NotOpen):
            await tracker.check()

    async def test_a_tracker_that_was_not_started_says_so(self, store: FaultyStore) -> None:
        with pytest.raises(NotOpen, match="start"):
            await CorrelationTracker(store).record(link(uuid4()))

    async def test_starting_and_closing_twice_changes_nothing(self, store: FaultyStore) -> None:
        tracker = CorrelationTracker(store)
        await tracker.start()
        await tracker.start()
        assert await tracker.record(link(uuid4())) is Lineage.RECORDED
        await tracker.close()
        await tracker.close()

    async def test_a_store_that_is_down_does_not_stop_the_start(self, store: FaultyStore) -> None:
        store.mode = "down"
        async with CorrelationTracker(store, breaker=quick_breaker(60)) as tracker:
            assert tracker.breaker_state is BreakerState.OPEN
            assert tracker.retry_after_seconds > 1

    async def test_a_store_that_hangs_delays_the_start_by_the_time_limit_only(self, store: FaultyStore) -> None:
        store.mode = "hang"
        begin = time.monotonic()
        async with CorrelationTracker(store, timeout_seconds=0.03, breaker=quick_breaker(60)) as tracker:
            assert time.monotonic() - begin < 2
            assert tracker.breaker_state is BreakerState.OPEN

    async def test_closing_records_what_still_waits(self, store: FaultyStore) -> None:
        tracker = CorrelationTracker(store)
        await tracker.start()
        recording = [asyncio.create_task(tracker.record(link(uuid4()))) for _ in range(20)]
        await asyncio.sleep(0)
        await tracker.close()
        assert set(await asyncio.gather(*recording)) == {Lineage.RECORDED}

    async def test_closing_waits_for_nothing_while_the_store_is_away(
        self, store: FaultyStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        tracker = CorrelationTracker(store, timeout_seconds=30, breaker=quick_breaker(60))
        await tracker.start()
        store.mode = "down"
        while tracker.breaker_state is BreakerState.CLOSED:
            await tracker.record(link(uuid4()))
        async with asyncio.timeout(5):
            await tracker.close()
        assert not [record for record in caplog.records if "Closed with" in record.message]

    async def test_closing_defers_what_a_hanging_store_does_not_take(self, store: FaultyStore) -> None:
        tracker = CorrelationTracker(store, timeout_seconds=0.2, breaker=quick_breaker(60), batch_limit=2)
        await tracker.start()
        store.mode = "hang"
        answers = [tracker.enqueue(link(uuid4())) for _ in range(5)]
        await tracker.close()
        assert [answer.result() for answer in answers] == [Lineage.DEFERRED] * 5
        assert tracker.deferred_total == 5

    async def test_old_events_are_purged_from_a_store_that_does_not_expire_by_itself(self, store: FaultyStore) -> None:
        old, new = uuid4(), uuid4()
        now = datetime.now(UTC)
        async with store:
            await store.record([link(old), Link(new, (), "llm.prompt", now, "tests", now)])
            async with CorrelationTracker(store, retention_seconds=3600) as tracker:
                deadline = time.monotonic() + 2
                while old in (known := await tracker.nodes([old, new])):
                    assert time.monotonic() < deadline, "the old event was not purged"
                assert new in known


class TestDeterministicIds:
    def test_the_same_fields_give_the_same_id(self, settings: Settings) -> None:
        publisher = Publisher(settings, enable_correlation_tracking=True)
        first = publisher.generate_event_id("fireflies.transcript.upload", meeting_id="abc", user_id="u1")
        assert first == publisher.generate_event_id("fireflies.transcript.upload", user_id="u1", meeting_id="abc")
        assert first.version == 5

    def test_another_type_or_another_field_gives_another_id(self, settings: Settings) -> None:
        generate = Publisher(settings, enable_correlation_tracking=True).generate_event_id
        ids = {generate("a.b", k="1"), generate("a.c", k="1"), generate("a.b", k=1), generate("a.b", j="1")}
        assert len(ids) == 4

    def test_separators_inside_values_cannot_make_two_events_meet(self, settings: Settings) -> None:
        generate = Publisher(settings, enable_correlation_tracking=True).generate_event_id
        assert generate("a.b", a="1|b=2") != generate("a.b", a="1", b="2")

    def test_it_works_before_the_publisher_is_open(self, settings: Settings) -> None:
        publisher = Publisher(settings, enable_correlation_tracking=True)
        assert publisher.generate_event_id("a.b", k=1) == event_id("a.b", k=1)

    def test_without_tracking_it_is_a_runtime_error_that_says_what_to_do(self, settings: Settings) -> None:
        with pytest.raises(RuntimeError, match="enable_correlation_tracking=True") as caught:
            Publisher(settings).generate_event_id("a.b", k=1)
        assert isinstance(caught.value, TrackingDisabled)

    def test_the_tracker_gives_the_same_ids(self, store: FaultyStore) -> None:
        assert CorrelationTracker(store).generate_event_id("a.b", k=1) == event_id("a.b", k=1)

    def test_a_field_may_be_called_event_type(self) -> None:
        assert event_id("a.b", event_type="x") != event_id("a.b", event_type="y")


class TestAddingCorrelations:
    async def test_an_event_without_parents_is_known_afterwards(self, tracker: CorrelationTracker) -> None:
        root = uuid4()
        assert await tracker.record(link(root)) is Lineage.RECORDED
        assert (await tracker.nodes([root]))[root].known

    async def test_parents_keep_their_order(self, tracker: CorrelationTracker) -> None:
        parents = [uuid4() for _ in range(5)]
        child = uuid4()
        await tracker.record(link(child, *parents))
        assert await tracker.get_parents(child) == parents

    async def test_type_time_and_source_are_kept(self, tracker: CorrelationTracker) -> None:
        recorded = link(uuid4(), event_type="artifact.created", second=7)
        await tracker.record(recorded)
        assert (await tracker.nodes([recorded.event_id]))[recorded.event_id].link == recorded

    async def test_recording_an_event_again_changes_nothing(self, tracker: CorrelationTracker) -> None:
        child, parent, other = uuid4(), uuid4(), uuid4()
        await tracker.record(link(child, parent))
        await tracker.record(link(child, other))
        assert await tracker.get_parents(child) == [parent]
        assert await tracker.get_children(parent) == [child]
        assert other not in await tracker.nodes([other])

    async def test_children_may_come_before_their_parents(self, tracker: CorrelationTracker) -> None:
        parent, child = uuid4(), uuid4()
        await tracker.record(link(child, parent))
        assert not (await tracker.nodes([parent]))[parent].known
        await tracker.record(link(parent))
        assert (await tracker.nodes([parent]))[parent].known
        assert await tracker.get_children(parent) == [child]

    async def test_what_comes_at_the_same_time_shares_round_trips(
        self, tracker: CorrelationTracker, store: FaultyStore
    ) -> None:
        answers = await asyncio.gather(*(tracker.record(link(uuid4())) for _ in range(300)))
        assert set(answers) == {Lineage.RECORDED}
        assert sum(store.batches) == 300
        assert len(store.batches) < 10

    async def test_what_one_turn_of_the_loop_enqueues_goes_in_one_batch(
        self, tracker: CorrelationTracker, store: FaultyStore
    ) -> None:
        await asyncio.sleep(0)
        confirmed = asyncio.get_running_loop().create_future()

        async def publish() -> Lineage:
            await confirmed
            return await tracker.enqueue(link(uuid4()))

        publishing = [asyncio.create_task(publish()) for _ in range(50)]
        await asyncio.sleep(0)
        confirmed.set_result(None)
        assert set(await asyncio.gather(*publishing)) == {Lineage.RECORDED}
        assert store.batches == [50]

    async def test_what_is_enqueued_while_a_batch_is_on_its_way_goes_with_the_next(
        self, tracker: CorrelationTracker, store: FaultyStore
    ) -> None:
        first = tracker.enqueue(link(uuid4()))
        while not store.batches:
            await asyncio.sleep(0)
        rest = []
        while not first.done():
            # How many turns of the loop the store takes is the machine's affair; more than a batch holds would be two.
            if len(rest) < 100:
                rest.append(tracker.enqueue(link(uuid4())))
            await asyncio.sleep(0)
        assert set(await asyncio.gather(*rest)) == {Lineage.RECORDED}
        assert store.batches == [1, len(rest)]

    async def test_enqueueing_answers_at_once_when_nothing_can_be_recorded(self, store: FaultyStore) -> None:
        tracker = CorrelationTracker(store, queue_limit=1)
        with pytest.raises(NotOpen, match="start"):
            tracker.enqueue(link(uuid4()))
        async with tracker:
            first, second = tracker.enqueue(link(uuid4())), tracker.enqueue(link(uuid4()))
            assert second.result() is Lineage.DEFERRED
            assert await first is Lineage.RECORDED

    async def test_batches_are_bounded(self, store: FaultyStore) -> None:
        async with CorrelationTracker(store, batch_limit=10) as tracker:
            await tracker.record_many([link(uuid4()) for _ in range(95)])
        assert max(store.batches) == 10

    async def test_add_correlation_in_the_form_of_version_2(self, tracker: CorrelationTracker) -> None:
        child, first, second = uuid4(), uuid4(), uuid4()
        answer = await tracker.add_correlation(child_event_id=child, parent_event_ids=[first, second, first])
        assert answer is Lineage.RECORDED
        assert await tracker.get_parents(child) == [first, second]

    async def test_add_correlation_refuses_an_event_as_its_own_parent(self, tracker: CorrelationTracker) -> None:
        itself = uuid4()
        with pytest.raises(InvalidQuery, match="its own parent"):
            await tracker.add_correlation(itself, [itself])


class TestQueryingChains:
    async def test_ancestors_come_parents_first_and_hold_the_event(self, tracker: CorrelationTracker) -> None:
        a, b, c, d = (uuid4() for _ in range(4))
        await tracker.record_many([link(d, c, second=3), link(c, b, second=2), link(b, a, second=1), link(a)])
        assert await tracker.get_correlation_chain(d) == [a, b, c, d]
        assert await tracker.get_correlation_chain(b, "descendants") == [b, c, d]

    async def test_max_depth_bounds_the_chain(self, tracker: CorrelationTracker) -> None:
        events = [new_event_id() for _ in range(10)]
        pairs = zip(events[1:], events, strict=False)
        await tracker.record_many([link(events[0]), *(link(child, parent) for child, parent in pairs)])
        assert await tracker.get_correlation_chain(events[9], max_depth=3) == events[6:]
        graph = await tracker.walk(events[9], "ancestors", max_depth=3)
        assert graph.truncated.depth
        assert graph.truncated.frontier == (events[6],)

    async def test_a_diamond_is_told_once_with_all_its_edges(self, tracker: CorrelationTracker) -> None:
        top, left, right, bottom = (new_event_id() for _ in range(4))
        await tracker.record_many(
            [link(top), link(left, top, second=1), link(right, top, second=2), link(bottom, left, right, second=3)]
        )
        graph = await tracker.walk(bottom, Direction.ANCESTORS)
        assert graph.ids == (top, left, right, bottom)
        assert set(graph.edges) == {(top, left), (top, right), (left, bottom), (right, bottom)}
        assert graph.roots == (top,)

    async def test_a_circle_ends_and_is_reported(self, tracker: CorrelationTracker) -> None:
        a, b = uuid4(), uuid4()
        await tracker.record_many([link(a, b), link(b, a)])
        graph = await tracker.walk(a, "both")
        assert graph.cycle
        assert sorted(graph.ids) == sorted([a, b])

    async def test_a_parent_that_was_never_seen_is_named_as_missing(self, tracker: CorrelationTracker) -> None:
        child, parent = uuid4(), uuid4()
        await tracker.record(link(child, parent))
        assert (await tracker.walk(child, "ancestors")).missing == (parent,)

    async def test_an_unknown_event_is_not_an_empty_answer(self, tracker: CorrelationTracker) -> None:
        with pytest.raises(EventNotFound):
            await tracker.get_correlation_chain(uuid4())

    @pytest.mark.parametrize("direction", ["up", "", "ANCESTORS", "x" * 1000])
    async def test_an_unknown_direction_is_refused(self, tracker: CorrelationTracker, direction: str) -> None:
        with pytest.raises(InvalidQuery, match="ancestors"):
            await tracker.walk(uuid4(), direction)

    @pytest.mark.parametrize(("max_depth", "limit"), [(0, 10), (10, 0), (-1, -1)])
    async def test_bounds_below_one_are_refused(self, tracker: CorrelationTracker, max_depth: int, limit: int) -> None:
        with pytest.raises(InvalidQuery):
            await tracker.walk(uuid4(), "both", max_depth=max_depth, limit=limit)

    async def test_debug_dump_names_everything_but_the_event_itself(self, tracker: CorrelationTracker) -> None:
        a, b, c = (uuid4() for _ in range(3))
        await tracker.record_many([link(a), link(b, a, second=1), link(c, b, second=2)])
        dump = await tracker.debug_dump(b)
        assert dump["event_id"] == str(b)
        assert dump["parents"] == dump["ancestors"] == [str(a)]
        assert dump["children"] == dump["descendants"] == [str(c)]
        assert dump["metadata"]["event_type"] == "llm.prompt"
        assert dump["metadata"]["truncated"] is False


class TestGracefulDegradation:
    async def test_a_store_that_hangs_costs_one_bounded_wait_and_then_nothing(
        self, store: FaultyStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with CorrelationTracker(store, timeout_seconds=0.5, breaker=quick_breaker(60)) as tracker:
            store.mode = "hang"
            begin = time.monotonic()
            assert await tracker.record(link(uuid4())) is Lineage.DEFERRED
            assert 0.4 < time.monotonic() - begin < 2
            calls = store.calls
            answers = [await tracker.record(link(uuid4())) for _ in range(100)]
            assert set(answers) == {Lineage.DEFERRED}
            assert store.calls == calls
        assert sum("is away" in record.message for record in caplog.records) == 1

    async def test_everybody_who_waits_behind_a_hanging_store_is_answered_in_time(self, store: FaultyStore) -> None:
        async with CorrelationTracker(store, timeout_seconds=0.5, breaker=quick_breaker(60), batch_limit=1) as tracker:
            store.mode = "hang"
            begin = time.monotonic()
            answers = await asyncio.gather(*(tracker.record(link(uuid4())) for _ in range(50)))
            assert set(answers) == {Lineage.DEFERRED}
            assert time.monotonic() - begin < 2

    async def test_a_store_that_was_down_at_start_is_found_when_it_returns(self, store: FaultyStore) -> None:
        store.mode = "down"
        async with CorrelationTracker(store, breaker=quick_breaker()) as tracker:
            assert await tracker.record(link(uuid4())) is Lineage.DEFERRED
            store.mode = "up"
            await wait_until(lambda: tracker.breaker_state is BreakerState.CLOSED)
            assert await tracker.record(link(uuid4())) is Lineage.RECORDED

    async def test_a_store_that_goes_away_and_returns_is_used_again(
        self, tracker: CorrelationTracker, store: FaultyStore
    ) -> None:
        store.mode = "down"
        answers = [await tracker.record(link(uuid4())) for _ in range(5)]
        assert set(answers) == {Lineage.DEFERRED}
        store.mode = "up"
        await wait_until(lambda: tracker.breaker_state is BreakerState.CLOSED)
        assert await tracker.record(link(uuid4())) is Lineage.RECORDED

    async def test_questions_fail_loudly_while_the_store_is_away(
        self, tracker: CorrelationTracker, store: FaultyStore
    ) -> None:
        store.mode = "down"
        for _ in range(4):
            with pytest.raises(StoreUnavailable):
                await tracker.walk(uuid4(), "both")
        with pytest.raises(StoreUnavailable, match="Try again"):
            await tracker.check()

    async def test_a_question_that_takes_too_long_is_given_up(self, store: FaultyStore) -> None:
        async with CorrelationTracker(store, query_timeout_seconds=0.05) as tracker:
            store.mode = "hang"
            with pytest.raises(StoreUnavailable, match=r"0\.05 s"):
                await tracker.walk(uuid4(), "both")

    async def test_find_answers_none_when_the_store_is_away(self, store: FaultyStore) -> None:
        async with CorrelationTracker(store, timeout_seconds=0.5, breaker=quick_breaker(60)) as tracker:
            store.mode = "hang"
            assert await tracker.find([uuid4()]) is None
            assert tracker.breaker_state is BreakerState.OPEN
            assert await tracker.find([uuid4()]) is None

    async def test_find_answers_none_when_the_store_is_unreadable(
        self, tracker: CorrelationTracker, store: FaultyStore
    ) -> None:
        store.mode = "unreadable"
        assert await tracker.find([uuid4()]) is None
        assert await tracker.record(link(uuid4())) is Lineage.DEFERRED

    async def test_a_full_queue_defers_at_once(self, store: FaultyStore) -> None:
        async with CorrelationTracker(store, queue_limit=5) as tracker:
            assert await tracker.record_many([link(uuid4()) for _ in range(6)]) == [Lineage.DEFERRED] * 6
            assert await tracker.record_many([link(uuid4()) for _ in range(5)]) == [Lineage.RECORDED] * 5

    async def test_a_bug_in_a_store_does_not_end_the_recording(
        self, tracker: CorrelationTracker, store: FaultyStore
    ) -> None:
        store.mode = "bug"
        assert await tracker.record(link(uuid4())) is Lineage.DEFERRED
        store.mode = "up"
        assert await tracker.record(link(uuid4())) is Lineage.RECORDED

    async def test_a_caller_that_gives_up_does_not_disturb_the_others(self, tracker: CorrelationTracker) -> None:
        first = asyncio.create_task(tracker.record(link(uuid4())))
        second = asyncio.create_task(tracker.record(link(uuid4())))
        await asyncio.sleep(0)
        first.cancel()
        assert await second is Lineage.RECORDED
        assert await tracker.record(link(uuid4())) is Lineage.RECORDED

    async def test_a_single_deferred_event_is_told_and_counted(
        self, tracker: CorrelationTracker, store: FaultyStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        lost = link(uuid4())
        store.mode = "down"
        assert await tracker.record(lost) is Lineage.DEFERRED
        store.mode = "up"
        assert await tracker.record(link(uuid4())) is Lineage.RECORDED
        assert tracker.deferred_total == 1
        told = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert str(lost.event_id) in told[0]
        assert told[1] == "Lineage is recorded again. Deferred so far: 1 events."

    async def test_publishing_goes_on_without_the_store(self, settings: Settings, store: FaultyStore) -> None:
        store.mode = "down"
        async with (
            CorrelationTracker(store, breaker=quick_breaker(60)) as tracker,
            Publisher(settings, tracker=tracker) as publisher,
        ):
            result = await publisher.publish(create_envelope("llm.prompt", PROMPT))
            assert (result.status, result.lineage) == (Status.PUBLISHED, Lineage.DEFERRED)
            assert (await publisher.transport.get(result.event_id)).event_id == result.event_id


class TestPublisherIntegration:
    async def test_tracking_is_off_by_default(self, settings: Settings) -> None:
        async with Publisher(settings) as publisher:
            result = await publisher.publish(create_envelope("llm.prompt", PROMPT))
            assert result.lineage is Lineage.DISABLED
            assert not publisher.tracking_enabled
            with pytest.raises(TrackingDisabled):
                await publisher.get_correlation_chain(result.event_id)
            with pytest.raises(TrackingDisabled):
                await publisher.debug_correlation(result.event_id)

    async def test_a_chain_of_published_events_is_answered(self, publisher: Publisher) -> None:
        prompt = create_envelope("llm.prompt", PROMPT)
        response = create_envelope(
            "llm.response", {"provider": "anthropic", "response": "Nothing."}, correlation_ids=[prompt.event_id]
        )
        for envelope in (prompt, response):
            assert (await publisher.publish(envelope)).lineage is Lineage.RECORDED
        expected = [prompt.event_id, response.event_id]
        assert await publisher.get_correlation_chain(response.event_id) == expected
        assert await publisher.get_correlation_chain(prompt.event_id, "descendants") == expected

    async def test_several_parents_are_recorded(self, publisher: Publisher) -> None:
        prompts = [create_envelope("llm.prompt", PROMPT) for _ in range(3)]
        await publisher.publish_many(prompts)
        parents = [prompt.event_id for prompt in prompts]
        artifact = create_envelope("artifact.created", {"kind": "code", "uri": "a.py"}, correlation_ids=parents)
        await publisher.publish(artifact)
        dump = await publisher.debug_correlation(artifact.event_id)
        assert dump["parents"] == [str(parent) for parent in parents]

    async def test_an_event_that_was_refused_leaves_no_trace_in_the_index(self, publisher: Publisher) -> None:
        fixed = event_id("llm.prompt", n=1)
        await publisher.publish(create_envelope("llm.prompt", PROMPT, event_id=fixed))
        ghost_parent = uuid4()
        other = create_envelope("llm.prompt", PROMPT, event_id=fixed, correlation_ids=[ghost_parent])
        with pytest.raises(EventConflict, match=str(fixed)):
            await publisher.publish(other)
        assert await publisher.tracker.nodes([ghost_parent]) == {}
        assert await publisher.tracker.get_parents(fixed) == []

    async def test_publishing_the_same_event_again_is_a_duplicate(self, publisher: Publisher) -> None:
        envelope = create_envelope("llm.prompt", PROMPT)
        assert (await publisher.publish(envelope)).status is Status.PUBLISHED
        assert (await publisher.publish(envelope)).status is Status.DUPLICATE

    async def test_a_batch_answers_each_event_by_itself(self, publisher: Publisher) -> None:
        fixed = event_id("llm.prompt", n=2)
        broken = create_envelope("llm.prompt", PROMPT)
        broken.correlation_ids.append(broken.event_id)
        answers = await publisher.publish_many(
            [
                create_envelope("llm.prompt", PROMPT, event_id=fixed),
                broken,
                create_envelope("llm.prompt", PROMPT, event_id=fixed),
                create_envelope("llm.prompt", {**PROMPT, "prompt": "Other"}, event_id=fixed),
                create_envelope("llm.prompt", PROMPT),
            ]
        )
        kinds = [answer.code if isinstance(answer, BloodbankError) else str(answer.status) for answer in answers]
        assert kinds == ["published", "invalid_event", "duplicate", "event_conflict", "published"]

    async def test_the_call_form_of_version_2(self, publisher: Publisher) -> None:
        parent, child = uuid4(), uuid4()
        await publisher.publish(routing_key="test.parent", body={"data": "parent"}, event_id=parent)
        result = await publisher.publish(
            routing_key="test.child",
            body={"note": "child"},
            event_id=child,
            parent_event_ids=[parent],
            correlation_metadata={"reason": "test"},
        )
        assert result.event_id == child
        assert await publisher.get_correlation_chain(child, "ancestors") == [parent, child]

    async def test_parents_that_a_version_2_caller_names_stand_in_the_envelope(self, publisher: Publisher) -> None:
        parent = uuid4()
        envelope = create_envelope("llm.prompt", PROMPT)
        await publisher.publish(
            routing_key="llm.prompt",
            body=envelope.model_dump(mode="json"),
            event_id=envelope.event_id,
            parent_event_ids=[parent],
        )
        assert str(parent).encode() in (await publisher.transport.get(envelope.event_id)).body

    async def test_events_created_while_others_are_handled_have_them_as_parents(self, publisher: Publisher) -> None:
        cause = create_envelope("llm.prompt", PROMPT)
        await publisher.publish(cause)
        with caused_by(cause):
            effect = create_envelope("llm.response", {"provider": "a", "response": "b"})
        await publisher.publish(effect)
        assert await publisher.get_correlation_chain(effect.event_id) == [cause.event_id, effect.event_id]

    async def test_a_closed_publisher_says_so(self, settings: Settings) -> None:
        publisher = Publisher(settings, enable_correlation_tracking=True)
        with pytest.raises(NotOpen):
            await publisher.publish(create_envelope("llm.prompt", PROMPT))
        await publisher.start()
        await publisher.close()
        await publisher.close()
        with pytest.raises(NotOpen):
            await publisher.publish(create_envelope("llm.prompt", PROMPT))
        with pytest.raises(NotOpen):
            await publisher.get_correlation_chain(uuid4())

    async def test_what_was_recorded_is_there_after_a_restart(self, settings: Settings) -> None:
        prompt = create_envelope("llm.prompt", PROMPT)
        effect = create_envelope("artifact.created", {"kind": "a", "uri": "b"}, correlation_ids=[prompt.event_id])
        async with Publisher(settings, enable_correlation_tracking=True) as publisher:
            await publisher.publish_many([prompt, effect])
        async with Publisher(settings, enable_correlation_tracking=True) as publisher:
            assert await publisher.get_correlation_chain(effect.event_id) == [prompt.event_id, effect.event_id]


class TestDebugEndpoints:
    async def test_a_known_event_is_told_with_its_neighbours(self, client: httpx.AsyncClient) -> None:
        parent = (await client.post("/events/llm/prompt", json=PROMPT)).json()["event_id"]
        response = await client.post(
            "/events/llm/response",
            json={"provider": "anthropic", "response": "Nothing."},
            headers={"X-Bloodbank-Parents": parent},
        )
        child = response.json()["event_id"]
        dump = (await client.get(f"/debug/correlation/{child}")).json()
        assert (dump["event_id"], dump["parents"], dump["children"]) == (child, [parent], [])
        chain = (await client.get(f"/debug/correlation/{child}/chain", params={"direction": "ancestors"})).json()
        assert (chain["chain"], chain["count"], chain["truncated"]) == ([parent, child], 2, False)
        down = (await client.get(f"/debug/correlation/{parent}/chain?direction=descendants")).json()
        assert down["chain"] == [parent, child]

    async def test_an_event_without_parents_is_an_answer_and_no_error(self, client: httpx.AsyncClient) -> None:
        root = (await client.post("/events/llm/prompt", json=PROMPT)).json()["event_id"]
        response = await client.get(f"/debug/correlation/{root}")
        assert response.status_code == 200
        assert response.json()["parents"] == []
        chain = await client.get(f"/debug/correlation/{root}/chain?direction=ancestors")
        assert chain.json()["chain"] == [root]

    @pytest.mark.parametrize("path", ["/debug/correlation/{}", "/debug/correlation/{}/chain?direction=ancestors"])
    async def test_an_id_that_is_no_uuid_is_400(self, client: httpx.AsyncClient, path: str) -> None:
        assert (await client.get(path.format("not-a-uuid"))).status_code == 400

    @pytest.mark.parametrize("direction", ["sideways", "both", ""])
    async def test_a_direction_that_is_none_is_400(self, client: httpx.AsyncClient, direction: str) -> None:
        response = await client.get(f"/debug/correlation/{uuid4()}/chain", params={"direction": direction})
        assert response.status_code == 400

    @pytest.mark.parametrize("path", ["/debug/correlation/{}", "/debug/correlation/{}/chain?direction=descendants"])
    async def test_an_unknown_event_is_404(self, client: httpx.AsyncClient, path: str) -> None:
        response = await client.get(path.format(uuid4()))
        assert response.status_code == 404
        assert response.json()["code"] == "event_not_found"

    async def test_tracking_that_is_off_is_503(self, settings: Settings) -> None:
        app = create_app(settings.model_copy(update={"correlation_tracking": False}))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            for path in ("", "/chain?direction=ancestors"):
                response = await client.get(f"/debug/correlation/{uuid4()}{path}")
                assert response.status_code == 503
                assert response.headers["Retry-After"]
                assert response.json()["code"] == "tracking_disabled"


class TestEdgeCases:
    async def test_sixty_four_parents_are_recorded_and_one_more_is_refused(self, publisher: Publisher) -> None:
        parents = [uuid4() for _ in range(64)]
        envelope = create_envelope("llm.prompt", PROMPT, correlation_ids=parents)
        await publisher.publish(envelope)
        assert await publisher.tracker.get_parents(envelope.event_id) == parents
        with pytest.raises(BloodbankError, match="64"):
            create_envelope("llm.prompt", PROMPT, correlation_ids=[*parents, uuid4()])

    async def test_two_publishers_of_one_data_folder_see_each_other(self, settings: Settings) -> None:
        async with (
            Publisher(settings, enable_correlation_tracking=True) as first,
            Publisher(settings, enable_correlation_tracking=True) as second,
        ):
            cause = create_envelope("llm.prompt", PROMPT)
            await first.publish(cause)
            effect = create_envelope("test.effect", {}, correlation_ids=[cause.event_id])
            await second.publish(effect)
            assert await first.get_correlation_chain(effect.event_id) == [cause.event_id, effect.event_id]

    async def test_one_id_published_many_times_at_once_is_published_once(self, publisher: Publisher) -> None:
        fixed = event_id("llm.prompt", n=3)
        results = await asyncio.gather(
            *(publisher.publish(create_envelope("llm.prompt", PROMPT, event_id=fixed)) for _ in range(20))
        )
        statuses = [result.status for result in results]
        assert statuses.count(Status.PUBLISHED) == 1
        assert statuses.count(Status.DUPLICATE) == 19

    async def test_a_fan_out_wider_than_the_limit_says_so(self, tracker: CorrelationTracker) -> None:
        root = new_event_id()
        children = sorted(new_event_id() for _ in range(100))
        await tracker.record_many([link(root), *(link(child, root, second=1) for child in children)])
        graph = await tracker.walk(root, "descendants", limit=41)
        assert graph.ids == (root, *children[:40])
        assert graph.truncated.limit
        assert graph.truncated.frontier == (root,)

    async def test_clocks_that_disagree_do_not_turn_cause_and_effect_around(self, tracker: CorrelationTracker) -> None:
        cause, effect = uuid4(), uuid4()
        await tracker.record_many([link(cause, second=100), link(effect, cause, second=0)])
        assert await tracker.get_correlation_chain(effect) == [cause, effect]

    async def test_the_descendants_of_a_parent_that_was_never_seen_are_told(self, tracker: CorrelationTracker) -> None:
        phantom, child = uuid4(), uuid4()
        await tracker.record(link(child, phantom))
        graph = await tracker.walk(phantom, "descendants")
        assert graph.ids == (phantom, child)
        assert graph.missing == (phantom,)

    async def test_an_empty_batch_is_answered_with_nothing(self, publisher: Publisher) -> None:
        assert await publisher.publish_many([]) == []


async def test_what_is_published_while_the_publisher_closes_is_finished_and_recorded(settings: Settings) -> None:
    publisher = Publisher(settings, enable_correlation_tracking=True)
    await publisher.start()
    publishing = asyncio.create_task(publisher.publish(create_envelope("llm.prompt", PROMPT)))
    for _ in range(3):
        await asyncio.sleep(0)
    await publisher.close()
    result = await publishing
    assert (result.status, result.lineage) == (Status.PUBLISHED, Lineage.RECORDED)


async def test_an_event_that_is_on_the_bus_is_no_error_because_the_tracker_closed(settings: Settings) -> None:
    backends = wiring.build(settings, tracking=True)
    assert backends.tracker is not None
    async with backends.transport:
        publisher = Publisher(settings, transport=backends.transport, tracker=backends.tracker)
        async with backends.tracker:
            await publisher.start()
        result = await publisher.publish(create_envelope("llm.prompt", PROMPT))
    assert (result.status, result.lineage) == (Status.PUBLISHED, Lineage.DEFERRED)


class ForgetfulTransport(EmbeddedTransport):
    """Says that it cannot find duplicates, as RabbitMQ cannot, and counts what it is given."""

    published = 0

    @property
    def features(self) -> Features:
        return replace(super().features, detects_duplicates=False)

    async def publish(self, message: Message, *, timeout_seconds: float) -> Receipt:
        self.published += 1
        return await super().publish(message, timeout_seconds=timeout_seconds)


async def test_one_envelope_published_twice_at_once_is_sent_once(settings: Settings, tmp_path: Path) -> None:
    database = Database(tmp_path / "bus.db")
    transport = ForgetfulTransport(database, retention_seconds=3600, lease_seconds=30, poll_seconds=0.02)
    async with (
        transport,
        CorrelationTracker(SqliteStore(database)) as tracker,
        Publisher(settings, transport=transport, tracker=tracker) as publisher,
    ):
        envelope = create_envelope("llm.prompt", PROMPT)
        results = await asyncio.gather(publisher.publish(envelope), publisher.publish(envelope))
    assert [result.status for result in results] == [Status.PUBLISHED, Status.DUPLICATE]
    assert transport.published == 1
