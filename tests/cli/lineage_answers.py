"""Lineage answers for tests, made of short names by the same functions that answer over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from bloodbank.http.answers import lineage_body
from bloodbank.ids import event_id
from bloodbank.stores.assembly import assemble
from bloodbank.stores.base import Direction, Link, Row, Trail, Truncation

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def id_of(name: str) -> UUID:
    return event_id("test.node", name=name)


def answer_of(
    parents: Mapping[str, Iterable[str]],
    focus: str,
    direction: str = "ancestors",
    *,
    unseen: Iterable[str] = (),
    frontier: Iterable[str] = (),
    types: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the answer about a graph. parents: of each event, in the order of time. Types are `test.<name>`."""
    rows: dict[bytes, Row] = {}
    for place, (name, above) in enumerate(parents.items()):
        time = NOON + timedelta(seconds=place)
        event_type = (types or {}).get(name, f"test.{name}")
        link = Link(id_of(name), tuple(map(id_of, above)), event_type, time, "tests", time)
        rows[link.event_id.bytes] = Row.of(link)
    for name in unseen:
        rows[id_of(name).bytes] = Row.unseen(id_of(name).bytes, 0)
    cut = tuple(map(id_of, frontier))
    truncated = Truncation(bool(cut), False, cut)
    trail = Trail(id_of(focus).bytes, Direction(direction), dict.fromkeys(rows, 0), rows, truncated)
    return orjson.loads(lineage_body(assemble(trail)))
