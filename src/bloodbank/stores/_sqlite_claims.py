"""Claims in the SQLite file: who may publish an event that nobody has recorded, until when."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from bloodbank._sqlite import Database, load_queries, load_script, now_microseconds
from bloodbank._sqlite_writer import Work
from bloodbank.stores.base import Claimed, ClaimState

FORMAT = 1
LONGEST_LEASE_MICROSECONDS = 900_000_000
"""A claim that ends later than that is not believed."""
EXPIRED_A_WRITE = 500
"""Most claims whose lease has ended that are removed while others are granted."""

_SCHEMA = load_script("bloodbank.stores", "claims_schema.sql")
_SQL = load_queries("bloodbank.stores", "claims.sql")


class Claim(NamedTuple):
    """What one call of `CorrelationStore.claim` asks for. lease: microseconds."""

    wanted: Sequence[tuple[UUID, bytes]]
    owner: bytes
    lease: int


class _Held(NamedTuple):
    """A claim as it is kept. ends_at: microseconds since 1970, UTC."""

    owner: bytes
    digest: bytes
    ends_at: int


async def ensure_claims(database: Database) -> None:
    """Create the table of claims unless it is there. Raises StoreFormatError, sqlite3.Error."""
    await database.ensure_format("claims", FORMAT, _SCHEMA)


def release(connection: sqlite3.Connection, event_ids: Sequence[UUID], owner: bytes) -> None:
    """Remove the claims on some events that this owner has."""
    connection.executemany(_SQL["release"], [(event_id.bytes, owner) for event_id in event_ids])


def _claim(connection: sqlite3.Connection, claims: Sequence[Claim]) -> Sequence[list[Claimed]]:
    """Answer calls in their order, as if each stood alone. Within a transaction that keeps all other writers out."""
    now = now_microseconds()
    connection.execute(_SQL["remove_expired"], {"now": now, "limit": EXPIRED_A_WRITE})
    ids = b"".join({event_id.bytes for claim in claims for event_id, _ in claim.wanted})
    recorded: dict[bytes, bytes] = dict(connection.execute(_SQL["recorded"], {"ids": ids}).fetchall())
    found = connection.execute(_SQL["held"], {"ids": ids, "now": now}).fetchall()
    held = {event_id: _Held(*columns) for event_id, *columns in found}
    # One that ends later than any can was made before the clock was set back.
    latest = now + LONGEST_LEASE_MICROSECONDS
    held = {event_id: claim for event_id, claim in held.items() if claim.ends_at <= latest}
    granted: dict[bytes, _Held] = {}
    answers: list[list[Claimed]] = []
    for wanted, owner, lease in claims:
        answer: list[Claimed] = []
        for event_id, digest in wanted:
            key = event_id.bytes
            other = held.get(key)
            if key in recorded:
                answer.append(Claimed(ClaimState.RECORDED, recorded[key]))
            elif other is not None and other.owner != owner:
                answer.append(Claimed(ClaimState.HELD, other.digest, (other.ends_at - now) / 1e6))
            else:
                held[key] = granted[key] = _Held(owner, digest, now + lease)
                answer.append(Claimed(ClaimState.GRANTED))
        answers.append(answer)
    connection.executemany(_SQL["grant"], [(event_id, *claim) for event_id, claim in granted.items()])
    return answers


CLAIM = Work(_claim)
