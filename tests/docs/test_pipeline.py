"""The first program that README shows, from nothing: a file, an event, its causes."""

from __future__ import annotations

from pathlib import Path

from tests.docs.conftest import THIS_MACHINE, environment
from tests.docs.outputs import README
from tests.docs.shell import Command, commands, run
from tests.docs.test_commands import check

MOST_LINES = 10


def _first_program() -> list[Command]:
    """Return the commands of a new user, from the file on to the question for its causes."""
    found = commands(README)
    begin = next(place for place, command in enumerate(found) if command.block.file)
    end = next(place for place, command in enumerate(found) if place > begin and command.text.startswith("bb why"))
    return found[begin : end + 1]


def test_first_program_works_in_an_empty_folder_without_a_server(tmp_path: Path) -> None:
    outcomes = run(_first_program(), env=environment(tmp_path), cwd=tmp_path, shown=[THIS_MACHINE])
    check(outcomes)
    drawn = outcomes[-1].output.split()
    assert [word for word in drawn if "." in word] == ["memo.filed", "summary.written", "call.recorded"]


def test_first_program_has_few_lines() -> None:
    code = [line for line in _first_program()[0].block.text.splitlines() if line.strip()]
    assert len(code) <= MOST_LINES
