"""Sending several messages of one's own making, all confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bloodbank.errors import PublishError, TransportUnavailable
from bloodbank.transports._rabbit_frames import Outgoing
from bloodbank.transports._rabbit_publishing import Outlet

BATCH = 200
"""Most messages that are on their way at a time; with publishers they share what may be in flight."""


async def send_each(
    outlet: Outlet, several: Sequence[Outgoing], doing: str, *, timeout_seconds: float
) -> list[TransportUnavailable | None]:
    """Send in order; return None for each that was confirmed, and else why not. `doing`: such as "replay an event"."""
    outcomes = await asyncio.gather(
        *(outlet.send(one, timeout_seconds=timeout_seconds) for one in several), return_exceptions=True
    )
    return [_failure(outcome, doing) for outcome in outcomes]


async def send_all(outlet: Outlet, several: Sequence[Outgoing], doing: str, *, timeout_seconds: float) -> None:
    """Send in order. Raises TransportUnavailable when one was not confirmed; others may be."""
    for outcome in await send_each(outlet, several, doing, timeout_seconds=timeout_seconds):
        if outcome is not None:
            raise outcome


def _failure(outcome: BaseException | None, doing: str) -> TransportUnavailable | None:
    if outcome is None or isinstance(outcome, TransportUnavailable):
        return outcome
    if not isinstance(outcome, PublishError):
        raise outcome
    failure = TransportUnavailable(f"Cannot {doing}: {outcome}")
    failure.__cause__ = outcome
    return failure
