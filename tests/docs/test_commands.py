"""Every shell command of README, the guide and the migration page runs, and prints what the page shows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from bloodbank.cli.main import app
from tests.docs import outputs
from tests.docs.conftest import Place
from tests.docs.markdown import ROOT, documents
from tests.docs.shell import Outcome, commands, expected_code, fits, normal, run

DEPLOYMENT = ROOT / "docs" / "deployment.md"
"""Has a test of its own, which gives it servers and a new environment."""

WITH_COMMANDS = [path for path in documents() if path not in (outputs.README, DEPLOYMENT) and commands(path)]


def test_readme_commands_print_what_readme_shows(tmp_path: Path) -> None:
    check(outputs.outcomes(tmp_path), hint="\n`python -m tests.docs.outputs` writes the outputs anew.")


@pytest.mark.parametrize("path", WITH_COMMANDS, ids=lambda path: path.name)
def test_commands_run(path: Path, place: Place) -> None:
    check(run(commands(path), env=place.env, cwd=place.folder, shown=place.shown))


def test_make_targets_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    written = re.compile(r"(?:`|^\$ |^)make ([a-z]+)\b", re.MULTILINE)
    named = {name for path in documents() for name in written.findall(path.read_text())}
    assert {"demo", "test", "serve", "unit", "check", "clean"} <= named
    assert {name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)} == set()


def test_make_demo_is_bb_demo() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    assert recipe.splitlines()[1:] == ["\t@$(BIN)/bb demo"]


def test_every_bb_command_is_in_the_readme() -> None:
    readme = outputs.README.read_text()
    names = set(getattr(get_command(app), "commands", {}))
    assert len(names) >= 8
    assert {name for name in names if f"`bb {name}" not in readme} == set()


def check(outcomes: list[Outcome], hint: str = "") -> None:
    """Fail with the command, its place and both outputs when one did not do what the page says."""
    for outcome in outcomes:
        command = outcome.command
        where = f"{command.block.place}: {command.text}"
        assert outcome.code == expected_code(command.block), f"{where}\n{outcome.output}"
        if command.expected is not None:
            assert fits(command.expected, outcome.output), (
                f"{where}\nshown:\n{normal(command.expected)}\nprinted:\n{normal(outcome.output)}{hint}"
            )


def test_an_environment_that_was_made_by_half_is_not_kept(tmp_path: Path) -> None:
    """As on Debian without python3-venv, where a Python without pip is left behind."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nmkdir -p .venv/bin && touch .venv/bin/python && echo "no ensurepip" >&2 && exit 1\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    command = ["make", ".venv/bin/python", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "no ensurepip" in done.stderr) == (2, True)
    assert not (tmp_path / ".venv").exists()
