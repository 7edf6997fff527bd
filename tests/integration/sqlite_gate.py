"""What the tests of the SQLite file share."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

DEADLINE_SECONDS = 20.0


class Gate:
    """A job that holds the writer until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        self.reached.set()
        assert self.released.wait(DEADLINE_SECONDS)

    async def until_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, DEADLINE_SECONDS)
