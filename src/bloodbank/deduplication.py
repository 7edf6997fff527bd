"""Which ids may be published, where the transport itself does not know: one publish of an id at a time.

Two phases: an id that its caller chose is claimed in the correlation store, for a while; then the event is published,
confirmed and recorded. A claim says nothing of the event: whoever dies in between leaves one that ends by itself, and
the event is published again. Marking it first would lose it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from enum import StrEnum
from uuid import UUID

from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.errors import EventConflict, TransportUnavailable
from bloodbank.stores.base import Claimed, ClaimState
from bloodbank.transports.base import Message

PATIENCE_SECONDS = 1.0
"""How long a publish waits for another one of the same event; then it is published by both, with the same id."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.01, 0.25


class Dedup(StrEnum):
    """Whether anybody was asked if an id is on the bus already.

    checked: yes, or it is new for certain. skipped: the index could not tell; consumers drop what they have seen.
    """

    CHECKED = "checked"
    SKIPPED = "skipped"


class Deduplicator:
    """Lets one publish of an id go at a time: in this process by turns, among processes by claims.

    tracker: open. lease_seconds: longer than a publish can take.
    """

    def __init__(self, tracker: CorrelationTracker, *, lease_seconds: float) -> None:
        self._tracker = tracker
        self._lease_seconds = lease_seconds
        # By id: who waits until the publish of that id has ended.
        self._under_way: dict[UUID, list[asyncio.Future[None]]] = {}

    async def begin(self, event_id: UUID) -> None:
        """Wait until no other publish of this id is under way in this process; `end` must follow."""
        while (waiting := self._under_way.get(event_id)) is not None:
            turn = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            await turn
        self._under_way[event_id] = []

    def begin_free(self, event_ids: Iterable[UUID]) -> list[UUID]:
        """Begin those of which no publish is under way; return them. `end` must follow for each."""
        free = [event_id for event_id in event_ids if event_id not in self._under_way]
        for event_id in free:
            self._under_way[event_id] = []
        return free

    def end(self, event_id: UUID) -> None:
        """The publish has ended, however it did."""
        for turn in self._under_way.pop(event_id):
            if not turn.done():
                turn.set_result(None)

    async def claim(self, message: Message) -> Dedup | None:
        """Return when the event may be published; None: it is on the bus already, with this body.

        Raises EventConflict when it is there with another body, TransportUnavailable when that does not show.
        """
        loop = asyncio.get_running_loop()
        patience_ends = loop.time() + PATIENCE_SECONDS
        # A lease ends in this time, unless a clock was set back.
        lease_ends = loop.time() + self._lease_seconds + PATIENCE_SECONDS
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            answers = await self.claim_many([message])
            if answers is None:
                return Dedup.SKIPPED
            [claimed] = answers
            if claimed.state is not ClaimState.HELD:
                return None if is_duplicate(message, claimed) else Dedup.CHECKED
            if claimed.digest == message.digest and loop.time() >= patience_ends:
                # Who holds it may have died, or hang. Twice with one id does less harm than not at all.
                return Dedup.SKIPPED
            if loop.time() >= lease_ends:
                raise TransportUnavailable(
                    f"Event {message.event_id} is being published with another body, and its end cannot be seen. "
                    "Nothing was sent. Try again, or use another id."
                )
            # Another body must wait for the outcome, or for the end of the lease.
            await asyncio.sleep(min(pause_seconds, claimed.seconds_left))
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    async def claim_many(self, messages: Sequence[Message]) -> list[Claimed] | None:
        """Claim several at once; what became of each, or None: the index cannot tell."""
        if not messages:
            return []
        wanted = [(message.event_id, message.digest) for message in messages]
        return await self._tracker.claim(wanted, lease_seconds=self._lease_seconds)

    async def release(self, event_ids: Sequence[UUID]) -> None:
        """Give claims back whose events were not accepted, so that a retry need not wait."""
        await self._tracker.release(event_ids)


def is_duplicate(message: Message, claimed: Claimed) -> bool:
    """Say whether the event is on the bus already; False also when nobody knows its body. Raises EventConflict."""
    if claimed.state is not ClaimState.RECORDED or not claimed.digest:
        return False
    if claimed.digest != message.digest:
        raise EventConflict(
            f"Event {message.event_id} is on the bus already with another body. That one stays; nothing was "
            "published. Use another id, or send the same type, parents, agent_context and payload."
        )
    return True
