"""Room on a disk that is set apart for the moment when the disk is full."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

CHUNK = bytes(65_536)


class Reserve:
    """A file that takes up room until it is needed. Several processes may share one.

    path: of the file. size_bytes: how much it takes.

    Its calls block.
    """

    def __init__(self, path: Path, *, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def fill(self) -> None:
        """Take up the room, where twice as much is free. What fails is logged at DEBUG: it is worth no error."""
        try:
            if self._path.exists() and self._path.stat().st_size >= self._size_bytes:
                return
            if shutil.disk_usage(self._path.parent).free < 2 * self._size_bytes:
                return
            # Written and not only made long: a file with holes takes no room.
            with self._path.open("wb") as file:
                for _ in range(self._size_bytes // len(CHUNK)):
                    file.write(CHUNK)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            logger.debug("No room could be set apart in %s: %s", self._path, error)
            self.spend()

    def spend(self) -> bool:
        """Give the room back to the disk; say whether there was any."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            logger.debug("The room in %s could not be given back: %s", self._path, error)
            return False
        return True
