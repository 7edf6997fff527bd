"""What is written together, by one statement: it answers each as if it had been alone."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloodbank import _sqlite_writer
from bloodbank._sqlite import Database
from bloodbank._sqlite_writer import Work, WriteTimedOut
from bloodbank.errors import BloodbankError, EventConflict, NotOpen, PublishUnknown, TransportUnavailable
from bloodbank.ids import new_event_id
from bloodbank.stores.base import Link
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.transports import _embedded_log as log
from bloodbank.transports.base import Message, Receipt
from bloodbank.transports.embedded import EmbeddedTransport
from tests.integration.sqlite_gate import DEADLINE_SECONDS, Gate

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TABLE = "CREATE TABLE item (name TEXT PRIMARY KEY);\n"

PUBLISHER = """
import asyncio, sys
from pathlib import Path
from bloodbank._sqlite import Database
from bloodbank.ids import new_event_id
from bloodbank.transports.base import Message
from bloodbank.transports.embedded import EmbeddedTransport

async def work(transport):
    while True:
        receipt = await transport.publish(Message(new_event_id(), "a.b", b"{}" * 300), timeout_seconds=20)
        sys.stdout.write(f"{receipt.event_id} {receipt.position}\\n")
        sys.stdout.flush()

async def main():
    database = Database(Path(sys.argv[1]))
    async with EmbeddedTransport(database, retention_seconds=60, lease_seconds=1, poll_seconds=1) as transport:
        await asyncio.gather(*(work(transport) for _ in range(50)))

asyncio.run(main())
"""


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "bus.db", busy_seconds=5.0)


@pytest.fixture
async def transport(database: Database) -> AsyncIterator[EmbeddedTransport]:
    async with opened(database) as entered:
        yield entered


def opened(database: Database) -> EmbeddedTransport:
    return EmbeddedTransport(database, retention_seconds=3600, lease_seconds=1, poll_seconds=0.01)


def message(body: bytes = b"{}", **properties: Any) -> Message:
    return Message(properties.pop("event_id", None) or new_event_id(), "a.b", body, **properties)


async def side_by_side(
    database: Database, transport: EmbeddedTransport, messages: Sequence[Message]
) -> list[Receipt | BaseException]:
    """Publish messages that all wait for the writer at the same time."""
    gate = Gate()
    holding = asyncio.create_task(database.write(gate))
    assert await asyncio.to_thread(gate.reached.wait, DEADLINE_SECONDS)
    tasks = [asyncio.create_task(transport.publish(one, timeout_seconds=DEADLINE_SECONDS)) for one in messages]
    await asyncio.sleep(0)
    gate.released.set()
    await holding
    return await asyncio.gather(*tasks, return_exceptions=True)


async def entries(transport: EmbeddedTransport) -> list[tuple[int, Message]]:
    return [(entry.position, entry.message) async for entry in transport.read_log()]


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Another program that writes."""
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def test_what_waits_is_appended_by_one_statement_in_order(
    database: Database, transport: EmbeddedTransport
) -> None:
    statements: list[str] = []
    await database.write(lambda connection: connection.set_trace_callback(statements.append))
    messages = [message(str(n).encode()) for n in range(700)]
    receipts = await side_by_side(database, transport, messages)
    await database.write(lambda connection: connection.set_trace_callback(None))
    assert receipts == [Receipt(one.event_id, position=place) for place, one in enumerate(messages, 1)]
    assert await entries(transport) == list(enumerate(messages, 1))
    assert sum("INSERT INTO log" in statement for statement in statements) == 1
    # Of the tracing job and of the gate; that of the events commits itself.
    assert statements.count("COMMIT") == 2


async def test_duplicates_and_conflicts_among_others_are_answered_each(
    database: Database, transport: EmbeddedTransport
) -> None:
    first, second = message(b"first", digest=b"1" * 16), message(b"second")
    await transport.publish_many([first, second], timeout_seconds=DEADLINE_SECONDS)
    new = [message(str(n).encode()) for n in range(5)]
    again, changed = message(b"said otherwise", event_id=first.event_id, digest=b"1" * 16), second._replace(body=b"x")
    sent = [new[0], again, new[1], new[1], changed, new[2], new[2]._replace(body=b"y"), new[3], second, new[4]]
    answers = await side_by_side(database, transport, sent)
    assert [type(answer) for answer in (answers[4], answers[6])] == [EventConflict, EventConflict]
    receipts = [answer for answer in answers if isinstance(answer, Receipt)]
    assert [(receipt.event_id, receipt.duplicate) for receipt in receipts] == [
        (one.event_id, one in (again, second) or (one is new[1] and place == 3))
        for place, one in enumerate(sent)
        if place not in (4, 6)
    ]
    logged = await entries(transport)
    assert [one for _, one in logged] == [first, second, *new]
    places = {one.event_id: position for position, one in logged}
    assert [receipt.position for receipt in receipts] == [places[receipt.event_id] for receipt in receipts]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MESSAGES = st.builds(
    Message,
    event_id=st.uuids(),
    routing_key=TEXT.filter(bool),
    body=st.binary(max_size=200),
    digest=st.sampled_from([b"", bytes(16), b"d" * 16, b"odd"]),
    correlation_id=st.none() | st.uuids(allow_nil=True),
    app_id=st.none() | TEXT,
    headers=st.dictionaries(TEXT, TEXT, max_size=3),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MESSAGES, min_size=1, max_size=8, unique_by=lambda one: one.event_id))
def test_every_property_comes_back_as_it_was(tmp_path: Path, messages: list[Message]) -> None:
    path = tmp_path / f"{new_event_id()}.db"

    async def published() -> list[tuple[Any, ...]]:
        async with opened(Database(path)) as transport:
            await asyncio.gather(*(transport.publish(one, timeout_seconds=DEADLINE_SECONDS) for one in messages))
            return [tuple(one) for _, one in await entries(transport)]

    assert asyncio.run(published()) == [(*one[:6], dict(one.headers)) for one in messages]


async def test_bodies_that_are_too_much_for_one_statement_are_appended_by_several(
    database: Database, transport: EmbeddedTransport
) -> None:
    sizes = [10, log.AT_ONCE_BYTES + 1, 20, log.AT_ONCE_BYTES // 2, log.AT_ONCE_BYTES // 2, 30]
    messages = [message(b"x" * size) for size in sizes]
    receipts = await side_by_side(database, transport, messages)
    assert receipts == [Receipt(one.event_id, position=place) for place, one in enumerate(messages, 1)]
    assert [len(one.body) for _, one in await entries(transport)] == sizes


async def test_the_earliest_deadline_is_kept_among_later_ones(database: Database, transport: EmbeddedTransport) -> None:
    patient, hasty = message(), message()
    with locked(database):
        waiting = asyncio.create_task(transport.publish(patient, timeout_seconds=DEADLINE_SECONDS))
        await asyncio.sleep(0)
        with pytest.raises(TransportUnavailable, match="Nothing was stored"):
            await transport.publish(hasty, timeout_seconds=0.1)
        assert not waiting.done()
    assert await waiting == Receipt(patient.event_id, position=1)
    assert await entries(transport) == [(1, patient)]


async def test_a_full_disk_fails_those_published_together_and_no_later_one(
    database: Database, transport: EmbeddedTransport
) -> None:
    def limit_pages(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await database.write(limit_pages)
    outcomes = await side_by_side(database, transport, [message(b"x" * 50_000) for _ in range(5)])
    assert [type(outcome) for outcome in outcomes] == [TransportUnavailable] * 5
    assert "full" in str(outcomes[0])
    await database.write(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
    later = message(b"x" * 50_000)
    assert (await transport.publish(later, timeout_seconds=DEADLINE_SECONDS)).duplicate is False
    assert [one for _, one in await entries(transport)] == [later]


async def test_a_check_of_a_locked_file_says_how_long_it_waited(
    database: Database, transport: EmbeddedTransport
) -> None:
    with locked(database), pytest.raises(TransportUnavailable, match=r"bus\.db did not take a write within 0\.1 s\.$"):
        await transport.check(timeout_seconds=0.1)


async def test_those_that_gave_up_leave_their_places(tmp_path: Path) -> None:
    database = Database(tmp_path / "bus.db", queue_limit=2)
    async with opened(database) as transport:
        with locked(database):
            outcomes = await asyncio.gather(
                *(transport.publish(message(), timeout_seconds=0.1) for _ in range(5)), return_exceptions=True
            )
        assert [type(outcome) for outcome in outcomes] == [TransportUnavailable] * 5
        sent = [message() for _ in range(5)]
        receipts = await asyncio.gather(*(transport.publish(one, timeout_seconds=DEADLINE_SECONDS) for one in sent))
        assert [receipt.position for receipt in receipts] == [1, 2, 3, 4, 5]


async def test_a_publish_whose_caller_is_gone_stays_in_its_place(
    database: Database, transport: EmbeddedTransport
) -> None:
    gate = Gate()
    holding = asyncio.create_task(database.write(gate))
    assert await asyncio.to_thread(gate.reached.wait, DEADLINE_SECONDS)
    sent = [message() for _ in range(3)]
    tasks = [asyncio.create_task(transport.publish(one, timeout_seconds=DEADLINE_SECONDS)) for one in sent]
    await asyncio.sleep(0)
    tasks[1].cancel()
    gate.released.set()
    await asyncio.wait([holding, *tasks])
    assert tasks[1].cancelled()
    assert (await tasks[2]).position == 3
    assert [one for _, one in await entries(transport)] == sent


async def test_a_deadline_that_comes_while_the_statement_runs_is_unknown(
    database: Database, transport: EmbeddedTransport
) -> None:
    begun, released = threading.Event(), threading.Event()

    def hold(statement: str) -> None:
        if "INSERT INTO log" in statement:
            begun.set()
            assert released.wait(DEADLINE_SECONDS)

    await database.write(lambda connection: connection.set_trace_callback(hold))
    sent = message()
    publishing = asyncio.create_task(transport.publish(sent, timeout_seconds=0.2))
    with pytest.raises(PublishUnknown):
        await publishing
    assert begun.is_set()
    released.set()
    await database.write(lambda connection: connection.set_trace_callback(None))
    assert (await transport.publish(sent, timeout_seconds=DEADLINE_SECONDS)).duplicate


def _add(connection: sqlite3.Connection, names: Sequence[str]) -> list[str]:
    connection.executemany("INSERT INTO item VALUES (?)", [(name,) for name in names])
    if "bad" in names:
        raise LookupError("bad")
    return list(names)


def _refuse(connection: sqlite3.Connection, names: Sequence[str]) -> None:
    raise LookupError("not at once")


def _mistake(connection: sqlite3.Connection, names: Sequence[str]) -> None:
    connection.execute("INSERT INTO no_such_table VALUES (1)")


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "with another kind"])
@pytest.mark.parametrize("work", [Work(_add), Work(_add, _refuse), Work(_add, _mistake), Work(_add, lambda *_: None)])
async def test_an_item_that_fails_harms_no_other_of_its_run(
    database: Database, work: Work[str, str], others: int
) -> None:
    async with database:
        await database.ensure_format("items", 1, TABLE)
        gate = Gate()
        holding = asyncio.create_task(database.write(gate))
        assert await asyncio.to_thread(gate.reached.wait, DEADLINE_SECONDS)
        futures = [database.submit(work, name) for name in ("a", "bad", "b", "a", "c")]
        writing = [asyncio.create_task(database.write(lambda connection: None)) for _ in range(others)]
        await asyncio.sleep(0)
        gate.released.set()
        await asyncio.gather(holding, *writing)
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [outcome if isinstance(outcome, str) else type(outcome) for outcome in outcomes] == [
            "a",
            LookupError,
            "b",
            sqlite3.IntegrityError,
            "c",
        ]
        kept = await database.read(lambda connection: connection.execute("SELECT name FROM item").fetchall())
        assert kept == [("a",), ("b",), ("c",)]


async def test_after_an_error_of_the_disk_nothing_is_tried_again(database: Database) -> None:
    tried: list[str] = []

    def fail(connection: sqlite3.Connection, names: Sequence[str]) -> None:
        tried.extend(names)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    async with database:
        await database.ensure_format("items", 1, TABLE)
        with pytest.raises(sqlite3.OperationalError, match="disk I/O"):
            await database.submit(Work(_add, fail), "a")
        assert tried == ["a"]
        assert await database.submit(Work(_add), "b") == "b"


async def test_those_without_a_place_are_told_when_the_file_closes(tmp_path: Path) -> None:
    database = Database(tmp_path / "bus.db", queue_limit=1)
    async with database:
        gate = Gate()
        inside = asyncio.create_task(database.write(gate))
        assert await asyncio.to_thread(gate.reached.wait, DEADLINE_SECONDS)
        outside = asyncio.create_task(database.write(lambda connection: connection.total_changes))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.2, gate.released.set)
    await inside
    with pytest.raises(NotOpen):
        await outside


async def test_a_write_given_no_time_ends(database: Database) -> None:
    async with database:
        with locked(database), pytest.raises(WriteTimedOut):
            await database.write(lambda connection: None, timeout_seconds=0)


async def test_a_sqlite_without_json_is_refused_with_what_to_do(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite_writer, "USES_JSON", "SELECT no_such_function('[]')")
    with pytest.raises(BloodbankError, match=r"no JSON functions.*SQLite 3\.38 or newer"):
        await database.__aenter__()


@contextmanager
def publishing_process(path: Path, answers: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that publishes, and writes down what was answered; it is killed at the end."""
    with answers.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", PUBLISHER, str(path)], stdout=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait(DEADLINE_SECONDS)


async def answered(answers: Path, *, at_least: int) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while answers.read_bytes().count(b"\n") < at_least:
            await asyncio.sleep(0.01)


def told(answers: Path) -> dict[int, UUID]:
    """Return the ids by position that were answered. The last line may have been cut off."""
    lines = answers.read_text().rpartition("\n")[0].splitlines()
    return {int(position): UUID(event_id) for event_id, position in map(str.split, lines)}


async def test_what_was_answered_outlives_a_kill(tmp_path: Path) -> None:
    path, answers = tmp_path / "bus.db", tmp_path / "answers"
    with publishing_process(path, answers) as process:
        await answered(answers, at_least=500)
    assert process.returncode == -signal.SIGKILL
    async with opened(Database(path)) as transport:
        logged = {position: one.event_id for position, one in await entries(transport)}
    assert logged.items() >= told(answers).items()


async def test_several_processes_append_to_one_file(tmp_path: Path) -> None:
    path, answers = tmp_path / "bus.db", tmp_path / "answers"
    async with opened(Database(path)) as transport:
        with publishing_process(path, answers):
            await answered(answers, at_least=1)
            own = [message() for _ in range(300)]
            receipts = await asyncio.gather(*(transport.publish(one, timeout_seconds=DEADLINE_SECONDS) for one in own))
            await answered(answers, at_least=500)
        logged = {position: one.event_id for position, one in await entries(transport)}
    assert logged.items() >= {receipt.position: receipt.event_id for receipt in receipts}.items()
    assert logged.items() >= told(answers).items()


@pytest.mark.parametrize("text", ["cut\x00off", "\"quoted\\u0000'", "\U0001f600 ~ \x01\n"])
async def test_the_index_keeps_texts_as_they_are(database: Database, text: str) -> None:
    links = [Link(new_event_id(), (), text, NOW, text, NOW, digest) for digest in (b"", b"d" * 16)]
    links.append(Link(new_event_id(), (links[0].event_id, new_event_id()), "a.b", NOW, text, NOW))
    async with SqliteStore(database) as store:
        await asyncio.gather(store.record(links[:1]), store.record(links[1:]), store.record(links))
        nodes = await store.nodes([one.event_id for one in links])
    assert [nodes[one.event_id].link for one in links] == links
    assert [nodes[one.event_id].children_total for one in links] == [1, 0, 0]
