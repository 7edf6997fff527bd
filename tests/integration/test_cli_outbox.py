"""`bb outbox`, on the file itself and through a server."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import pytest
from typer.testing import CliRunner, Result

from bloodbank.cli.edge import ExitCode
from bloodbank.cli.main import app
from bloodbank.cli.outbox import entry_lines
from bloodbank.cli.text import plain
from bloodbank.config import load_settings
from bloodbank.wiring import outbox_path
from tests.servers.api import ApiServer
from tests.servers.outbox import fill_outbox
from tests.servers.process import free_port, wait_until
from tests.servers.rabbit import RabbitServer

BB = [sys.executable, "-m", "bloodbank.cli.main"]
REFUSED = {"big.one": "the broker takes at most 100 bytes\x1b[2J", "secret.one": "access refused"}
Run = Callable[..., Result]


def bb(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, ["outbox", *arguments], env=variables)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose broker is away."""
    for name in ("REDIS_URL", "REDIS_HOST", "BLOODBANK_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RABBIT_URL", f"amqp://127.0.0.1:{free_port()}/")
    monkeypatch.setenv("BLOODBANK_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["file", "server"])
def ids(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[UUID]]:
    """Ids of two events that wait and of two that were set aside."""
    kept = asyncio.run(fill_outbox(outbox_path(load_settings()), 2, REFUSED))
    if request.param == "file":
        yield kept
        return
    server = ApiServer(RABBIT_URL=os.environ["RABBIT_URL"], BLOODBANK_DATA_DIR=str(folder))
    server.start()
    try:
        monkeypatch.setenv("BLOODBANK_URL", server.url)
        yield kept
    finally:
        server.close()


def _listed(*arguments: str) -> list[UUID]:
    result = bb("list", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [UUID(item["event_id"]) for item in orjson.loads(result.stdout)["items"]]


def test_the_list_tells_how_much_there_is_and_why_what_was_refused(ids: list[UUID]) -> None:
    result = bb()
    lines = result.stdout.splitlines()
    assert (result.exit_code, len(lines)) == (0, 6)
    assert lines[0].startswith("2 events are waiting for the broker (")
    assert lines[1].startswith("2 events are set aside, refused for good (")
    assert [line.split()[2] for line in lines[2:]] == ["note.number0", "note.number1", *REFUSED]
    assert "waiting" in lines[2]
    assert lines[4].endswith("refused: the broker takes at most 100 bytes\ufffd[2J")
    assert bb("list").stdout.splitlines()[2:] == lines[2:]
    assert _listed() == ids
    assert _listed("--set-aside") == ids[2:]
    assert _listed("--waiting") == ids[:2]


def test_a_long_list_is_read_in_pages(ids: list[UUID]) -> None:
    assert _listed("--limit", "3") == ids[:3]
    result = bb("list", "--limit", "3", BLOODBANK_PAGE_LIMIT="2")
    assert len(result.stdout.splitlines()) == 5
    cursor = result.stderr.split("--cursor ")[1].strip().rstrip(".")
    assert _listed("--cursor", cursor) == ids[3:]
    assert bb("list", "--cursor", "?").exit_code == ExitCode.USAGE


def test_what_was_set_aside_is_sent_again_by_prefix_or_all_of_it(ids: list[UUID]) -> None:
    one = bb("retry", str(ids[3])[:23])
    assert (one.exit_code, one.stdout.split()[:2]) == (0, ["1", "event"])
    assert _listed("--waiting") == [*ids[:2], ids[3]]
    assert bb("retry", "--all").exit_code == 0
    assert _listed("--waiting") == ids
    for arguments in [(), (str(ids[2]), "--all")]:
        assert bb("retry", *arguments).exit_code == ExitCode.USAGE
    for unknown in (str(ids[0]), str(uuid4())):
        result = bb("retry", unknown)
        assert (result.exit_code, result.stdout) == (ExitCode.NOT_FOUND, "")


def test_what_was_set_aside_is_deleted_when_one_is_sure(ids: list[UUID]) -> None:
    unsure = bb("drop", str(ids[2]))
    assert unsure.exit_code == ExitCode.USAGE
    assert "--yes" in unsure.stderr
    assert _listed() == ids
    sure = bb("drop", str(ids[2]), str(ids[2])[:23], "--yes")
    assert (sure.exit_code, sure.stdout) == (0, f"{ids[2]}  deleted\n")
    assert _listed() == [*ids[:2], ids[3]]


def test_what_waits_is_not_deleted(ids: list[UUID]) -> None:
    result = bb("drop", str(ids[3]), str(ids[0]), "--yes")
    assert (result.exit_code, result.stdout) == (ExitCode.NOT_FOUND, "")
    assert "never deleted" in result.stderr
    assert _listed() == ids


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 2), (b"y\n", 1)])
def test_on_a_terminal_deleting_is_asked_for(folder: Path, answer: bytes, left: int) -> None:
    kept = asyncio.run(fill_outbox(outbox_path(load_settings()), 0, REFUSED))
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*BB, "outbox", "drop", str(kept[0])], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as command:
            os.write(ours, answer)
            output, errors = command.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert command.returncode == 0
    assert b"big.one" in errors
    assert b"Delete 1 event for good?" in errors
    assert (b"deleted" in output) == (left == 1)
    assert len(_listed()) == left


def test_without_an_outbox_that_is_said(folder: Path) -> None:
    result = bb(BLOODBANK_OUTBOX="off")
    assert (result.exit_code, result.stdout.split()[:4]) == (0, ["There", "is", "no", "outbox:"])
    assert bb("retry", "--all", BLOODBANK_OUTBOX="off").exit_code == 0
    assert bb("drop", str(uuid4()), "--yes", BLOODBANK_OUTBOX="off").exit_code == ExitCode.NOT_FOUND


def test_an_empty_outbox_says_so(folder: Path) -> None:
    assert bb().stdout == "The outbox is empty.\n"


@pytest.mark.rabbit
def test_what_is_sent_again_reaches_the_broker(folder: Path, rabbit_server: RabbitServer) -> None:
    exchange = f"test.{uuid4().hex}.v1"
    file = outbox_path(load_settings(rabbit_url=rabbit_server.url, exchange_name=exchange))
    [event_id] = asyncio.run(fill_outbox(file, 0, {"big.one": "too large"}))
    server = ApiServer(RABBIT_URL=rabbit_server.url, BLOODBANK_DATA_DIR=str(folder), EXCHANGE_NAME=exchange)
    server.start()
    try:
        assert bb("retry", "--all", BLOODBANK_URL=server.url).exit_code == 0
        wait_until(
            lambda: bb(BLOODBANK_URL=server.url).stdout == "The outbox is empty.\n", seconds=60, what="forwarding"
        )
        got = CliRunner().invoke(app, ["events", "get", str(event_id)], env={"BLOODBANK_URL": server.url})
    finally:
        server.close()
    assert orjson.loads(got.stdout)["event_type"] == "big.one"


def test_as_json_the_list_need_not_be_named(folder: Path) -> None:
    asyncio.run(fill_outbox(outbox_path(load_settings()), 1, REFUSED))
    short, long = bb("--json"), bb("list", "--json")
    assert (short.exit_code, orjson.loads(short.stdout)) == (0, orjson.loads(long.stdout))
    assert bb("--json", "retry", "--all").exit_code == ExitCode.USAGE


def test_nothing_is_said_of_what_does_not_wait(folder: Path) -> None:
    asyncio.run(fill_outbox(outbox_path(load_settings()), 0, REFUSED))
    first, *entries = bb().stdout.splitlines()
    assert first.startswith("2 events are set aside, refused for good (")
    assert first.endswith(" are used.")
    assert len(entries) == 2
    assert bb("retry", "--all").stdout == "2 events are waiting again. A running server sends them.\n"


@pytest.mark.parametrize(
    ("attempts", "state"), [(0, "waiting"), (1, "waiting, tried once"), (3, "waiting, tried 3 times")]
)
def test_a_list_tells_how_often_an_event_was_tried(attempts: int, state: str) -> None:
    item = {
        "event_id": str(uuid4()),
        "event_type": "a.b",
        "accepted_at": "2026-03-02T12:00:00+00:00",
        "size_bytes": 10,
        "attempts": attempts,
        "set_aside": False,
        "reason": None,
    }
    [line] = plain(entry_lines([item], datetime.now(UTC))).splitlines()
    assert line.endswith(f" {state}")


def test_the_doctor_finds_what_was_refused_here_and_through_a_server(folder: Path) -> None:
    asyncio.run(fill_outbox(outbox_path(load_settings()), 0, REFUSED))
    server = ApiServer(RABBIT_URL=os.environ["RABBIT_URL"], BLOODBANK_DATA_DIR=str(folder))
    server.start()
    try:
        found = [
            {
                check["name"]: check
                for check in orjson.loads(CliRunner().invoke(app, ["doctor", "--json"], env=env).stdout)
            }
            for env in ({}, {"BLOODBANK_URL": server.url})
        ]
    finally:
        server.close()
    here, there = (checks["outbox"] for checks in found)
    assert (here["ok"], there["ok"]) == (False, False)
    assert "bb outbox retry" in here["remedy"]
    assert here["remedy"] == there["remedy"]
