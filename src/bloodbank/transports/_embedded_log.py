"""The rows of the embedded log: appended, read in pages and forgotten, on a connection that is given."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

import orjson

from bloodbank._sqlite import load_queries, load_script, microseconds, moment, now_microseconds, packed
from bloodbank._sqlite_writer import Work
from bloodbank.errors import EventConflict, PublishRejected
from bloodbank.transports.base import LogEntry, Message, Receipt

FORMAT = 3
PAGE_ENTRIES = 500
"""Most entries read at a time."""
PAGE_BYTES = 4_194_304
"""A page ends with the entry that reaches this many bytes of bodies."""
PURGE_CHUNK = 500
"""Most entries forgotten in one transaction, so that publishing does not wait for long."""
AT_ONCE_BYTES = 4_194_304
"""Most bytes of bodies in one statement: it keeps them until its next use."""
MAX_KEY_BYTES = 255
"""Longest routing key: an AMQP short string, so that every event fits every transport."""

SCHEMA = load_script("bloodbank.transports", "embedded_schema.sql")
UPGRADES = {old: load_script("bloodbank.transports", f"embedded_upgrade_{old}.sql") for old in (1, 2)}
SQL = load_queries("bloodbank.transports", "embedded.sql")
Entry = tuple[Message, str]
"""A message and its headers as JSON."""
Outcome = Receipt | EventConflict


def entry_of(message: Message) -> Entry:
    """Return a message ready to be appended. Raises PublishRejected when it cannot be kept."""
    try:
        size = len(message.routing_key.encode())
        headers = orjson.dumps(dict(message.headers)).decode()
        (message.app_id or "").encode()
    except (UnicodeEncodeError, TypeError) as error:
        raise PublishRejected(f"Event {message.event_id} has properties that are no text: {error}.") from error
    if not 1 <= size <= MAX_KEY_BYTES:
        raise PublishRejected(
            f"The routing key of event {message.event_id} has {size} bytes; 1 to {MAX_KEY_BYTES} are allowed."
        )
    return message, headers


def append(connection: sqlite3.Connection, batches: Sequence[Sequence[Entry]]) -> Sequence[Sequence[Outcome]]:
    """Write messages to the end of the log; return what became of each, a list for each batch."""
    now = now_microseconds()
    outcomes = _append_some(connection, [entry for batch in batches for entry in batch], now)
    return _by_batch(batches, outcomes)


def append_at_once(
    connection: sqlite3.Connection, batches: Sequence[Sequence[Entry]]
) -> Sequence[Sequence[Outcome]] | None:
    """Do it with one statement; None, and nothing done, when that is too much for one or an id is there already."""
    receipts = _append_new(connection, [entry for batch in batches for entry in batch], now_microseconds())
    return None if receipts is None else _by_batch(batches, receipts)


APPEND = Work(append, append_at_once)


def start_of(connection: sqlite3.Connection, after: int | None, since: datetime | None) -> tuple[int, int]:
    """Return the position behind which reading begins, and the last position there is."""
    last: int = connection.execute(SQL["last_position"]).fetchone()[0]
    start = after or 0
    if start < 0:
        row = connection.execute(SQL["position_from_end"], (-start,)).fetchone()
        start = row[0] if row else 0
    if since is not None:
        first: int | None = connection.execute(SQL["first_position_since"], (microseconds(since),)).fetchone()[0]
        start = max(start, last if first is None else first - 1)
    return start, last


def page(connection: sqlite3.Connection, after: int) -> list[LogEntry]:
    """Return the next entries behind a position, as many as one page holds; none at the end of the log."""
    entries: list[LogEntry] = []
    size = 0
    for row in connection.execute(SQL["entries_after"], (after, PAGE_ENTRIES)):
        entries.append(LogEntry(row[0], moment(row[1]), message_of(row)))
        size += len(entries[-1].message.body)
        if size >= PAGE_BYTES:
            break
    return entries


def find(connection: sqlite3.Connection, event_id: UUID) -> Message | None:
    """Return a message of the log, or None."""
    row = connection.execute(SQL["message"], (event_id.bytes,)).fetchone()
    return message_of(row) if row else None


def message_of(row: Sequence[Any]) -> Message:
    """Return the message of a row with position, logged_at and what follows."""
    _, _, event_id, routing_key, body, digest, correlation_id, app_id, headers, *_ = row
    return Message(
        event_id=UUID(bytes=event_id),
        routing_key=routing_key,
        body=body,
        digest=digest,
        correlation_id=UUID(bytes=correlation_id) if correlation_id else None,
        app_id=app_id,
        headers=orjson.loads(headers),
    )


def probe(connection: sqlite3.Connection) -> None:
    """Make the transaction touch the disk, and leave nothing behind."""
    connection.execute(SQL["write_probe"], (now_microseconds(),))
    connection.execute(SQL["clear_probe"])


def purge(connection: sqlite3.Connection, before: int) -> bool:
    """Forget a chunk of what is older than a time in microseconds; say whether there may be more."""
    chunk = {"before": before, "limit": PURGE_CHUNK}
    entries = connection.execute(SQL["purge_log"], chunk).rowcount
    dead_letters = connection.execute(SQL["purge_dead_letters"], chunk).rowcount
    groups = connection.execute(SQL["purge_groups"], {"before": before}).rowcount
    if groups:
        connection.execute(SQL["purge_patterns"])
        connection.execute(SQL["purge_resent_of_groups"])
    if entries or groups:
        connection.execute(SQL["purge_deliveries"])
    return PURGE_CHUNK in (entries, dead_letters)


def _by_batch(batches: Sequence[Sequence[Entry]], outcomes: Sequence[Outcome]) -> Sequence[Sequence[Outcome]]:
    if len(batches) == len(outcomes):
        return [[outcome] for outcome in outcomes]
    following = iter(outcomes)
    return [list(islice(following, len(batch))) for batch in batches]


def _append_some(connection: sqlite3.Connection, entries: Sequence[Entry], now: int) -> Sequence[Outcome]:
    """Find those that are there already, or too large, by halves: they are few among many as a rule."""
    if len(entries) == 1:
        return [_append_one(connection, entries[0], now)]
    if receipts := _append_new(connection, entries, now):
        return receipts
    half = len(entries) // 2
    return [*_append_some(connection, entries[:half], now), *_append_some(connection, entries[half:], now)]


def _append_new(connection: sqlite3.Connection, entries: Sequence[Entry], now: int) -> Sequence[Receipt] | None:
    """Append messages by one statement; None, and nothing done, when an id is there already or it would hold much."""
    if sum([len(message.body) for message, _ in entries]) > AT_ONCE_BYTES:
        return None
    rows: list[tuple[str | int | None, ...]] = []
    pieces: list[bytes] = []
    at = 1
    for (event_id, routing_key, body, digest, correlation_id, app_id, _), headers in entries:
        digest_at = at + 16
        body_at = digest_at + len(digest)
        end = body_at + len(body)
        pieces += (event_id.bytes, digest, body)
        if correlation_id is None:
            rows.append((routing_key, app_id, headers, at, digest_at, len(digest), None, body_at, len(body)))
            at = end
        else:
            rows.append((routing_key, app_id, headers, at, digest_at, len(digest), end, body_at, len(body)))
            pieces.append(correlation_id.bytes)
            at = end + 16
    values = packed(rows, pieces)
    if values is None:
        return None
    try:
        last = connection.execute(SQL["append_new"], values | {"now": now}).lastrowid or 0
    except sqlite3.IntegrityError:
        return None
    # One INSERT gives one position after the other: nobody else writes meanwhile, and none was left out.
    return [Receipt(entry[0].event_id, False, position) for position, entry in enumerate(entries, last - len(rows) + 1)]


def _append_one(connection: sqlite3.Connection, entry: Entry, now: int) -> Outcome:
    message, _ = entry
    event_id = message.event_id
    added = connection.execute(SQL["append"], _columns(entry, now))
    if added.rowcount:
        return Receipt(event_id, position=added.lastrowid)
    position, routing_key, digest, body = connection.execute(SQL["published_before"], (event_id.bytes,)).fetchone()
    if message.digest and digest:
        same = message.digest == digest
    else:
        same = (message.routing_key, message.body) == (routing_key, body)
    if same:
        return Receipt(event_id, duplicate=True, position=position)
    return EventConflict(
        f"An event with the id {event_id} is in the log with another body. That one stays; nothing was published. "
        "Give this event an id of its own."
    )


def _columns(entry: Entry, now: int) -> tuple[Any, ...]:
    (event_id, routing_key, body, digest, correlation_id, app_id, _), headers = entry
    caused_by = None if correlation_id is None else correlation_id.bytes
    return event_id.bytes, now, routing_key, digest, caused_by, app_id, headers.encode(), body
