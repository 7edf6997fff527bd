"""The causes of events that come one by one: their short ids and, where somebody knows them, their types."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from uuid import UUID

from bloodbank.cli.bus import Bus, Json
from bloodbank.cli.text import Span, printable
from bloodbank.errors import BloodbankError, EventNotFound
from bloodbank.ids import SHORT_LENGTHS

MOST_SHOWN = 3
"""Most causes in the line of an event."""
MOST_KNOWN = 10_000
"""Most causes that are remembered, also those whose type nobody knows."""
PAUSE_SECONDS = 5.0
"""How long the index is left alone when it cannot be asked."""


class Causes:
    """Tells the causes of the events of one tail. What it has seen itself it does not ask for."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._types: OrderedDict[str, str | None] = OrderedDict()
        self._ask_from = 0.0

    async def of(self, event: Json) -> list[Span]:
        """Return the end of an event's line; nothing for one without causes."""
        self._remember(event["event_id"], event["event_type"])
        parents: list[str] = event["correlation_ids"]
        spans: list[Span] = []
        for parent in parents[:MOST_SHOWN]:
            known = await self._type_of(parent)
            spans.append(Span(", " if spans else "← ", "dim"))
            spans.append(Span(parent[: SHORT_LENGTHS[0]], "cyan"))
            if known is not None:
                spans.append(Span(f" {printable(known)}", "dim"))
        if len(parents) > MOST_SHOWN:
            spans.append(Span(f" and {len(parents) - MOST_SHOWN} more", "dim"))
        return spans

    async def _type_of(self, event_id: str) -> str | None:
        if event_id in self._types:
            self._types.move_to_end(event_id)
            return self._types[event_id]
        now = asyncio.get_running_loop().time()
        if now < self._ask_from:
            return None
        known = None
        try:
            answer = await self._bus.lineage(UUID(event_id), "ancestors", max_depth=1, limit=1)
            known = next((node["event_type"] for node in answer["nodes"] if node["id"] == event_id), None)
        except EventNotFound:
            pass
        except BloodbankError:
            # The line is worth more than the types in it: tracking may be off, or the index away.
            self._ask_from = now + PAUSE_SECONDS
            return None
        # One that nobody knows is not asked for again with each of its effects; should it come, it is seen here.
        self._remember(event_id, known)
        return known

    def _remember(self, event_id: str, event_type: str | None) -> None:
        self._types[event_id] = event_type
        if len(self._types) > MOST_KNOWN:
            self._types.popitem(last=False)
