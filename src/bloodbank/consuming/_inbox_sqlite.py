"""The inbox in a SQLite file, which the processes of one machine share."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from types import TracebackType
from typing import Self
from uuid import UUID

from bloodbank._sqlite import Database, load_queries, load_script, now_microseconds, translated
from bloodbank.errors import StoreUnavailable

FORMAT = 1
FORGOTTEN_A_WRITE = 1000
"""Most notes that are removed with one write, because they are too old."""
_MICROSECONDS = 1_000_000

_SCHEMA = load_script("bloodbank.consuming", "inbox_schema.sql")
_SQL = load_queries("bloodbank.consuming", "inbox.sql")


class SqliteInbox:
    """An Inbox in a file.

    database: entered while the inbox is open; others may enter it too. keep_seconds: how long an event is remembered.
    """

    def __init__(self, database: Database, *, keep_seconds: float) -> None:
        self._database = database
        self._keep = int(keep_seconds * _MICROSECONDS)
        self._is_open = False

    async def __aenter__(self) -> Self:
        """Open. Raises StoreUnavailable, StoreFormatError."""
        with translated(self._database.path, StoreUnavailable):
            await self._database.__aenter__()
            try:
                await self._database.ensure_format("inbox", FORMAT, _SCHEMA)
            except BaseException:
                await self._database.__aexit__(None, None, None)
                raise
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        if self._is_open:
            self._is_open = False
            await self._database.__aexit__(kind, error, trace)

    async def seen(self, group: str, event_ids: Sequence[UUID]) -> set[UUID]:
        """Return those that the group has handled. Raises StoreUnavailable."""
        wanted = {
            "group": group,
            "ids": b"".join(event_id.bytes for event_id in event_ids),
            "since": now_microseconds() - self._keep,
        }
        if not event_ids:
            return set()
        with translated(self._database.path, StoreUnavailable):
            rows = await self._database.read(lambda connection: connection.execute(_SQL["seen"], wanted).fetchall())
        return {UUID(bytes=event_id) for (event_id,) in rows}

    async def mark(self, group: str, event_ids: Sequence[UUID]) -> None:
        """Note that the group has handled them; return when it is on the disk. Raises StoreUnavailable."""
        now = now_microseconds()
        rows = [(group, event_id.bytes, now) for event_id in event_ids]
        expired = {"before": now - self._keep, "limit": FORGOTTEN_A_WRITE}

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_SQL["forget"], expired)
            connection.executemany(_SQL["mark"], rows)

        with translated(self._database.path, StoreUnavailable):
            await self._database.write(work)
