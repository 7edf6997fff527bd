"""Every Python block of every document runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.conftest import environment
from tests.docs.markdown import blocks, documents
from tests.docs.runner import RABBIT
from tests.servers.rabbit import RabbitServer

WITH_PYTHON = [path for path in documents() if any(block.language == "python" for block in blocks(path))]
KNOWN_LANGUAGES = {"python", "sh", "console", "text", "toml", "json", "mermaid", "ini", "nginx"}


@pytest.mark.parametrize("path", WITH_PYTHON, ids=lambda path: path.name)
def test_python_blocks_run_in_order(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    env = environment(tmp_path)
    python = [block for block in blocks(path) if block.language == "python" and not block.file]
    runnable = [block for block in python if not block.reason_not_to_run]
    if any(block.note == RABBIT for block in runnable):
        server: RabbitServer = request.getfixturevalue("rabbit_server")
        env["TEST_RABBIT_URL"] = server.url
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.docs.runner", str(path)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(runnable)} blocks executed" in done.stdout


def test_blocks_that_are_not_run_have_a_reason_and_are_few() -> None:
    skipped = [block for path in documents() for block in blocks(path) if "not run" in block.note]
    assert [block.place for block in skipped if len(block.reason_not_to_run or "") < 15] == []
    assert len(skipped) <= 23, [block.place for block in skipped]


def test_blocks_name_a_language_that_the_tests_know() -> None:
    unknown = {block.place for path in documents() for block in blocks(path) if block.language not in KNOWN_LANGUAGES}
    assert unknown == set()


def test_notes_are_ones_that_the_tests_know() -> None:
    beginnings = ("", "not run: ", "raises ", "needs rabbit", "exits ", "file ", "output")
    unknown = {
        block.place
        for path in documents()
        for block in blocks(path)
        if block.note and not block.note.startswith(beginnings[1:])
    }
    assert unknown == set()
