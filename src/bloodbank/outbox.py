"""Accepted events that wait for the broker, on disk before anybody is told so.

A file of SQLite in the data folder, which several processes may share. One of them at a time forwards, under a lease:
it takes what is due in the order of acceptance, sends it, and removes it once the broker has confirmed. When it dies
in between, another sends the same ids again. Source: the transactional outbox of Chris Richardson, Microservices
Patterns, section 3.3.1, without the business transaction around it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import UUID

import orjson

from bloodbank._reserve import Reserve
from bloodbank._sqlite import Database, load_queries, load_script, moment, now_microseconds, packed, translated
from bloodbank._sqlite_writer import Job, T, Work, is_primary
from bloodbank.errors import EventConflict, NotOpen, OutboxFull, PublishUnknown, TransportUnavailable
from bloodbank.transports.base import Message

logger = logging.getLogger(__name__)

FORMAT = 1
BATCH_EVENTS = 500
"""Most events taken at a time; what is published directly meanwhile waits for its turn behind no more than these."""
BATCH_BYTES = 4_194_304
"""A batch ends with the event that reaches this many bytes of bodies."""
SHORTEST_LEASE_SECONDS = 15.0
LONGEST_POSTPONEMENT_SECONDS = 60.0
"""For no longer an event waits that the broker did not take."""
RESERVE_BYTES = 4_194_304
"""Room beside the file that is kept for removing events from it when the disk is full."""
_MICROSECONDS = 1_000_000

_SCHEMA = load_script("bloodbank", "outbox_schema.sql")
_SQL = load_queries("bloodbank", "outbox.sql")

Refusal = EventConflict | OutboxFull
Failure = Refusal | TransportUnavailable | PublishUnknown


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An event in the outbox.

    number: grows in the order of acceptance. accepted_at: aware, UTC. attempts: how often the broker did not take it.
    reason: why the broker refused it for good; None while it waits.
    """

    number: int
    event_id: UUID
    event_type: str
    accepted_at: datetime
    size_bytes: int
    attempts: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class OutboxTotals:
    """How much is in the outbox.

    waiting, set_aside: events; the same in bytes of bodies. used_bytes: of the file, which is what is limited.
    oldest_accepted_at: of the events that wait; None when none does.
    """

    waiting: int
    waiting_bytes: int
    set_aside: int
    set_aside_bytes: int
    used_bytes: int
    limit_bytes: int
    oldest_accepted_at: datetime | None


class Waiting(NamedTuple):
    """An event that is due, as the one who forwards gets it."""

    number: int
    accepted_at: datetime
    attempts: int
    message: Message


class Settled(NamedTuple):
    """What became of a batch.

    forwarded: numbers of what the broker has. postponed: number and seconds until it is due again, of what it did not
    take this time. set_aside: number and reason, of what it refused for good.
    """

    forwarded: Sequence[int] = ()
    postponed: Sequence[tuple[int, float]] = ()
    set_aside: Sequence[tuple[int, str]] = ()


NOTHING_SETTLED = Settled()


class Outbox:
    """The outbox in a file that others may share.

    database: entered while the outbox is open; others may enter it too.
    bus: name of the one bus that the file is for, without credentials; told to whoever finds it later.
    limit_bytes: most bytes of the file; beyond it nothing more is kept.
    lease_seconds: after this a process that forwarded and was not heard of again counts as dead.

    Its calls raise TransportUnavailable when the file cannot be used, NotOpen outside of `async with`.
    """

    def __init__(
        self, database: Database, *, limit_bytes: int, bus: str = "", lease_seconds: float = SHORTEST_LEASE_SECONDS
    ) -> None:
        self._database = database
        self._bus = bus
        self._lease_seconds = lease_seconds
        self._limit_bytes = limit_bytes
        self._reserve = Reserve(database.path.with_name(f"{database.path.name}-reserve"), size_bytes=RESERVE_BYTES)
        self._owner = secrets.token_bytes(16)
        self._keep = Work(self._keep_each, self._keep_at_once)
        self._open = False

    async def __aenter__(self) -> Self:
        """Open. Raises TransportUnavailable, StoreFormatError."""
        with self._translated():
            await self._database.__aenter__()
            try:
                await self._database.ensure_format("outbox", FORMAT, _SCHEMA)
                # Written once: a process must be able to start, and to forward, on a disk that is full.
                if await self._database.read(_bus_of) != self._bus:
                    await self._database.write(lambda connection: _name_bus(connection, self._bus))
                await asyncio.to_thread(self._reserve.fill)
            except BaseException:
                await self._database.__aexit__(None, None, None)
                raise
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent. What was given to `keep` before is written. `settle` ends the lease."""
        if not self._open:
            return
        self._open = False
        await self._database.__aexit__(kind, error, trace)

    async def keep(self, message: Message) -> None:
        """Return when an event is on the disk. Raises OutboxFull, and EventConflict for an id with another body.

        An event that is here already stays where it is; if it was set aside, it waits again. Raises PublishUnknown
        when the disk reports an error: the event may be kept all the same.
        """
        self._require_open()
        refusal = await self._kept(self._database.submit(self._keep, message))
        if refusal is not None:
            raise refusal

    async def keep_many(self, messages: Sequence[Message]) -> list[Failure | None]:
        """Keep several; return for each None or why not, as `keep` raises it."""
        self._require_open()
        # Each by itself: they share commits all the same, and one that is refused harms no other.
        futures = [self._database.submit(self._keep, message) for message in messages]
        answers: list[Failure | None] = []
        for future in futures:
            try:
                answers.append(await self._kept(future))
            except (TransportUnavailable, PublishUnknown) as error:
                answers.append(error)
        return answers

    async def _kept(self, future: asyncio.Future[Refusal | None]) -> Refusal | None:
        try:
            with self._translated():
                return await future
        except TransportUnavailable as error:
            if isinstance(error.__cause__, sqlite3.Error) and is_primary(error.__cause__, sqlite3.SQLITE_IOERR):
                # The commit may have reached the disk, and be found there at the next start.
                raise PublishUnknown(f"{error} The event may be kept; publishing the same id again is safe.") from error
            raise

    async def wait_again(self, event_id: UUID) -> bool:
        """Let an event that was set aside wait again, since somebody publishes it once more; False: none was."""
        self._require_open()
        values = (event_id.bytes,)
        with self._translated():
            row = await self._database.read(lambda connection: connection.execute(_SQL["kept"], values).fetchone())
        return row is not None and bool(row[3]) and await self.retry([event_id]) == 1

    async def has_due(self) -> bool:
        """Say whether something waits that may be sent now, by whomever it was accepted."""
        self._require_open()
        with self._translated():
            return bool(await self._database.read(lambda connection: _due(connection, limit=1)))

    async def exchange(self, settled: Settled = NOTHING_SETTLED, *, limit: int = BATCH_EVENTS) -> list[Waiting] | None:
        """Note what became of a batch, renew the lease and return the next one; in one transaction.

        None: another process forwards. An empty list: nothing is due.
        """
        self._require_open()

        def job(connection: sqlite3.Connection) -> list[Waiting] | None:
            _settle(connection, settled)
            return _take(connection, limit) if self._holds_lease(connection) else None

        return await self._write_although_full(job)

    async def settle(self, settled: Settled) -> None:
        """Note what became of a batch, and let others forward."""
        self._require_open()

        def job(connection: sqlite3.Connection) -> None:
            _settle(connection, settled)
            connection.execute(_SQL["end_lease"], {"owner": self._owner})

        await self._write_although_full(job)
        await asyncio.to_thread(self._reserve.fill)

    async def _write_although_full(self, job: Job[T]) -> T:
        """Run a job that makes room; when there is none left even for that, with what was kept for it."""
        try:
            with self._translated():
                return await self._database.write(job)
        except TransportUnavailable as error:
            if not (isinstance(error.__cause__, sqlite3.Error) and is_primary(error.__cause__, sqlite3.SQLITE_FULL)):
                raise
            if await asyncio.to_thread(self._reserve.spend):
                logger.warning("%s What is kept for that is used up to empty the outbox.", error)
            # A reader may have let the write-ahead log grow into all the room there was. SQLite begins it anew after a
            # commit only, and no commit has room.
            await self._database.fold_in()
        with self._translated():
            return await self._database.write(job)

    async def check(self) -> None:
        """See whether the disk takes an event; leaves nothing behind. Raises TransportUnavailable."""
        self._require_open()
        with self._translated():
            await self._database.write(lambda connection: connection.execute(_SQL["write_probe"]).rowcount)
            await self._database.write(lambda connection: connection.execute(_SQL["clear_probe"]).rowcount)

    async def totals(self) -> OutboxTotals:
        """Return how much is in the outbox."""
        self._require_open()
        with self._translated():
            return await self._database.read(self._count)

    async def entries(self, *, set_aside: bool | None = None, after: int = 0, limit: int = 100) -> list[OutboxEntry]:
        """Return entries in the order of acceptance.

        set_aside: only those that were refused for good, or only those that wait; None: all. after: a number, only
        later ones are listed.
        """
        self._require_open()
        kinds = "[0,1]" if set_aside is None else f"[{int(set_aside)}]"
        values = {"kinds": kinds, "after": after, "limit": limit}
        with self._translated():
            rows = await self._database.read(lambda connection: connection.execute(_SQL["entries"], values).fetchall())
        return [
            OutboxEntry(number, UUID(bytes=event_id), event_type, moment(accepted_at), size, attempts, reason)
            for number, event_id, event_type, accepted_at, size, attempts, reason in rows
        ]

    async def retry(self, event_ids: Sequence[UUID] | None = None) -> int:
        """Let events that were set aside wait again, with their place in the order; return how many.

        event_ids: default: all of them.
        """
        self._require_open()

        def job(connection: sqlite3.Connection) -> int:
            if event_ids is None:
                return connection.execute(_SQL["retry_all"]).rowcount
            return sum(connection.execute(_SQL["retry"], (event_id.bytes,)).rowcount for event_id in event_ids)

        with self._translated():
            return await self._database.write(job)

    async def drop(self, event_id: UUID) -> bool:
        """Delete an event that was set aside: it is gone for good. False: none with this id was set aside."""
        self._require_open()
        with self._translated():
            return await self._database.write(
                lambda connection: connection.execute(_SQL["drop"], (event_id.bytes,)).rowcount > 0
            )

    def _count(self, connection: sqlite3.Connection) -> OutboxTotals:
        waiting, set_aside = (0, 0), (0, 0)
        oldest: datetime | None = None
        for is_set_aside, count, size, first in connection.execute(_SQL["totals"]):
            if is_set_aside:
                set_aside = (count, size)
            else:
                waiting = (count, size)
                oldest = moment(connection.execute(_SQL["accepted_at"], (first,)).fetchone()[0])
        return OutboxTotals(*waiting, *set_aside, _used_bytes(connection), self._limit_bytes, oldest)

    def _keep_each(self, connection: sqlite3.Connection, messages: Sequence[Message]) -> Sequence[Refusal | None]:
        room = self._limit_bytes - _used_bytes(connection)
        outcomes: list[Refusal | None] = []
        now = now_microseconds()
        for message in messages:
            room -= len(message.body)
            if room < 0:
                outcomes.append(self._full())
                continue
            added = connection.execute(_SQL["keep"], _columns(message, now)).rowcount
            outcomes.append(None if added else _conflict(connection, message))
        return outcomes

    def _keep_at_once(
        self, connection: sqlite3.Connection, messages: Sequence[Message]
    ) -> Sequence[Refusal | None] | None:
        """Keep messages by one statement; None, and nothing done, when an id is there already or room is short."""
        size = sum([len(message.body) for message in messages])
        if size > BATCH_BYTES or size > self._limit_bytes - _used_bytes(connection):
            return None
        rows: list[tuple[str | int, ...]] = []
        pieces: list[bytes] = []
        at = 1
        for message in messages:
            digest_at = at + 16
            body_at = digest_at + len(message.digest)
            pieces += (message.event_id.bytes, message.digest, message.body)
            properties = _properties(message).decode()
            rows.append(
                (message.routing_key, properties, at, digest_at, len(message.digest), body_at, len(message.body))
            )
            at = body_at + len(message.body)
        values = packed(rows, pieces)
        if values is None:
            return None
        try:
            connection.execute(_SQL["keep_new"], values | {"now": now_microseconds()})
        except sqlite3.IntegrityError:
            return None
        return [None] * len(messages)

    def _full(self) -> OutboxFull:
        return OutboxFull(
            f"The broker does not take events now, and the outbox {self._database.path} is full "
            f"({self._limit_bytes} bytes, BLOODBANK_OUTBOX_LIMIT_BYTES). The event was not accepted; try again later."
        )

    def _holds_lease(self, connection: sqlite3.Connection) -> bool:
        now = now_microseconds()
        length = round(self._lease_seconds * _MICROSECONDS)
        row: tuple[bytes, int] | None = connection.execute(_SQL["lease"]).fetchone()
        # One that ends later than any can was taken before the clock was set back.
        if row is not None and row[0] != self._owner and now < row[1] <= now + length:
            return False
        connection.execute(_SQL["take_lease"], {"owner": self._owner, "until": now + length})
        return True

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._database.path, TransportUnavailable)

    def _require_open(self) -> None:
        if not self._open:
            raise NotOpen("The outbox is not open. Enter it first: `async with outbox`.")


@dataclass(frozen=True, slots=True)
class Stranded:
    """What lies in a data folder for another bus than the one that is open. causes: links of the journal."""

    path: Path
    bus: str
    events: int
    causes: int

    def __str__(self) -> str:
        kinds = [_counted(self.events, "event")] if self.events else []
        kinds += [f"the causes of {_counted(self.causes, 'event')}"] if self.causes else []
        whose = f" for {self.bus}" if self.bus else ""
        return (
            f"{self.path} holds {' and '.join(kinds)}{whose}, and nobody forwards that with these settings. Start a "
            "process with the settings of that bus; docs/operations.md says what to do when that bus has "
            "moved."
        )


def stranded(folder: Path, own: Path | None) -> list[Stranded]:
    """Return what lies in a folder for other buses. own: the file of the bus that is open. Blocks."""
    found: list[Stranded] = []
    for path in sorted(folder.glob("outbox-*.db")):
        if path == own:
            continue
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
                one = _look_into(path, connection)
        except sqlite3.Error as error:
            logger.warning("%s cannot be read, and may hold accepted events: %s", path, error)
            continue
        if one.events or one.causes:
            found.append(one)
    return found


def _look_into(path: Path, connection: sqlite3.Connection) -> Stranded:
    tables = {name for (name,) in connection.execute(_SQL["tables"])}
    bus = _bus_of(connection) if "outbox_bus" in tables else None
    events = connection.execute(_SQL["count_all"]).fetchone()[0] if "outbox" in tables else 0
    causes = connection.execute(_SQL["count_links"]).fetchone()[0] if "journal" in tables else 0
    return Stranded(path, bus or "", events, causes)


def describe_outbox(totals: OutboxTotals) -> str:
    """Say in words how much is in an outbox."""
    waits = f"{_counted(totals.waiting, 'event')} {'waits' if totals.waiting == 1 else 'wait'} for the broker."
    parts = [waits if totals.waiting else "Nothing waits for the broker."]
    if totals.used_bytes >= totals.limit_bytes:
        parts.append("It is full: while the broker is away, events are refused.")
    if totals.set_aside:
        were = "was" if totals.set_aside == 1 else "were"
        parts.append(f"{totals.set_aside} {were} refused by the broker for good; see 'bb outbox'.")
    return " ".join(parts)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _bus_of(connection: sqlite3.Connection) -> str | None:
    row = connection.execute(_SQL["bus"]).fetchone()
    return row[0] if row else None


def _name_bus(connection: sqlite3.Connection, name: str) -> None:
    connection.execute(_SQL["name_bus"], {"name": name})


def _used_bytes(connection: sqlite3.Connection) -> int:
    return connection.execute(_SQL["used_bytes"]).fetchone()[0]


def _conflict(connection: sqlite3.Connection, message: Message) -> EventConflict | None:
    """Return what to say of an id that is here already: None when it stands for the same event."""
    digest, routing_key, body, is_set_aside = connection.execute(_SQL["kept"], (message.event_id.bytes,)).fetchone()
    if message.digest and digest:
        same = message.digest == digest
    else:
        same = (message.routing_key, message.body) == (routing_key, body)
    if same:
        if is_set_aside:
            # It was answered as kept, so it must be sent.
            connection.execute(_SQL["retry"], (message.event_id.bytes,))
        return None
    return EventConflict(
        f"An event with the id {message.event_id} waits in the outbox with another body. That one stays; nothing was "
        "published. Give this event an id of its own."
    )


def _due(connection: sqlite3.Connection, *, limit: int) -> list[int]:
    """Return the numbers of the next batch, in order."""
    numbers: list[int] = []
    size = 0
    now = now_microseconds()
    latest = now + round(LONGEST_POSTPONEMENT_SECONDS * _MICROSECONDS)
    for number, bytes_of_body in connection.execute(_SQL["due"], {"now": now, "latest": latest, "limit": limit}):
        numbers.append(number)
        size += bytes_of_body
        if size >= BATCH_BYTES:
            break
    return numbers


def _take(connection: sqlite3.Connection, limit: int) -> list[Waiting]:
    numbers = orjson.dumps(_due(connection, limit=limit)).decode()
    return [_waiting(row) for row in connection.execute(_SQL["messages"], {"numbers": numbers})]


def _settle(connection: sqlite3.Connection, settled: Settled) -> None:
    if settled.forwarded:
        connection.execute(_SQL["forwarded"], {"numbers": orjson.dumps(settled.forwarded).decode()})
    now = now_microseconds()
    for number, seconds in settled.postponed:
        due_at = now + round(seconds * _MICROSECONDS)
        connection.execute(_SQL["postpone"], {"number": number, "due_at": due_at})
    for number, reason in settled.set_aside:
        connection.execute(_SQL["set_aside"], {"number": number, "reason": reason})


def _columns(message: Message, now: int) -> tuple[Any, ...]:
    body = message.body
    return message.event_id.bytes, now, message.routing_key, message.digest, _properties(message), len(body), body


def _properties(message: Message) -> bytes:
    return orjson.dumps((message.correlation_id, message.app_id, dict(message.headers)), str)


def _waiting(row: Sequence[Any]) -> Waiting:
    number, event_id, accepted_at, routing_key, digest, properties, body, attempts = row
    correlation_id, app_id, headers = orjson.loads(properties)
    cause = UUID(correlation_id) if correlation_id else None
    kept_headers: Mapping[str, str] = headers
    message = Message(UUID(bytes=event_id), routing_key, body, digest, cause, app_id, kept_headers)
    return Waiting(number, moment(accepted_at), attempts, message)
