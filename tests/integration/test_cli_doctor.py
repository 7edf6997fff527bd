"""`bb doctor` finds what is wrong, says how to mend it, and is content when nothing is."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from bloodbank.cli.main import app
from tests.servers.api import ApiServer
from tests.servers.process import free_port
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

KEY = "test-key-of-the-doctor"


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RABBIT_URL", "REDIS_URL", "REDIS_HOST", "BLOODBANK_URL", "BLOODBANK_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLOODBANK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HTTP_PORT", str(free_port()))
    monkeypatch.chdir(tmp_path)


def _doctor(**variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code and the findings by name."""
    result = CliRunner().invoke(app, ["doctor", "--json"], env=variables)
    return result.exit_code, {check["name"]: check for check in orjson.loads(result.stdout)}


def _problems(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if not check["ok"]}


def test_an_embedded_bus_is_well() -> None:
    code, checks = _doctor()
    assert (code, _problems(checks)) == (0, set())
    assert set(checks) == {"settings", "data folder", "broker", "store", "clock", "port"}
    assert "confirmed round trip" in checks["broker"]["found"]


def test_findings_are_lines_for_people() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok"] * 6


def test_a_dead_broker_and_a_dead_store_are_found() -> None:
    dead = str(free_port())
    code, checks = _doctor(RABBIT_URL=f"amqp://guest:hidden@127.0.0.1:{dead}/", REDIS_URL=f"redis://127.0.0.1:{dead}/0")
    assert (code, _problems(checks)) == (3, {"broker", "store"})
    assert "RABBIT_URL" in checks["broker"]["remedy"]
    assert "REDIS_URL" in checks["store"]["remedy"]
    assert f"127.0.0.1:{dead}/0 cannot be reached: " in checks["store"]["found"]
    assert "hidden" not in str(checks)


@pytest.mark.rabbit
@pytest.mark.redis
def test_a_living_broker_and_store_are_well(rabbit_server: RabbitServer, redis_server: RedisServer) -> None:
    code, checks = _doctor(RABBIT_URL=rabbit_server.url, REDIS_URL=redis_server.url, EXCHANGE_NAME="doctor.test")
    assert (code, _problems(checks)) == (0, set())
    assert "clock of Redis" in checks["clock"]["found"]


@pytest.mark.rabbit
def test_a_refused_login_is_a_problem_of_the_broker(rabbit_server: RabbitServer) -> None:
    code, checks = _doctor(RABBIT_URL=rabbit_server.url.replace("guest:guest", "guest:wrong"))
    assert (code, _problems(checks)) == (3, {"broker"})


def test_a_port_of_another_program_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        code, checks = _doctor(HTTP_PORT=port, BLOODBANK_CONNECT_TIMEOUT_SECONDS="0.5")
    assert (code, _problems(checks)) == (3, {"port"})
    assert port in checks["port"]["found"]


def test_a_wrong_setting_is_found() -> None:
    code, checks = _doctor(HTTP_PORT="many")
    assert (code, _problems(checks)) == (3, {"settings"})
    assert "HTTP_PORT" in checks["settings"]["found"]


def test_a_data_folder_that_is_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, checks = _doctor(BLOODBANK_DATA_DIR=str(tmp_path / "file"))
    assert code == 3
    assert "data folder" in _problems(checks)


def test_tracking_that_is_off_is_said_and_no_problem() -> None:
    code, checks = _doctor(BLOODBANK_CORRELATION_TRACKING="false")
    assert (code, "off" in checks["store"]["found"]) == (0, True)


def test_a_server_is_examined_from_afar() -> None:
    server = ApiServer(BLOODBANK_API_KEYS=f"{KEY}:read")
    try:
        server.start()
        code, checks = _doctor(BLOODBANK_URL=server.url, BLOODBANK_KEY=KEY)
        assert (code, _problems(checks)) == (0, set())
        assert set(checks) == {"settings", "server", "broker", "store", "outbox", "clock"}
        code, checks = _doctor(BLOODBANK_URL=server.url)
        assert (code, _problems(checks)) == (3, {"key"})
        assert "BLOODBANK_KEY" in checks["key"]["remedy"]
    finally:
        server.close()
    code, checks = _doctor(BLOODBANK_URL=server.url, BLOODBANK_KEY=KEY)
    assert (code, _problems(checks)) == (3, {"server"})
    assert "bb serve" in checks["server"]["remedy"]


@pytest.mark.parametrize("option", ["bogus=1", "health_check_interval=often"])
def test_an_option_of_redis_that_nobody_knows_is_found(option: str) -> None:
    code, checks = _doctor(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0?{option}")
    assert (code, _problems(checks)) == (3, {"bus"})
    assert "REDIS_URL" in checks["bus"]["found"]
