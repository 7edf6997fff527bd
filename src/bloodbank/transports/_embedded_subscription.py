"""A subscription to the embedded log: a task that fetches ahead, and the deliveries it hands out."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Self

from bloodbank._sqlite import moment, now_microseconds
from bloodbank.errors import InvalidQuery, NotOpen, TransportUnavailable
from bloodbank.transports._embedded_groups import MICROSECONDS, Claim, Fetch, Group
from bloodbank.transports.base import Delivery, Failure, Message

logger = logging.getLogger(__name__)

OUTAGE_PAUSE_SECONDS = 0.2
"""Pause between attempts while the file cannot be used."""
MAX_DELAY_SECONDS = 365 * 86_400.0
"""Longest delay of a retry."""


class Subscription:
    """An async iterator of deliveries. It raises NotOpen when it is closed.

    prefetch: most unsettled deliveries at a time.
    renew_seconds: how often to say that the consumer lives.
    wake: set by others when there may be something to fetch.
    announce: called when others may fetch what this one gives back.
    """

    def __init__(
        self,
        group: Group,
        *,
        prefetch: int,
        renew_seconds: float,
        wake: asyncio.Event,
        announce: Callable[[], None],
    ) -> None:
        self._group = group
        self._prefetch = prefetch
        # Fetching costs a transaction: not one for each message, but one for half a prefetch.
        self._low_water = prefetch // 2
        self._renew_seconds = renew_seconds
        self._wake = wake
        self._announce = announce
        self._held: dict[int, Claim] = {}
        self._ready: deque[Claim] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self._outage = False
        self._fetching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Join the group and begin to fetch. Raises TransportUnavailable, and NotOpen when it is closed meanwhile."""
        await self._group.join()
        if self._closed:
            # Nobody would end the task, which holds messages back from the group.
            raise NotOpen("The subscription was closed while it began. Nothing was delivered.")
        self._fetching = asyncio.create_task(self._fetch_forever(), name="bloodbank-subscription")
        self._fetching.add_done_callback(lambda _: self._arrived.set())

    async def close(self) -> None:
        """End, and give back what is not settled; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._arrived.set()
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
        try:
            await self._group.give_back(self._held.values())
        except TransportUnavailable as error:
            logger.warning("Unsettled deliveries come again when their lease ends: %s", error)
        self._held.clear()
        self._ready.clear()
        self._announce()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        while not self._ready:
            if self._closed:
                raise NotOpen("The subscription was closed; what it had not settled is delivered again.")
            if self._fetching is not None and self._fetching.done():
                # It ends by itself only with an error, which this raises.
                self._fetching.result()
            self._arrived.clear()
            await self._arrived.wait()
        claim = self._ready.popleft()
        claim.tried = True
        if len(self._ready) <= self._low_water:
            self._wake.set()
        return _EmbeddedDelivery(self, self._group, claim)

    async def settle(self, claim: Claim, outcome: Awaitable[None]) -> None:
        """Carry out what the consumer decided, once. Whether it works or not, the consumer is rid of the claim."""
        claim.settled = True
        try:
            await outcome
        finally:
            self._held.pop(claim.position, None)
            self._wake.set()

    def require_unsettled(self, claim: Claim) -> None:
        """Raise for a delivery that cannot be settled any more."""
        if claim.settled:
            raise NotOpen(f"Event {claim.message.event_id} was settled already; nothing was changed.")
        if self._closed:
            raise TransportUnavailable(
                f"The subscription was closed before event {claim.message.event_id} was settled; it is delivered again."
            )

    def announce(self) -> None:
        """Tell other subscriptions that there may be something to fetch."""
        self._announce()

    async def _fetch_forever(self) -> None:
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + self._renew_seconds
        while True:
            # Before looking, so that what comes while looking is not missed.
            self._wake.clear()
            try:
                if loop.time() >= renew_at:
                    await self._group.renew([claim for claim in self._held.values() if not claim.settled])
                    renew_at = loop.time() + self._renew_seconds
                room = self._prefetch - len(self._held) if len(self._ready) <= self._low_water else 0
                fetch = await self._group.fetch(room) if room > 0 else Fetch([])
            except TransportUnavailable as error:
                self._note_outage(error)
                await asyncio.sleep(OUTAGE_PAUSE_SECONDS)
                continue
            self._note_recovery()
            for claim in fetch.claims:
                self._held[claim.position] = claim
                self._ready.append(claim)
            if fetch.claims:
                self._arrived.set()
            if not fetch.more:
                due_seconds = (
                    float("inf") if fetch.due_at is None else (fetch.due_at - now_microseconds()) / MICROSECONDS
                )
                await self._wait(min(renew_at - loop.time(), due_seconds))

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _note_outage(self, error: TransportUnavailable) -> None:
        if not self._outage:
            logger.warning("A subscription waits for the log: %s", error)
        self._outage = True

    def _note_recovery(self) -> None:
        if self._outage:
            logger.info("A subscription found the log again.")
        self._outage = False


class _EmbeddedDelivery:
    def __init__(self, subscription: Subscription, group: Group, claim: Claim) -> None:
        self._subscription = subscription
        self._group = group
        self._claim = claim

    @property
    def message(self) -> Message:
        return self._claim.message

    @property
    def attempt(self) -> int:
        return self._claim.attempt

    @property
    def first_attempt_at(self) -> datetime | None:
        first_at = self._claim.first_at
        return None if first_at is None else moment(first_at)

    @property
    def replayed(self) -> bool:
        return self._claim.replayed

    async def ack(self) -> None:
        self._subscription.require_unsettled(self._claim)
        await self._subscription.settle(self._claim, self._group.ack(self._claim))

    async def retry(self, delay_seconds: float) -> None:
        if not 0 <= delay_seconds <= MAX_DELAY_SECONDS:
            raise InvalidQuery(f"A delay of {delay_seconds} seconds is none; give 0 to {MAX_DELAY_SECONDS}.")
        self._subscription.require_unsettled(self._claim)
        await self._subscription.settle(self._claim, self._group.retry(self._claim, delay_seconds))
        self._subscription.announce()

    async def dead_letter(self, failure: Failure | str, *, attempts: int | None = None) -> None:
        if isinstance(failure, str):
            failure = Failure(failure)
        self._subscription.require_unsettled(self._claim)
        tries = self.attempt if attempts is None else attempts
        await self._subscription.settle(self._claim, self._group.dead_letter(self._claim, failure, tries))

    def leave_untried(self) -> None:
        self._claim.tried = False
