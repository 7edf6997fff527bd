"""What one client of the event stream is sent, from its place in the log on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson

from bloodbank.errors import BloodbankError, TransportUnavailable
from bloodbank.http.cursors import cursor_of
from bloodbank.http.feed import RETRY_SECONDS, Feed, Kept

GATHER_SECONDS = 0.02
"""After a send, what comes within this time is sent together."""
MOST_TOGETHER = 500
"""Most events in one send."""
MOST_BYTES_TOGETHER = 1_048_576
"""A send ends with the event that reaches this many bytes."""
LOOP_ENTRIES = 50
"""So many entries of the log are gone through before others get their turn."""
FIRST_POSITION = 1
"""A log that has forgotten nothing begins here or below."""
HEARTBEAT = b": heartbeat\n"

SLOW = "This reader was slower than the events came. It goes on from the log where it left off."
EVENT_GONE = "The log does not have the event of this cursor any more, and may lack some that followed."
ALL_GONE = "The log does not have what followed this cursor any more. This goes on with what there is."
OTHER_LOG = "The log ends before this cursor: it is another one than before. This goes on from now."


class Follower:
    """Follows the log for one client: from what the feed keeps, and from the log where that does not reach back.

    after: position to go on behind; None: from now on.
    fits: whether events of a type are sent.
    heartbeat_seconds: longest silence.
    """

    def __init__(self, feed: Feed, after: int | None, fits: Callable[[str], bool], *, heartbeat_seconds: float) -> None:
        self._feed = feed
        self._fits = fits
        self._heartbeat_seconds = heartbeat_seconds
        # How far it has come; None before the end of the log is known.
        self._position = after
        # Behind which the client would go on if it were cut off now.
        self._told_position = after
        self._epoch = feed.epoch
        self._is_checked = after is None
        self._is_live = False
        self._told_trouble = False
        self._told_behind = False
        self._spoke_at = 0.0

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield what to send, for ever, as much at a time as there is."""
        with self._feed.listening() as wake:
            await self._feed.start()
            yield self._hello()
            self._spoke_at = _now()
            while True:
                wake.clear()
                sent = False
                async with aclosing(self._available()) as available:
                    async for chunk in available:
                        if chunk or _now() >= self._spoke_at + self._heartbeat_seconds:
                            yield chunk or self._heartbeat()
                            self._spoke_at = _now()
                            sent = True
                if sent:
                    # What comes in a moment goes out together.
                    await asyncio.sleep(GATHER_SECONDS)
                elif self._has_all and not await self._woken(wake):
                    yield self._heartbeat()
                    self._spoke_at = _now()

    @property
    def _has_all(self) -> bool:
        """Whether there is nothing to do before something happens."""
        is_waiting = self._feed.trouble is not None and self._told_trouble
        return is_waiting or (self._is_live and (self._position or 0) >= self._feed.ring.head)

    async def _woken(self, wake: asyncio.Event) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._spoke_at + self._heartbeat_seconds - _now()):
                return await wake.wait()
        return False

    def _hello(self) -> bytes:
        """Return what a stream begins with, and what says that all is well again."""
        head = self._feed.ring.head
        cursor = cursor_of(head) if self._feed.begun else None
        said = {"resumed": self._position is not None, "cursor": cursor, "heartbeat_seconds": self._heartbeat_seconds}
        hello = _frame("hello", said)
        if self._position is not None or cursor is None:
            return hello
        # With an id: whoever is cut off before the first event has come goes on from here.
        self._position = self._told_position = head
        return _id_line(head) + hello

    def _heartbeat(self) -> bytes:
        """Return a comment and, where events were passed over that do not fit, the id that moves on behind them."""
        if self._position is None or self._position == self._told_position:
            return HEARTBEAT + b"\n"
        self._told_position = self._position
        return HEARTBEAT + _id_line(self._position) + b"\n"

    async def _available(self) -> AsyncGenerator[bytes]:
        """Yield what there is for this client now; nothing where it is passed over."""
        feed = self._feed
        if feed.trouble is not None:
            yield self._trouble(feed.trouble)
            return
        if self._position is None:
            self._told_trouble = False
            yield self._hello()
        if self._position is None:
            self._position = feed.ring.head
        if self._epoch != feed.epoch or not await self._is_of_this_log(self._position):
            yield self._begin_anew(OTHER_LOG, feed.ring.head)
        if self._position < feed.ring.floor:
            if self._is_live:
                self._is_live, self._told_behind = False, True
                yield _frame("behind", {"missed_from": cursor_of(self._position), "reason": SLOW})
            async with aclosing(self._from_log(self._position)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        self._is_live = True
        if self._told_trouble or self._told_behind:
            self._told_trouble = self._told_behind = False
            yield self._hello()
        yield self._advanced(feed.ring.after(self._position, MOST_TOGETHER, MOST_BYTES_TOGETHER))

    async def _is_of_this_log(self, position: int) -> bool:
        """Say whether a cursor that is ahead of what was read of the log can be of it. Asked once."""
        if not self._is_checked:
            self._is_checked = True
            return position <= self._feed.ring.head or not await self._ends_before(position)
        return True

    async def _ends_before(self, position: int) -> bool:
        """Say whether the log certainly ends before a position."""
        try:
            return await self._feed.ends_before(position)
        except TransportUnavailable:
            self._is_checked = False
            return False  # The feed finds the same and tells it; then this is asked again.

    async def _from_log(self, position: int) -> AsyncGenerator[bytes]:
        """Yield what the log holds behind a position, up to where the feed has all that follows."""
        batch: list[Kept] = []
        size = count = 0
        failure: TransportUnavailable | None = None
        try:
            # From the entry of the cursor on: while that is there, nothing behind it is missing.
            async with aclosing(self._feed.transport.read_log(after=position - 1 if position > 0 else None)) as entries:
                async for entry in entries:
                    count += 1
                    if count == 1 and entry.position > max(position + 1, FIRST_POSITION):
                        yield _gap(position, EVENT_GONE)
                    if count % LOOP_ENTRIES == 0:
                        await asyncio.sleep(0)
                    if entry.position > position:
                        batch.append(Kept(entry))
                        size += batch[-1].size
                    if len(batch) >= MOST_TOGETHER or size >= MOST_BYTES_TOGETHER:
                        yield self._advanced(batch)
                        batch, size = [], 0
                    if entry.position >= self._feed.ring.floor:
                        break
        except TransportUnavailable as error:
            failure = error
        yield self._advanced(batch)
        if failure is not None:
            yield self._trouble(failure)
            await asyncio.sleep(RETRY_SECONDS)
        elif self._position == position:
            # The log ends before what the feed has read of it. With this cursor's event the rest is there too, and is
            # to be seen in a moment; without it, it was forgotten meanwhile.
            await asyncio.sleep(RETRY_SECONDS)
            if not count and await self._ends_before(position):
                yield self._begin_anew(ALL_GONE, self._feed.ring.floor)

    def _advanced(self, entries: Sequence[Kept]) -> bytes:
        """Move on behind some entries; return those that are sent."""
        frames: list[bytes] = []
        for entry in entries:
            self._position = entry.position
            if self._fits(entry.event_type) and (frame := entry.frame):
                self._told_position = entry.position
                frames.append(frame)
        return b"".join(frames)

    def _begin_anew(self, detail: str, position: int) -> bytes:
        told = _gap(self._position or 0, detail)
        self._position = self._told_position = position
        self._epoch = self._feed.epoch
        self._is_checked = True
        return _id_line(position) + told

    def _trouble(self, error: BloodbankError) -> bytes:
        if self._told_trouble:
            return b""
        self._told_trouble = True
        return _frame("trouble", {"code": error.code, "detail": str(error)})


def _gap(position: int, detail: str) -> bytes:
    return _frame("gap", {"after": cursor_of(position), "detail": detail})


def _id_line(position: int) -> bytes:
    return b"id: %s\n" % cursor_of(position).encode()


def _frame(event: str, data: Mapping[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (event.encode(), orjson.dumps(data))


def _now() -> float:
    return asyncio.get_running_loop().time()
