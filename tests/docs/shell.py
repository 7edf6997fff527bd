"""Runs the shell blocks of one Markdown file in one bash process, and compares what they print.

`sh` blocks are one command each; they must exit with 0. In `console` blocks a line that begins with `$ ` is a
command, and the lines up to the next one are its output. A line `[…]` in the output stands for any number of
lines. Ids, times and durations differ from run to run: see `normal`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.docs.markdown import Block, blocks

LANGUAGES = ("sh", "console")
TRIMMED = "[…]"
LONGEST_SECONDS = 100.0
_MARK = "@@ends with"
_END_OF_FILE = "@@end of file"
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_SHORT_ID = re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){1,3}\b")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?")
_CLOCK = re.compile(r"\b\d\d:\d\d:\d\d(\.\d+)?\b")
_TOOK = re.compile(r"\b\d+(\.\d+)? (ms|s|GB|MB)\b")
_PORT = re.compile(r"127\.0\.0\.1:\d+")
_FOLDER = re.compile(r"/\S*?/bloodbank-demo-\w+")
_GAP = re.compile(r"(?<=[\w)>]) {2,}(?=\S)")


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
        if block.file:
            found.append(Command(block, f"cat > {block.file} <<'{_END_OF_FILE}'\n{block.text}{_END_OF_FILE}\n", None))
            continue
        if block.language not in LANGUAGES or block.reason_not_to_run:
            continue
        if block.language == "sh":
            found.append(Command(block, block.text, None))
            continue
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            ends = next(number for number in range(1, len(lines) + 1) if _is_whole("".join(lines[:number])))
            found.append(Command(block, "".join(lines[:ends]), "".join(lines[ends:])))
    return found


def run(
    todo: Sequence[Command], *, env: Mapping[str, str], cwd: Path, shown: Sequence[tuple[str, str]] = ()
) -> list[Outcome]:
    """Run commands in one bash. shown: pairs of what a page shows, such as an address, and what it is here."""
    script = "".join(
        f"{{ {command.text.rstrip()}\n}} 2>&1 </dev/null\nprintf '\\n%s %d\\n' '{_MARK}' $?\n" for command in todo
    )
    for page, here in shown:
        script = script.replace(page, here)
    printed, errors = _bash(script, env, cwd)
    parts = re.split(rf"\n{_MARK} (\d+)\n", printed)
    if len(parts) != 2 * len(todo) + 1:
        raise AssertionError(f"{todo[0].block.path.name}: the script ended early\n{printed}{errors}")
    outcomes: list[Outcome] = []
    for number, command in enumerate(todo):
        output = parts[2 * number]
        for page, here in shown:
            output = output.replace(here, page)
        outcomes.append(Outcome(command, int(parts[2 * number + 1]), output))
    return outcomes


def _bash(script: str, env: Mapping[str, str], cwd: Path) -> tuple[str, str]:
    """Run a script; end whatever it has started when it takes too long. Return what it printed."""
    with subprocess.Popen(
        ["bash", "-u", "-c", script],
        env=dict(env),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            return process.communicate(timeout=LONGEST_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _is_whole(text: str) -> bool:
    """Say whether a command ends here: no backslash at the end, no open quote."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\\n")


def expected_code(block: Block) -> int:
    """Return the exit code that the note before a block names: `exits 3`. Default 0."""
    return int(block.note.removeprefix("exits ")) if block.note.startswith("exits ") else 0


def fits(expected: str, output: str) -> bool:
    """Say whether an output is the one that a page shows."""
    pattern = re.escape(normal(expected)).replace(re.escape(TRIMMED) + "\\\n", r"(?:.*\n)*?")
    return re.fullmatch(pattern, normal(output)) is not None


def normal(text: str) -> str:
    """Replace what differs from run to run: ids (by order of appearance), times, amounts, ports, column widths."""
    seen: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        return seen.setdefault(match[0], f"<id {len(seen) + 1}>")

    text = _TIME.sub("<time>", text)
    text = _CLOCK.sub("<time>", text)
    text = _SHORT_ID.sub(name, _UUID.sub(name, text))
    text = _FOLDER.sub("<folder>", _PORT.sub("<address>", _TOOK.sub("<amount>", text)))
    # Columns move with the width of what stands in them.
    lines = [_GAP.sub("  ", line.rstrip()) for line in text.splitlines()]
    return "\n".join(lines).strip("\n") + "\n"
