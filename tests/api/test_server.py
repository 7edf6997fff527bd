"""Where the server listens, and how a start that fails is told."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from bloodbank import ConfigurationError, Settings
from bloodbank.config import Scope
from bloodbank.http.app import create_app
from bloodbank.http.server import _listen, listening_host, serve

KEYS = {"some-api-key": frozenset({Scope.ADMIN})}


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "127.0.0.1"),
        ({"http_host": "localhost"}, "localhost"),
        ({"http_host": "::1"}, "::1"),
        ({"http_host": "0.0.0.0"}, "127.0.0.1"),
        ({"http_host": "0.0.0.0", "allow_anonymous": True}, "0.0.0.0"),
        ({"http_host": "0.0.0.0", "api_keys": KEYS}, "0.0.0.0"),
    ],
)
def test_without_keys_the_server_listens_on_loopback_only(settings: dict[str, Any], host: str) -> None:
    assert listening_host(Settings(_env_file=None, **settings)) == host


def test_an_address_in_use_is_one_sentence_that_names_the_settings(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(_env_file=None, data_dir=tmp_path, http_port=other.getsockname()[1])
        with pytest.raises(ConfigurationError, match=r"HTTP_PORT.*in use"):
            serve(settings)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 64])
def test_a_host_that_does_not_exist_is_one_sentence(tmp_path: Path, host: str) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, http_host=host, allow_anonymous=True)
    with pytest.raises(ConfigurationError, match="HTTP_HOST"):
        serve(settings)


async def _start(app: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    with pytest.raises(Exception):  # noqa: B017, PT011, the kind is the subject of the caller
        await app({"type": "lifespan", "app": app, "state": {}}, receive, send)
    return sent


async def test_a_wrong_setting_stops_the_start_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTTP_PORT", "many")
    [message] = await _start(create_app())
    assert message["type"] == "lifespan.startup.failed"
    assert message["message"].startswith("Wrong setting. HTTP_PORT: ")
    assert "\n" not in message["message"]


async def test_a_data_folder_that_cannot_be_used_stops_the_start_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [message] = await _start(create_app(Settings(_env_file=None, data_dir=tmp_path / "file" / "data")))
    assert message["type"] == "lifespan.startup.failed"
    assert "Traceback" not in message["message"]


async def test_the_environment_is_read_at_the_start_and_a_misspelt_variable_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    app = create_app()
    monkeypatch.setenv("BLOODBANK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("BLOODBANK_PAGELIMIT", "7")
    async with app.router.lifespan_context(app):
        assert app.state.bus.settings.data_dir == tmp_path / "data"
    assert "BLOODBANK_PAGELIMIT is no setting" in caplog.text


def test_what_is_answered_does_not_wait_for_the_acknowledgement_before_it() -> None:
    with (
        _listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
