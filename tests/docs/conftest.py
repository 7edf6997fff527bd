"""A place of its own for every document: a folder, a bus, and where it is needed a running server."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT
from tests.servers.process import OwnedProcess, free_port, wait_until

OURS = ("BLOODBANK_", "REDIS_", "RABBIT_", "HTTP_", "EXCHANGE_NAME", "SERVICE_NAME", "ENVIRONMENT", "CORRELATION_")
THIS_MACHINE = ("laptop", socket.gethostname())
"""What a page shows where a program prints the name of the machine."""


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user who has set nothing, with the data in a folder of the test's own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    bin_folder = Path(sys.executable).parent
    return inherited | {
        "PATH": f"{bin_folder}:{os.environ.get('PATH', '')}:/usr/sbin",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "HOME": str(folder),
        "BLOODBANK_DATA_DIR": str(folder / "data"),
        "TERM": "dumb",
        "COLUMNS": "120",
    }


@dataclass(frozen=True)
class Place:
    """Where a document's commands run. shown: pairs of what a page shows and what is there in its stead."""

    folder: Path
    env: dict[str, str]
    shown: list[tuple[str, str]]


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[Place]:
    """Run `bb serve` as a process of its own, whose bus and port the environment of the place names too.

    variables: further ones of its environment.
    """
    env = environment(folder) | {"HTTP_PORT": str(free_port())} | variables
    port = int(env["HTTP_PORT"])
    log = folder / "serve.log"
    process = OwnedProcess(["bb", "serve"], env=env, cwd=folder, log=log)
    try:
        wait_until(lambda: _answers(process, port, log), seconds=30, what="start of bb serve")
        shown = [(f"{host}:8682", f"{host}:{port}") for host in ("localhost", "127.0.0.1")]
        shown += [("~/.local/share/bloodbank", env["BLOODBANK_DATA_DIR"]), THIS_MACHINE]
        yield Place(folder, env, shown)
    finally:
        process.end(signal.SIGTERM, seconds=10)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A folder with a running server."""
    with serving(tmp_path) as place:
        yield place


def _answers(process: OwnedProcess, port: int, log: Path) -> bool:
    if not process.running:
        raise RuntimeError(f"bb serve ended while it started:\n{log.read_text()}")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
