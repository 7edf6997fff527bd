"""docs/configuration.md and .env.example say what `Settings` says."""

from __future__ import annotations

import re

from bloodbank.config import NO_SETTINGS, Settings, variable_names
from tests.docs.generated import CONFIGURATION, DOTENV, REGENERATE, dotenv, section, settings_table
from tests.docs.markdown import ROOT, documents


def test_table_of_settings_is_that_of_the_code() -> None:
    assert section(CONFIGURATION, "settings") == settings_table(), REGENERATE


def test_dotenv_example_is_that_of_the_code() -> None:
    assert DOTENV.read_text() == dotenv(), REGENERATE


def test_every_setting_has_a_sentence() -> None:
    wrong = [name for name, field in Settings.model_fields.items() if not (field.description or "").endswith(".")]
    assert wrong == []


def test_every_setting_is_used_by_the_code() -> None:
    sources = "\n".join(
        path.read_text() for path in (ROOT / "src").rglob("*.py") if path.name != "config.py" or "cli" in path.parts
    )
    own = (ROOT / "src/bloodbank/config.py").read_text()
    unused = [
        name
        for name in Settings.model_fields
        if not re.search(rf"\.{name}\b", sources) and not re.search(rf"self\.{name}\b", own)
    ]
    assert unused == []


def test_documents_name_no_setting_that_does_not_exist() -> None:
    tests_own = {"BLOODBANK_TEST_ALLOW_SKIP"} | NO_SETTINGS
    known = set(variable_names()) | tests_own
    unknown = {
        (path.name, name)
        for path in documents()
        for name in re.findall(r"\bBLOODBANK_[A-Z_]+[A-Z]\b", path.read_text())
        if name not in known
    }
    assert unknown == set()
