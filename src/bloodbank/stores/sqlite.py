"""The index of causes in SQLite: one row an event, one an edge, and walks that ask level by level in one call."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import UUID

from bloodbank._sqlite import Database, load_queries, load_script, packed, translated
from bloodbank._sqlite_writer import Work
from bloodbank.errors import EventNotFound, NotOpen, StoreUnavailable
from bloodbank.stores import _sqlite_claims as claims
from bloodbank.stores import base
from bloodbank.stores.assembly import assemble, collector_paused, to_nodes
from bloodbank.stores.base import Claimed, Direction, Expand, Expansion, Graph, Link, Node, Row, microseconds, split_ids

FORMAT = 1
PURGE_CHUNK = 500
"""Most events forgotten in one transaction, so that recording does not wait for long."""
ALL = -1
"""No limit, as SQLite writes it."""
FIRST_LINE, LONGEST_LINE = 64, 4096
"""Most ancestors read ahead where an event is asked alone, the first time and at most; each time that they were all
needed they become four times as many. So a chain costs a few statements, and a wide graph reads little in vain."""

_SCHEMA = load_script("bloodbank.stores", "schema.sql")
_SQL = load_queries("bloodbank.stores", "sqlite.sql")


class SqliteStore:
    """A CorrelationStore in a file that it may share with the log.

    database: entered by the store while it is open; others may enter it too.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open = False

    async def __aenter__(self) -> Self:
        """Open. Raises StoreUnavailable, StoreFormatError; opening may be tried again."""
        with translated(self._database.path, StoreUnavailable):
            await self._database.__aenter__()
            try:
                await self._database.ensure_format("index", FORMAT, _SCHEMA)
                await claims.ensure_claims(self._database)
            except BaseException:
                await self._database.__aexit__(None, None, None)
                raise
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent. What was given to `record` before is written."""
        if self._open:
            self._open = False
            await self._database.__aexit__(kind, error, trace)

    async def check(self) -> None:
        """Ask the file something. Raises StoreUnavailable."""
        self._require_open()
        with translated(self._database.path, StoreUnavailable):
            await self._database.read(lambda connection: connection.execute(_SQL["ready"]).fetchone())

    async def record(self, links: Sequence[Link]) -> None:
        """Record events and their edges in one transaction.

        Idempotent: an event that is known already stays as it is, with its edges. Raises StoreUnavailable.
        """
        self._require_open()
        if not links:
            return
        with translated(self._database.path, StoreUnavailable):
            await self._database.submit(_RECORD, links)

    async def claim(self, wanted: Sequence[tuple[UUID, bytes]], *, owner: bytes, lease_seconds: float) -> list[Claimed]:
        """Claim events in one transaction; leases end by the clock of this machine. Raises StoreUnavailable."""
        self._require_open()
        if not wanted:
            return []
        claim = claims.Claim(wanted, owner, max(1, round(lease_seconds * 1e6)))
        with translated(self._database.path, StoreUnavailable):
            return await self._database.submit(claims.CLAIM, claim)

    async def release(self, event_ids: Sequence[UUID], *, owner: bytes) -> None:
        """Give back what this owner has claimed. Raises StoreUnavailable."""
        self._require_open()
        if not event_ids:
            return
        with translated(self._database.path, StoreUnavailable):
            await self._database.write(lambda connection: claims.release(connection, event_ids, owner))

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return what is known of some events; absent: never seen and never named as a parent."""
        self._require_open()
        ids = [event_id.bytes for event_id in event_ids]
        with translated(self._database.path, StoreUnavailable):
            return await self._database.read(lambda connection: to_nodes(_Reader(connection).rows(ids)))

    async def walk(self, event_id: UUID, direction: Direction, *, max_depth: int, limit: int) -> Graph:
        """Return the graph around an event, from one snapshot. Raises EventNotFound, StoreUnavailable."""
        self._require_open()
        with translated(self._database.path, StoreUnavailable):
            graph = await self._database.read(
                lambda connection: _walked(
                    base.walk(event_id, direction, max_depth=max_depth, limit=limit), _Reader(connection)
                )
            )
        if graph is None:
            raise EventNotFound(f"No event {event_id} is in the index.")
        return graph

    async def purge(self, *, before: datetime) -> int:
        """Forget the events accepted before a time, a chunk a transaction; return how many.

        An event that others name as their parent stays as a name, like one that was never seen.
        """
        self._require_open()
        purged = 0
        with translated(self._database.path, StoreUnavailable):
            while chunk := await self._database.write(lambda connection: _purge(connection, microseconds(before))):
                purged += chunk
        return purged

    def _require_open(self) -> None:
        if not self._open:
            raise NotOpen("The SQLite store is not open. Enter it first: `async with store`.")


def _walked(walk: base.Walk, reader: _Reader) -> Graph | None:
    """Answer what a walk asks until it ends, and make its graph, all on the reader's thread."""
    with collector_paused():
        try:
            request = next(walk)
            while True:
                request = walk.send(reader.expand(request))
        except StopIteration as end:
            return None if end.value is None else assemble(end.value)


class _Reader:
    """Reads rows and their neighbours."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._line_limit = FIRST_LINE
        self._line_end: bytes | None = None

    def expand(self, request: Expand) -> Expansion:
        """Answer one request of a walk."""
        limit = request.neighbour_limit
        if request.direction is Direction.ANCESTORS:
            rows = self._line_from(request) if len(request.event_ids) == 1 else self.rows(request.event_ids)
            return {row[0]: (row, base.parents_of(row, limit)) for row in rows}
        rows = self.rows(request.event_ids)
        children = self._children([row.event_id for row in rows if 0 < row.children_total <= limit])
        for row in rows:
            if row.children_total > limit:
                children[row.event_id] = self._first_children(row.event_id, limit)
        return {row.event_id: (row, children.get(row.event_id, ())) for row in rows}

    def rows(self, event_ids: Sequence[bytes]) -> list[Row]:
        """Return the rows of the ids that are known."""
        if len(event_ids) == 1:
            found = self._execute(_SQL["node"], event_ids)
        else:
            found = self._execute(_SQL["nodes"], {"ids": b"".join(event_ids)})
        return [_row(*columns) for columns in found.fetchall()]

    def _line_from(self, request: Expand) -> list[Row]:
        """Return the row of one event, and those of its first ancestors."""
        [event_id] = request.event_ids
        if event_id == self._line_end:
            self._line_limit = min(4 * self._line_limit, LONGEST_LINE)
        ahead = min(1 + request.hops_left, 1 + request.room, self._line_limit)
        found = self._execute(_SQL["first_ancestors"], {"id": event_id, "limit": ahead})
        line = [_row(*columns) for columns in found.fetchall()]
        self._line_end = line[-1].parents[0] if line and line[-1].parents else None
        return line

    def _children(self, parents: Sequence[bytes]) -> dict[bytes, list[bytes]]:
        """Return all children of some events, in order of their ids."""
        if len(parents) == 1:
            return {parents[0]: self._first_children(parents[0], ALL)}
        children: dict[bytes, list[bytes]] = {parent: [] for parent in parents}
        if parents:
            for parent, child in self._execute(_SQL["children_of_many"], {"ids": b"".join(parents)}).fetchall():
                children[parent].append(child)
        return children

    def _first_children(self, parent: bytes, limit: int) -> list[bytes]:
        return [child for (child,) in self._execute(_SQL["children_of_one"], (parent, limit)).fetchall()]


def _row(
    event_id: bytes,
    children: int,
    parents: bytes | None,
    event_type: str,
    source: str,
    happened_at: int,
    accepted_at: int,
    digest: bytes,
) -> Row:
    if parents is None:
        return Row.unseen(event_id, children)
    return Row(event_id, children, split_ids(parents), event_type, source, happened_at, accepted_at, digest)


def _record(connection: sqlite3.Connection, batches: Sequence[Sequence[Link]]) -> Sequence[None]:
    """Record what is new, and its edges with it."""
    rows = _first_rows(batches)
    known = connection.execute(_SQL["recorded"], {"ids": b"".join(rows)}).fetchall()
    for (event_id,) in known:
        del rows[event_id]
    _record_nodes(connection, rows.values())
    edges = [(parent, row.event_id) for row in rows.values() for parent in row.parents or ()]
    if edges:
        ends = b"".join([end for edge in edges for end in edge])
        connection.execute(_SQL["record_edges"], {"ends": ends})
    return [None] * len(batches)


def _record_at_once(connection: sqlite3.Connection, batches: Sequence[Sequence[Link]]) -> Sequence[None] | None:
    """Record events without causes; None, and nothing done, when one has some."""
    if any(link.parents for links in batches for link in links):
        return None
    _record_nodes(connection, _first_rows(batches).values())
    return [None] * len(batches)


_RECORD = Work(_record, _record_at_once)


def _first_rows(batches: Sequence[Sequence[Link]]) -> dict[bytes, Row]:
    """Return the rows by id, each id once: the first one wins."""
    rows: dict[bytes, Row] = {}
    for links in batches:
        for link in links:
            rows.setdefault(link.event_id.bytes, Row.of(link))
    return rows


def _record_nodes(connection: sqlite3.Connection, rows: Collection[Row]) -> None:
    """Record rows; one that is recorded already stays as it is."""
    entries: list[tuple[str | int, ...]] = []
    pieces: list[bytes] = []
    at = 1
    for event_id, _, parents, event_type, source, happened_at, accepted_at, digest in rows:
        joined = b"".join(parents or ())
        parents_at = at + len(event_id)
        digest_at = parents_at + len(joined)
        sizes = (at, parents_at, len(joined), digest_at, len(digest))
        entries.append((event_type, source, happened_at, accepted_at, *sizes))
        pieces += (event_id, joined, digest)
        at = digest_at + len(digest)
    values = packed(entries, pieces)
    if values is not None:
        connection.execute(_SQL["record_nodes"], values)
        return
    for row in rows:
        event_id, _, parents, *others = row
        connection.execute(_SQL["record_node"], (event_id, b"".join(parents or ()), *others))


def _purge(connection: sqlite3.Connection, before: int) -> int:
    rows = connection.execute(_SQL["accepted_before"], {"before": before, "limit": PURGE_CHUNK}).fetchall()
    for event_id, parents in rows:
        connection.executemany(_SQL["remove_edge"], [(parent, event_id) for parent in split_ids(parents)])
        connection.execute(_SQL["forget_node"], (event_id,))
        connection.execute(_SQL["remove_unnamed"], (event_id,))
    return len(rows)
