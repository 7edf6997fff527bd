"""Links that wait on disk for the correlation store, and what is remembered of those that had no place."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import UUID

import orjson

from bloodbank._sqlite import Database, load_queries, load_script, microseconds, moment, packed, translated
from bloodbank._sqlite_writer import Work
from bloodbank.deferral import JournalStatus, Missed
from bloodbank.errors import NotOpen, Unavailable
from bloodbank.stores.base import Link, Row, split_ids

FORMAT = 1

_SCHEMA = load_script("bloodbank", "journal_schema.sql")
_SQL = load_queries("bloodbank", "journal.sql")


class SqliteJournal:
    """A `deferral.Journal` in a file that it may share with others, in this process and in others.

    database: entered by the journal while it is open.
    limit: most links that are kept; further ones are only counted.
    """

    def __init__(self, database: Database, *, limit: int) -> None:
        self._database = database
        self._limit = limit
        self._open = False
        # What several callers append at the same time is one statement and one commit.
        self._append: Work[Sequence[Link], int] = Work(self._append_together, self._append_at_once)

    async def __aenter__(self) -> Self:
        """Open; what was set aside waits again. Raises Unavailable, StoreFormatError; may be tried again."""
        with translated(self._database.path, Unavailable):
            await self._database.__aenter__()
            try:
                await self._database.ensure_format("journal", FORMAT, _SCHEMA)
                if await self._database.read(_count_aside):
                    await self._database.write(_take_back)
            except BaseException:
                await self._database.__aexit__(None, None, None)
                raise
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        if self._open:
            self._open = False
            await self._database.__aexit__(kind, error, trace)

    async def append(self, links: Sequence[Link]) -> int:
        """Keep links, in order; return how many of the first ones were kept, which are on the disk then.

        Those for which there is no room are counted, in the same commit. Raises Unavailable, and then it is not known
        whether they are kept.
        """
        self._require_open()
        if not links:
            return 0
        with translated(self._database.path, Unavailable):
            return await self._database.submit(self._append, links)

    async def first(self, limit: int) -> list[tuple[int, Link]]:
        """Return the oldest links that wait, each with its number. Raises Unavailable."""
        self._require_open()
        with translated(self._database.path, Unavailable):
            rows = await self._database.read(lambda connection: connection.execute(_SQL["first"], (limit,)).fetchall())
        return [(number, _link(*columns)) for number, *columns in rows]

    async def remove(self, numbers: Sequence[int]) -> None:
        """Remove links that are recorded. Idempotent. Raises Unavailable."""
        self._require_open()
        as_json = orjson.dumps(list(numbers)).decode()
        with translated(self._database.path, Unavailable):
            await self._database.write(lambda connection: connection.execute(_SQL["remove"], (as_json,)).rowcount)

    async def set_aside(self, number: int, reason: str) -> None:
        """Keep a link out of the way until a process opens the journal again. Raises Unavailable."""
        self._require_open()
        with translated(self._database.path, Unavailable):
            await self._database.write(lambda connection: _set_aside(connection, number, reason))

    async def count(self) -> int:
        """Return how many links wait; while some are taken out of order, a few more. Raises Unavailable."""
        return (await self.status()).waiting

    async def status(self) -> JournalStatus:
        """Return what is kept and what had no place. Raises Unavailable."""
        self._require_open()
        with translated(self._database.path, Unavailable):
            return await self._database.read(_status)

    async def note_missed(self, missed: Missed) -> None:
        """Remember links that had no place, together with those noted before. Raises Unavailable."""
        self._require_open()
        with translated(self._database.path, Unavailable):
            await self._database.write(lambda connection: _add_missed(connection, missed))

    async def clear_missed(self, *, since: datetime, until: datetime) -> None:
        """Forget the links that had no place, when all of them were accepted within these times. Raises Unavailable."""
        self._require_open()
        values = {"since": microseconds(since), "until": microseconds(until)}
        with translated(self._database.path, Unavailable):
            await self._database.write(lambda connection: connection.execute(_SQL["clear_missed"], values).rowcount)

    def _require_open(self) -> None:
        if not self._open:
            raise NotOpen("The journal is not open. Enter it first: `async with journal`.")

    def _append_at_once(self, connection: sqlite3.Connection, batches: Sequence[Sequence[Link]]) -> list[int] | None:
        """Append with one statement; None, and nothing done, when there is not room for all."""
        links = [link for links in batches for link in links]
        if len(links) == 1:
            one = (*_columns(Row.of(links[0])), self._limit)
            kept = connection.execute(_SQL["append_one"], one).rowcount
        else:
            values = _packed(links)
            if values is None:
                return None
            limits = {"count": len(links), "limit": self._limit}
            kept = connection.execute(_SQL["append_all"], values | limits).rowcount
        return list(map(len, batches)) if kept == len(links) else None

    def _append_together(self, connection: sqlite3.Connection, batches: Sequence[Sequence[Link]]) -> list[int]:
        """Append those of the first for which there is room, and count the others."""
        if (all_kept := self._append_at_once(connection, batches)) is not None:
            return all_kept
        links = [link for links in batches for link in links]
        room = max(0, self._limit - connection.execute(_SQL["used"]).fetchone()[0])
        connection.executemany(_SQL["append"], [_columns(Row.of(link)) for link in links[:room]])
        if lost := links[room:]:
            _add_missed(connection, Missed.of(lost))
        counts: list[int] = []
        for batch in batches:
            counts.append(min(len(batch), room))
            room -= counts[-1]
        return counts


def _packed(links: Sequence[Link]) -> dict[str, str | bytes | int] | None:
    entries: list[tuple[str | int, ...]] = []
    pieces: list[bytes] = []
    at = 1
    for link in links:
        event_id, parents, event_type, source, happened_at, accepted_at, digest = _columns(Row.of(link))
        parents_at = at + len(event_id)
        digest_at = parents_at + len(parents)
        sizes = (at, parents_at, len(parents), digest_at, len(digest))
        entries.append((event_type, source, happened_at, accepted_at, *sizes))
        pieces += (event_id, parents, digest)
        at = digest_at + len(digest)
    values = packed(entries, pieces)
    return None if values is None else {**values}


def _columns(row: Row) -> tuple[bytes, bytes, str, str, int, int, bytes]:
    event_id, _, parents, event_type, source, happened_at, accepted_at, digest = row
    return (event_id, b"".join(parents or ()), event_type, source, happened_at, accepted_at, digest)


def _link(
    event_id: bytes, parents: bytes, event_type: str, source: str, happened_at: int, accepted_at: int, digest: bytes
) -> Link:
    parent_ids = tuple([UUID(bytes=parent) for parent in split_ids(parents)])
    return Link(UUID(bytes=event_id), parent_ids, event_type, moment(happened_at), source, moment(accepted_at), digest)


def _set_aside(connection: sqlite3.Connection, number: int, reason: str) -> None:
    # Another process may have done it already.
    if connection.execute(_SQL["copy_aside"], {"number": number, "reason": reason}).rowcount:
        connection.execute(_SQL["remove"], (f"[{number}]",))


def _take_back(connection: sqlite3.Connection) -> None:
    connection.execute(_SQL["copy_back"])
    connection.execute(_SQL["clear_aside"])


def _count_aside(connection: sqlite3.Connection) -> int:
    return int(connection.execute(_SQL["count_aside"]).fetchone()[0])


def _status(connection: sqlite3.Connection) -> JournalStatus:
    waiting = int(connection.execute(_SQL["count_waiting"]).fetchone()[0])
    row = connection.execute(_SQL["missed"]).fetchone()
    missed = Missed(row[0], moment(row[1]), moment(row[2])) if row else None
    return JournalStatus(waiting, _count_aside(connection), missed)


def _add_missed(connection: sqlite3.Connection, missed: Missed) -> None:
    values = {"total": missed.total, "since": microseconds(missed.since), "until": microseconds(missed.until)}
    connection.execute(_SQL["add_missed"], values)
