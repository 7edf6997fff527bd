"""Records which events caused which (`recording`), and answers questions about it.

What publishing asks is bounded and never fails because the store is away; what people ask fails loudly.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from bloodbank.breaker import BreakerState, CircuitBreaker
from bloodbank.deferral import Journal, Lineage
from bloodbank.errors import EventNotFound, InvalidQuery, StoreFormatError, StoreUnavailable
from bloodbank.events.registry import utc_now
from bloodbank.ids import event_id as deterministic_event_id
from bloodbank.kinship import (
    MOST_EVENTS,
    CausalPath,
    Common,
    CommonCauses,
    Impact,
    impact_of,
    no_path,
    path_between,
)
from bloodbank.recording import Recorder
from bloodbank.stores.assembly import collector_paused
from bloodbank.stores.base import Claimed, CorrelationStore, Direction, Graph, Link, Node

__all__ = ["CorrelationTracker", "Lineage", "parse_direction"]

logger = logging.getLogger(__name__)

OWNER_BYTES = 16

LARGE = 2000
"""Graphs of more events are looked through in a thread, so that the event loop goes on."""
MOST_LOOKED_THROUGH = 10_000
"""Hops and events of each walk that stands behind a question whose answer is small."""

Answer = TypeVar("Answer")


class CorrelationTracker(Recorder):
    """Stands between publishing and a correlation store.

    store: opened and closed by the tracker; it may be unreachable when the tracker starts.
    timeout_seconds: longest wait of `record`, `find` and `claim` for the store, at most 1; `record` may wait as long
    again for the journal.
    query_timeout_seconds: longest wait of a question.
    batch_limit: most events recorded in one round trip.
    queue_limit: most events that wait; beyond it recording is deferred at once.
    retention_seconds: purge the store hourly of what is older; None for stores that expire by themselves.
    journal: keeps what cannot be recorded until it can; opened and closed by the tracker. None: the log alone has it.
    """

    def __init__(
        self,
        store: CorrelationStore,
        *,
        timeout_seconds: float = 0.5,
        query_timeout_seconds: float = 10.0,
        breaker: CircuitBreaker | None = None,
        batch_limit: int = 500,
        queue_limit: int = 10_000,
        retention_seconds: float | None = None,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(
            store,
            timeout_seconds=timeout_seconds,
            breaker=breaker,
            batch_limit=batch_limit,
            queue_limit=queue_limit,
            retention_seconds=retention_seconds,
            journal=journal,
        )
        self._query_timeout_seconds = query_timeout_seconds
        self._owner = secrets.token_bytes(OWNER_BYTES)

    @property
    def retry_after_seconds(self) -> float:
        """Seconds after which asking again makes sense while the store is away."""
        return max(1.0, self._breaker.seconds_until_probe)

    def generate_event_id(self, event_type: str, /, **unique_fields: Any) -> UUID:
        """Return the id that belongs to a type and its unique fields; see `bloodbank.ids.event_id`."""
        return deterministic_event_id(event_type, **unique_fields)

    async def add_correlation(
        self,
        child_event_id: UUID,
        parent_event_ids: Sequence[UUID],
        *,
        event_type: str = "correlation.added",
        source: str = "unknown",
    ) -> Lineage:
        """Record that some events caused another, without publishing it.

        For events that are on the bus already but not in the index, or that live elsewhere: what is said here
        stands in no envelope and is gone when the index is rebuilt. An event that the index knows stays as it is.

        Raises InvalidQuery when the event is its own parent.
        """
        if child_event_id in parent_event_ids:
            raise InvalidQuery(f"{child_event_id} cannot be its own parent; remove it from parent_event_ids.")
        now = utc_now()
        parents = tuple(dict.fromkeys(parent_event_ids))
        return await self.record(Link(child_event_id, parents, event_type, now, source, now))

    async def find(self, event_ids: Sequence[UUID]) -> dict[UUID, Node] | None:
        """Return what the index knows of some events within `timeout_seconds`; None when it is away or unreadable."""
        self._require_open()
        if self._breaker.state is not BreakerState.CLOSED:
            return None
        return await self._soon(self._store.nodes(event_ids), len(event_ids))

    async def accepted_at(self, event_id: UUID) -> datetime | None:
        """Return when an event was accepted, for a quick look into the log; None when the index does not say."""
        node = (await self.find([event_id]) or {}).get(event_id)
        return node.link.accepted_at if node is not None and node.link is not None else None

    async def claim(self, wanted: Sequence[tuple[UUID, bytes]], *, lease_seconds: float) -> list[Claimed] | None:
        """Claim events before they are published, each with its digest; see `CorrelationStore.claim`.

        Returns an answer for each within `timeout_seconds`; None when the index is away or unreadable, and then it
        is not known whether they are claimed.
        """
        self._require_open()
        if self._breaker.state is not BreakerState.CLOSED:
            return None
        claiming = self._store.claim(wanted, owner=self._owner, lease_seconds=lease_seconds)
        return await self._soon(claiming, len(wanted))

    async def release(self, event_ids: Sequence[UUID]) -> None:
        """Give up claims of this tracker, within `timeout_seconds`. Never raises: a claim also ends by itself."""
        if self._tasks and self._breaker.state is BreakerState.CLOSED:
            await self._soon(self._store.release(event_ids, owner=self._owner), len(event_ids))

    async def nodes(self, event_ids: Sequence[UUID]) -> dict[UUID, Node]:
        """Return what the index knows of some events; absent: never seen. Raises StoreUnavailable."""
        return await self._ask(lambda: self._store.nodes(event_ids))

    async def walk(self, event_id: UUID, direction: Direction | str, *, max_depth: int = 50, limit: int = 500) -> Graph:
        """Return the graph around an event; see `CorrelationStore.walk`.

        Raises InvalidQuery, EventNotFound, StoreUnavailable.
        """
        way = parse_direction(direction)
        _require_positive(max_depth, limit)
        return await self._ask(lambda: self._store.walk(event_id, way, max_depth=max_depth, limit=limit))

    async def get_parents(self, event_id: UUID) -> list[UUID]:
        """Return the direct causes of an event; empty for a root and for an unknown event."""
        node = (await self.nodes([event_id])).get(event_id)
        return list(node.parents) if node else []

    async def get_children(self, event_id: UUID, *, limit: int = 50_000) -> list[UUID]:
        """Return the direct effects of an event, in order; raises EventNotFound for an unknown event."""
        graph = await self.walk(event_id, Direction.DESCENDANTS, max_depth=1, limit=limit + 1)
        return [step.node.event_id for step in graph.steps if event_id in step.node.parents]

    async def get_correlation_chain(
        self, event_id: UUID, direction: Direction | str = Direction.ANCESTORS, max_depth: int = 100
    ) -> list[UUID]:
        """Return an event with its ancestors or its descendants, parents first. Raises as `walk`."""
        graph = await self.walk(event_id, direction, max_depth=max_depth, limit=50_000)
        return list(graph.ids)

    async def path(
        self, start: UUID, end: UUID, *, max_depth: int = MOST_LOOKED_THROUGH, limit: int = MOST_LOOKED_THROUGH
    ) -> CausalPath:
        """Return the shortest way by causes between two events, whichever of them led to the other.

        max_depth, limit: hops and events of each of the up to four walks that look for it. That there is no path is
        said only when nothing was cut short. Raises InvalidQuery, EventNotFound, StoreUnavailable.
        """
        _require_positive(max_depth, limit)

        async def look() -> CausalPath:
            known = await self._store.nodes([start, end])
            for event_id in (start, end):
                if event_id not in known:
                    raise EventNotFound(f"The index knows no event {event_id}. It may not be recorded yet.")
            looked_through: list[Graph] = []
            # Most events have fewer causes than effects, so effects are walked only where causes did not tell.
            for upper, lower in ((start, end), (end, start)):
                graphs: list[Graph] = []
                for focus, way in ((lower, Direction.ANCESTORS), (upper, Direction.DESCENDANTS)):
                    graph = await self._store.walk(focus, way, max_depth=max_depth, limit=limit)
                    if found := await _looked_through(graph, lambda graph: path_between(graph, start, end)):
                        return found
                    if not (graph.truncated.depth or graph.truncated.limit):
                        graphs = [graph]
                        break
                    graphs.append(graph)
                looked_through += graphs
            return no_path(start, end, looked_through, limit)

        return await self._ask(look)

    async def common_causes(
        self, event_ids: Sequence[UUID], *, max_depth: int = MOST_LOOKED_THROUGH, limit: int = MOST_LOOKED_THROUGH
    ) -> CommonCauses:
        """Return the lowest common causes of 2 to 16 different events.

        max_depth, limit: hops and events of the walk from each. Raises InvalidQuery, EventNotFound, StoreUnavailable.
        """
        _require_positive(max_depth, limit)
        asked = list(dict.fromkeys(event_ids))
        if not 2 <= len(asked) <= MOST_EVENTS:
            raise InvalidQuery(f"Common causes are those of 2 to {MOST_EVENTS} different events, not of {len(asked)}.")

        async def look() -> CommonCauses:
            up = Direction.ANCESTORS
            first = await self._store.walk(asked[0], up, max_depth=max_depth, limit=limit)
            common = Common(first, limit)
            for event_id in asked[1:]:
                graph = await self._store.walk(event_id, up, max_depth=max_depth, limit=limit)
                await _looked_through(graph, common.add)
            return await _looked_through(first, lambda _: common.lowest())

        return await self._ask(look)

    async def impact(
        self, event_id: UUID, *, max_depth: int = MOST_LOOKED_THROUGH, limit: int = MOST_LOOKED_THROUGH
    ) -> Impact:
        """Count what an event led to, by type, source and status. Raises as `walk`."""
        graph = await self.walk(event_id, Direction.DESCENDANTS, max_depth=max_depth, limit=limit)
        return await _looked_through(graph, impact_of)

    async def debug_dump(self, event_id: UUID, *, max_depth: int = 100, limit: int = 5000) -> dict[str, Any]:
        """Return parents, children, ancestors, descendants and metadata of an event, ready for JSON.

        The event itself is in none of the lists. Raises EventNotFound, StoreUnavailable.
        """
        up = await self.walk(event_id, Direction.ANCESTORS, max_depth=max_depth, limit=limit)
        down = await self.walk(event_id, Direction.DESCENDANTS, max_depth=max_depth, limit=limit)
        node = next(step.node for step in up.steps if step.node.event_id == event_id)
        link = node.link
        children = [step.node.event_id for step in down.steps if event_id in step.node.parents]
        return {
            "event_id": str(event_id),
            "parents": [str(parent) for parent in node.parents],
            "children": [str(child) for child in children],
            "ancestors": [str(i) for i in up.ids if i != event_id],
            "descendants": [str(i) for i in down.ids if i != event_id],
            "metadata": {
                "known": node.known,
                "event_type": link.event_type if link else None,
                "timestamp": link.timestamp.isoformat() if link else None,
                "source": link.source if link else None,
                "children_total": node.children_total,
                "truncated": any((up.truncated.depth, up.truncated.limit, down.truncated.depth, down.truncated.limit)),
            },
        }

    async def check(self) -> None:
        """Make one round trip to the store. Raises StoreUnavailable."""
        await self._ask(self._store.check)

    async def _soon(self, call: Awaitable[Answer], size: int) -> Answer | None:
        """Wait for the store within `timeout_seconds`; None when it is away or unreadable. size: ids asked for."""
        try:
            answer = await self._within(self._timeout_seconds, call)
        except TimeoutError as error:
            # Very many ids take long on a store that is well.
            if size <= self._batch_limit:
                self._failed(error, decisive=True)
            return None
        except StoreUnavailable as error:
            self._failed(error)
            return None
        except StoreFormatError as error:
            # Publishing asks this first, and what is wrong with the index must not stop it.
            logger.warning("The index cannot tell of an event: %s", error)
            return None
        self._breaker.record_success()
        return answer

    async def _ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer:
        self._require_open()
        if self._breaker.state is not BreakerState.CLOSED:
            raise StoreUnavailable(
                "The correlation store does not answer, so lineage cannot be told now. Events are still published. "
                f"Try again in {self.retry_after_seconds:.0f} s."
                + (f" The reason: {self.last_failure}" if self.last_failure else "")
            )
        try:
            async with asyncio.timeout(self._query_timeout_seconds):
                answer = await question()
        except StoreUnavailable as error:
            self._failed(error)
            raise
        except TimeoutError as error:
            raise StoreUnavailable(
                f"The correlation store did not answer within {self._query_timeout_seconds:g} s. Ask for less "
                "(max_depth, limit) or try again."
            ) from error
        self._breaker.record_success()
        return answer

    async def rebuild(self, links: Sequence[Link]) -> None:
        """Record events of the log, past the queue; when this returns, the index has them.

        Idempotent, and of no effect on those that are recorded already. Takes at most `query_timeout_seconds`.
        Raises StoreUnavailable, when some may be recorded; StoreFormatError.
        """
        await self._ask(lambda: self._store.record(links))


def _require_positive(max_depth: int, limit: int) -> None:
    if max_depth < 1 or limit < 1:
        raise InvalidQuery("max_depth and limit must be at least 1.")


async def _looked_through(graph: Graph, answer: Callable[[Graph], Answer]) -> Answer:
    return await asyncio.to_thread(_without_collector, answer, graph) if len(graph.steps) > LARGE else answer(graph)


def _without_collector(answer: Callable[[Graph], Answer], graph: Graph) -> Answer:
    with collector_paused():
        return answer(graph)


def parse_direction(text: str) -> Direction:
    """Return the direction of a name. Raises InvalidQuery that lists the names."""
    try:
        return Direction(text)
    except ValueError as error:
        names = ", ".join(Direction)
        raise InvalidQuery(f"{str(text)[:40]!r} is no direction. Use one of {names}.") from error
