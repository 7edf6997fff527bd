"""docs/dependencies.md lists each dependency of pyproject.toml, and none more."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from tests.docs.markdown import ROOT

PAGE = ROOT / "docs" / "dependencies.md"
NAME = re.compile(r"^[A-Za-z0-9._-]+")


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _declared(group: str) -> set[str]:
    project = _project()
    entries: list[object] = (
        project["project"]["dependencies"] if group == "runtime" else project["dependency-groups"][group]
    )
    return {NAME.findall(entry)[0].lower() for entry in entries if isinstance(entry, str)}


def _listed(heading: str) -> set[str]:
    part = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return {name.lower() for name in re.findall(r"^\| `([^`\[]+)(?:\[\w+\])?` \|", part, re.MULTILINE)}


def test_runtime_dependencies_are_listed() -> None:
    assert _listed("At run time") == _declared("runtime")


def test_development_dependencies_are_listed() -> None:
    assert _listed("For tests and checks") == _declared("test") | _declared("dev")


def test_build_backend_is_listed() -> None:
    assert {NAME.findall(entry)[0] for entry in _project()["build-system"]["requires"]} == _listed("To build")


def test_requirements_for_tests_are_those_of_the_groups() -> None:
    lines = (ROOT / "tests" / "requirements-test.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    groups = _project()["dependency-groups"]
    assert listed == {entry for group in ("test", "dev") for entry in groups[group] if isinstance(entry, str)}


def test_lock_pins_every_dependency_and_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = {line.partition("==")[0].lower() for line in lock.splitlines() if "==" in line}
    assert pinned >= _declared("runtime") | _declared("test") | _declared("dev")
    assert "://" not in lock
