"""docs/dependencies.md lists each dependency of pyproject.toml, and none more."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from tests.docs.markdown import ROOT

PAGE = ROOT / "docs" / "dependencies.md"
NAME = re.compile(r"^[A-Za-z0-9._-]+")


ONLY_THERE = {"contrib/faststream.py": {"faststream", "aio_pika"}, "testing/plugin.py": {"pytest"}}
"""What single modules import that nothing else does, by their place in the package."""


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
    part = part.partition("Some packages come along")[0]
    return {name.lower() for name in re.findall(r"^\| `([^`\[]+)(?:\[\w+\])?` \|", part, re.MULTILINE)}


def _imported_by_the_package() -> set[str]:
    """Return what the package imports anywhere but where it stands in ONLY_THERE."""
    package = ROOT / "src" / "bloodbank"
    apart = {package / place: names for place, names in ONLY_THERE.items()}
    return {name for path in (ROOT / "src").rglob("*.py") for name in _imports(path) if name not in apart.get(path, ())}


def _imports(path: Path) -> set[str]:
    """Return the packages that a file imports, without those of the standard library."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


def _requirements_of(package: str) -> set[str]:
    """Return what a package requires on every platform, and what that requires."""
    found: set[str] = set()
    todo = [package]
    while todo:
        for entry in requires(todo.pop()) or ():
            name = NAME.findall(entry)[0].lower()
            if ";" not in entry and name not in found:
                found.add(name)
                todo.append(name)
    return found


def test_runtime_dependencies_are_listed() -> None:
    assert _listed("At run time") == _declared("runtime")


def test_packages_that_come_along_are_listed_with_what_brings_them() -> None:
    part = PAGE.read_text().partition("Some packages come along")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", part, re.MULTILINE))
    imported = {name.replace("_", "-") for name in _imported_by_the_package()}
    assert {name.replace("_", "-") for name in rows} == imported - _declared("runtime") - {"bloodbank"}
    for name, bringer in rows.items():
        assert name.replace("_", "-") in _requirements_of(bringer)


def test_what_extras_bring_is_listed() -> None:
    extras = [entry for entries in _project()["project"]["optional-dependencies"].values() for entry in entries]
    assert _listed("On request") == {NAME.findall(entry)[0].lower() for entry in extras}


def test_development_dependencies_are_listed() -> None:
    assert _listed("For tests and checks") == _declared("test") | _declared("dev")


def test_what_is_compared_with_is_listed() -> None:
    assert _listed("For benchmarks") == _declared("bench")


def test_build_backend_is_listed() -> None:
    assert {NAME.findall(entry)[0] for entry in _project()["build-system"]["requires"]} == _listed("To build")


def test_requirements_for_tests_are_those_of_the_groups() -> None:
    lines = (ROOT / "tests" / "requirements-test.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    groups = _project()["dependency-groups"]
    assert listed == {entry for group in ("test", "dev") for entry in groups[group] if isinstance(entry, str)}


def test_requirements_for_benchmarks_are_those_of_the_group() -> None:
    lines = (ROOT / "bench" / "requirements-bench.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    assert listed == set(_project()["dependency-groups"]["bench"])


def test_lock_pins_every_dependency_and_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = {line.partition("==")[0].lower() for line in lock.splitlines() if "==" in line}
    assert pinned >= _declared("runtime") | _declared("test") | _declared("dev") | _declared("bench")
    assert "://" not in lock


def test_packages_of_the_explorer_are_listed() -> None:
    package = json.loads((ROOT / "ui" / "package.json").read_text())
    assert _listed("In the explorer") == package["dependencies"].keys() | package["devDependencies"].keys()


def test_lock_of_the_explorer_pins_every_dependency_and_names_no_address_of_a_registry() -> None:
    package = json.loads((ROOT / "ui" / "package.json").read_text())
    packages = json.loads((ROOT / "ui" / "package-lock.json").read_text())["packages"]
    named = package["dependencies"] | package["devDependencies"]
    assert {f"node_modules/{name}" for name in named} <= packages.keys()
    assert all(entry["integrity"].startswith("sha512-") for place, entry in packages.items() if place)
    assert [place for place, entry in packages.items() if "resolved" in entry] == []
