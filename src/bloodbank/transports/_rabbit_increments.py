"""Reading a stream bit by bit: each time what has come since the last time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiormq.abc import DeliveredMessage

from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._rabbit_log import RabbitLog, Start


class Increments:
    """What comes into a stream. One reading at a time; one that is broken off goes on where it was."""

    def __init__(self, stream: RabbitLog) -> None:
        self._stream = stream
        self._last: int | None = None

    async def read(self) -> AsyncGenerator[DeliveredMessage | None]:
        """Yield what is new; None when all that came before has to be forgotten, since the stream begins anew.

        Raises TransportUnavailable.
        """
        if (last := self._last) is not None:
            # From the last known entry on: while it is there, it is the same stream.
            start = Start(after=last - 1 if last else None)
            async with aclosing(self._stream.read_as_delivered(start)) as entries:
                first = await anext(entries, None)
                if first is not None and wire.offset_of(first) == last:
                    async for entry in entries:
                        self._last = wire.offset_of(entry)
                        yield entry
                    return
            self._last = None
            yield None
        async with aclosing(self._stream.read_as_delivered(Start())) as entries:
            async for entry in entries:
                self._last = wire.offset_of(entry)
                yield entry

    async def first_offset(self) -> int | None:
        """Return where the stream begins now; None when it is empty. Raises TransportUnavailable."""
        async with aclosing(self._stream.read_as_delivered(Start())) as entries:
            entry = await anext(entries, None)
        return None if entry is None else wire.offset_of(entry)
