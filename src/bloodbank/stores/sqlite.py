"""The index of causes in SQLite: one row an event, one an edge, and walks that ask level by level in one call."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import UUID

from bloodbank._sqlite import Database, load_queries, load_script, microseconds, moment, translated
from bloodbank.errors import EventNotFound, NotOpen, StoreUnavailable
from bloodbank.stores import base
from bloodbank.stores.base import Direction, Expand, Expansion, Graph, Link, Node

FORMAT = 1
PURGE_CHUNK = 500
"""Most events forgotten in one transaction, so that recording does not wait for long."""
ALL = -1
"""No limit, as SQLite writes it."""

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
            await self._database.write(lambda connection: _record(connection, links))

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return what is known of some events; absent: never seen and never named as a parent."""
        self._require_open()
        with translated(self._database.path, StoreUnavailable):
            return await self._database.read(lambda connection: _Reader(connection).nodes(event_ids))

    async def walk(self, event_id: UUID, direction: Direction, *, max_depth: int, limit: int) -> Graph:
        """Return the graph around an event, from one snapshot. Raises EventNotFound, StoreUnavailable."""
        self._require_open()
        with translated(self._database.path, StoreUnavailable):
            graph = await self._database.read(
                lambda connection: _drive(
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


def _drive(walk: base.Walk, reader: _Reader) -> Graph | None:
    """Answer what a walk asks until it has its graph."""
    try:
        request = next(walk)
        while True:
            request = walk.send(reader.expand(request))
    except StopIteration as end:
        return end.value


class _Ids(dict[bytes, UUID]):
    """Ids by their bytes. One that comes up often is one object, since making them costs much of a walk."""

    def __missing__(self, packed: bytes) -> UUID:
        event_id = self[packed] = UUID(bytes=packed)
        return event_id


class _Reader:
    """Reads rows as nodes and their neighbours."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._ids = _Ids()

    def expand(self, request: Expand) -> Expansion:
        """Answer one request of a walk."""
        found = self.nodes(request.event_ids)
        limit = request.neighbour_limit
        if request.direction is Direction.ANCESTORS:
            return {event_id: (node, sorted(node.parents)[:limit]) for event_id, node in found.items()}
        few = [node.event_id for node in found.values() if 0 < node.children_total <= limit]
        children = self._children(few)
        for event_id, node in found.items():
            if node.children_total > limit:
                children[event_id] = self._first_children(event_id, limit)
        return {event_id: (node, children.get(event_id, ())) for event_id, node in found.items()}

    def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return the nodes of the ids that are known."""
        if len(event_ids) == 1:
            rows = self._execute(_SQL["node"], (event_ids[0].bytes,))
        else:
            rows = self._execute(_SQL["nodes"], {"ids": _packed(event_ids)})
        return {(node := self._node(*row)).event_id: node for row in rows.fetchall()}

    def _children(self, parents: Sequence[UUID]) -> dict[UUID, list[UUID]]:
        """Return all children of some events, in order of their ids."""
        if len(parents) == 1:
            return {parents[0]: self._first_children(parents[0], ALL)}
        ids = self._ids
        children: dict[UUID, list[UUID]] = {parent: [] for parent in parents}
        for parent, child in self._execute(_SQL["children_of_many"], {"ids": _packed(parents)}).fetchall():
            children[ids[parent]].append(ids[child])
        return children

    def _first_children(self, parent: UUID, limit: int) -> list[UUID]:
        ids = self._ids
        return [ids[child] for (child,) in self._execute(_SQL["children_of_one"], (parent.bytes, limit)).fetchall()]

    def _node(
        self,
        packed_id: bytes,
        children: int,
        parents: bytes | None,
        event_type: str,
        source: str,
        happened_at: int,
        accepted_at: int,
        digest: bytes,
    ) -> Node:
        ids = self._ids
        event_id = ids[packed_id]
        if parents is None:
            return Node(event_id, None, children)
        parent_ids = tuple([ids[parents[start : start + 16]] for start in range(0, len(parents), 16)])
        link = Link(event_id, parent_ids, event_type, moment(happened_at), source, moment(accepted_at), digest)
        return Node(event_id, link, children)


def _record(connection: sqlite3.Connection, links: Iterable[Link]) -> None:
    for link in links:
        event_id = link.event_id.bytes
        recorded = connection.execute(
            _SQL["record_node"],
            {
                "id": event_id,
                "parents": _packed(link.parents),
                "event_type": link.event_type,
                "source": link.source,
                "happened_at": microseconds(link.timestamp),
                "accepted_at": microseconds(link.accepted_at),
                "digest": link.digest,
            },
        )
        if recorded.rowcount and link.parents:
            connection.executemany(_SQL["record_edge"], [(parent.bytes, event_id) for parent in link.parents])


def _purge(connection: sqlite3.Connection, before: int) -> int:
    rows = connection.execute(_SQL["accepted_before"], {"before": before, "limit": PURGE_CHUNK}).fetchall()
    for event_id, parents in rows:
        edges = [(parents[start : start + 16], event_id) for start in range(0, len(parents), 16)]
        connection.executemany(_SQL["remove_edge"], edges)
        connection.execute(_SQL["forget_node"], (event_id,))
        connection.execute(_SQL["remove_unnamed"], (event_id,))
    return len(rows)


def _packed(event_ids: Iterable[UUID]) -> bytes:
    return b"".join([event_id.bytes for event_id in event_ids])
