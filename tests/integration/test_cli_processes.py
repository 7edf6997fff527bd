"""`bb` as processes: beside a server, beside each other, in pipes, and when they are told to end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.servers.api import ApiServer
from tests.servers.process import free_port, wait_until

BB = [sys.executable, "-m", "bloodbank.cli.main"]
KEY = "test-key-of-the-cli"
SETTINGS = ("BLOODBANK_", "RABBIT_", "REDIS_", "HTTP_", "EXCHANGE_", "CORRELATION_")


@dataclass(frozen=True)
class Shell:
    """Runs `bb` in a folder. env: the whole environment of the commands."""

    folder: Path
    env: Mapping[str, str]

    def bb(self, *arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*BB, *arguments],
            env={**self.env, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str) -> Any:
        return orjson.loads(self.bb(*arguments).stdout)

    def publish(self, *arguments: str) -> str:
        return self.bb("publish", *arguments).stdout.split()[0]

    @contextmanager
    def running(self, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """Run `bb` beside the test; killed at the end if it still runs."""
        with subprocess.Popen(
            [*BB, *arguments],
            env={**self.env, **variables},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that runs the tests in the background ignores Ctrl-C, and its children would too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def _shell(folder: Path, **variables: str) -> Shell:
    # Unbuffered output, which some environments set, would hide a missing flush.
    left_out = (*SETTINGS, "PYTHONUNBUFFERED")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return Shell(folder, {**inherited, "BLOODBANK_DATA_DIR": str(folder / "data"), **variables})


@pytest.fixture
def local(tmp_path: Path) -> Shell:
    """Commands that open an embedded bus themselves."""
    return _shell(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    server = ApiServer(BLOODBANK_API_KEYS=f"{KEY}:publish+read")
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["local", "remote"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    """Commands that open the bus themselves, and commands that speak to a server."""
    if request.param == "local":
        return _shell(tmp_path)
    server: ApiServer = request.getfixturevalue("server")
    return _shell(tmp_path, BLOODBANK_URL=server.url, BLOODBANK_KEY=KEY)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _wait_until_it_listens(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Waiting for events")


def test_a_chain_is_published_and_asked_for(shell: Shell) -> None:
    call = shell.publish("call.recorded")
    left, right = (shell.publish("llm.note", "-p", call) for _ in range(2))
    notes = shell.publish("notes.written", "-p", left, "-p", right)
    why, effects = shell.json("why", notes, "--json"), shell.json("effects", call, "--json")
    edges = {(call, left), (call, right), (left, notes), (right, notes)}
    assert {(edge["parent"], edge["child"]) for edge in why["edges"]} == edges
    assert {(edge["parent"], edge["child"]) for edge in effects["edges"]} == edges
    tree = shell.bb("why", notes).stdout
    assert [line.split("  ")[0].split(" ")[-1] for line in tree.splitlines()[:2]] == ["notes.written", "llm.note"]
    assert tree.count("↑ see") == 1
    assert "\x1b" not in tree
    for command, focus in (("why", notes), ("effects", call)):
        chart = shell.bb(command, focus, "--mermaid")
        lines = chart.stdout.splitlines()
        assert (lines[0], chart.stderr) == ("flowchart TD", "")
        assert (sum("llm.note<br/>" in line for line in lines), sum(" --> " in line for line in lines)) == (2, 4)


def test_ids_are_found_by_prefix_and_listed_when_ambiguous(shell: Shell) -> None:
    digits = os.urandom(4).hex()
    twins = [shell.publish("a.b", "--id", f"{digits}-0000-4000-8000-00000000000{last}") for last in "12"]
    assert shell.json("events", "get", twins[0][:-1].replace("-", "") + "2")["event_id"] == twins[1]
    ambiguous = shell.bb("why", digits, code=2)
    assert all(twin in ambiguous.stderr for twin in twins)
    newest = shell.publish("a.b")
    assert shell.json("events", "get", newest[:23])["event_id"] == newest
    shell.bb("why", "00000000", code=1)


def test_events_are_listed_by_type_and_time(shell: Shell) -> None:
    word = f"w{os.urandom(4).hex()}"
    ids = [shell.publish(f"{word}.{name}") for name in ("first", "second", "third")]
    listed = shell.json("events", "list", "--type", f"{word}.*", "--json")
    assert [item["event_id"] for item in listed] == ids[::-1]
    assert shell.json("events", "list", "--type", f"{word}.*", "--until", "1h", "--json") == []
    assert len(shell.json("events", "list", "--type", f"{word}.*", "--limit", "2", "--json")) == 2
    assert len(shell.bb("events", "list", "--type", f"{word}.*", "--since", "5m").stdout.splitlines()) == 3


def test_errors_are_the_same_with_and_without_a_server(shell: Shell) -> None:
    unknown = "00000000-0000-0000-0000-00000000000a"
    shell.bb("why", unknown, code=1)
    shell.bb("events", "get", unknown, code=1)
    shell.bb("events", "schema", "no.such", code=1)
    assert "payload.provider" in shell.bb("publish", "llm.prompt", code=2).stderr
    first = shell.publish("a.b", "--key", "same")
    assert shell.bb("publish", "a.b", "--key", "same").stdout.split() == [first, "duplicate"]
    assert first in shell.bb("publish", "a.b", "--key", "same", "-d", '{"other": 1}', code=2).stderr


def test_schemas_are_the_same_with_and_without_a_server(local: Shell, server: ApiServer) -> None:
    remote = {"BLOODBANK_URL": server.url, "BLOODBANK_KEY": KEY}
    for arguments in (("events", "schema"), ("events", "schema", "fireflies.transcript.ready")):
        assert local.bb(*arguments).stdout == local.bb(*arguments, **remote).stdout


def test_a_tail_shows_what_comes_and_only_that(shell: Shell) -> None:
    word = f"w{os.urandom(4).hex()}"
    shell.publish(f"{word}.before")
    with shell.running("tail", f"{word}.#", "--json", "--count", "2") as tail:
        _wait_until_it_listens(tail)
        shell.publish("other.type")
        ids = [shell.publish(f"{word}.{name}") for name in ("first", "second")]
        assert [orjson.loads(_line(tail))["event_id"] for _ in ids] == ids
        assert tail.wait(20) == 0


def test_a_tail_ends_by_ctrl_c_and_by_a_closed_pipe(local: Shell) -> None:
    with local.running("tail", "#") as tail:
        _wait_until_it_listens(tail)
        tail.send_signal(signal.SIGINT)
        assert tail.wait(20) == 130
        assert tail.stderr is not None
        assert tail.stderr.read() == ""
    with local.running("tail", "#") as tail:
        _wait_until_it_listens(tail)
        assert tail.stdout is not None
        tail.stdout.close()
        local.publish("a.b")
        assert tail.wait(20) == 141
        assert tail.stderr is not None
        assert tail.stderr.read() == ""


def test_a_tail_tells_causes_with_their_types_where_somebody_knows_them(shell: Shell) -> None:
    word = f"w{os.urandom(4).hex()}"
    call = shell.publish(f"{word}.call")
    unknown = "0198c2f4-7a51-7c3e-9d7e-5f0a4b8c1d20"
    others = [shell.publish(f"{word}.other") for _ in range(2)]
    with shell.running("tail", f"{word}.note", "--count", "2") as tail:
        _wait_until_it_listens(tail)
        parents = [word for parent in (call, unknown, *others) for word in ("--parent", parent)]
        first = shell.publish(f"{word}.note", *parents)
        second = shell.publish(f"{word}.note", "--parent", first)
        line = _line(tail)
        assert f"← {call[:13]} {word}.call, {unknown[:13]}, {others[0][:13]} {word}.other and 1 more" in line
        line = _line(tail)
        assert second[:13] in line
        assert f"← {first[:13]} {word}.note" in line
        assert "\x1b" not in line
        assert tail.wait(20) == 0


def test_top_prints_once_and_again_and_again(shell: Shell) -> None:
    word = f"w{os.urandom(4).hex()}"
    for _ in range(3):
        shell.publish(f"{word}.seen")
    said = shell.bb("top", "--once").stdout
    row = next(line for line in said.splitlines() if line.startswith(f"{word}.seen"))
    assert row.split()[1:3] == ["3", "3"]
    assert "dead letters  0" in said
    assert "\x1b" not in said
    with shell.running("top", "--json", "--every", "0.2") as top:
        assert len(orjson.loads(_line(top))["per_second"]) == 60
        shell.publish(f"{word}.later")
        deadline = time.monotonic() + 30
        while f"{word}.later" not in _line(top):
            assert time.monotonic() < deadline
        top.send_signal(signal.SIGINT)
        assert top.wait(20) == 130


def test_top_goes_on_when_the_server_is_away_for_a_while(local: Shell, server: ApiServer) -> None:
    remote = {"BLOODBANK_URL": server.url, "BLOODBANK_KEY": KEY}
    with local.running("top", "--json", "--every", "0.2", **remote) as top:
        assert orjson.loads(_line(top))["trouble"] is None
        server.stop()
        assert top.stderr is not None
        assert "No server answers" in top.stderr.readline()
        server.start()
        while top.stdout is not None and not (line := top.stdout.readline()):
            pass
        assert orjson.loads(line)["types"] is not None
    assert "No server answers" in local.bb("top", "--once", code=3, BLOODBANK_URL="http://127.0.0.1:1").stderr


def test_a_wrong_key_is_told(local: Shell, server: ApiServer) -> None:
    for key in ({}, {"BLOODBANK_KEY": "not-the-key"}):
        said = local.bb("events", "list", code=2, BLOODBANK_URL=server.url, **key).stderr
        assert "BLOODBANK_KEY" in said


def test_a_wrong_url_is_told(local: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        hurry = {f"BLOODBANK_{name}_TIMEOUT_SECONDS": "0.1" for name in ("QUERY", "PUBLISH")}
        started = time.monotonic()
        said = local.bb("events", "list", code=3, BLOODBANK_URL=url, **hurry).stderr
        assert time.monotonic() - started < 30
        assert url in said


def test_serve_serves_until_it_is_told_to_end(local: Shell) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with local.running("serve", "--port", str(port)) as server:

        def answers() -> bool:
            assert server.poll() is None
            return _listens(port)

        wait_until(answers, seconds=30, what="bb serve")
        assert local.bb("publish", "a.b", BLOODBANK_URL=url).stdout.endswith("published\n")
        doctor = local.bb("doctor", HTTP_PORT=str(port)).stdout
        assert "answers there already" in doctor
        assert "agrees with the server's clock" in doctor
        assert "another program" not in doctor
        local.bb("serve", "--port", str(port), code=2)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == -signal.SIGTERM, "as docs/operations.md says"


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
