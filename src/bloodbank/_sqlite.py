"""One SQLite file for several users in a process: one writer that commits in groups, readers that never wait for it.

The log and the index share a file. SQLite lets one connection write at a time, so one thread writes for all. The
file is in WAL mode (https://www.sqlite.org/wal.html): readers see the last commit and block nobody.
"""

from __future__ import annotations

import asyncio
import logging
import pkgutil
import queue
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self
from uuid import uuid4

import orjson

from bloodbank._sqlite_writer import JOB, Item, Job, Queue, T, Work, Writer, is_primary
from bloodbank.errors import BloodbankError, NotOpen, StoreFormatError, Unavailable

FOLD_SECONDS = 1.0
"""How long folding in the write-ahead log waits for readers."""
STEPS_BETWEEN_LOOKS = 20_000
"""How many steps SQLite takes in one statement before a reader looks whether its question was given up."""

logger = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DEFECTS = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError, sqlite3.DataError)


class Database:
    """One SQLite file, opened by the first who enters it and closed after the last.

    path: the file. Missing folders are created for the user alone (mode 0700).
    readers: most questions that are answered at the same time.
    busy_seconds: how long the writer waits while another program holds the file.
    queue_limit: most jobs that wait for the writer; further callers wait before they join the queue.

    Used from one event loop at a time. Errors of sqlite3 and of the file system come as they are: backends
    wrap their calls in `translated`.
    """

    def __init__(self, path: Path, *, readers: int = 2, busy_seconds: float = 5.0, queue_limit: int = 10_000) -> None:
        self.path = path.absolute()
        self.is_in_memory = False
        self._readers = readers
        self._busy_seconds = busy_seconds
        self._queue_limit = queue_limit
        # Held by threads that open or close, never by the loop.
        self._opening = threading.Lock()
        self._users = 0
        self._file: _OpenFile | None = None

    @classmethod
    def in_memory(cls) -> Self:
        """Return a database in this process' memory: no other object shares it, and its last user ends it."""
        # An absolute path, for which the system is not asked.
        database = cls(Path("/"))
        database.path = Path(":memory:")
        database.is_in_memory = True
        return database

    async def __aenter__(self) -> Self:
        """Open, or join those who did. Raises sqlite3.Error, OSError."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._enter))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread cannot be stopped: what it opens for nobody is closed when it is ready.
            opening.add_done_callback(self._leave_if_entered)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; the last one runs what is still queued and closes the file."""
        await asyncio.to_thread(self._leave)

    async def write(self, job: Job[T], *, timeout_seconds: float | None = None) -> T:
        """Run a job in the writer's next transaction; return its result once it is on the disk.

        A job that raises is rolled back by itself and harms no other. One whose caller is cancelled runs all
        the same. Raises what the job raised, sqlite3.Error when the transaction failed, WriteTimedOut, NotOpen.
        """
        work: Work[Job[T], T] = JOB
        return await self.submit(work, job, timeout_seconds=timeout_seconds)

    def submit(self, work: Work[Item, T], item: Item, *, timeout_seconds: float | None = None) -> asyncio.Future[T]:
        """Give an item to work that takes many at a time; return the future of what became of it, as of a job.

        Raises NotOpen.
        """
        return self._require_open().queue().submit(work, item, timeout_seconds)

    async def read(self, question: Job[T]) -> T:
        """Answer a question from one snapshot of the file, on a read-only connection. Raises sqlite3.Error, NotOpen.

        A question whose caller is cancelled ends at its next statement, so that it does not keep others waiting.
        """
        file = self._require_open()
        given_up = threading.Event()
        async with file.turns:
            try:
                return await asyncio.get_running_loop().run_in_executor(file.threads, file.answer, question, given_up)
            except asyncio.CancelledError:
                given_up.set()
                raise

    def read_here(self, question: Job[T]) -> T:
        """Answer a small question on the caller's thread, which waits. Raises sqlite3.Error, NotOpen."""
        return self._require_open().answer(question, threading.Event())

    async def change_count(self) -> int:
        """Return a number that is another one after each commit by anybody, in this process or not."""
        file = self._require_open()
        return await asyncio.get_running_loop().run_in_executor(file.threads, file.data_version)

    async def fold_in(self) -> None:
        """Write what stands in the write-ahead log into the file, and give the log's room back to the disk.

        See https://www.sqlite.org/pragma.html#pragma_wal_checkpoint. Readers hold it up, for FOLD_SECONDS at most; that
        it could not be done, and why, is logged at DEBUG: nothing is lost, and the next attempt may do it.
        """
        self._require_open()
        await asyncio.to_thread(_fold_in, self.path)

    async def ensure_format(
        self, part: str, version: int, script: str, *, upgrades: Mapping[int, str] = MappingProxyType({})
    ) -> None:
        """Create the tables of a part of the file unless they are there, in this version.

        upgrades: scripts by the version that each makes the next one of; they run in one transaction.

        Raises StoreFormatError for other versions.
        """
        form = _Form(self.path, part, version, script, upgrades)
        if not await self.read(form.is_there):
            await self.write(form.create)

    def _require_open(self) -> _OpenFile:
        if self._file is None:
            raise NotOpen(f"{self.path} is not open. Enter it first: `async with`.")
        return self._file

    def _enter(self) -> None:
        with self._opening:
            if self._users == 0:
                place = _memory() if self.is_in_memory else _file(self.path)
                self._file = _OpenFile(place, self._readers, self._busy_seconds, self._queue_limit)
            self._users += 1

    def _leave(self) -> None:
        with self._opening:
            self._users -= 1
            if self._users == 0 and self._file is not None:
                file, self._file = self._file, None
                file.close()

    def abandon(self) -> None:
        """Close it under all its users: for when the event loop that they lived on is gone. Blocks; idempotent."""
        with self._opening:
            self._users = 0
            if self._file is not None:
                file, self._file = self._file, None
                file.close()

    def _leave_if_entered(self, opening: asyncio.Future[None]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            threading.Thread(target=self._leave, name="bloodbank-sqlite-closer").start()


@contextmanager
def translated(path: Path, unavailable: type[Unavailable]) -> Generator[None]:
    """Turn errors of SQLite and of the file system into the backend's own, with a sentence that says what to do."""
    try:
        yield
    except BloodbankError:
        # Unavailable is an OSError; it has its sentence already.
        raise
    except (sqlite3.Error, OSError) as error:
        raise translation(error, path, unavailable) from error


def translation(error: sqlite3.Error | OSError, path: Path, unavailable: type[Unavailable]) -> BloodbankError:
    """Return the backend's own error for one of SQLite or of the file system, as `translated` raises it.

    What can only come from a wrong statement is a BloodbankError: trying again would not help.
    """
    if isinstance(error, _DEFECTS):
        return BloodbankError(f"SQLite refused a statement ({error}): a defect of Bloodbank. Please report it.")
    if isinstance(error, sqlite3.Error):
        return unavailable(_explain(error, path))
    return unavailable(
        f"{path} cannot be opened: {error.strerror or error}. Nothing was written. "
        "Set BLOODBANK_DATA_DIR to a folder that can be written."
    )


def packed(rows: Sequence[Sequence[str | int | None]], pieces: Sequence[bytes]) -> dict[str, str | bytes] | None:
    """Return the values of a statement that reads any number of rows; None when a text has a NUL in it.

    rows: columns that are text or numbers, and where the others are found; becomes `:rows`, for `json_each`.
    pieces: the others, which lie end to end in `:bytes`, for `substr`.

    SQLite's JSON functions cut off a text at a NUL.
    """
    as_json = orjson.dumps(rows).decode()
    return None if "\\u0000" in as_json else {"rows": as_json, "bytes": b"".join(pieces)}


def load_queries(package: str, name: str) -> Mapping[str, str]:
    """Read the statements of a .sql file: {name: statement}. Each begins behind a line `-- name: ...`."""
    queries: dict[str, str] = {}
    for section in load_script(package, name).split("-- name: ")[1:]:
        title, _, statement = section.partition("\n")
        queries[title.strip()] = statement.strip()
    return queries


def load_script(package: str, name: str) -> str:
    """Read a .sql file whole, such as the tables of a part."""
    content = pkgutil.get_data(package, name)
    if content is None:
        raise FileNotFoundError(f"{name} is missing from the package {package}")
    return content.decode()


def microseconds(moment: datetime) -> int:
    """Return an aware time as whole microseconds since 1970, UTC: how the file keeps it."""
    return (moment - EPOCH) // _MICROSECOND


def moment(microseconds_since_1970: int) -> datetime:
    """Return the aware time, UTC, that the file keeps as microseconds."""
    return EPOCH + timedelta(microseconds=microseconds_since_1970)


def now_microseconds() -> int:
    """Return the time now as whole microseconds since 1970, UTC."""
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a database is: URIs for writing and reading, and what a connection holds while it works."""

    writing: str
    reading: str
    turn: AbstractContextManager[Any]


def _fold_in(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path, timeout=FOLD_SECONDS)) as connection:
            is_busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        logger.debug("The write-ahead log of %s could not be folded in: %s", path, error)
    else:
        if is_busy:
            logger.debug("The write-ahead log of %s could not be folded in: it is being read.", path)


def _file(path: Path) -> _Place:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _Place(path.as_uri(), f"{path.as_uri()}?mode=ro", nullcontext())


def _memory() -> _Place:
    """Several connections share it by its name. It has no WAL, so that one works at a time."""
    uri = f"file:/{uuid4().hex}?vfs=memdb"
    return _Place(uri, f"{uri}&mode=ro", threading.Lock())


class _OpenFile:
    """What exists while the file is open: the writer, the threads that read and their connections."""

    def __init__(self, place: _Place, readers: int, busy_seconds: float, queue_limit: int) -> None:
        self.turns = asyncio.Semaphore(readers)
        self._turn = place.turn
        self._writer = Writer(place.writing, busy_seconds, place.turn)
        self._queue_limit = queue_limit
        self._queue: Queue | None = None
        self._connections: list[sqlite3.Connection] = []
        try:
            self._watch = self._connect_reader(place.reading)
            self._idle: queue.SimpleQueue[_ReadConnection] = queue.SimpleQueue()
            for _ in range(readers):
                self._idle.put(self._connect_reader(place.reading))
        except BaseException:
            self._writer.stop()
            self._close_readers()
            self._writer.close()
            raise
        # One thread more than readers: looking for changes does not wait for long questions.
        self.threads = ThreadPoolExecutor(readers + 1, thread_name_prefix="bloodbank-sqlite-reader")

    def queue(self) -> Queue:
        """Return the running loop's queue before the writer."""
        loop = asyncio.get_running_loop()
        queue = self._queue
        if queue is None or queue.loop is not loop:
            queue = self._queue = Queue(loop, self._writer, self._queue_limit)
        return queue

    def answer(self, question: Job[T], given_up: threading.Event) -> T:
        """Run a question in a transaction of its own, until it is answered or given up."""
        connection = self._idle.get()
        try:
            connection.given_up = given_up
            connection.set_progress_handler(given_up.is_set, STEPS_BETWEEN_LOOKS)
            with self._turn:
                connection.execute("BEGIN")
                try:
                    return question(connection)
                finally:
                    connection.rollback()
        finally:
            self._idle.put(connection)

    def data_version(self) -> int:
        """Ask SQLite whether others have written (https://www.sqlite.org/pragma.html#pragma_data_version)."""
        with self._turn:
            return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Run what is queued, wait for the readers, close. Blocks."""
        self._writer.stop()
        self.threads.shutdown(wait=True)
        # The writer last: the one who closes the file tidies it up, and a reader must not.
        self._close_readers()
        self._writer.close()

    def _connect_reader(self, uri: str) -> _ReadConnection:
        connection = sqlite3.connect(
            uri,
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=1.0,
            factory=_ReadConnection,
        )
        self._connections.append(connection)
        return connection

    def _close_readers(self) -> None:
        for connection in self._connections:
            connection.close()


class _ReadConnection(sqlite3.Connection):
    """A connection that runs no further statement once nobody waits for its answer."""

    given_up: threading.Event | None = None

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        if self.given_up is not None and self.given_up.is_set():
            raise sqlite3.OperationalError("interrupted: nobody waits for the answer")
        return super().execute(*statement)


def _explain(error: sqlite3.Error, path: Path) -> str:
    if is_primary(error, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path} is locked by another program for too long. Nothing was written; try again, or end that program."
    if is_primary(error, sqlite3.SQLITE_FULL):
        return f"The disk that holds {path} is full. Nothing was written; make room and try again."
    if is_primary(error, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return f"{path} cannot be opened for writing ({error}). Check who owns it, or set BLOODBANK_DATA_DIR."
    if is_primary(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"{path} is damaged or no SQLite file ({error}). Move it away, or restore it from a backup."
    if is_primary(error, sqlite3.SQLITE_IOERR):
        return f"The disk reported an error for {path} ({error}). Check the disk and the system's log."
    return f"SQLite could not use {path}: {error}."


_SQL = load_queries("bloodbank", "_sqlite.sql")


@dataclass(frozen=True, slots=True)
class _Form:
    """The tables of a part of a file, in the version that this program uses."""

    path: Path
    part: str
    version: int
    script: str
    upgrades: Mapping[int, str]

    def is_there(self, connection: sqlite3.Connection) -> bool:
        """Say whether the part is there in this version. Raises StoreFormatError for one that stays another."""
        return self._found(connection) == self.version

    def create(self, connection: sqlite3.Connection) -> None:
        """Create the part, or make this version of an older one. Raises as `is_there`."""
        connection.execute(_SQL["create_formats"])
        found = self._found(connection)
        if found is None:
            _execute_script(connection, self.script)
            connection.execute(_SQL["add_format"], {"part": self.part, "version": self.version})
            return
        for older in range(found, self.version):
            _execute_script(connection, self.upgrades[older])
        connection.execute(_SQL["change_format"], {"part": self.part, "version": self.version})

    def _found(self, connection: sqlite3.Connection) -> int | None:
        if not connection.execute(_SQL["has_formats"]).fetchone()[0]:
            return None
        row = connection.execute(_SQL["format_of"], {"part": self.part}).fetchone()
        if row is None:
            return None
        version: int = row[0]
        if version > self.version or not self.upgrades.keys() >= set(range(version, self.version)):
            raise StoreFormatError(
                f"{self.path} holds format {version} of the {self.part}, and this version of Bloodbank reads format "
                f"{self.version}. Nothing was changed. Install the version that wrote the file, or use another data "
                "folder."
            )
        return version


def _execute_script(connection: sqlite3.Connection, script: str) -> None:
    for statement in _statements(script):
        connection.execute(statement)


def _statements(script: str) -> Iterator[str]:
    # Connection.executescript would commit the transaction that this must be part of.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
