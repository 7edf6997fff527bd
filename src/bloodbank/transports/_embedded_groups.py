"""Who gets which entry of the embedded log: durable groups that share, and readers for themselves."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from bloodbank._sqlite import Database, now_microseconds, translated
from bloodbank.errors import TransportUnavailable
from bloodbank.transports._embedded_dead_letters import bury
from bloodbank.transports._embedded_log import SQL, message_of, start_of
from bloodbank.transports.base import Failure, GroupState, Message, Start, matches_any

SCAN_LIMIT = 1000
"""Most entries looked at in one transaction while searching for some that fit a pattern."""
GROUPS_SCAN = 100_000
"""Most log entries that are gone through to count what waits for groups."""
ALL = -1
"""No limit, as SQLite writes it."""
FIRST_RESENT = 1 << 62
"""From here on positions are not those of the log: what a group is given beside it."""
MICROSECONDS = 1_000_000


@dataclass(slots=True, eq=False)
class Claim:
    """An entry that was taken for a consumer.

    first_at: when it was taken for the first time, microseconds since 1970; None where nobody noted it.
    tried: it reached the consumer. settled: the consumer has said what becomes of it.
    """

    position: int
    attempt: int
    message: Message
    first_at: int | None
    replayed: bool = False
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
        """Begin; a new group begins where it was told to."""
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

    async def dead_letter(self, claim: Claim, failure: Failure, attempts: int) -> None:
        """Set it aside with what is known of the failure."""
        ...

    async def give_back(self, claims: Iterable[Claim]) -> None:
        """End, and let others have what was not settled."""
        ...


class DurableGroup:
    """One consumer of a group that outlives it; all state is in the file.

    patterns: those of one group add up: each of its consumers gets what fits any of them.
    start: where it begins when it is new.
    lease_seconds: how long others wait for this consumer when it gives no sign of life.
    """

    def __init__(
        self, database: Database, name: str, patterns: Sequence[str], *, start: Start, lease_seconds: float
    ) -> None:
        self._database = database
        self._name = name
        self._patterns = patterns
        self._start: Start = start
        self._lease = int(lease_seconds * MICROSECONDS)
        self._owner = uuid4().bytes
        self._group_id = 0
        # Up to here nothing fits; saves looking again until the cursor in the file is moved.
        self._scanned = 0

    async def join(self) -> None:
        def work(connection: sqlite3.Connection) -> int:
            now = now_microseconds()
            row = connection.execute(SQL["group_id"], (self._name,)).fetchone()
            if row is None:
                new = {"name": self._name, "cursor": cursor_at(connection, self._start), "now": now}
                group_id = connection.execute(SQL["add_group"], new).lastrowid or 0
            else:
                group_id = row[0]
                connection.execute(SQL["touch_group"], {"group_id": group_id, "now": now})
            connection.executemany(SQL["add_pattern"], [(group_id, pattern) for pattern in self._patterns])
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

    async def dead_letter(self, claim: Claim, failure: Failure, attempts: int) -> None:
        def work(connection: sqlite3.Connection) -> None:
            self._settle(connection, claim)
            _bury(connection, claim, failure, attempts, self._name)

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
        taken: list[tuple[int, int, int | None]] = connection.execute(SQL["due"], due).fetchall()
        if len(taken) < room:
            taken += [(position, 0, None) for position in self._advance(connection, room - len(taken))]
        claims: list[Claim] = []
        for position, attempts, first_at in taken:
            is_resent = position >= FIRST_RESENT
            row = connection.execute(SQL["resent_at"] if is_resent else SQL["message_at"], (position,)).fetchone()
            # Without one, the log has forgotten the entry while it waited; the purge removes what points to it.
            if row is not None:
                begun = first_at if attempts else now
                claims.append(Claim(position, attempts + 1, message_of(row), begun, is_resent and bool(row[-1])))
        lease = now + self._lease
        holds = [
            self._row(claim) | {"attempt": claim.attempt, "due_at": lease, "first_at": claim.first_at}
            for claim in claims
        ]
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
        return lambda routing_key: matches_any(patterns, routing_key)

    def _cursor(self, connection: sqlite3.Connection) -> int:
        return connection.execute(SQL["cursor_of"], (self._group_id,)).fetchone()[0]

    def _settle(self, connection: sqlite3.Connection, claim: Claim) -> None:
        _require_held(connection.execute(SQL["settle"], self._row(claim)), claim)
        if claim.position >= FIRST_RESENT:
            connection.execute(SQL["settle_resent"], (claim.position,))

    def _row(self, claim: Claim) -> dict[str, int | bytes]:
        return {"group_id": self._group_id, "position": claim.position, "owner": self._owner}


class EphemeralGroup:
    """One consumer for itself until it ends: its place in the log is kept in memory."""

    def __init__(self, database: Database, patterns: Sequence[str], *, start: Start) -> None:
        self._database = database
        self._patterns = patterns
        self._start: Start = start
        self._cursor = 0
        self._postponed: dict[int, tuple[int, Claim]] = {}

    async def join(self) -> None:
        with translated(self._database.path, TransportUnavailable):
            self._cursor = await self._database.read(lambda connection: cursor_at(connection, self._start))

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
        again = Claim(claim.position, claim.attempt + 1, claim.message, claim.first_at)
        self._postponed[claim.position] = due_at, again

    async def dead_letter(self, claim: Claim, failure: Failure, attempts: int) -> None:
        with translated(self._database.path, TransportUnavailable):
            await self._database.write(lambda connection: _bury(connection, claim, failure, attempts, ""))

    async def give_back(self, claims: Iterable[Claim]) -> None:
        """The group ends with its consumer."""

    def _search(self, connection: sqlite3.Connection, room: int) -> tuple[int, list[Claim]]:
        cursor = self._cursor
        claims: list[Claim] = []
        for position, routing_key in connection.execute(SQL["keys_after"], (cursor, SCAN_LIMIT)).fetchall():
            cursor = position
            if matches_any(self._patterns, routing_key):
                row = connection.execute(SQL["message_at"], (position,)).fetchone()
                claims.append(Claim(position, 1, message_of(row), now_microseconds()))
                if len(claims) == room:
                    break
        return cursor, claims


def unsettled(connection: sqlite3.Connection) -> dict[str, int]:
    """Return how many messages each group has been given and not settled, or will be given; those with none are out."""
    counts: dict[str, int] = {}
    for name, group_id, cursor, held in connection.execute(SQL["held_by_group"]).fetchall():
        patterns = [pattern for (pattern,) in connection.execute(SQL["patterns_of"], (group_id,)).fetchall()]
        coming = connection.execute(SQL["keys_after"], (cursor, ALL))
        count = held + sum(matches_any(patterns, key) for _, key in coming)
        if count:
            counts[name] = count
    return counts


def states(connection: sqlite3.Connection) -> list[GroupState]:
    """Return how far each group is, by name. At most GROUPS_SCAN entries of the log are looked at for all of them.

    What waits for a group that is far ahead waits for those behind it too, so the log is gone through once, from its
    end to the cursor that is furthest behind.
    """
    coming: Counter[str] = Counter()
    until: int = connection.execute(SQL["last_position"]).fetchone()[0]
    room = GROUPS_SCAN
    found: list[GroupState] = []
    for group_id, name, cursor, held, delivered in connection.execute(SQL["group_states"], {"now": now_microseconds()}):
        if cursor < until and room:
            asked = {"after": cursor, "until": until, "limit": room}
            counts = Counter(dict(connection.execute(SQL["count_keys"], asked).fetchall()))
            room -= counts.total()
            coming += counts
            until = cursor if room else until
        patterns = tuple(
            sorted(pattern for (pattern,) in connection.execute(SQL["patterns_of"], (group_id,)).fetchall())
        )
        fits = sum(count for key, count in coming.items() if matches_any(patterns, key))
        found.append(GroupState(name, patterns, held - delivered + fits, delivered, more=cursor < until and not room))
    return sorted(found, key=lambda state: state.name)


def cursor_at(connection: sqlite3.Connection, start: Start) -> int:
    """Return the position behind which a new group begins."""
    if start == "beginning":
        return 0
    if start == "now":
        return connection.execute(SQL["last_position"]).fetchone()[0]
    return start_of(connection, None, start)[0]


def _bury(connection: sqlite3.Connection, claim: Claim, failure: Failure, attempts: int, group_name: str) -> None:
    bury(
        connection,
        claim.message,
        failure,
        group_name=group_name,
        attempts=attempts,
        first_at=claim.first_at,
        replayed=claim.replayed,
    )


def _require_held(changed: sqlite3.Cursor, claim: Claim) -> None:
    if not changed.rowcount:
        raise TransportUnavailable(
            f"Event {claim.message.event_id} was held for longer than the lease and is delivered again. "
            "Nothing was changed; make the work idempotent, or raise BLOODBANK_LEASE_SECONDS."
        )
