"""The journal in a file: order, bounds, and what full disks, other processes and closing do to it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloodbank._sqlite import Database
from bloodbank.deferral import Missed
from bloodbank.errors import NotOpen, StoreFormatError, Unavailable
from bloodbank.journal import SqliteJournal
from bloodbank.stores.base import Link
from tests.integration.sqlite_gate import Gate

NOW = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


def links(count: int, *, first_second: int = 0) -> list[Link]:
    times = [NOW + timedelta(seconds=first_second + place) for place in range(count)]
    return [Link(uuid4(), (uuid4(), uuid4()), "llm.prompt", when, "tests", when, b"d" * 16) for when in times]


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "outbox.db")


@pytest.fixture
async def journal(database: Database) -> AsyncIterator[SqliteJournal]:
    async with SqliteJournal(database, limit=100) as journal:
        yield journal


async def waiting(journal: SqliteJournal) -> list[Link]:
    return [link for _, link in await journal.first(1000)]


async def side_by_side(database: Database, journal: SqliteJournal, batches: Sequence[Sequence[Link]]) -> list[int]:
    """Append batches that all wait for the writer at the same time."""
    gate = Gate()
    holding = asyncio.create_task(database.write(gate))
    await gate.until_reached()
    appending = [asyncio.create_task(journal.append(batch)) for batch in batches]
    await asyncio.sleep(0)
    gate.released.set()
    await holding
    return list(await asyncio.gather(*appending))


async def test_links_come_back_in_order_until_they_are_removed(journal: SqliteJournal) -> None:
    some, one = links(5), links(1)
    assert await journal.append(some) == 5
    assert await journal.append(one) == 1
    assert await journal.append([]) == 0
    entries = await journal.first(4)
    assert [link for _, link in entries] == some[:4]
    await journal.remove([number for number, _ in entries])
    await journal.remove([number for number, _ in entries])
    assert await waiting(journal) == [some[4], *one]
    assert await journal.count() == 2


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMES = st.timedeltas(timedelta(), timedelta(days=80_000)).map(lambda since: datetime(1970, 1, 1, tzinfo=UTC) + since)
LINKS = st.builds(
    Link,
    event_id=st.uuids(),
    parents=st.lists(st.uuids(), max_size=5).map(tuple),
    event_type=TEXT,
    timestamp=TIMES,
    source=TEXT | st.just("a\0b"),
    accepted_at=TIMES,
    digest=st.sampled_from([b"", bytes(16), b"d" * 16]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINKS, min_size=1, max_size=6))
def test_every_field_comes_back_as_it_was(tmp_path: Path, some: list[Link]) -> None:
    path = tmp_path / f"{uuid4()}.db"

    async def kept() -> list[Link]:
        async with SqliteJournal(Database(path), limit=100) as journal:
            await journal.append(some)
        async with SqliteJournal(Database(path), limit=100) as journal:
            return await waiting(journal)

    assert asyncio.run(kept()) == some


async def test_what_is_appended_side_by_side_is_one_statement_and_one_commit(
    database: Database, journal: SqliteJournal
) -> None:
    statements: list[str] = []
    await database.write(lambda connection: connection.set_trace_callback(statements.append))
    batches = [links(count) for count in (1, 3, 2)]
    assert await side_by_side(database, journal, batches) == [1, 3, 2]
    await database.write(lambda connection: connection.set_trace_callback(None))
    assert sum("INSERT INTO journal" in statement for statement in statements) == 1
    # Of the tracing job and of the gate; that of the links commits itself.
    assert statements.count("COMMIT") == 2
    assert await waiting(journal) == [link for batch in batches for link in batch]


async def test_a_full_journal_keeps_the_first_and_counts_the_others(database: Database, journal: SqliteJournal) -> None:
    batches = [links(95), links(10, first_second=200), links(3, first_second=300), links(1, first_second=400)]
    assert await side_by_side(database, journal, batches) == [95, 5, 0, 0]
    assert await waiting(journal) == batches[0] + batches[1][:5]
    since, until = batches[1][5].accepted_at, batches[3][0].accepted_at
    assert (await journal.status()).missed == Missed(9, since, until)
    assert await journal.append(links(1, first_second=500)) == 0
    assert (await journal.status()).missed == Missed(10, since, NOW + timedelta(seconds=500))
    await journal.remove([number for number, _ in await journal.first(40)])
    assert await journal.append(links(41)) == 40


async def test_a_journal_without_any_room_takes_nothing(tmp_path: Path) -> None:
    async with SqliteJournal(Database(tmp_path / "outbox.db"), limit=0) as journal:
        assert await journal.append(links(1)) == 0
        assert (await journal.status()).missed == Missed(1, NOW, NOW)


async def test_what_was_missed_is_forgotten_only_when_all_of_it_is_covered(journal: SqliteJournal) -> None:
    def at(seconds: int) -> datetime:
        return NOW + timedelta(seconds=seconds)

    await journal.note_missed(Missed(2, at(10), at(20)))
    await journal.note_missed(Missed(1, at(5), at(7)))
    missed = Missed(3, at(5), at(20))
    for since, until in ((6, 30), (0, 19)):
        await journal.clear_missed(since=at(since), until=at(until))
        assert (await journal.status()).missed == missed
    await journal.clear_missed(since=at(5), until=at(20))
    assert (await journal.status()).missed is None


async def test_a_number_is_never_given_twice(journal: SqliteJournal) -> None:
    await journal.append(links(3))
    first = [number for number, _ in await journal.first(10)]
    await journal.remove(first)
    new = links(3)
    await journal.append(new)
    # As another process does that recorded the same three.
    await journal.remove(first)
    assert await waiting(journal) == new


async def test_what_is_set_aside_is_out_of_the_way_until_the_journal_is_opened_again(database: Database) -> None:
    some = links(3)
    async with SqliteJournal(database, limit=3) as journal:
        await journal.append(some)
        number = (await journal.first(3))[1][0]
        await journal.set_aside(number, "ValueError: it is odd")
        await journal.set_aside(number, "ValueError: it is odd")
        assert await waiting(journal) == [some[0], some[2]]
        assert (await journal.status()).set_aside == 1
        await journal.remove([one for one, _ in await journal.first(3)])
        assert await journal.append(links(3)) == 2, "what is set aside takes room"
    async with SqliteJournal(database, limit=3) as journal:
        assert (await waiting(journal))[-1] == some[1]
        assert (await journal.status()).set_aside == 0


async def test_a_full_disk_is_an_error_and_keeps_nothing(database: Database, journal: SqliteJournal) -> None:
    def allow_no_more(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    await database.write(allow_no_more)
    with pytest.raises(Unavailable, match="full"):
        await journal.append(links(90))
    assert await journal.count() == 0
    await database.write(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchone())
    assert await journal.append(links(90)) == 90


async def test_two_processes_share_the_bound_and_the_links(tmp_path: Path) -> None:
    async with (
        SqliteJournal(Database(tmp_path / "outbox.db"), limit=10) as first,
        SqliteJournal(Database(tmp_path / "outbox.db"), limit=10) as second,
    ):
        some, others = links(6), links(6)
        assert [await first.append(some), await second.append(others)] == [6, 4]
        assert await waiting(first) == await waiting(second) == some + others[:4]


async def test_another_format_is_refused(database: Database) -> None:
    async with SqliteJournal(database, limit=10), database:
        change = "UPDATE format SET version = 9 WHERE part = 'journal'"
        await database.write(lambda connection: connection.execute(change).rowcount)
    with pytest.raises(StoreFormatError, match="format 9 of the journal"):
        await SqliteJournal(database, limit=10).__aenter__()


async def test_a_closed_journal_says_so(database: Database) -> None:
    journal = SqliteJournal(database, limit=10)
    with pytest.raises(NotOpen):
        await journal.append(links(1))
    async with journal:
        await journal.append(links(1))
    with pytest.raises(NotOpen):
        await journal.count()
