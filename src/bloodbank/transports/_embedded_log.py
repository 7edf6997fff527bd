"""The rows of the embedded log: appended, read in pages and forgotten, on a connection that is given."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from bloodbank._sqlite import load_queries, load_script, microseconds, moment, now_microseconds
from bloodbank.errors import EventConflict, PublishRejected
from bloodbank.transports.base import LogEntry, Message, Receipt

FORMAT = 1
PAGE_ENTRIES = 500
"""Most entries read at a time."""
PAGE_BYTES = 4_194_304
"""A page ends with the entry that reaches this many bytes of bodies."""
PURGE_CHUNK = 500
"""Most entries forgotten in one transaction, so that publishing does not wait for long."""
MAX_KEY_BYTES = 255
"""Longest routing key: an AMQP short string, so that every event fits every transport."""

SCHEMA = load_script("bloodbank.transports", "embedded_schema.sql")
SQL = load_queries("bloodbank.transports", "embedded.sql")

Row = dict[str, Any]


def row_of(message: Message) -> Row:
    """Return a message as the columns of the log. Raises PublishRejected when it cannot be kept."""
    try:
        size = len(message.routing_key.encode())
        headers = orjson.dumps(dict(message.headers))
        (message.app_id or "").encode()
    except (UnicodeEncodeError, TypeError) as error:
        raise PublishRejected(f"Event {message.event_id} has properties that are no text: {error}.") from error
    if not 1 <= size <= MAX_KEY_BYTES:
        raise PublishRejected(
            f"The routing key of event {message.event_id} has {size} bytes; 1 to {MAX_KEY_BYTES} are allowed."
        )
    return {
        "event_id": message.event_id.bytes,
        "routing_key": message.routing_key,
        "digest": message.digest,
        "correlation_id": message.correlation_id.bytes if message.correlation_id else None,
        "app_id": message.app_id,
        "headers": headers,
        "body": message.body,
    }


def append(connection: sqlite3.Connection, rows: Sequence[Row]) -> list[Receipt | EventConflict]:
    """Write messages to the end of the log; return what became of each."""
    return [_append_one(connection, row) for row in rows]


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
    _, _, event_id, routing_key, body, digest, correlation_id, app_id, headers = row
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
    if entries or groups:
        connection.execute(SQL["purge_deliveries"])
    return PURGE_CHUNK in (entries, dead_letters)


def _append_one(connection: sqlite3.Connection, row: Row) -> Receipt | EventConflict:
    event_id = UUID(bytes=row["event_id"])
    added = connection.execute(SQL["append"], row | {"logged_at": now_microseconds()})
    if added.rowcount:
        return Receipt(event_id, position=added.lastrowid)
    position, routing_key, digest, body = connection.execute(SQL["published_before"], (row["event_id"],)).fetchone()
    if row["digest"] and digest:
        same = row["digest"] == digest
    else:
        same = (row["routing_key"], row["body"]) == (routing_key, body)
    if same:
        return Receipt(event_id, duplicate=True, position=position)
    return EventConflict(
        f"An event with the id {event_id} is in the log with another body. That one stays; nothing was published. "
        "Give this event an id of its own."
    )
