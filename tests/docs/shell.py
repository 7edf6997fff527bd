"""Runs the shell blocks of one Markdown file in one bash process, and compares what they print.

`sh` blocks are one command each; they must exit with 0. In `console` blocks a line that begins with `$ ` is a
command, and the lines up to the next one are its output. A line `[…]` in the output stands for any number of
lines. Ids, times and durations differ from run to run: see `normal`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docs.markdown import Block, blocks

LANGUAGES = ("sh", "console")
TRIMMED = "[…]"
_MARK = "@@ends with"
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_SHORT_ID = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,32}\b")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?")
_CLOCK = re.compile(r"\b\d\d:\d\d:\d\d(\.\d+)?\b")
_TOOK = re.compile(r"\b\d+(\.\d+)? (ms|s)\b")


@dataclass(frozen=True)
class Command:
    """A command of a block. expected: its output as the page shows it; None where the page shows none."""

    block: Block
    text: str
    expected: str | None


@dataclass(frozen=True)
class Outcome:
    """What a command did. output: both streams, as a terminal shows them."""

    command: Command
    code: int
    output: str


def commands(path: Path) -> list[Command]:
    """Return the commands of a file that can be run, in order."""
    found: list[Command] = []
    for block in blocks(path):
        if block.language not in LANGUAGES or block.reason_not_to_run:
            continue
        if block.language == "sh":
            found.append(Command(block, block.text, None))
            continue
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            ends = next(number for number, line in enumerate(lines, 1) if not line.endswith("\\\n"))
            found.append(Command(block, "".join(lines[:ends]), "".join(lines[ends:])))
    return found


def run(path: Path, *, env: Mapping[str, str], cwd: Path, replace: Mapping[str, str]) -> list[Outcome]:
    """Run the commands of a file. replace: texts, such as addresses, that differ in the tests."""
    todo = commands(path)
    script = "".join(
        f"{{ {command.text.rstrip()}\n}} 2>&1 </dev/null\nprintf '\\n%s %d\\n' '{_MARK}' $?\n" for command in todo
    )
    for shown, real in replace.items():
        script = script.replace(shown, real)
    done = subprocess.run(
        ["bash", "-u", "-c", script], env=dict(env), cwd=cwd, capture_output=True, text=True, timeout=90, check=False
    )
    parts = re.split(rf"\n{_MARK} (\d+)\n", done.stdout)
    if len(parts) != 2 * len(todo) + 1:
        raise AssertionError(f"{path.name}: the script ended early\n{done.stdout}{done.stderr}")
    outcomes: list[Outcome] = []
    for number, command in enumerate(todo):
        output = parts[2 * number]
        for shown, real in replace.items():
            output = output.replace(real, shown)
        outcomes.append(Outcome(command, int(parts[2 * number + 1]), output))
    return outcomes


def expected_code(block: Block) -> int:
    """Return the exit code that the note before a block names: `exits 3`. Default 0."""
    return int(block.note.removeprefix("exits ")) if block.note.startswith("exits ") else 0


def fits(expected: str, output: str) -> bool:
    """Say whether an output is the one that a page shows."""
    pattern = re.escape(normal(expected)).replace(re.escape(TRIMMED) + "\\\n", r"(?:.*\n)*?")
    return re.fullmatch(pattern, normal(output)) is not None


def normal(text: str) -> str:
    """Replace what differs from run to run: ids by their order of appearance, times, durations, spaces at ends."""
    seen: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        return seen.setdefault(match[0], f"<id {len(seen) + 1}>")

    text = _TIME.sub("<time>", text)
    text = _CLOCK.sub("<time>", text)
    text = _SHORT_ID.sub(name, _UUID.sub(name, text))
    text = _TOOK.sub("<duration>", text)
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(lines).strip("\n") + "\n"
