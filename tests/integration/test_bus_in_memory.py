"""What users test with: the bus in memory, what can be asserted on it, and the pytest plugin."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from bloodbank import Consumer, EventEnvelope, NotOpen, Publisher, Retry, caused_by, create_envelope, new_event_id
from bloodbank.testing import BlockingBus, InMemoryBus
from tests.docs.markdown import ROOT


def _pipeline() -> Consumer:
    consumer = Consumer("notes")

    @consumer.on("call.recorded")
    async def summarise(event: EventEnvelope, publisher: Publisher) -> None:
        text = {"text": event.payload["title"], "deep": {"words": 1, "by": "me"}}
        await publisher.publish(create_envelope("summary.written", text))

    @consumer.on("summary.written")
    async def file_note(publisher: Publisher) -> None:
        await publisher.publish(create_envelope("note.filed", {"uri": "n.md"}))

    return consumer


async def test_all_that_follows_from_an_event_is_handled_at_the_end_of_the_block() -> None:
    async with InMemoryBus() as bus:
        async with bus.consuming(_pipeline()):
            call = await bus.publish("call.recorded", {"title": "Planning"})
        summary = bus.assert_published("summary.*", text="Planning", deep={"words": 1})
        note = bus.assert_published("note.filed")
        bus.assert_caused_by(summary, call)
        bus.assert_caused_by(note, summary)
        bus.assert_caused_by(call)
        assert [event.event_type for event in bus.events] == ["call.recorded", "summary.written", "note.filed"]
        graph = await bus.tracker.walk(note.event_id, "ancestors")
        assert list(graph.ids) == [call.event_id, summary.event_id, note.event_id]


async def test_it_retries_sets_aside_and_handles_once_as_the_real_bus_does() -> None:
    consumer, runs = Consumer("rag"), 0

    @consumer.on("a.b", retry=Retry(attempts=2, first_seconds=0))
    async def fail(event: EventEnvelope) -> None:
        nonlocal runs
        runs += 1
        raise ValueError(event.payload["n"])

    async with InMemoryBus() as bus:
        async with bus.consuming(consumer):
            failed = await bus.publish("a.b", {"n": 7}, event_id=new_event_id())
        assert runs == 2
        told = bus.assert_published("a.b.failed", error_code="ValueError", error_message="7")
        bus.assert_caused_by(told, failed)
        [letter] = [letter async for letter in bus.publisher.transport.dead_letters(group="rag")]
        assert letter.message.event_id == failed.event_id
        again = create_envelope("a.b", {"n": 7}, event_id=failed.event_id)
        assert (await bus.publish(again)).status == "duplicate"


async def test_the_inbox_is_of_the_bus_and_not_of_the_settings() -> None:
    consumer, seen = Consumer("rag"), list[str]()

    @consumer.on("a.b")
    async def note(payload: dict) -> None:
        seen.append(payload["n"])

    async with InMemoryBus() as bus:
        async with bus.consuming(consumer):
            result = await bus.publish("a.b", {"n": "first"})
        message = await bus.publisher.transport.get(result.event_id)
        async with bus.consuming(consumer, _consumer_of("other", "a.b")):
            await bus.publish("a.b", {"n": "second"})
        assert seen == ["first", "second"]
        assert message.routing_key == "a.b"
    async with InMemoryBus() as other:
        assert other.events == []


def _consumer_of(name: str, pattern: str) -> Consumer:
    consumer = Consumer(name)
    consumer.on(pattern)(lambda payload: None)
    return consumer


async def test_a_handler_that_does_not_come_to_an_end_is_named() -> None:
    consumer = Consumer("slow")

    @consumer.on("a.b", retry=Retry(first_seconds=60, jitter=0))
    async def fail(payload: dict) -> None:
        raise ValueError("not yet")

    async with InMemoryBus() as bus:
        with pytest.raises(TimeoutError, match="slow has 1"):
            async with bus.consuming(consumer, timeout_seconds=0.2):
                await bus.publish("a.b")


async def test_a_failed_assertion_shows_what_was_there() -> None:
    async with InMemoryBus() as bus:
        with pytest.raises(AssertionError, match=r"No a\.b event was published\. Nothing was\."):
            bus.assert_published("a.b")
        first = await bus.publish("a.b", {"n": 1, "deep": {"x": 1}})
        second = await bus.publish("a.c", {}, correlation_ids=[first.event_id])
        third = await bus.publish("a.d", {}, correlation_ids=[second.event_id])
        with pytest.raises(AssertionError) as failure:
            bus.assert_published("a.b", n=2, deep={"x": 2}, missing=None)
        text = str(failure.value)
        assert '{"n": 2, "deep": {"x": 2}, "missing": null}' in text
        assert all(said in text for said in ("n is 1", "deep.x is 1", "missing is not there", str(third.event_id)))
        with pytest.raises(AssertionError) as failure:
            bus.assert_caused_by(third, first)
        text = str(failure.value)
        assert f"missing:    a.b {first.event_id}, which is a cause by 2 steps" in text
        assert f"unexpected: a.c {second.event_id}" in text
        stranger = new_event_id()
        with pytest.raises(AssertionError, match=f"{stranger} was not published"):
            bus.assert_caused_by(stranger)
        with pytest.raises(AssertionError, match=f"missing: .*{stranger}, which was not published"):
            bus.assert_caused_by(third, second, stranger)


async def test_after_its_end_there_is_nothing_to_ask() -> None:
    async with InMemoryBus() as bus:
        await bus.publish("a.b")
    with pytest.raises(NotOpen):
        _ = bus.events


def test_without_coroutines_calls_wait_and_carry_causes() -> None:
    with BlockingBus() as bus:
        with bus.consuming(_pipeline()):
            call = bus.publish("call.recorded", {"title": "Planning"})
        bus.assert_caused_by(bus.assert_published("summary.written"), call)
        with caused_by(call):
            seen = bus.publish("call.seen")
        bus.assert_caused_by(seen, call)
        assert bus.run(bus.tracker.get_parents(seen.event_id)) == [call.event_id]
        with pytest.raises(RuntimeError, match="of the test"), bus.consuming(_pipeline()):
            raise RuntimeError("of the test")


_TESTS = """
import asyncio

import pytest

from bloodbank import create_envelope
from bloodbank.testing import BlockingBus, InMemoryBus


def test_plain(bus):
    assert isinstance(bus, BlockingBus)
    first = bus.publish("a.b")
    second = bus.publish("a.c", correlation_ids=[first.event_id])
    bus.assert_caused_by(second, first)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestAnyio:
    @pytest.fixture
    async def first(self, bus):
        yield await bus.publish("a.b", {"n": 1})

    async def test_anyio(self, first, bus):
        assert bus.loop is asyncio.get_running_loop()
        bus.assert_published("a.b", n=1)
        assert len(bus.events) == 1


@pytest.mark.asyncio
async def test_asyncio(bus):
    assert isinstance(bus, InMemoryBus)
    await bus.publisher.publish(create_envelope("a.b", {}))
    bus.assert_published("a.b")


@pytest.mark.asyncio
async def test_failing(bus):
    await bus.publish("a.b", {"n": 1})
    bus.assert_published("a.b", n=2)
"""
_ASYNCIO_FIXTURES = """
import pytest
import pytest_asyncio


@pytest_asyncio.fixture
async def first(bus):
    return await bus.publish("a.b")


@pytest.fixture
def broken(first):
    raise RuntimeError("this fixture is broken")


@pytest.mark.asyncio
async def test_fixture(first, bus):
    bus.assert_caused_by(first)


@pytest.mark.asyncio
async def test_not_reached(broken, bus):
    raise AssertionError


def test_next(bus):
    assert bus.events == []
"""


def _pytest(folder: Path, *arguments: str) -> str:
    """Run pytest as a user's project does; return what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *arguments]
    # Found by its name, whether or not it is installed as an entry point here.
    command += ["-p", "no:bloodbank", "-p", "bloodbank.testing.plugin"]
    done = subprocess.run(
        command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=100, check=False
    )
    return done.stdout + done.stderr


def test_the_fixture_serves_plain_tests_and_those_of_anyio_and_pytest_asyncio(tmp_path: Path) -> None:
    (tmp_path / "test_users.py").write_text(_TESTS)
    (tmp_path / "test_fixtures.py").write_text(_ASYNCIO_FIXTURES)
    printed = _pytest(tmp_path, "-W", "error", "-o", "asyncio_default_fixture_loop_scope=function")
    assert "5 passed" in printed, printed
    assert "1 failed" in printed, printed
    assert "1 error" in printed, printed
    assert "n is 1" in printed
    assert "this fixture is broken" in printed


def test_the_plugin_costs_nothing_where_nobody_asks_for_the_bus(tmp_path: Path) -> None:
    (tmp_path / "test_others.py").write_text(
        "import sys\ndef test_loaded():\n"
        "    ours = {name for name in sys.modules if name.startswith('bloodbank')}\n"
        "    assert ours == {'bloodbank', 'bloodbank.testing', 'bloodbank.testing.plugin'}\n"
    )
    printed = _pytest(tmp_path, "-p", "no:asyncio")
    assert "1 passed" in printed, printed


def test_pytest_is_told_of_the_plugin() -> None:
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert set(entries) == {"bloodbank"}
    assert hasattr(import_module(entries["bloodbank"]), "bus")


async def test_a_consumer_that_has_ended_is_not_waited_for() -> None:
    consumer = Consumer("shop")

    @consumer.on("shop.order.placed")
    async def handle(event: EventEnvelope) -> None:
        pytest.fail("not what was expected")

    async with asyncio.timeout(60), InMemoryBus() as bus:
        with pytest.raises(pytest.fail.Exception, match="not what was expected"):
            # A wait would be for ever.
            async with bus.consuming(consumer, timeout_seconds=3600):
                await bus.publish("shop.order.placed", {})
