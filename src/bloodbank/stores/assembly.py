"""From rows to the nodes and graphs of an answer.

Everything is made once for each event, and as much as possible by loops that run in C: for a large graph this takes
longer than reading it.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from operator import itemgetter, lt
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID, SafeUUID

from bloodbank.stores.base import NEVER, Graph, Link, Node, Row, Step, Trail
from bloodbank.stores.order import topological_order

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Below this (the year 2106) a float of seconds tells microseconds apart, and makes a time in half the time.
_EXACT = 2**32 * 1_000_000


def assemble(trail: Trail) -> Graph:
    """Put what a walk found into topological order, with all edges among it.

    Some microseconds an event: for thousands of them this belongs into a thread.
    """
    with collector_paused():
        return _assembled(trail)


def _assembled(trail: Trail) -> Graph:
    depths = trail.depths
    rows = sorted(map(trail.rows.__getitem__, depths), key=_RANK)
    nodes = _Nodes.of(rows)
    steps = made(Step, zip(nodes.nodes, map(depths.__getitem__, nodes.ids), strict=True))
    order, cycle = range(len(rows)), False
    if not nodes.ascending:
        order, cycle = topological_order(nodes.children())
        steps = [steps[number] for number in order]
    return Graph(
        focus=nodes.uuids[nodes.ids.index(trail.focus)],
        direction=trail.direction,
        steps=tuple(steps),
        edges=tuple(nodes.edges),
        roots=tuple([nodes.uuids[number] for number in order if nodes.named[number] == ()]),
        missing=tuple([nodes.uuids[number] for number in order if nodes.named[number] is None]),
        cycle=cycle,
        truncated=trail.truncated,
    )


# Time, then id.
_RANK = itemgetter(Row._fields.index("happened_at"), Row._fields.index("event_id"))


class _Nodes(NamedTuple):
    """The nodes of some rows, which are in order of their rank, and the edges among them. An id is one object.

    named: parents as the rows have them. inside: of these those that are among the rows.
    """

    ids: Sequence[bytes]
    uuids: Sequence[UUID]
    nodes: Sequence[Node]
    edges: Sequence[tuple[UUID, UUID]]
    named: Sequence[Sequence[bytes] | None]
    inside: Sequence[Sequence[bytes]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Self:
        """Make them, column by column."""
        columns = tuple(zip(*rows, strict=True)) if rows else ((),) * len(Row._fields)
        ids, totals, named, types, sources, happened, accepted, digests = columns
        # Events that were never seen come first.
        unseen = next((number for number, parents in enumerate(named) if parents is not None), len(rows))
        inside = ((),) * unseen + named[unseen:]
        uuids = uuids_of(ids)
        known = dict(zip(ids, uuids, strict=True))
        # What was named and lies beyond the depth or the limit of the walk.
        outside = set(chain.from_iterable(inside)).difference(known)
        uuid_of = (known | dict(zip(outside, uuids_of(outside), strict=True)) if outside else known).__getitem__
        parent_ids = [tuple(map(uuid_of, parents)) for parents in inside]
        links = zip(uuids, parent_ids, types, moments(happened), sources, moments(accepted), digests, strict=True)
        nodes = made(Node, zip(uuids, made(Link, links), totals, strict=True))
        nodes[:unseen] = [Node(uuids[number], None, totals[number]) for number in range(unseen)]
        if outside:
            inside = [[parent for parent in parents if parent in known] for parents in inside]
            parent_ids = [map(uuid_of, parents) for parents in inside]
        edges = [(parent, child) for child, parents in zip(uuids, parent_ids, strict=True) for parent in parents]
        return cls(ids, uuids, nodes, edges, named, inside)

    def places(self) -> tuple[Iterator[int], Iterator[int]]:
        """Return of each edge the numbers of the parent, and of the child."""
        place = dict(zip(self.ids, range(len(self.ids)), strict=True))
        parents = map(place.__getitem__, chain.from_iterable(self.inside))
        return parents, chain.from_iterable(map(repeat, range(len(self.ids)), map(len, self.inside)))

    @property
    def ascending(self) -> bool:
        """Whether every edge goes from an earlier to a later one, so that the order is topological already."""
        return all(map(lt, *self.places()))

    def children(self) -> list[list[int]]:
        """Return of each event which it caused, as numbers."""
        children: list[list[int]] = [[] for _ in self.ids]
        for parent, child in zip(*self.places(), strict=True):
            children[parent].append(child)
        return children


@contextmanager
def collector_paused() -> Generator[None]:
    """Keep the garbage collector from looking again and again through what is being made and all still needed.

    That took a third of the time of large graphs. Where several threads do this at once, the first to end lets it run.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def to_nodes(rows: Iterable[Row]) -> dict[UUID, Node]:
    """Make the nodes of some rows, by their ids."""
    return {node.event_id: node for node in _Nodes.of(sorted(rows, key=_RANK)).nodes}


def made(kind: type[T], fields: Iterable[tuple[object, ...]]) -> list[T]:
    """Make named tuples of one kind from the fields of each, in half the time of their own constructor."""
    return list(map(_new_tuple, repeat(kind), fields))


_new_tuple: Callable[[Any, tuple[object, ...]], Any] = vars(tuple)["__new__"]
_set_int: Callable[[UUID, int], None] = vars(UUID)["int"].__set__
_set_is_safe: Callable[[UUID, SafeUUID], None] = vars(UUID)["is_safe"].__set__


def uuids_of(packed: Collection[bytes]) -> list[UUID]:
    """Return the UUIDs of ids of 16 bytes, as `UUID(bytes=...)` does, in a quarter of its time.

    A UUID has two fields and keeps others from setting them; this sets them where it keeps them.
    """
    found = list(map(object.__new__, repeat(UUID, len(packed))))
    deque(map(_set_int, found, map(int.from_bytes, packed)), maxlen=0)
    deque(map(_set_is_safe, found, repeat(SafeUUID.unknown)), maxlen=0)
    return found


def moments(several: Sequence[int]) -> list[datetime]:
    """Return aware times, UTC, of microseconds since 1970. Raises OverflowError outside the years 1 to 9999."""
    if several and (min(several) <= -_EXACT or max(several) >= _EXACT):
        return [_EPOCH + timedelta(microseconds=0 if one == NEVER else one) for one in several]
    return list(map(datetime.fromtimestamp, [one / 1_000_000 for one in several], repeat(UTC)))
