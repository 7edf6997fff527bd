"""After a rebuild nothing is said any more of events that had no place in the journal: the log had them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bloodbank import CorrelationTracker, Settings
from bloodbank._sqlite import Database
from bloodbank.deferral import Missed
from bloodbank.journal import SqliteJournal
from bloodbank.reindex import reindex
from bloodbank.stores.sqlite import SqliteStore
from tests.conformance.backends import embedded_bus

SETTINGS = Settings(_env_file=None)
NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


async def _left_after(folder: Path, missed: Missed, since: datetime | None) -> int:
    """Note events that had no place, rebuild the index, and return how many are noted then."""
    async with SqliteJournal(Database(folder / "outbox.db"), limit=10) as journal:
        await journal.note_missed(missed)
    journal = SqliteJournal(Database(folder / "outbox.db"), limit=10)
    store = SqliteStore(Database(folder / "index.db"))
    async with embedded_bus(folder).transport() as transport, CorrelationTracker(store, journal=journal) as tracker:
        assert tracker.unjournalled_total == missed.total
        await reindex(transport, tracker, SETTINGS, since=since)
        return tracker.unjournalled_total


@pytest.mark.parametrize("since", [None, NOW - 3 * HOUR])
async def test_what_lies_within_the_part_that_was_read_is_forgotten(tmp_path: Path, since: datetime | None) -> None:
    assert await _left_after(tmp_path, Missed(3, NOW - 2 * HOUR, NOW - HOUR), since) == 0


async def test_what_was_accepted_before_that_part_is_still_told(tmp_path: Path) -> None:
    assert await _left_after(tmp_path, Missed(3, NOW - 2 * HOUR, NOW - HOUR), NOW - 1.5 * HOUR) == 3


async def test_what_may_have_come_into_the_log_too_late_is_still_told(tmp_path: Path) -> None:
    assert await _left_after(tmp_path, Missed(3, NOW - 2 * HOUR, datetime.now(UTC)), None) == 3
