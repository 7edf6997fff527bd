"""Room that is set apart on a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloodbank import _reserve
from bloodbank._reserve import Reserve

SIZE_BYTES = 1_048_576


def test_what_is_set_apart_takes_room_until_it_is_spent(tmp_path: Path) -> None:
    file = tmp_path / "reserve"
    reserve = Reserve(file, size_bytes=SIZE_BYTES)
    reserve.fill()
    assert file.stat().st_size == SIZE_BYTES
    assert file.stat().st_blocks * 512 >= SIZE_BYTES, "a file with holes would take none"
    assert reserve.spend()
    assert not file.exists()
    assert not reserve.spend()


def test_nothing_is_set_apart_where_room_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = _reserve.shutil.disk_usage(tmp_path)._replace(free=SIZE_BYTES)
    monkeypatch.setattr(_reserve.shutil, "disk_usage", lambda _: free)
    reserve = Reserve(tmp_path / "reserve", size_bytes=SIZE_BYTES)
    reserve.fill()
    assert not reserve.spend()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "missing" / "reserve", size_bytes=SIZE_BYTES)
    reserve.fill()
    assert not reserve.spend()
