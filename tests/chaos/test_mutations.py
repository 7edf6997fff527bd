"""The mutations themselves: they must fit the source, and name tests that exist."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chaos.mutations import MUTATIONS, Mutation, mutate
from tests.chaos.stage import ROOT, SOURCE


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_changes_the_source_and_names_a_test(mutation: Mutation, tmp_path: Path) -> None:
    for name, _, _ in mutation.edits:
        shutil.copy(SOURCE / "bloodbank" / name, tmp_path)
    mutate(tmp_path, mutation.edits)
    for name, _, new in mutation.edits:
        text = (tmp_path / name).read_text()
        assert new in text
        compile(text, name, "exec")
    path, *names = mutation.test.split("::")
    source = (ROOT / path).read_text()
    assert f"def {names[-1]}(" in source


def test_a_mutation_that_does_not_fit_any_more_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old in ("x = 1", "x = 2"):
        with pytest.raises(ValueError, match="times what the mutation looks for"):
            mutate(tmp_path, [("a.py", old, "x = 3")])
