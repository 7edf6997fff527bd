"""What is beside the embedded log: dead letters, and what groups are given again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import orjson

from bloodbank._sqlite import moment, now_microseconds
from bloodbank.errors import InvalidQuery
from bloodbank.transports._embedded_log import SQL, entry_of, message_of
from bloodbank.transports.base import DeadLetter, Failure, Message, matches_any

PAGE_LETTERS = 200
"""Most dead letters read at a time."""
CHUNK = 500
"""Most messages that are given back, discarded or replayed in one transaction."""
_LARGEST_NUMBER = (1 << 63) - 1


def bury(
    connection: sqlite3.Connection,
    message: Message,
    failure: Failure,
    *,
    group_name: str,
    attempts: int,
    first_at: int | None,
    replayed: bool,
) -> None:
    """Keep a copy of a message among the dead letters. `first_at`: microseconds since 1970."""
    kept = failure.kept()
    connection.execute(
        SQL["bury"],
        _columns(message)
        | {
            "group_name": group_name,
            "reason": kept.reason,
            "error": kept.error,
            "traceback": kept.traceback,
            "consumer": kept.consumer,
            "attempts": attempts,
            "first_at": first_at,
            "dead_at": now_microseconds(),
            "replayed": replayed,
        },
    )


def page(connection: sqlite3.Connection, after: int, group: str | None) -> list[DeadLetter]:
    """Return the next dead letters behind a number, of a group or of all; none at the end."""
    asked = {"after": after, "group_name": group, "limit": PAGE_LETTERS}
    return [
        DeadLetter(
            number=number,
            group=group_name,
            message=message_of(message),
            failure=Failure(reason, error, traceback, consumer),
            attempts=attempts,
            first_at=None if first_at is None else moment(first_at),
            dead_at=moment(dead_at),
        )
        for (
            number,
            group_name,
            reason,
            error,
            traceback,
            consumer,
            attempts,
            first_at,
            dead_at,
            *message,
        ) in connection.execute(SQL["dead_letters_after"], asked)
    ]


def count(connection: sqlite3.Connection) -> int:
    """Return how many dead letters there are."""
    return connection.execute(SQL["count_dead_letters"]).fetchone()[0]


def require_groups_of(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Raise InvalidQuery when dead letters have a group that is not there any more."""
    rows = connection.execute(SQL["groups_of_dead_letters"], {"numbers": _json(numbers)})
    wanted = {name for (name,) in rows if name}
    if missing := wanted - _groups(connection).keys():
        raise InvalidQuery(_no_group(min(missing)))


def redeliver(connection: sqlite3.Connection, numbers: Sequence[int]) -> int:
    """Put dead letters back to their groups; return how many. Raises InvalidQuery as `require_groups_of`."""
    require_groups_of(connection, numbers)
    now = now_microseconds()
    found = connection.execute(SQL["numbers_with_group"], {"numbers": _json(numbers)}).fetchall()
    for number, group_id in found:
        position = connection.execute(SQL["resend_dead_letter"], (number,)).lastrowid
        connection.execute(SQL["deliver_resent"], {"group_id": group_id, "position": position, "now": now})
    connection.execute(SQL["discard"], {"numbers": _json(number for number, _ in found)})
    return len(found)


def discard(connection: sqlite3.Connection, numbers: Sequence[int]) -> int:
    """Take dead letters off the list; return how many."""
    return connection.execute(SQL["discard"], {"numbers": _json(numbers)}).rowcount


def replay(connection: sqlite3.Connection, messages: Sequence[Message], group: str | None) -> None:
    """Give messages to a group, or to all groups that want them. Raises InvalidQuery for a group that is not there."""
    groups = _groups(connection)
    if group is not None and group not in groups:
        raise InvalidQuery(_no_group(group))
    now = now_microseconds()
    for message in messages:
        takers = _takers(connection, groups, message) if group is None else [groups[group]]
        for group_id in takers:
            position = connection.execute(SQL["resend"], _columns(message)).lastrowid
            connection.execute(SQL["deliver_resent"], {"group_id": group_id, "position": position, "now": now})


def _takers(connection: sqlite3.Connection, groups: dict[str, int], message: Message) -> list[int]:
    return [
        group_id
        for group_id in groups.values()
        if matches_any(
            [pattern for (pattern,) in connection.execute(SQL["patterns_of"], (group_id,))], message.routing_key
        )
    ]


def _groups(connection: sqlite3.Connection) -> dict[str, int]:
    return {name: group_id for group_id, name in connection.execute(SQL["groups"])}


def _columns(message: Message) -> dict[str, str | bytes | int | None]:
    message, headers = entry_of(message)
    return {
        "event_id": message.event_id.bytes,
        "routing_key": message.routing_key,
        "digest": message.digest,
        "correlation_id": None if message.correlation_id is None else message.correlation_id.bytes,
        "app_id": message.app_id,
        "headers": headers.encode(),
        "body": message.body,
    }


def _json(numbers: Iterable[int]) -> str:
    return orjson.dumps([number for number in numbers if number <= _LARGEST_NUMBER]).decode()


def _no_group(name: str) -> str:
    return f"There is no group {name!r}. Nothing was sent. A group is there once a consumer of it has subscribed."
