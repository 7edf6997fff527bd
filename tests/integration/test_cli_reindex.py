"""`bb reindex`: what it rebuilds, what it says meanwhile and at the end, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from typer.testing import CliRunner, Result

from bloodbank.cli.edge import ExitCode
from bloodbank.cli.main import app
from bloodbank.transports.base import Message
from tests.conformance.backends import make_transport
from tests.servers.process import free_port

BB = [sys.executable, "-m", "bloodbank.cli.main"]
NO_REDIS = "redis://127.0.0.1:{port}/0"
Run = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a bus of its own."""
    for name in ("RABBIT_URL", "REDIS_URL", "REDIS_HOST", "BLOODBANK_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLOODBANK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


@pytest.fixture
def bb(data: Path) -> Run:
    def run(*arguments: str, **variables: str) -> Result:
        return CliRunner().invoke(app, arguments, env=variables)

    return run


def _publish_chain(bb: Run) -> list[str]:
    ids = [bb("publish", "call.recorded").stdout.split()[0]]
    for event_type in ("notes.written", "mail.sent"):
        ids.append(bb("publish", event_type, "--parent", ids[-1]).stdout.split()[0])
    return ids


def _empty_the_index(data: Path) -> None:
    connection = sqlite3.connect(data / "bloodbank.db")
    with connection:
        connection.execute("DELETE FROM edge")
        connection.execute("DELETE FROM node")
    connection.close()


async def _publish_foreign(data: Path, count: int) -> None:
    async with make_transport({"backend": "embedded", "path": str(data / "bloodbank.db")}) as transport:
        for _ in range(count):
            await transport.publish(Message(uuid4(), "foreign.message", b"?"), timeout_seconds=10)


def test_an_index_that_was_lost_answers_again(bb: Run, data: Path) -> None:
    ids = _publish_chain(bb)
    before = bb("why", ids[-1]).stdout
    _empty_the_index(data)
    assert bb("why", ids[-1]).exit_code == ExitCode.NOT_FOUND
    result = bb("reindex")
    assert (result.exit_code, result.stdout.splitlines()[1]) == (0, "3 events are in the index.")
    assert bb("why", ids[-1]).stdout == before


def test_a_dry_run_records_nothing(bb: Run, data: Path) -> None:
    ids = _publish_chain(bb)
    _empty_the_index(data)
    result = bb("reindex", "--dry-run")
    assert result.exit_code == 0
    assert "3 events would be in the index." in result.stdout
    assert bb("why", ids[-1]).exit_code == ExitCode.NOT_FOUND


def test_since_takes_a_time_and_how_long_ago(bb: Run) -> None:
    _publish_chain(bb)
    entries = {
        since: orjson.loads(bb("reindex", "--since", since, "--json").stdout)["entries"]
        for since in ("2h", "30m", "7d", "2024-05-01T09:00", "2024-05-01T09:00:00+00:00", "2999-01-01")
    }
    assert list(entries.values()) == [3, 3, 3, 3, 3, 0]
    assert bb("reindex", "--since", "yesterday").exit_code == ExitCode.USAGE


def test_what_is_no_event_is_passed_over_and_told(bb: Run, data: Path) -> None:
    _publish_chain(bb)
    asyncio.run(_publish_foreign(data, 12))
    result = bb("reindex")
    assert result.exit_code == 0
    assert "12 entries are no events" in result.stdout
    assert "positions 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, …." in result.stdout


def test_the_command_needs_the_bus_itself(bb: Run) -> None:
    result = bb("reindex", BLOODBANK_URL=f"http://127.0.0.1:{free_port()}")
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
    assert "Unset BLOODBANK_URL" in result.stderr


def test_without_tracking_there_is_no_index_to_rebuild(bb: Run) -> None:
    result = bb("reindex", BLOODBANK_CORRELATION_TRACKING="false")
    assert (result.exit_code, result.stdout) == (ExitCode.UNAVAILABLE, "")
    assert "BLOODBANK_CORRELATION_TRACKING" in result.stderr


def test_a_store_that_stays_away_is_waited_for_and_then_told_with_the_way_on(bb: Run) -> None:
    _publish_chain(bb)
    away = {"REDIS_URL": NO_REDIS.format(port=free_port()), "BLOODBANK_REINDEX_PATIENCE_SECONDS": "0.1"}
    result = bb("reindex", "--since", "2024-05-01T09:00Z", **away)
    assert (result.exit_code, result.stdout) == (ExitCode.UNAVAILABLE, "")
    assert result.stderr.startswith("Waiting: ")
    assert "bb reindex --since 2024-05-01T09:00:00+00:00" in result.stderr
    assert len(result.stderr.splitlines()) == 2


def test_on_a_terminal_there_is_a_bar_and_the_summary_goes_where_output_goes(bb: Run) -> None:
    _publish_chain(bb)
    code, shown, output = _on_a_terminal("reindex")
    assert (code, output.splitlines()[1]) == (0, "3 events are in the index.")
    assert "100%" in shown


def test_ctrl_c_tells_the_way_on(bb: Run) -> None:
    _publish_chain(bb)
    away = {"REDIS_URL": NO_REDIS.format(port=free_port()), "BLOODBANK_REINDEX_PATIENCE_SECONDS": "1000"}
    with subprocess.Popen(
        [*BB, "reindex"],
        env=dict(os.environ, **away),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as command:
        assert command.stderr is not None
        assert command.stderr.readline().startswith("Waiting: ")
        command.send_signal(signal.SIGINT)
        assert command.stderr.read() == "Stopped. What was recorded stays. Begin again with: bb reindex\n"
    assert command.returncode == ExitCode.INTERRUPTED


def _on_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """Run a command whose standard error is a terminal; return its exit code, what was shown there, and its output."""
    ours, theirs = pty.openpty()
    try:
        environment = dict(os.environ, TERM="xterm", COLUMNS="120")
        with subprocess.Popen(
            [*BB, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environment, text=True
        ) as command:
            os.close(theirs)
            shown = _all_of(ours)
            output, _ = command.communicate(timeout=60)
        return command.returncode, shown, output
    finally:
        os.close(ours)


def _all_of(terminal: int) -> str:
    pieces: list[bytes] = []
    try:
        while piece := os.read(terminal, 65_536):
            pieces.append(piece)
    except OSError as error:
        # How Linux tells that nobody writes there any more.
        if error.errno != errno.EIO:
            raise
    return b"".join(pieces).decode()
