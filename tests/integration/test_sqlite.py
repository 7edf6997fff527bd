"""One file, one writer: what groups of jobs, locks, cancellations and full disks do to it."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodbank import _sqlite, _sqlite_writer
from bloodbank._sqlite import Database, load_queries, load_script, microseconds, moment, translated
from bloodbank._sqlite_writer import WriteTimedOut
from bloodbank.errors import (
    BloodbankError,
    NotOpen,
    StoreFormatError,
    StoreUnavailable,
    TransportUnavailable,
    Unavailable,
)
from tests.integration.sqlite_gate import DEADLINE_SECONDS, Gate

TABLE = "CREATE TABLE item (name TEXT PRIMARY KEY);\nCREATE TRIGGER t AFTER INSERT ON item BEGIN\n SELECT 1;\nEND;\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "test.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    async with Database(path, busy_seconds=5.0) as opened:
        await opened.ensure_format("items", 1, TABLE)
        yield opened


def add(name: str) -> Callable[[sqlite3.Connection], None]:
    def job(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO item VALUES (?)", (name,))

    return job


def names(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM item")}


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another program that writes."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


async def queued_behind(
    gate: Gate, database: Database, *jobs: Callable[[sqlite3.Connection], object]
) -> list[asyncio.Task[object]]:
    """Return tasks whose jobs wait for the writer, so that they are in one group."""
    holding = asyncio.create_task(database.write(gate))
    await gate.until_reached()
    tasks = [asyncio.create_task(database.write(job)) for job in jobs]
    await asyncio.sleep(0)
    return [holding, *tasks]


async def test_opening_creates_a_private_folder_and_the_file(path: Path, database: Database) -> None:
    assert path.is_file()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_what_was_written_is_read(database: Database) -> None:
    assert await database.write(lambda connection: connection.execute("INSERT INTO item VALUES ('a')").rowcount) == 1
    assert await database.read(names) == {"a"}


async def test_a_commit_survives_a_reader_in_another_process(path: Path, database: Database) -> None:
    await database.write(add("a"))
    with sqlite3.connect(path) as other:
        assert names(other) == {"a"}
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    assert await database.write(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (2,)


async def test_jobs_that_wait_share_one_commit(database: Database) -> None:
    statements: list[str] = []
    gate = Gate()
    tasks = await queued_behind(gate, database, *(add(str(n)) for n in range(20)))
    gate.released.set()
    await tasks[0]
    await database.write(lambda connection: connection.set_trace_callback(statements.append))
    gate = Gate()
    tasks += await queued_behind(gate, database, *(add(str(n)) for n in range(20, 40)))
    gate.released.set()
    await asyncio.gather(*tasks)
    await database.write(lambda connection: connection.set_trace_callback(None))
    # Of the tracing job itself, of the gate, of all twenty together.
    assert statements.count("COMMIT") == 3
    assert len(await database.read(names)) == 40


async def test_a_failing_job_harms_no_other_of_its_group(database: Database) -> None:
    def half(connection: sqlite3.Connection) -> None:
        add("half")(connection)
        raise LookupError("mine")

    gate = Gate()
    tasks = await queued_behind(gate, database, add("before"), half, add("before"), add("after"))
    gate.released.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[1:]] == [type(None), LookupError, sqlite3.IntegrityError, type(None)]
    assert await database.read(names) == {"before", "after"}


async def test_a_cancelled_caller_leaves_the_writer_working(database: Database) -> None:
    gate = Gate()
    _, cancelled, other = tasks = await queued_behind(gate, database, add("cancelled"), add("other"))
    cancelled.cancel()
    gate.released.set()
    await asyncio.wait(tasks)
    assert cancelled.cancelled()
    assert other.exception() is None
    assert await database.read(names) == {"cancelled", "other"}


async def test_readers_do_not_wait_for_the_writer(database: Database) -> None:
    await database.write(add("a"))

    def slow(connection: sqlite3.Connection) -> None:
        add("b")(connection)
        gate(connection)

    gate = Gate()
    writing = asyncio.create_task(database.write(slow))
    await gate.until_reached()
    assert await database.read(names) == {"a"}
    gate.released.set()
    await writing
    assert await database.read(names) == {"a", "b"}


async def test_a_question_sees_one_snapshot(database: Database) -> None:
    gate = Gate()

    def twice(connection: sqlite3.Connection) -> tuple[set[str], set[str]]:
        before = names(connection)
        gate(connection)
        return before, names(connection)

    asking = asyncio.create_task(database.read(twice))
    await gate.until_reached()
    await database.write(add("a"))
    gate.released.set()
    assert await asking == (set(), set())


async def test_a_question_cannot_write(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await database.read(add("a"))


async def test_many_questions_at_once_take_turns(database: Database) -> None:
    await database.write(add("a"))
    assert await asyncio.gather(*(database.read(names) for _ in range(50))) == [{"a"}] * 50


async def test_a_write_waits_for_a_lock_that_ends(path: Path, database: Database) -> None:
    with held(path):
        writing = asyncio.create_task(database.write(add("a")))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15):
                await asyncio.shield(writing)
    await writing
    assert await database.read(names) == {"a"}


async def test_a_lock_that_does_not_end_fails_the_write(path: Path) -> None:
    async with Database(path, busy_seconds=0.1) as database:
        await database.ensure_format("items", 1, TABLE)
        with held(path), pytest.raises(sqlite3.OperationalError, match="locked"):
            await database.write(add("a"))
        await database.write(add("b"))
        assert await database.read(names) == {"b"}


async def test_a_write_that_timed_out_before_it_began_never_runs(path: Path, database: Database) -> None:
    with held(path):
        with pytest.raises(WriteTimedOut) as caught:
            await database.write(add("late"), timeout_seconds=0.1)
        assert not caught.value.begun
    await database.write(add("next"))
    assert await database.read(names) == {"next"}


async def test_a_write_that_timed_out_after_it_began_says_so(database: Database) -> None:
    gate = Gate()
    writing = asyncio.create_task(database.write(gate, timeout_seconds=0.1))
    with pytest.raises(WriteTimedOut) as caught:
        await writing
    assert caught.value.begun
    gate.released.set()
    await database.write(add("next"))


async def test_beyond_the_queue_limit_callers_wait_outside(path: Path) -> None:
    async with Database(path, queue_limit=1) as database:
        await database.ensure_format("items", 1, TABLE)
        gate = Gate()
        holding = asyncio.create_task(database.write(gate))
        await gate.until_reached()
        with pytest.raises(WriteTimedOut) as caught:
            await database.write(add("outside"), timeout_seconds=0.1)
        assert not caught.value.begun
        gate.released.set()
        await holding
        await database.write(add("inside"))
        assert await database.read(names) == {"inside"}


async def test_the_last_one_to_leave_closes(path: Path) -> None:
    database = Database(path)
    async with database:
        async with database:
            await database.ensure_format("items", 1, TABLE)
        await database.write(add("a"))
    with pytest.raises(NotOpen):
        await database.write(add("b"))
    with pytest.raises(NotOpen):
        await database.read(names)
    assert not path.with_name("test.db-wal").exists()


async def test_closing_runs_what_is_queued(path: Path) -> None:
    database = Database(path)
    async with database:
        await database.ensure_format("items", 1, TABLE)
        gate = Gate()
        tasks = await queued_behind(gate, database, *(add(str(n)) for n in range(50)))
        gate.released.set()
    await asyncio.gather(*tasks)
    async with database:
        assert len(await database.read(names)) == 50


async def test_closing_does_not_wait_for_a_foreign_lock_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite_writer, "CLOSE_WAIT_SECONDS", 0.1)
    loop = asyncio.get_running_loop()
    async with Database(path, busy_seconds=60) as database:
        await database.ensure_format("items", 1, TABLE)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        blocked = asyncio.create_task(database.write(add("a")))
        await asyncio.sleep(0)
        began = loop.time()
    assert loop.time() - began < 10
    holder.close()
    with pytest.raises(sqlite3.OperationalError):
        await blocked


async def test_a_cancelled_opening_leaves_nothing_open(path: Path) -> None:
    database = Database(path)
    opening = asyncio.create_task(database.__aenter__())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with database:
        await database.ensure_format("items", 1, TABLE)
    with pytest.raises(NotOpen):
        await database.read(names)


def test_one_database_serves_one_loop_after_another(path: Path) -> None:
    database = Database(path)

    async def use() -> None:
        async with database:
            await database.ensure_format("items", 1, TABLE)
            await asyncio.gather(*(database.read(names) for _ in range(20)))

    asyncio.run(use())
    asyncio.run(use())


async def test_a_full_disk_fails_the_group_and_not_the_writer(database: Database) -> None:
    def limit_pages(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    def lift_limit(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count = 1000000")

    await database.write(limit_pages)
    with pytest.raises(StoreUnavailable, match="full"), translated(database.path, StoreUnavailable):
        await database.write(add("x" * 100_000))
    await database.write(lift_limit)
    await database.write(add("small"))
    assert await database.read(names) == {"small"}


async def test_a_transaction_that_sqlite_gave_up_fails_every_job_of_the_group(database: Database) -> None:
    def give_up(connection: sqlite3.Connection) -> None:
        connection.rollback()
        raise LookupError("gone")

    gate = Gate()
    tasks = await queued_behind(gate, database, add("lost"), give_up)
    gate.released.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[1:]] == [LookupError, LookupError]
    await database.write(add("kept"))
    assert await database.read(names) == {"kept"}


async def test_the_change_count_moves_with_every_commit_of_anybody(path: Path, database: Database) -> None:
    first = await database.change_count()
    assert await database.change_count() == first
    await database.write(add("a"))
    second = await database.change_count()
    with sqlite3.connect(path) as other:
        add("b")(other)
    other.close()
    assert len({first, second, await database.change_count()}) == 3


async def test_a_format_is_created_once(path: Path, database: Database) -> None:
    await database.write(add("a"))
    async with Database(path) as other:
        await asyncio.gather(*(one.ensure_format("items", 1, TABLE) for one in (database, other)))
        assert await other.read(names) == {"a"}


async def test_a_newer_format_is_refused_and_left_alone(path: Path, database: Database) -> None:
    await database.write(lambda connection: connection.execute("UPDATE format SET version = 7"))
    async with Database(path) as older:
        with pytest.raises(StoreFormatError, match=r"format 7 of the items.*format 1"):
            await older.ensure_format("items", 1, TABLE)
        await older.ensure_format("others", 1, "CREATE TABLE other (name TEXT);")


async def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(TransportUnavailable, match="no SQLite file"), translated(path, TransportUnavailable):
        async with Database(path):
            pass


async def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "test.db"
    with pytest.raises(TransportUnavailable, match="cannot be opened"), translated(path, TransportUnavailable):
        async with Database(path):
            pass


async def test_a_path_that_is_a_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be opened"), translated(tmp_path, StoreUnavailable):
        async with Database(tmp_path):
            pass


async def test_a_path_with_odd_characters_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "what? 100% #1 é" / "b&d.db"
    async with Database(path) as database:
        await database.ensure_format("items", 1, TABLE)
        assert await database.read(names) == set()
    assert path.is_file()


DRIVER_ERRORS = [
    error
    for _, error in inspect.getmembers(sqlite3, inspect.isclass)
    if issubclass(error, Exception) and error is not sqlite3.Warning
]
DEFECTS = {sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError, sqlite3.DataError}


@pytest.mark.parametrize("error", [*DRIVER_ERRORS, OSError, PermissionError])
def test_every_error_of_the_driver_becomes_one_of_ours(error: type[Exception]) -> None:
    with pytest.raises(BloodbankError) as caught, translated(Path("bus.db"), StoreUnavailable):
        raise error("said so")
    assert isinstance(caught.value, Unavailable) != (error in DEFECTS)
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (sqlite3.SQLITE_BUSY, "locked by another program"),
        (sqlite3.SQLITE_LOCKED, "locked by another program"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "locked by another program"),
        (sqlite3.SQLITE_FULL, "disk that holds bus.db is full"),
        (sqlite3.SQLITE_READONLY, "cannot be opened for writing"),
        (sqlite3.SQLITE_CANTOPEN, "cannot be opened for writing"),
        (sqlite3.SQLITE_CORRUPT, "damaged"),
        (sqlite3.SQLITE_NOTADB, "damaged or no SQLite file"),
        (sqlite3.SQLITE_IOERR_FSYNC, "disk reported an error"),
        (sqlite3.SQLITE_NOMEM, "could not use bus.db"),
    ],
)
def test_the_sentence_says_what_to_do(code: int, sentence: str) -> None:
    error = sqlite3.OperationalError("said so")
    error.sqlite_errorcode = code
    with pytest.raises(StoreUnavailable, match=sentence), translated(Path("bus.db"), StoreUnavailable):
        raise error


@pytest.mark.parametrize(
    ("package", "tables", "name"),
    [
        ("bloodbank.stores", ["schema.sql"], "sqlite.sql"),
        ("bloodbank.stores", ["schema.sql", "claims_schema.sql"], "claims.sql"),
        ("bloodbank.transports", ["embedded_schema.sql"], "embedded.sql"),
    ],
)
def test_every_named_statement_fits_the_tables_and_is_used(package: str, tables: Sequence[str], name: str) -> None:
    connection = sqlite3.connect(":memory:")
    for one in tables:
        connection.executescript(load_script(package, one))
    folder = Path(str(_sqlite.__file__)).parent / package.rpartition(".")[2]
    code = "".join(source.read_text() for source in folder.glob("*.py"))
    queries = load_queries(package, name)
    assert queries
    for title, statement in queries.items():
        # Without values it is compiled all the same, and only then found to lack them.
        with pytest.raises(sqlite3.ProgrammingError, match="binding") if _has_values(statement) else _nothing():
            connection.execute(f"EXPLAIN {statement}")
        assert f'SQL["{title}"]' in code
    connection.close()


@given(
    st.datetimes(
        min_value=datetime(1, 1, 2),  # noqa: DTZ001, hypothesis adds the zone
        max_value=datetime(9999, 12, 30),  # noqa: DTZ001, as above
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7))]),
    )
)
def test_times_come_back_to_the_microsecond(when: datetime) -> None:
    assert moment(microseconds(when)) == when


def _has_values(statement: str) -> bool:
    text = "\n".join(line for line in statement.splitlines() if not line.startswith("--"))
    return ":" in text or "?" in text


@contextmanager
def _nothing() -> Iterator[None]:
    yield


COUNT_FOR_EVER = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


@pytest.mark.parametrize("many_statements", [True, False], ids=["many-statements", "one-long-statement"])
async def test_a_question_that_is_given_up_makes_room_for_the_next(
    database: Database, *, many_statements: bool
) -> None:
    begun = threading.Event()

    def endless(connection: sqlite3.Connection) -> None:
        begun.set()
        while many_statements:
            connection.execute("SELECT 1").fetchone()
        connection.execute(COUNT_FOR_EVER).fetchone()

    for _ in range(4):  # more than there are readers
        begun.clear()
        asking = asyncio.create_task(database.read(endless))
        assert await asyncio.to_thread(begun.wait, DEADLINE_SECONDS)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await database.read(names) == set()


def _size_of_log(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


async def test_folding_in_gives_the_room_of_the_log_back_and_loses_nothing(path: Path, database: Database) -> None:
    await database.write(add("a"))
    assert _size_of_log(path) > 0
    await database.fold_in()
    assert _size_of_log(path) == 0
    await database.write(add("b"))
    assert await database.read(names) == {"a", "b"}


async def test_a_reader_holds_folding_in_up_and_nothing_else(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloodbank._sqlite.FOLD_SECONDS", 0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert names(reader) == set()
        await database.write(add("a"))
        await database.fold_in()
        assert _size_of_log(path) > 0
        assert names(reader) == set()
    assert await database.read(names) == {"a"}
