"""What the bus does now: rates by type, how far groups are, the outbox and the dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from bloodbank.errors import BloodbankError
from bloodbank.events.registry import utc_now
from bloodbank.http.feed import Feed
from bloodbank.outbox import Outbox

T = TypeVar("T")

MOST_TYPES_TOLD = 200
TIMEOUT_SECONDS = 2.0
"""Longest time for each of the questions that are asked of the bus."""
FRESH_SECONDS = 1.0
"""How long the answers to them serve those who ask: they may cost more than an answer is worth."""


class Statistics:
    """Tells what the bus does. feed: counts events; its transport is asked for the rest. outbox: None where none is."""

    def __init__(self, feed: Feed, outbox: Outbox | None) -> None:
        self._feed = feed
        self._outbox = outbox
        self._asking = asyncio.Lock()
        self._asked_at: float | None = None
        self._standing: dict[str, Any] = {}

    async def answer(self) -> dict[str, Any]:
        """Return what `GET /stats` does; see `Stats`."""
        feed = self._feed
        await feed.start()
        standing = await self._what_stands()
        rates = feed.rates
        per_second = rates.per_second()
        return {
            "now": utc_now(),
            "since": feed.since,
            "events_per_second": {"last_second": float(per_second[-1]), "last_minute": sum(per_second) / 60},
            "per_second": per_second,
            "types": [
                {
                    "event_type": known.event_type,
                    "last_minute": known.last_minute,
                    "total": known.total,
                    "last_seen": known.last_seen,
                }
                for known in rates.types(MOST_TYPES_TOLD)
            ],
            "trouble": None if feed.trouble is None else {"code": feed.trouble.code, "detail": str(feed.trouble)},
            **standing,
        }

    async def _what_stands(self) -> dict[str, Any]:
        async with self._asking:
            if self._asked_at is None or time.monotonic() >= self._asked_at + FRESH_SECONDS:
                async with asyncio.TaskGroup() as tasks:
                    parts = [tasks.create_task(part) for part in (self._groups(), self._kept(), self._dead_letters())]
                self._standing = {name: value for part in parts for name, value in part.result().items()}
                self._asked_at = time.monotonic()
            return self._standing

    async def _groups(self) -> dict[str, Any]:
        states, detail = await _asked(self._feed.transport.groups)
        told = [
            {
                "group": state.name,
                "patterns": state.patterns,
                "waiting": state.waiting,
                "more": state.more,
                "delivered": state.delivered,
            }
            for state in states or []
        ]
        return {"groups": told, "groups_detail": detail}

    async def _dead_letters(self) -> dict[str, Any]:
        count, detail = await _asked(self._feed.transport.dead_letter_count)
        return {"dead_letters": count, "dead_letters_detail": detail}

    async def _kept(self) -> dict[str, Any]:
        if self._outbox is None:
            return {"outbox": None, "outbox_detail": "There is none."}
        totals, detail = await _asked(self._outbox.totals)
        if totals is None:
            return {"outbox": None, "outbox_detail": detail}
        oldest = totals.oldest_accepted_at
        told = {
            "waiting": totals.waiting,
            "set_aside": totals.set_aside,
            "oldest_seconds": None if oldest is None else max(0.0, (utc_now() - oldest).total_seconds()),
        }
        return {"outbox": told, "outbox_detail": None}


async def _asked(question: Callable[[], Awaitable[T]]) -> tuple[T | None, str | None]:
    """Return an answer, or a sentence that says why there is none."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await question(), None
    except TimeoutError:
        return None, f"No answer within {TIMEOUT_SECONDS:g} s. It goes on being counted: ask again."
    except BloodbankError as error:
        return None, str(error)
