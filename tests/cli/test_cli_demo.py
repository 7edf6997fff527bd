"""The demo's verdict: only the exact answer is right."""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from bloodbank.cli.demo.play import command_name
from bloodbank.cli.demo.verdict import mistakes
from bloodbank.story import EXPECTATIONS, STORY, Expectation
from tests.cli.lineage_answers import answer_of, id_of

IDS = {scene.name: id_of(scene.name) for scene in STORY}
CAUSES = {scene.name: scene.causes for scene in STORY}

Answer = dict[str, Any]


def _right_answer(expected: Expectation) -> Answer:
    """The answer that follows from the causes that the scenes name, by a search of its own."""
    effects = {name: [each for each, causes in CAUSES.items() if name in causes] for name in CAUSES}
    neighbours = CAUSES if expected.direction == "ancestors" else effects
    found, todo = {expected.focus}, [expected.focus]
    while todo:
        new = set(neighbours[todo.pop()]) - found
        found |= new
        todo += new
    parents = {name: [cause for cause in CAUSES[name] if cause in found] for name in CAUSES if name in found}
    return answer_of(parents, expected.focus, expected.direction)


@pytest.mark.parametrize("expected", EXPECTATIONS, ids=lambda each: each.focus)
def test_what_the_story_says_is_what_is_expected(expected: Expectation) -> None:
    assert mistakes(_right_answer(expected), expected, IDS) == []


def _lose_an_event(answer: Answer) -> None:
    lost = answer["nodes"].pop()["id"]
    answer["edges"] = [edge for edge in answer["edges"] if lost not in edge.values()]


def _repeat_an_event(answer: Answer) -> None:
    answer["nodes"].append(answer["nodes"][0])


def _add_an_event(answer: Answer) -> None:
    answer["nodes"].append({**answer["nodes"][0], "id": str(id_of("stranger"))})


def _turn_an_edge(answer: Answer) -> None:
    edge = answer["edges"][0]
    answer["edges"][0] = {"parent": edge["child"], "child": edge["parent"]}


def _lose_an_edge(answer: Answer) -> None:
    answer["edges"].pop()


def _repeat_an_edge(answer: Answer) -> None:
    answer["edges"].append(answer["edges"][0])


def _miss_an_event(answer: Answer) -> None:
    answer["missing"].append(answer["nodes"][0]["id"])


def _cut_by_depth(answer: Answer) -> None:
    answer["truncated"]["depth"] = True


def _cut_by_limit(answer: Answer) -> None:
    answer["truncated"]["limit"] = True


def _close_a_circle(answer: Answer) -> None:
    answer["cycle"] = True


def _ask_about_another(answer: Answer) -> None:
    answer["focus"] = str(id_of("stranger"))


@pytest.mark.parametrize("expected", EXPECTATIONS, ids=lambda each: each.focus)
@pytest.mark.parametrize(
    "spoil",
    [
        _lose_an_event,
        _repeat_an_event,
        _add_an_event,
        _turn_an_edge,
        _lose_an_edge,
        _repeat_an_edge,
        _miss_an_event,
        _cut_by_depth,
        _cut_by_limit,
        _close_a_circle,
        _ask_about_another,
    ],
)
def test_every_other_answer_is_wrong(spoil: Callable[[Answer], None], expected: Expectation) -> None:
    answer = deepcopy(_right_answer(expected))
    spoil(answer)
    assert mistakes(answer, expected, IDS)


def test_the_command_is_named_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "venv" / "bb"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command_name() == "venv/bb"
    monkeypatch.setenv("PATH", str(program.parent))
    assert command_name() == "bb"
    monkeypatch.setattr(sys, "argv", ["/elsewhere/__main__.py"])
    assert command_name() == "bb"
