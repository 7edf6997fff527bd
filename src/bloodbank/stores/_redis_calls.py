"""What both Redis stores send and take: arguments of scripts, answers, and the question whether a format fits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from uuid import UUID

from bloodbank.errors import EventNotFound, StoreFormatError
from bloodbank.stores import base
from bloodbank.stores._redis_reading import Ask, Command, Keys, Reader, long_key
from bloodbank.stores._redis_values import digest_of, pack_event, unpack
from bloodbank.stores.assembly import assemble
from bloodbank.stores.base import Claimed, ClaimState, Direction, Graph, Link, Row

T = TypeVar("T")

LINKS_PER_SCRIPT = 100
"""Events written by one run of a script, which blocks the server meanwhile: at most some milliseconds."""
ROWS_ON_THE_LOOP = 1000
"""Larger graphs are put together in a thread: about 4 microseconds an event, in which nothing else would run."""


def parts(several: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield what one run of a script takes at a time."""
    for start in range(0, len(several), LINKS_PER_SCRIPT):
        yield several[start : start + LINKS_PER_SCRIPT]


def packed_events(links: Sequence[Link]) -> tuple[bytes, list[bytes]]:
    """Return events as the scripts that record take them, and the types and sources that they number."""
    kinds: dict[tuple[str, str], int] = {}
    events: list[bytes] = []
    for link in links:
        kind = kinds.setdefault((link.event_type, link.source), len(kinds) + 1)
        events.append(pack_event(link, kind))
    return b"".join(events), [name.encode() for kind in kinds for name in kind]


def claim_arguments(
    keys: Keys, version: bytes, wanted: Sequence[tuple[UUID, bytes]], owner: bytes, lease_seconds: float
) -> Command:
    """Return the arguments of claim.lua."""
    head = (2, keys.format, keys.generations, version, keys.prefix)
    rest = (bytes((len(owner),)) + owner, max(1, round(lease_seconds * 1000)))
    return (*head, *rest, *(one for event_id, digest in wanted for one in (event_id.bytes, digest)))


def release_arguments(keys: Keys, event_ids: Sequence[UUID], owner: bytes) -> Command:
    """Return the arguments of release.lua."""
    claims = [keys.claim(event_id.bytes) for event_id in event_ids]
    return (len(claims), *claims, bytes((len(owner),)) + owner)


def claimed(event_id: UUID, answer: int | bytes | tuple[int, bytes]) -> Claimed:
    """Return what one answer of claim.lua says."""
    if isinstance(answer, bytes):
        return Claimed(ClaimState.RECORDED, digest_of(event_id.bytes, answer))
    if isinstance(answer, int):
        return Claimed(ClaimState.GRANTED)
    milliseconds_left, digest = answer
    return Claimed(ClaimState.HELD, digest, max(0, milliseconds_left) / 1000)


def refuse_format(found: bytes | None, version: bytes, prefix: bytes, address: str) -> None:
    """Raise StoreFormatError for another version than the one that the caller reads. found: None for no index."""
    if found is not None and found != version:
        raise StoreFormatError(
            f"The index in Redis at {address} has format {found[:20].decode('ascii', 'replace')}, and this "
            f"version reads {version.decode()}. Nothing was changed. Set BLOODBANK_REDIS_PREFIX to another name, or "
            f"delete the keys {prefix.decode()}*: the index then begins empty. Or wait until they expire, "
            "CORRELATION_TTL_DAYS after the last event."
        )


async def walked(event_id: UUID, direction: Direction, reader: Reader, *, max_depth: int, limit: int) -> Graph:
    """Answer what a walk asks until it ends, and make its graph. Raises EventNotFound, and what the reader raises."""
    walk = base.walk(event_id, direction, max_depth=max_depth, limit=limit)
    request = next(walk)
    while True:
        answer = await reader.expand(request)
        try:
            request = walk.send(answer)
        except StopIteration as stop:
            trail = cast("base.Trail | None", stop.value)
            break
    if trail is None:
        raise EventNotFound(f"The index knows no event {event_id}. It may not be recorded yet, or have expired.")
    if len(trail.depths) > ROWS_ON_THE_LOOP:
        return await asyncio.to_thread(assemble, trail)
    return assemble(trail)


@dataclass(frozen=True, slots=True)
class _Kept:
    """An event in its bucket, as a purge finds it."""

    bucket: bytes
    event_id: bytes
    value: bytes


async def accepted_before(moment: int, buckets: Sequence[bytes], ask: Ask) -> list[tuple[bytes, Row]]:
    """Return the events of some buckets that were accepted before a time (microseconds), each with its bucket."""
    contents: list[Any] = await ask([("HGETALL", bucket) for bucket in buckets])
    kept = [
        _Kept(bucket, event_id, value)
        for bucket, content in zip(buckets, contents, strict=True)
        for event_id, value in content.items()
    ]
    elsewhere = [one for one in kept if not one.value]
    values = await ask([("GET", long_key(one.bucket.rpartition(b":e:")[0], one.event_id)) for one in elsewhere])
    kept = [one for one in kept if one.value]
    kept += [_Kept(one.bucket, one.event_id, value) for one, value in zip(elsewhere, values, strict=True) if value]
    # Types and sources do not matter here, so that every number has an empty name.
    anything: defaultdict[bytes, tuple[str, str]] = defaultdict(lambda: ("", ""))
    rows = [(one.bucket, unpack(one.event_id, 0, one.value, b"", anything)) for one in kept]
    return [(bucket, row) for bucket, row in rows if row.accepted_at < moment]
