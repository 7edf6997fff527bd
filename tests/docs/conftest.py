"""A place of its own for every document: a folder, a bus, and where it is needed a running server."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT
from tests.servers.process import OwnedProcess, free_port, wait_until

OURS = ("BLOODBANK_", "REDIS_", "RABBIT_", "HTTP_", "EXCHANGE_NAME", "SERVICE_NAME", "ENVIRONMENT", "CORRELATION_")


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user who has set nothing, with the data in a folder of the test's own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    bin_folder = Path(sys.executable).parent
    return inherited | {
        "PATH": f"{bin_folder}:{os.environ.get('PATH', '')}:/usr/sbin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "BLOODBANK_DATA_DIR": str(folder / "data"),
        "TERM": "dumb",
        "COLUMNS": "120",
    }


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[dict[str, str], int]]:
    """Run `bb serve` as a process. Yield the environment it shares with the document, and its port."""
    port = free_port()
    env = environment(tmp_path)
    log = tmp_path / "serve.log"
    process = OwnedProcess(["bb", "serve"], env=env | {"HTTP_PORT": str(port)}, cwd=tmp_path, log=log)
    try:
        wait_until(lambda: _answers(process, port, log), seconds=30, what="start of bb serve")
        yield env, port
    finally:
        process.end(signal.SIGTERM, seconds=10)


def _answers(process: OwnedProcess, port: int, log: Path) -> bool:
    if not process.running:
        raise RuntimeError(f"bb serve ended while it started:\n{log.read_text()}")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
