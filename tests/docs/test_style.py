"""What linters do not check: the size of files and functions, notes to self, and words that say nothing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.markdown import ROOT, documents

MOST_LINES_A_FILE = {"src": 600, "tests": 800, "bench": 400}
MOST_LINES_A_FUNCTION = 60
NOTES_TO_SELF = re.compile(r"\b(TODO|FIXME|XXX)\b")
EMPTY_WORDS = re.compile(
    r"\b(blazing\w*|cutting[- ]edge|effortless\w*|game[- ]chang\w+|leverag\w+|powerful|rocket|seamless\w*|"
    r"state[- ]of[- ]the[- ]art|supercharg\w+|unparalleled|utili[sz]e\w*|world[- ]class|just works|best[- ]in[- ]class|"
    r"enterprise[- ]grade|next[- ]gen\w*|revolution\w*|simply|obviously)\b",
    re.IGNORECASE,
)
ELSEWHERE = re.compile(r"/root/|/home/\w")


def _source_files() -> list[Path]:
    return sorted(
        path
        for folder in MOST_LINES_A_FILE
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".lua", ".sql", ".sh")
    )


def _texts() -> Iterator[tuple[Path, str]]:
    others = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".env.example"]
    for path in [*documents(), *_source_files(), *others]:
        if path != Path(__file__).resolve():
            yield path.relative_to(ROOT), path.read_text()


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield node.name, node.end_lineno - node.lineno + 1


def test_no_file_is_longer_than_one_sitting() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in _source_files()}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES_A_FILE[path.parts[0]]} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {name} has {length} lines"
        for path in _source_files()
        if path.suffix == ".py"
        for name, length in _functions(path)
        if length > MOST_LINES_A_FUNCTION
    ]
    assert long == []


def test_no_notes_to_self() -> None:
    assert [(str(path), found) for path, text in _texts() for found in NOTES_TO_SELF.findall(text)] == []


def test_no_words_that_say_nothing() -> None:
    read_by_users = [(path, text) for path, text in _texts() if path.parts[0] != "tests"]
    assert [(str(path), found[0]) for path, text in read_by_users for found in EMPTY_WORDS.finditer(text)] == []


def test_no_path_of_somebody_elses_machine() -> None:
    assert [(str(path), found) for path, text in _texts() for found in ELSEWHERE.findall(text)] == []
