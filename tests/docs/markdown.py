"""Reads fenced blocks out of Markdown, with the line where they stand and the note in front of them.

A note is an HTML comment on the line before the fence, so that readers of the page do not see it:

    <!-- test: not run: REASON -->        the block is shown and not executed; the reason is required
    <!-- test: raises NotOpen -->         the Python block ends with this error
    <!-- test: needs rabbit -->           the block needs a RabbitMQ server
    <!-- test: output -->                 the text is what the Python block before it prints
    <!-- test: file NAME -->              the block is what a reader saves under this name, for the commands that follow
    <!-- test: exits 3 -->                the shell commands end with this exit code
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```(\S*)\s*$")
_NOTE = re.compile(r"^<!-- test: (.+?) -->$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its first line of text, counted from 1. note: the comment before it, or ""."""

    path: Path
    line: int
    language: str
    note: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def reason_not_to_run(self) -> str | None:
        prefix, separator, reason = self.note.partition("not run: ")
        return reason if separator and not prefix else None

    @property
    def file(self) -> str | None:
        return self.note.removeprefix("file ") if self.note.startswith("file ") else None

    @property
    def expected_error(self) -> str | None:
        return self.note.removeprefix("raises ") if self.note.startswith("raises ") else None


def documents() -> list[Path]:
    """Return all Markdown files of the project."""
    return sorted(
        [
            *ROOT.glob("*.md"),
            *(ROOT / "docs").glob("**/*.md"),
            *(ROOT / "examples").glob("*.md"),
            *(ROOT / "claude_skills").glob("**/*.md"),
        ],
    )


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a file, in order."""
    found: list[Block] = []
    language: str | None = None
    start, text, note = 0, [""], ""
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if language is None and fence:
            before = _NOTE.match(lines[number - 2]) if number > 1 else None
            note = before[1] if before else ""
            language, start, text = fence[1], number + 1, []
        elif language is not None and line == "```":
            found.append(Block(path, start, language, note, "\n".join(text) + "\n"))
            language = None
        elif language is not None:
            text.append(line)
    if language is not None:
        raise ValueError(f"{path}:{start}: the block is not closed")
    return found


def prose(path: Path) -> str:
    """Return the text of a file without its fenced blocks."""
    inside = False
    kept: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def links(path: Path) -> list[str]:
    """Return the targets of the links of a file, without images."""
    return _LINK.findall(prose(path))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a file's headings, as GitHub makes them."""
    headings = [match[1] for line in prose(path).splitlines() if (match := _HEADING.match(line))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
