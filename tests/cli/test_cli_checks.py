"""The doctor's single findings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bloodbank.cli.checks import check_clock, check_data_folder, check_settings, compare_clocks
from bloodbank.cli.doctor import check_lines
from bloodbank.cli.text import plain
from bloodbank.config import Settings

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def _settings(**values: object) -> Settings:
    return Settings(**{"redis_host": None, "rabbit_url": None, **values})  # type: ignore[arg-type]


def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODBANK_DATADIR", "x")
    check = check_settings()
    assert (check.ok, check.found) == (False, "unknown setting BLOODBANK_DATADIR")


def test_a_data_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    assert check_data_folder(tmp_path / "new" / "folder").ok
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_data_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    check = check_data_folder(tmp_path / "file")
    assert (check.ok, "BLOODBANK_DATA_DIR" in check.remedy) == (False, True)


@pytest.mark.parametrize(("apart", "ok"), [(0, True), (4, True), (-4, True), (6, False), (-60, False)])
def test_clocks_may_be_five_seconds_apart(apart: int, ok: bool) -> None:
    check = compare_clocks(NOW + timedelta(seconds=apart), NOW, "the server's clock")
    assert check.ok is ok
    assert "the server's clock" in check.found
    assert ok or ("ahead" if apart > 0 else "behind") in check.found


async def test_without_another_clock_it_is_said_that_nothing_was_compared() -> None:
    check = await check_clock(_settings(), None, None)
    assert (check.ok, "no other clock" in check.found) == (True, True)


async def test_an_event_of_the_future_is_a_problem() -> None:
    assert not (await check_clock(_settings(), None, datetime.now(UTC) + timedelta(hours=1))).ok
    assert (await check_clock(_settings(), None, datetime.now(UTC) - timedelta(hours=1))).ok


def test_a_problem_is_shown_with_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    bad, good = check_data_folder(tmp_path / "file"), check_data_folder(tmp_path)
    assert plain(check_lines(good)).startswith("ok       data folder ")
    first, second = plain(check_lines(bad)).splitlines()
    assert first.startswith("problem  data folder ")
    assert second.strip() == f"-> {bad.remedy}"
