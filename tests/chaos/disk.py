"""A small disk that can be filled: a tmpfs, which takes root or `sudo` without a password."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self


class NoSmallDisk(Exception):
    """A tmpfs cannot be mounted here; the message says why."""


class SmallDisk:
    """A file system of some megabytes in a folder, unmounted at the end.

    folder: is made; its parent must be there.
    """

    def __init__(self, folder: Path, *, megabytes: int) -> None:
        self.folder = folder
        self._megabytes = megabytes
        self._as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        self._ballast = folder / "ballast"

    def __enter__(self) -> Self:
        """Mount. Raises NoSmallDisk."""
        self.folder.mkdir()
        options = f"size={self._megabytes}m,mode=700,uid={os.geteuid()},gid={os.getegid()}"
        try:
            self._run("mount", "-t", "tmpfs", "-o", options, "bloodbank-chaos", str(self.folder))
        except (OSError, subprocess.SubprocessError) as error:
            raise NoSmallDisk(f"mounting a tmpfs takes root, or sudo without a password: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Lazily: whoever was killed just now may still be on its way out.
        self._run("umount", "-l", str(self.folder))

    def fill(self) -> None:
        """Leave no byte free."""
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65_536))
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))

    def empty(self) -> None:
        """Give back what `fill` took. Idempotent."""
        self._ballast.unlink(missing_ok=True)

    def _run(self, *command: str) -> None:
        subprocess.run([*self._as_root, *command], check=True, capture_output=True, timeout=20)
