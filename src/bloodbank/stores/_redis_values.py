"""Values of the index in Redis and their bytes, as docs/redis-layout.md describes them.

how many parents (1 byte; 255: 2 bytes follow) · parents, 16 bytes each
type, source: number of the name in its generation (2 bytes each; 0: the text follows here)
[bytes of the text (2 bytes) · the text] for each that has no number
accepted_at (7 bytes) · the event's time minus that (4 bytes, signed), both in microseconds
    or 0x80 · accepted_at · the event's time (8 bytes each, signed), where those are too short
digest, up to the end
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from operator import add
from typing import NamedTuple
from uuid import UUID

from bloodbank.errors import StoreFormatError
from bloodbank.stores.assembly import made
from bloodbank.stores.base import Link, Row, microseconds, split_ids

_MANY = 255
_NEAR = struct.Struct(">qi")
_NEAR_MASK = (1 << 56) - 1
_FAR = struct.Struct(">Bqq")
_FAR_MARK = 0x80
_INLINE = b"\0\0"
_LENGTH = struct.Struct(">H")
_EVENT = struct.Struct(">16sHI")
_PART = struct.Struct(">I")
_HEAD = struct.Struct(">HII")
# Of a value with numbers for its names and times near each other: all but parents and digest.
_USUAL_BYTES = 16
_FAR_BIT = _FAR_MARK << 48
_FEW = 64

_NUMBERS = [bytes((number,)) for number in range(256)]

Kinds = Mapping[bytes, tuple[str, str]]
"""Type and source by the number of the generation (1 byte) and their own numbers (2 bytes each)."""


def pack_event(link: Link, kind: int) -> bytes:
    """Return an event as the script that records takes it. kind: number of its type and source in the same call."""
    event_id, parents, _, timestamp, _, accepted_at, digest = link
    first = pack_parents([parent.bytes for parent in parents])
    rest = pack_rest(microseconds(accepted_at), microseconds(timestamp), digest)
    return _EVENT.pack(event_id.bytes, kind, len(first)) + first + _PART.pack(len(rest)) + rest


def pack_parents(parents: Sequence[bytes]) -> bytes:
    """Return the first part of a value."""
    count = len(parents)
    if count < _MANY:
        return _NUMBERS[count] + b"".join(parents)
    return _NUMBERS[_MANY] + _LENGTH.pack(count) + b"".join(parents)


def pack_rest(accepted_at: int, happened_at: int, digest: bytes) -> bytes:
    """Return the last part of a value, after type and source. Times in microseconds since 1970."""
    apart = happened_at - accepted_at
    if 0 <= accepted_at < 1 << 55 and -(1 << 31) <= apart < 1 << 31:
        return _NEAR.pack(accepted_at, apart)[1:] + digest
    return _FAR.pack(_FAR_MARK, accepted_at, happened_at) + digest


class Kind(NamedTuple):
    """Type and source of an event as the script returned them. in_value: one of them stands in the value itself."""

    event_type: str
    source: str
    in_value: bool


class Group(NamedTuple):
    """What the script returned of events whose values have the same length and number of parents.

    length: 0 where they were only named.
    ids, events, children: end to end, in the same order; read.lua describes them.
    """

    length: int
    parents: int
    ids: bytes
    events: bytes
    children: bytes


def unpack(event_id: bytes, children_total: int, value: bytes, generation: bytes, kinds: Kinds) -> Row:
    """Return the row of a value. Raises StoreFormatError when this version did not write it."""
    try:
        return _unpack(event_id, children_total, value, kinds[generation + kind_of(value)])
    except (struct.error, ValueError, LookupError, OverflowError) as error:
        raise _unreadable(event_id, error) from error


def _unpack(event_id: bytes, children_total: int, value: bytes, names: tuple[str, str]) -> Row:
    at, end = _place_of_parents(value)
    parents = split_ids(value[at:end]) if at < end else ()
    kind = value[end : end + 4]
    event_type, source = names
    at = end + 4
    if kind[:2] == _INLINE:
        event_type, at = _text(value, at)
    if kind[2:] == _INLINE:
        source, at = _text(value, at)
    if value[at] & _FAR_MARK:
        _, accepted_at, happened_at = _FAR.unpack_from(value, at)
        at += 17
    else:
        accepted_at, apart = _NEAR.unpack_from(value, at - 1)
        accepted_at &= _NEAR_MASK
        happened_at = accepted_at + apart
        at += 11
    return Row(event_id, children_total, parents, event_type, source, happened_at, accepted_at, value[at:])


def _unreadable(event_id: bytes, error: Exception) -> StoreFormatError:
    return StoreFormatError(
        f"What Redis keeps of event {UUID(bytes=event_id)} cannot be read ({type(error).__name__}: {error}). Set "
        "BLOODBANK_REDIS_PREFIX to a name that nothing else uses; the index then begins empty."
    )


def digest_of(event_id: bytes, value: bytes) -> bytes:
    """Return the digest in a value, b"" for an empty one. Raises StoreFormatError."""
    try:
        return _unpack(event_id, 0, value, ("", "")).digest if value else b""
    except (struct.error, ValueError, LookupError, OverflowError) as error:
        raise _unreadable(event_id, error) from error


def parents_in(event_id: bytes, value: bytes) -> tuple[bytes, ...]:
    """Return the parents in a value. Raises StoreFormatError."""
    try:
        return _unpack(event_id, 0, value, ("", "")).parents or ()
    except (struct.error, ValueError, LookupError, OverflowError) as error:
        raise _unreadable(event_id, error) from error


def kind_of(value: bytes) -> bytes:
    """Return the numbers of type and source in a value, 2 bytes each. Raises IndexError, struct.error."""
    _, at = _place_of_parents(value)
    return value[at : at + 4]


def rows_of(group: Group, kinds: Sequence[Kind]) -> Sequence[Row]:
    """Return the rows of a group, in its order. kinds: by their number less 1. Raises StoreFormatError."""
    digest = group.length - 16 * group.parents - _USUAL_BYTES
    if digest >= 0 and group.parents < _MANY and not any(kind.in_value for kind in kinds):
        usual = _usual_rows(group, digest, kinds)
        if usual is not None:
            return usual
    return list(_any_rows(group, kinds))


def children_of(group: Group) -> Iterator[Sequence[bytes]]:
    """Yield the children that the script returned of each event of a group, in its order."""
    at = 0
    for [count] in struct.iter_unpack(f">6xI{group.length}x", group.events):
        yield _ids(count).unpack_from(group.children, at) if count else ()
        at += 16 * count


def _usual_rows(group: Group, digest: int, kinds: Sequence[Kind]) -> list[Row] | None:
    """Return the rows, column by column, of values whose times are near each other, with a digest of so many bytes.

    None when they are others of the same length.
    """
    numbers, ids_of = _usual(group.parents, digest)
    columns = tuple(zip(*numbers.iter_unpack(group.events), strict=True))
    kind, totals, times, apart, digests = columns
    if any(map(_FAR_BIT.__and__, times)):
        return None
    types = map(["", *[one.event_type for one in kinds]].__getitem__, kind)
    sources = map(["", *[one.source for one in kinds]].__getitem__, kind)
    accepted = list(map(_NEAR_MASK.__and__, times))
    happened = map(add, accepted, apart)
    ids = split_ids(group.ids)
    rows = zip(ids, totals, ids_of.iter_unpack(group.events), types, sources, happened, accepted, digests, strict=True)
    return made(Row, rows)


def _any_rows(group: Group, kinds: Sequence[Kind]) -> Iterator[Row]:
    size = _HEAD.size + group.length
    for at, event_id in zip(range(0, len(group.events), size), split_ids(group.ids), strict=True):
        head: tuple[int, int, int] = _HEAD.unpack_from(group.events, at)
        kind, total, _ = head
        if not kind:
            yield Row.unseen(event_id, total)
            continue
        try:
            event_type, source, _ = kinds[kind - 1]
            yield _unpack(event_id, total, group.events[at + _HEAD.size : at + size], (event_type, source))
        except (struct.error, ValueError, LookupError, OverflowError) as error:
            raise _unreadable(event_id, error) from error


@lru_cache(1000)
def _usual(parents: int, digest: int) -> tuple[struct.Struct, struct.Struct]:
    """Return how an event of so many parents is read: all but its parents, and these."""
    return (
        # The last byte of the kind stands before the times, to make a number of 8 bytes.
        struct.Struct(f">HI4x{1 + 16 * parents + 3}xQi{digest}s"),
        struct.Struct(f">11x{'16s' * parents}{15 + digest}x"),
    )


@lru_cache(_FEW + 1)
def _few_ids(count: int) -> struct.Struct:
    return struct.Struct("16s" * count)


def _ids(count: int) -> struct.Struct:
    return _few_ids(count) if count <= _FEW else struct.Struct("16s" * count)


def _place_of_parents(value: bytes) -> tuple[int, int]:
    count, at = value[0], 1
    if count == _MANY:
        [count], at = _LENGTH.unpack_from(value, 1), 3
    return at, at + 16 * count


def _text(value: bytes, at: int) -> tuple[str, int]:
    [length] = _LENGTH.unpack_from(value, at)
    end = at + 2 + length
    if end > len(value):
        raise ValueError(f"{len(value)} bytes where {end} are announced")
    return value[at + 2 : end].decode(), end
