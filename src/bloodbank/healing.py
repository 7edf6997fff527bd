"""Brings what the journal holds into the index, while new events are recorded beside it.

Whatever happens in between, a link is removed after it is recorded, and recording twice does no harm: so two
processes may do this with one journal at the same time, and each may end at any moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from bloodbank.deferral import Deferral, Journal
from bloodbank.errors import BloodbankError, StoreUnavailable
from bloodbank.stores.base import Link

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""How often the journal is looked at without need: another process that died may have left something in it."""
RETRY_SECONDS = 1.0
"""Least time between a failure and the next look; about twice as much each time, up to LOOK_SECONDS."""
LINKS_A_BATCH = 100
"""Links recorded at a time: few, since new events wait for as long behind them."""
FAILURES_A_LOOK = 20
"""Links refused one by one, with none recorded in between, after which the store itself is taken for the reason."""

Entry = tuple[int, Link]


class Refused(Exception):
    """The store answers and does not record these links; the cause says why."""


class Healing:
    """Records the links of a journal in order, whenever the store is there.

    record: records links; raises StoreUnavailable when the store is away, StoreFormatError, and Refused.
    is_well: whether the store is taken to be there.
    recorded_batches: how many batches of links have been recorded, also by others than this.

    A link that is refused alone, twice, with something recorded in between, is set aside: the reason lies in it.
    """

    def __init__(
        self,
        deferral: Deferral,
        *,
        record: Callable[[Sequence[Link]], Awaitable[None]],
        is_well: Callable[[], bool],
        recorded_batches: Callable[[], int],
    ) -> None:
        self._deferral = deferral
        self._record = record
        self._is_well = is_well
        self._recorded_batches = recorded_batches
        self._woken = asyncio.Event()
        self._failures = 0
        # Numbers of links that were refused alone, and what was recorded up to then.
        self._suspects: dict[int, int] = {}
        self._told: str | None = None

    def wake(self) -> None:
        """Look at once, since there is something to do or the store is back."""
        self._woken.set()

    async def run_forever(self) -> None:
        """Look whenever it is woken, and now and then; after a failure soon again, then less and less often."""
        pause = 0.0
        while True:
            self._woken.clear()
            if await self._look():
                pause = 0.0
            else:
                await asyncio.sleep(RETRY_SECONDS)
                pause = min(2 * pause + RETRY_SECONDS, LOOK_SECONDS)
            try:
                async with asyncio.timeout(pause or LOOK_SECONDS):
                    await self._woken.wait()
            except TimeoutError:
                # Time to look without being woken.
                continue

    async def _look(self) -> bool:
        """Record what the journal holds, if the store is there; say whether nothing failed."""
        try:
            await self._deferral.open()
            if self._deferral.journal is not None and self._is_well():
                await self._heal(self._deferral.journal)
        except StoreUnavailable as error:
            # Whoever records has told it already.
            logger.debug("The journal waits: %s", error)
            return False
        except BloodbankError as error:
            self._tell(f"What is deferred stays in the journal: {error}")
            return False
        except Exception:
            # The edge of this task: it must go on, or what is deferred would stay so.
            logger.exception("Recording what the journal holds failed; it is tried again.")
            return False
        self._told = None
        return True

    async def _heal(self, journal: Journal) -> None:
        loop = asyncio.get_running_loop()
        healed = 0
        self._failures = 0
        while self._is_well() and (entries := await journal.first(LINKS_A_BATCH)):
            began = loop.time()
            done, moved = await self._record_apart(journal, entries)
            if not done and not moved:
                break
            if done:
                await journal.remove(done)
                healed += len(done)
                self._deferral.waiting = max(0, self._deferral.waiting - len(done))
                for number in self._suspects.keys() & set(done):
                    del self._suspects[number]
            # Half of the time is left to new events.
            await asyncio.sleep(loop.time() - began)
        if healed:
            logger.warning("%d events that were deferred are in the index now.", healed)
            await self._deferral.look()

    async def _record_apart(self, journal: Journal, entries: Sequence[Entry]) -> tuple[list[int], int]:
        """Record links, by halves where they are refused; return the numbers of those recorded, and how many are aside.

        Raises StoreUnavailable when the store is away or refuses everything.
        """
        try:
            await self._record([link for _, link in entries])
        except Refused as refusal:
            if len(entries) == 1:
                return [], await self._suspect(journal, entries[0], refusal)
            middle = len(entries) // 2
            first, aside = await self._record_apart(journal, entries[:middle])
            second, more_aside = await self._record_apart(journal, entries[middle:])
            return first + second, aside + more_aside
        self._failures = 0
        return [number for number, _ in entries], 0

    async def _suspect(self, journal: Journal, entry: Entry, refusal: Refused) -> int:
        """Remember that a link was refused alone, or set it aside; return how many are set aside."""
        number, link = entry
        recorded = self._recorded_batches()
        if self._suspects.setdefault(number, recorded) < recorded:
            reason = f"{type(refusal.__cause__).__name__}: {refusal.__cause__}"
            logger.error(
                "The index does not take event %s, and takes others. Its link is kept aside in the journal and tried "
                "again when a process starts. %s",
                link.event_id,
                reason,
            )
            await journal.set_aside(number, reason)
            del self._suspects[number]
            self._deferral.set_aside_total += 1
            return 1
        self._failures += 1
        if self._failures >= FAILURES_A_LOOK:
            self._tell(f"What is deferred stays in the journal, since the index takes none of it: {refusal.__cause__}")
            raise StoreUnavailable("The store answers and records nothing of what the journal holds.") from refusal
        return 0

    def _tell(self, what: str) -> None:
        if self._told != what:
            self._told = what
            logger.warning(what)
