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
from uuid import UUID

from bloodbank.errors import StoreFormatError
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
_HEAD = struct.Struct(">16sBIII")

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


def unpack(event_id: bytes, children_total: int, value: bytes, generation: bytes, kinds: Kinds) -> Row:
    """Return the row of a value. Raises StoreFormatError when this version did not write it."""
    try:
        at, end = _place_of_parents(value)
        parents = split_ids(value[at:end]) if at < end else ()
        kind = value[end : end + 4]
        event_type, source = kinds[generation + kind]
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
    except (struct.error, ValueError, LookupError, OverflowError) as error:
        raise StoreFormatError(
            f"What Redis keeps of event {UUID(bytes=event_id)} cannot be read ({type(error).__name__}: {error}). Set "
            "BLOODBANK_REDIS_PREFIX to a name that nothing else uses, and rebuild the index from the log."
        ) from error


def kind_of(value: bytes) -> bytes:
    """Return the numbers of type and source in a value, 2 bytes each. Raises IndexError, struct.error."""
    _, at = _place_of_parents(value)
    return value[at : at + 4]


def split_answer(answer: bytes, kinds: Kinds) -> Iterator[tuple[Row, bytes]]:
    """Yield the rows that the script returned end to end, each with the children listed. Raises StoreFormatError."""
    at = 0
    while at < len(answer):
        head: tuple[bytes, int, int, int, int] = _HEAD.unpack_from(answer, at)
        event_id, generation, total, listed, length = head
        value_at = at + _HEAD.size
        children_at = value_at + length
        at = children_at + 16 * listed
        if generation:
            row = unpack(event_id, total, answer[value_at:children_at], _NUMBERS[generation], kinds)
        else:
            row = Row.unseen(event_id, total)
        yield row, answer[children_at:at]


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
