"""Event ids: new ones in order of time, and deterministic ones.

Sources: RFC 9562 section 5.7 (UUIDv7), 5.5 (UUIDv5) and 6.2 (monotonic counters).
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from threading import Lock
from typing import Any, cast
from uuid import UUID, SafeUUID, uuid5

import orjson

NAMESPACE = UUID("b100dba2-0000-5000-8000-33c0d0000002")
"""The namespace of all deterministic event ids. It never changes: ids depend on it."""

SHORT_LENGTHS = (13, 18, 23)
"""Where a UUID may be cut. The first twelve digits of a UUIDv7 are its millisecond: fewer tell nothing apart."""

_VERSION_7 = 0x7000
_VARIANT = 0x2 << 62
_62_BITS = 0x3FFF_FFFF_FFFF_FFFF
_RANDOM_NUMBERS = struct.Struct("=512Q")
_lock = Lock()
_last_tick = 0
_random: Iterator[int] = iter(())


def new_event_id() -> UUID:
    """Return a new UUIDv7: 48 bits of Unix milliseconds, 12 bits of sub-millisecond time, 62 random bits.

    Ids made by one process ascend strictly, also when its clock steps back.
    """
    global _last_tick, _random
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    # 1/4096 ms, method 3 of RFC 9562 section 6.2.
    tick = milliseconds << 12 | rest * 4096 // 1_000_000
    with _lock:
        if tick <= _last_tick:
            tick = _last_tick + 1
        _last_tick = tick
        random_bits = next(_random, None)
        if random_bits is None:
            # Many at a time: asking the system for 8 bytes costs as much as all the rest of this.
            _random = iter(_RANDOM_NUMBERS.unpack(os.urandom(_RANDOM_NUMBERS.size)))
            random_bits = next(_random)
    first_half = tick >> 12 << 16 | _VERSION_7 | tick & 0xFFF
    return uuid_of(first_half << 64 | _VARIANT | random_bits & _62_BITS)


def uuid_of(number: int) -> UUID:
    """Return the UUID of a number of 128 bits, which is not checked: at less than half the price of `UUID(int=…)`."""
    made = _new(UUID)
    # A UUID refuses plain assignment; these two are all it holds.
    _set(made, "int", number)
    _set(made, "is_safe", _UNKNOWN)
    return made


_new = object.__new__
_set = object.__setattr__
_UNKNOWN = SafeUUID.unknown


def _forget_random() -> None:
    global _lock, _random
    _lock = Lock()
    _random = iter(())


# A forked process must not go on with its parent's random bytes, nor with a lock that another thread held.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_random)


def time_of(event_id: UUID) -> datetime | None:
    """Return when a UUIDv7 was made (aware, UTC, to the millisecond), or None for other versions."""
    if event_id.version != 7:
        return None
    try:
        return datetime.fromtimestamp((event_id.int >> 80) / 1000, UTC)
    except (ValueError, OverflowError):
        return None


def event_id(event_type: str, /, **fields: Any) -> UUID:
    """Return the UUIDv5 that belongs to a type and the fields which make an event unique.

    The name is canonical JSON of `[event_type, fields]` with sorted keys, so different fields never
    meet: `a="1|b=2"` is not `a="1", b="2"`, and `1` is neither `"1"` nor `1.0`. UUIDs and dates count
    as the strings that JSON makes of them.

    Raises ValueError for values that JSON cannot hold without loss (NaN, infinities, integers beyond
    64 bits, keys that are not strings, objects).
    """
    if not event_type:
        raise ValueError("event_type is empty; give the type of the event, such as 'llm.prompt'")
    try:
        name = orjson.dumps([event_type, fields], option=orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError as error:
        raise ValueError(f"the fields of an event id must be JSON values: {error}") from error
    # Afterwards, because by now the fields are known to have an end.
    _refuse_what_json_would_change(fields)
    return uuid5(NAMESPACE, name.decode())


def _refuse_what_json_would_change(value: object) -> None:
    stack: list[object] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"the fields of an event id must be JSON values, and {item} is none")
        if isinstance(item, dict):
            stack.extend(cast("dict[object, object]", item).values())
        elif isinstance(item, list | tuple):
            stack.extend(cast("list[object] | tuple[object, ...]", item))


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """Map ids to beginnings that tell them apart, all of one length; each is a prefix that commands take."""
    wanted = set(ids)
    for length in SHORT_LENGTHS:
        if len({event_id[:length] for event_id in wanted}) == len(wanted):
            return {event_id: event_id[:length] for event_id in wanted}
    return {event_id: event_id for event_id in wanted}
