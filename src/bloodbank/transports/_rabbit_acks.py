"""Acknowledging deliveries of one channel, many with one frame where nothing unsettled lies between them."""

from __future__ import annotations

import asyncio
import struct

from bloodbank.transports._rabbit_confirms import ConfirmingProtocol

WRITE_AT = 64
"""So many are written at once; fewer, at the end of this turn of the loop."""

_SETTLE = struct.Struct(">BHIHHQBB")
_BASIC, _ACK, _NACK = 60, 80, 120
_MULTIPLE, _REQUEUE, _END = 1, 2, 0xCE
_ARGUMENTS_BYTES = 13


class Acks:
    """Writes what becomes of deliveries, in the order of the tags of a channel, which begin at 1.

    To be used for all of them: what the driver wrote meanwhile could come behind an acknowledgement of many.
    """

    def __init__(self, wire: ConfirmingProtocol, channel: int) -> None:
        self._wire = wire
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        # All tags below are settled; of those from here on, these are.
        self._lowest = 1
        self._settled: set[int] = set()
        self._acked: list[int] = []
        self._returned: list[int] = []
        self._will_write = False

    def ack(self, tag: int) -> None:
        """Say that the work is done."""
        self._settled.add(tag)
        self._acked.append(tag)
        self._write_soon()

    def give_back(self, tag: int) -> None:
        """Have it delivered again."""
        self._settled.add(tag)
        self._returned.append(tag)
        self._write_soon()

    def write(self) -> None:
        """Write what is settled and not written."""
        self._will_write = False
        acked, returned = self._acked, self._returned
        if not acked and not returned:
            return
        self._acked, self._returned = [], []
        # First, so that an acknowledgement of all up to a tag is not about them.
        frames = [self._frame(_NACK, tag, _REQUEUE) for tag in returned]
        lowest, settled = self._lowest, self._settled
        while lowest in settled:
            settled.remove(lowest)
            lowest += 1
        self._lowest = lowest
        below = [tag for tag in acked if tag < lowest]
        if below:
            # One of those that the broker still waits for; it takes no other for an acknowledgement of many.
            frames.append(self._frame(_ACK, max(below), _MULTIPLE if len(below) > 1 else 0))
        if len(below) < len(acked):
            frames += [self._frame(_ACK, tag, 0) for tag in acked if tag >= lowest]
        transport = self._wire.transport
        if transport is not None and not transport.is_closing():
            transport.write(b"".join(frames))

    def _write_soon(self) -> None:
        if len(self._acked) >= WRITE_AT:
            self.write()
        elif not self._will_write:
            self._will_write = True
            self._loop.call_soon(self.write)

    def _frame(self, method: int, tag: int, bits: int) -> bytes:
        return _SETTLE.pack(1, self._channel, _ARGUMENTS_BYTES, _BASIC, method, tag, bits, _END)
