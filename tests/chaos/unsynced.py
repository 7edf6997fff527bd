"""`python -m tests.chaos.unsynced`: publishes while the disk syncs, and while it does not; prints what was answered.

A kill does not show a lost fsync, since the kernel still has the bytes; a power cut would. So the kernel is asked to
fail every fsync and fdatasync of this process (seccomp, see seccomp(2)): whoever waits for the disk gets an error, and
whoever does not, answers as before.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import platform
import struct

from bloodbank import Publisher, create_envelope
from bloodbank.errors import BloodbankError

# seccomp, fsync and fdatasync by architecture (unistd.h), and the architecture's name in linux/audit.h.
NUMBERS = {"x86_64": (317, 74, 75, 0xC000003E), "aarch64": (277, 82, 83, 0xC00000B7)}
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000 | errno.EIO
NUMBER_AT, ARCHITECTURE_AT = 0, 4


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def fail_every_sync() -> None:
    """Make fsync and fdatasync fail with EIO in all threads of this process, for good. Raises OSError, KeyError."""
    seccomp, fsync, fdatasync, architecture = NUMBERS[platform.machine()]
    instructions = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (LOAD, 0, 0, ARCHITECTURE_AT),
            (EQUAL, 0, 3, architecture),
            (LOAD, 0, 0, NUMBER_AT),
            (EQUAL, 2, 0, fsync),
            (EQUAL, 1, 0, fdatasync),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, FAIL),
        )
    )
    program = _Program(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "seccomp")


async def _main() -> None:
    async with Publisher() as publisher:
        print(await _publish(publisher))
        fail_every_sync()
        print(await _publish(publisher))


async def _publish(publisher: Publisher) -> str:
    try:
        return (await publisher.publish(create_envelope("disk.event", {}))).status.value
    except BloodbankError as error:
        return error.code


if __name__ == "__main__":
    asyncio.run(_main())
