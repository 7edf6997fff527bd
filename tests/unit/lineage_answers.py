"""Lineage answers for tests, made of short names by the same functions that answer over HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson

from bloodbank.http.answers import lineage_body
from bloodbank.ids import event_id
from bloodbank.stores.base import Direction, Link, Node, Truncation, assemble

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
    nodes: dict[UUID, Node] = {}
    for place, (name, above) in enumerate(parents.items()):
        time = NOON + timedelta(seconds=place)
        event_type = (types or {}).get(name, f"test.{name}")
        link = Link(id_of(name), tuple(map(id_of, above)), event_type, time, "tests", time)
        nodes[link.event_id] = Node(link.event_id, link, 0)
    for name in unseen:
        nodes[id_of(name)] = Node(id_of(name), None, 0)
    cut = tuple(map(id_of, frontier))
    graph = assemble(
        id_of(focus), Direction(direction), dict.fromkeys(nodes, 0), nodes, Truncation(bool(cut), False, cut)
    )
    return orjson.loads(lineage_body(graph))
