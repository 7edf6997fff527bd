"""Who gets which entry of the embedded log: durable groups that share, and readers for themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

import orjson

from bloodbank._sqlite import Database, now_microseconds, translated
from bloodbank.errors import TransportUnavailable
from bloodbank.transports._embedded_log import SQL, message_of
from bloodbank.transports.base import Message, matches

SCAN_LIMIT = 1000
"""Most entries looked at in one transaction while searching for some that fit a pattern."""
MAX_REASON_CHARACTERS = 4000
"""Longest reason kept with a dead letter; what is longer is cut."""
MICROSECONDS = 1_000_000


@dataclass(slots=True, eq=False)
class Claim:
    """An entry that was taken for a consumer.

    tried: it reached the consumer. settled: the consumer has said what becomes of it.
    """

    position: int
    attempt: int
    message: Message
    tried: bool = False
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Fetch:
    """What a group has for a consumer now.

    more: ask again at once. due_at: microseconds since 1970 when something may come up; None: nothing is pending.
    """

    claims: list[Claim]
    more: bool = False
    due_at: int | None = None


class Group(Protocol):
    """Where a subscription gets its entries and says what became of them. All raise TransportUnavailable."""

    async def join(self) -> None:
        """Begin; a new group begins behind what is in the log."""
        ...

    async def fetch(self, room: int) -> Fetch:
        """Take up to `room` entries."""
        ...

    async def renew(self, claims: Iterable[Claim]) -> None:
        """Say that the consumer lives."""
        ...

    async def ack(self, claim: Claim) -> None:
        """The work is done."""
        ...

    async def retry(self, claim: Claim, delay_seconds: float) -> None:
        """Hand it out again after a delay."""
        ...

    async def dead_letter(self, claim: Claim, reason: str) -> None:
        """Set it aside with the reason."""
        ...

    async def give_back(self, claims: Iterable[Claim]) -> None:
        """End, and let others have what was not settled."""
        ...


class DurableGroup:
    """One consumer of a group that outlives it; all state is in the file.

    Patterns of one group add up: each of its consumers gets what fits any of them.

    lease_seconds: how long others wait for this consumer when it gives no sign of life.
    """

    def __init__(self, database: Database, name: str, pattern: str, *, lease_seconds: float) -> None:
        self._database = database
        self._name = name
        self._pattern = pattern
        self._lease = int(lease_seconds * MICROSECONDS)
        self._owner = uuid4().bytes
        self._group_id = 0
        # Up to here nothing fits; saves looking again until the cursor in the file is moved.
        self._scanned = 0

    async def join(self) -> None:
        def work(connection: sqlite3.Connection) -> int:
            connection.execute(SQL["join_group"], {"name": self._name, "now": now_microseconds()})
            group_id: int = connection.execute(SQL["group_id"], (self._name,)).fetchone()[0]
            connection.execute(SQL["add_pattern"], (group_id, self._pattern))
            return group_id

        with translated(self._database.path, TransportUnavailable):
            self._group_id = await self._database.write(work)

    async def fetch(self, room: int) -> Fetch:
        with translated(self._database.path, TransportUnavailable):
            # A look first: while nothing is there, consumers do not take turns with the publishers.
            fetch = await self._database.read(self._look)
            if not fetch.more:
                return fetch
            return await self._database.write(lambda connection: self._take(connection, room))

    async def renew(self, claims: Iterable[Claim]) -> None:
        now = now_microseconds()
        leases = [self._row(claim) | {"due_at": now + self._lease} for claim in claims]

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(SQL["touch_group"], {"group_id": self._group_id, "now": now})
            connection.executemany(SQL["renew"], leases)

        with translated(self._database.path, TransportUnavailable):
            await self._database.write(work)

    async def ack(self, claim: Claim) -> None:
        with translated(self._database.path, TransportUnavailable):
            await self._database.write(lambda connection: self._settle(connection, claim))

    async def retry(self, claim: Claim, delay_seconds: float) -> None:
        row = self._row(claim) | {"due_at": now_microseconds() + int(delay_seconds * MICROSECONDS)}

        def work(connection: sqlite3.Connection) -> None:
            _require_held(connection.execute(SQL["postpone"], row), claim)

        with translated(self._database.path, TransportUnavailable):
            await self._database.write(work)

    async def dead_letter(self, claim: Claim, reason: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._settle(connection, claim)
            bury(connection, claim, reason, group_name=self._name)

        with translated(self._database.path, TransportUnavailable):
            await self._database.write(work)

    async def give_back(self, claims: Iterable[Claim]) -> None:
        now = now_microseconds()
        tried = [self._row(claim) | {"due_at": now} for claim in claims if claim.tried]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(SQL["postpone"], tried)
            # By owner: also what a fetch took whose answer nobody waited for.
            connection.execute(SQL["give_back_untried"], {"group_id": self._group_id, "owner": self._owner, "now": now})

        with translated(self._database.path, TransportUnavailable):
            await self._database.write(work)

    def _look(self, connection: sqlite3.Connection) -> Fetch:
        due_at: int | None = connection.execute(SQL["next_due"], (self._group_id,)).fetchone()[0]
        if due_at is not None and due_at <= now_microseconds():
            return Fetch([], more=True)
        start = max(self._scanned, self._cursor(connection))
        rows = connection.execute(SQL["keys_after"], (start, SCAN_LIMIT)).fetchall()
        fits = self._fits(connection)
        if len(rows) == SCAN_LIMIT or any(fits(key) for _, key in rows):
            return Fetch([], more=True)
        self._scanned = rows[-1][0] if rows else start
        return Fetch([], due_at=due_at)

    def _take(self, connection: sqlite3.Connection, room: int) -> Fetch:
        now = now_microseconds()
        due = {"group_id": self._group_id, "now": now, "room": room}
        taken: list[tuple[int, int]] = connection.execute(SQL["due"], due).fetchall()
        if len(taken) < room:
            taken += [(position, 0) for position in self._advance(connection, room - len(taken))]
        claims: list[Claim] = []
        for position, attempts in taken:
            row = connection.execute(SQL["message_at"], (position,)).fetchone()
            # Without one, the log has forgotten the entry while it waited; the purge removes what points to it.
            if row is not None:
                claims.append(Claim(position, attempts + 1, message_of(row)))
        lease = now + self._lease
        holds = [self._row(claim) | {"attempt": claim.attempt, "due_at": lease} for claim in claims]
        connection.executemany(SQL["hold"], holds)
        return Fetch(claims, more=True)

    def _advance(self, connection: sqlite3.Connection, room: int) -> list[int]:
        """Move the cursor over the next entries; return the positions of those that fit."""
        cursor = start = self._cursor(connection)
        fits = self._fits(connection)
        found: list[int] = []
        for position, routing_key in connection.execute(SQL["keys_after"], (start, SCAN_LIMIT)):
            cursor = position
            if fits(routing_key):
                found.append(position)
                if len(found) == room:
                    break
        if cursor != start:
            connection.execute(SQL["move_cursor"], {"group_id": self._group_id, "cursor": cursor})
        return found

    def _fits(self, connection: sqlite3.Connection) -> Callable[[str], bool]:
        patterns = [pattern for (pattern,) in connection.execute(SQL["patterns_of"], (self._group_id,)).fetchall()]
        return lambda routing_key: any(matches(pattern, routing_key) for pattern in patterns)

    def _cursor(self, connection: sqlite3.Connection) -> int:
        return connection.execute(SQL["cursor_of"], (self._group_id,)).fetchone()[0]

    def _settle(self, connection: sqlite3.Connection, claim: Claim) -> None:
        _require_held(connection.execute(SQL["settle"], self._row(claim)), claim)

    def _row(self, claim: Claim) -> dict[str, int | bytes]:
        return {"group_id": self._group_id, "position": claim.position, "owner": self._owner}


class EphemeralGroup:
    """One consumer for itself, from now on until it ends: its place in the log is kept in memory."""

    def __init__(self, database: Database, pattern: str) -> None:
        self._database = database
        self._pattern = pattern
        self._cursor = 0
        self._postponed: dict[int, tuple[int, Claim]] = {}

    async def join(self) -> None:
        with translated(self._database.path, TransportUnavailable):
            self._cursor = await self._database.read(lambda c: c.execute(SQL["last_position"]).fetchone()[0])

    async def fetch(self, room: int) -> Fetch:
        now = now_microseconds()
        due = sorted(position for position, (due_at, _) in self._postponed.items() if due_at <= now)[:room]
        claims = [self._postponed[position][1] for position in due]
        if len(claims) < room:
            with translated(self._database.path, TransportUnavailable):
                cursor, fresh = await self._database.read(lambda c: self._search(c, room - len(claims)))
            more = cursor != self._cursor
            self._cursor = cursor
            claims += fresh
        else:
            more = True
        # Not before: reading may have failed, and then these are due again.
        for position in due:
            del self._postponed[position]
        return Fetch(claims, more, min((due_at for due_at, _ in self._postponed.values()), default=None))

    async def renew(self, claims: Iterable[Claim]) -> None:
        """Nobody else waits for these."""

    async def ack(self, claim: Claim) -> None:
        """Nothing is kept."""

    async def retry(self, claim: Claim, delay_seconds: float) -> None:
        due_at = now_microseconds() + int(delay_seconds * MICROSECONDS)
        self._postponed[claim.position] = due_at, Claim(claim.position, claim.attempt + 1, claim.message)

    async def dead_letter(self, claim: Claim, reason: str) -> None:
        with translated(self._database.path, TransportUnavailable):
            await self._database.write(lambda c: bury(c, claim, reason, group_name=None))

    async def give_back(self, claims: Iterable[Claim]) -> None:
        """The group ends with its consumer."""

    def _search(self, connection: sqlite3.Connection, room: int) -> tuple[int, list[Claim]]:
        cursor = self._cursor
        claims: list[Claim] = []
        for position, routing_key in connection.execute(SQL["keys_after"], (cursor, SCAN_LIMIT)).fetchall():
            cursor = position
            if matches(self._pattern, routing_key):
                row = connection.execute(SQL["message_at"], (position,)).fetchone()
                claims.append(Claim(position, 1, message_of(row)))
                if len(claims) == room:
                    break
        return cursor, claims


def bury(connection: sqlite3.Connection, claim: Claim, reason: str, *, group_name: str | None) -> None:
    """Keep a copy of a message among the dead letters."""
    message = claim.message
    connection.execute(
        SQL["bury"],
        {
            "group_name": group_name,
            "attempt": claim.attempt,
            "reason": reason[:MAX_REASON_CHARACTERS].encode("utf-8", "replace").decode(),
            "now": now_microseconds(),
            "position": claim.position,
            "event_id": message.event_id.bytes,
            "routing_key": message.routing_key,
            "headers": orjson.dumps(dict(message.headers)),
            "body": message.body,
        },
    )


def _require_held(changed: sqlite3.Cursor, claim: Claim) -> None:
    if not changed.rowcount:
        raise TransportUnavailable(
            f"Event {claim.message.event_id} was held for longer than the lease and is delivered again. "
            "Nothing was changed; make the work idempotent, or raise BLOODBANK_LEASE_SECONDS."
        )
