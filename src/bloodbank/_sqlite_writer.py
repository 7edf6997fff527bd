"""The one thread that writes to a SQLite file, and the queue before it.

Two costs are shared. A commit waits for the disk whether it holds one row or a thousand, so what waits while one
commit runs goes into the next one together. And each statement gives up the interpreter's lock and asks for it again,
for which a thread waits up to five milliseconds while the event loop is busy
(https://docs.python.org/3/library/sys.html#sys.setswitchinterval), so what is alike is written by one statement.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from operator import attrgetter
from typing import Any, Generic, TypeVar

from bloodbank.errors import BloodbankError, NotOpen

T = TypeVar("T")
Item = TypeVar("Item")
Job = Callable[[sqlite3.Connection], T]

logger = logging.getLogger(__name__)

GROUP_LIMIT = 1000
"""Most jobs in one commit, so that the first of them does not wait for ever longer groups."""
LOCK_WAITS_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""How long the writer waits for a lock before it asks again; from the last one on always as long."""
USES_JSON = "SELECT json('[]')"
CLOSE_WAIT_SECONDS = 1.0
"""How long closing goes on asking for a lock that another program holds, before it fails the waiting jobs."""


class WriteTimedOut(Exception):
    """A write took longer than its caller wanted to wait.

    begun: whether the job may have run or still run; otherwise it never will.
    """

    def __init__(self, *, begun: bool) -> None:
        super().__init__("begun" if begun else "not begun")
        self.begun = begun


@dataclass(frozen=True, slots=True, eq=False)
class Work(Generic[Item, T]):
    """How items of one kind are written.

    together: writes items that stood side by side in the queue, in order, and returns what became of each. It is
        called within a transaction; when it raises, again with each item by itself.
    at_once: does the same with one statement, that needs no transaction around it. When it returns None or raises,
        and that is no error of the disk, nothing was written, and `together` shall do it.
    """

    together: Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T]]
    at_once: Callable[[sqlite3.Connection, Sequence[Item]], Sequence[T] | None] | None = None


def is_primary(error: sqlite3.Error, *codes: int) -> bool:
    """Say whether an error has one of SQLite's primary result codes (https://www.sqlite.org/rescode.html)."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in codes


def _run_jobs(connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> Sequence[Any]:
    return [job(connection) for job in jobs]


JOB: Work[Job[Any], Any] = Work(_run_jobs)
"""Jobs that share nothing but the commit: each is a run of its own."""


class Queue:
    """The loop's side: who waits for a place, and until when.

    limit: most items that wait for the writer; further ones wait for a place, in order, within their time.

    One timer serves all deadlines: it is set for the earliest, and looks through what waits when that has come.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: Writer, limit: int) -> None:
        self.loop = loop
        self._writer = writer
        self._limit = limit
        self._inside = 0
        self._outside: deque[_Pending] = deque()
        self._with_deadline: deque[_Pending] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, work: Work[Item, T], item: Item, timeout_seconds: float | None) -> asyncio.Future[T]:
        """Return the future outcome of an item, kept whether or not somebody waits for it. Raises NotOpen."""
        loop = self.loop
        future: asyncio.Future[T] = loop.create_future()
        pending = _Pending(self, work, item, future)
        if self._inside < self._limit:
            self._writer.submit(pending)
            self._inside += 1
        else:
            self._outside.append(pending)
        if timeout_seconds is not None:
            pending.deadline = deadline = loop.time() + timeout_seconds
            self._with_deadline.append(pending)
            if self._timer is None or deadline < self._timer.when():
                self._set_timer(deadline)
        return future

    def resolve(self, outcomes: list[_Outcome]) -> None:
        """Hand out results, and their places to those who wait for one."""
        for pending, result, error in outcomes:
            future = pending.future
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._inside -= len(outcomes)
        waiting = self._with_deadline
        while waiting and waiting[0].future.done():
            waiting.popleft()
        while self._outside and self._inside < self._limit:
            self._let_in(self._outside.popleft())

    def _let_in(self, pending: _Pending) -> None:
        if pending.future.done():
            return
        try:
            self._writer.submit(pending)
        except NotOpen as error:
            pending.future.set_exception(error)
        else:
            self._inside += 1

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self.loop.time()
        for pending in self._with_deadline:
            if pending.deadline <= now and not pending.future.done():
                pending.future.set_exception(WriteTimedOut(begun=not self._writer.withdraw(pending)))
        self._with_deadline = deque(pending for pending in self._with_deadline if not pending.future.done())
        if self._with_deadline:
            self._set_timer(min(pending.deadline for pending in self._with_deadline))


class _Pending:
    """An item in the queue. The writer sets `begun`, the caller who stops waiting `withdrawn`: never both."""

    __slots__ = ("begun", "deadline", "future", "item", "queue", "withdrawn", "work")

    def __init__(self, queue: Queue, work: Work[Any, Any], item: Any, future: asyncio.Future[Any]) -> None:
        self.queue = queue
        self.work = work
        self.item = item
        self.future = future
        self.deadline = 0.0
        self.begun = False
        self.withdrawn = False


_Outcome = tuple[_Pending, Any, BaseException | None]


class Writer:
    """The thread that writes.

    uri: of the database. turn: held while a group is written.
    """

    def __init__(self, uri: str, busy_seconds: float, turn: AbstractContextManager[Any]) -> None:
        self._busy_seconds = busy_seconds
        self._turn = turn
        # SQLite itself waits for no lock: the writer does, and looks meanwhile whether it should give up.
        self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            _require_json(self._connection)
            # FULL: a commit is on the disk when it answers, and outlives a power cut.
            for pragma in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"):
                self._insist(pragma, lambda: True)
        except BaseException:
            self._connection.close()
            raise
        self._jobs: deque[_Pending] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._is_idle = False
        self._closing_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="bloodbank-sqlite-writer", daemon=True)
        self._thread.start()

    def submit(self, pending: _Pending) -> None:
        """Queue an item. Raises NotOpen after closing began."""
        with self._lock:
            if self._closing_since is not None:
                raise NotOpen("The file was closed meanwhile; nothing was written.")
            self._jobs.append(pending)
            if self._is_idle:
                self._is_idle = False
                self._changed.notify()

    def withdraw(self, pending: _Pending) -> bool:
        """Take an item back; say whether it had not begun, and so never will."""
        with self._lock:
            pending.withdrawn = not pending.begun
            return pending.withdrawn

    def stop(self) -> None:
        """Run what is queued and end the thread. Blocks, while the file is locked for about CLOSE_WAIT_SECONDS."""
        with self._lock:
            self._closing_since = time.monotonic()
            self._changed.notify()
        self._thread.join()

    def close(self) -> None:
        """Close the connection of the stopped thread."""
        self._connection.close()

    def _run(self) -> None:
        while group := self._next_group():
            with self._turn:
                outcomes = self._commit(group)
            _deliver(outcomes)

    def _next_group(self) -> list[_Pending]:
        """Wait for items; return none when closing began and all are done."""
        with self._lock:
            while not self._jobs and self._closing_since is None:
                self._is_idle = True
                self._changed.wait()
            self._is_idle = False
            return [self._jobs.popleft() for _ in range(min(len(self._jobs), GROUP_LIMIT))]

    def _commit(self, group: list[_Pending]) -> list[_Outcome]:
        try:
            runs = _runs(group)
            if len(runs) == 1 and (outcomes := self._commit_at_once(*runs)):
                return outcomes
            self._insist("BEGIN IMMEDIATE", lambda: self._is_wanted(group))
            outcomes = [outcome for run in runs for outcome in self._write(run, may_try=len(runs) > 1)]
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001, the edge of the thread: every caller of the group learns of it
            if self._connection.in_transaction:
                self._connection.rollback()
            return [(pending, None, error) for pending in group]
        return outcomes

    def _commit_at_once(self, run: list[_Pending]) -> list[_Outcome] | None:
        """Write a group without a transaction around it; None, and nothing done, when that does not work out."""
        if not (begun := self._claim(run)):
            return None
        if (outcomes := self._at_once(begun)) is None:
            self._disclaim(begun)
            return None
        return outcomes + _withdrawn(run, begun)

    def _write(self, run: list[_Pending], *, may_try: bool) -> list[_Outcome]:
        if not (begun := self._claim(run)):
            return _withdrawn(run, begun)
        outcomes = (self._at_once(begun) if may_try else None) or self._together(begun)
        return outcomes + _withdrawn(run, begun)

    def _at_once(self, run: list[_Pending]) -> list[_Outcome] | None:
        if (at_once := run[0].work.at_once) is None:
            return None
        try:
            results = at_once(self._connection, [pending.item for pending in run])
        except Exception as error:
            if isinstance(error, sqlite3.Error) and is_primary(error, sqlite3.SQLITE_IOERR):
                # It may have been written.
                raise
            logger.debug("Writing %d items at once failed; they are tried in a transaction.", len(run), exc_info=True)
            return None
        return None if results is None else _matched(run, results)

    def _together(self, run: list[_Pending]) -> list[_Outcome]:
        """Do the work of a run; when it fails, of each of its items by itself, so that none harms another."""
        execute = self._connection.execute
        execute("SAVEPOINT run")
        try:
            results = run[0].work.together(self._connection, [pending.item for pending in run])
        except Exception as error:
            if not self._connection.in_transaction:
                # SQLite gave up the whole transaction, as it does when the disk is full: nothing of the group is kept.
                raise
            execute("ROLLBACK TO run")
            execute("RELEASE run")
            if len(run) == 1:
                return [(run[0], None, error)]
            return [outcome for pending in run for outcome in self._together([pending])]
        execute("RELEASE run")
        return _matched(run, results)

    def _claim(self, run: list[_Pending]) -> list[_Pending]:
        with self._lock:
            wanted = [pending for pending in run if not pending.withdrawn]
            for pending in wanted:
                pending.begun = True
            return wanted

    def _disclaim(self, run: list[_Pending]) -> None:
        with self._lock:
            for pending in run:
                pending.begun = False

    def _is_wanted(self, group: list[_Pending]) -> bool:
        closing_since = self._closing_since
        if closing_since is not None and time.monotonic() > closing_since + CLOSE_WAIT_SECONDS:
            return False
        return not all(pending.withdrawn for pending in group)

    def _insist(self, statement: str, wanted: Callable[[], bool]) -> None:
        """Execute a statement that needs the lock, for as long as it is wanted and `busy_seconds` are not over."""
        deadline = time.monotonic() + self._busy_seconds
        for wait_seconds in chain(LOCK_WAITS_SECONDS, repeat(LOCK_WAITS_SECONDS[-1])):
            try:
                self._connection.execute(statement)
            except sqlite3.OperationalError as error:
                if not is_primary(error, sqlite3.SQLITE_BUSY) or time.monotonic() > deadline or not wanted():
                    raise
                time.sleep(wait_seconds)
            else:
                return


def _require_json(connection: sqlite3.Connection) -> None:
    """Raise BloodbankError when SQLite was built without its JSON functions, which many versions before 3.38 were."""
    try:
        connection.execute(USES_JSON)
    except sqlite3.OperationalError as error:
        raise BloodbankError(
            f"SQLite {sqlite3.sqlite_version}, which this Python uses, has no JSON functions. Nothing was changed. "
            "Use a Python with SQLite 3.38 or newer."
        ) from error


def _runs(group: list[_Pending]) -> list[list[_Pending]]:
    """Divide a group into what stands side by side and is the same work."""
    runs: list[list[_Pending]] = []
    for work, side_by_side in groupby(group, attrgetter("work")):
        if work is JOB:
            runs += [[pending] for pending in side_by_side]
        else:
            runs.append(list(side_by_side))
    return runs


def _matched(run: list[_Pending], results: Sequence[Any]) -> list[_Outcome]:
    return [(pending, result, None) for pending, result in zip(run, results, strict=True)]


def _withdrawn(run: list[_Pending], begun: list[_Pending]) -> list[_Outcome]:
    """Return those that will not begin: nobody waits for their outcome, but each has a place in the queue."""
    return [(pending, None, None) for pending in run if not pending.begun] if len(begun) < len(run) else []


def _deliver(outcomes: list[_Outcome]) -> None:
    """Hand results to the loops that wait for them, each loop woken once."""
    queues = {pending.queue for pending, _, _ in outcomes}
    for queue in queues:
        own = [outcome for outcome in outcomes if outcome[0].queue is queue] if len(queues) > 1 else outcomes
        if not queue.loop.is_closed():
            queue.loop.call_soon_threadsafe(queue.resolve, own)
