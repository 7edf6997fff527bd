"""The deployment checklist, line by line, in a new environment with servers of its own."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.conftest import environment
from tests.docs.markdown import ROOT
from tests.docs.shell import commands, run
from tests.docs.test_commands import DEPLOYMENT, check
from tests.servers.process import free_port
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

# What is installed already satisfies pip, so that it builds and installs the package and downloads nothing else.
_KNOWN_PACKAGES = "known.pth"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files of the project, as a fresh clone has them; pip may write beside the sources."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("src", "tests", "docs", "pyproject.toml", "README.md", "LICENSE", "requirements.lock"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def test_checklist_works_as_written(
    tmp_path: Path, checkout: Path, rabbit_server: RabbitServer, redis_server: RedisServer
) -> None:
    port = free_port()
    redis = urlsplit(redis_server.url)
    env = environment(tmp_path) | {
        "RABBIT_URL": rabbit_server.url,
        "REDIS_HOST": str(redis.hostname),
        "REDIS_PORT": str(redis.port),
        "BLOODBANK_REDIS_PREFIX": "deployment",
        "HTTP_PORT": str(port),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    del env["PYTHONPATH"]
    venv = tmp_path / "venv"
    shown = [
        ("8682", str(port)),
        ("/tmp/bloodbank-venv\n", f"{venv}\n{_see_installed_packages(venv)}\n"),
        ("/tmp/bloodbank-venv", str(venv)),
        ("/tmp/bloodbank.pid", str(tmp_path / "server.pid")),
    ]
    outcomes = run(commands(DEPLOYMENT), env=env, cwd=checkout, shown=shown)
    check(outcomes)
    imported = next(outcome for outcome in outcomes if "import app" in outcome.command.text)
    assert imported.output.strip() == ""
    assert any('"ready":true,"degraded":false' in outcome.output for outcome in outcomes)
    assert any('"status":"published","lineage":"recorded"' in outcome.output for outcome in outcomes)


def _see_installed_packages(venv: Path) -> str:
    """Return the command that lets a new environment see the packages of this one, but not this project."""
    site = sysconfig.get_paths()["purelib"]
    return f"echo {site} > $(echo {venv}/lib/python*/site-packages)/{_KNOWN_PACKAGES}"
