"""The embedded log and index where they differ from other backends: retention, leases, locks and formats."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bloodbank._sqlite import Database
from bloodbank.errors import (
    EventConflict,
    InvalidQuery,
    PublishRejected,
    PublishUnknown,
    StoreFormatError,
    TransportUnavailable,
)
from bloodbank.ids import new_event_id
from bloodbank.stores.sqlite import SqliteStore
from bloodbank.transports import _embedded_groups as groups
from bloodbank.transports import _embedded_log as log
from bloodbank.transports.base import Failure, Message, Receipt
from bloodbank.transports.embedded import EmbeddedTransport
from tests.integration.sqlite_gate import DEADLINE_SECONDS, Gate

LEASE_SECONDS = 0.6


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "bus.db", busy_seconds=0.5)


@pytest.fixture
async def transport(database: Database) -> AsyncIterator[EmbeddedTransport]:
    async with opened(database) as entered:
        yield entered


def opened(database: Database, *, retention_seconds: float = 3600) -> EmbeddedTransport:
    return EmbeddedTransport(
        database, retention_seconds=retention_seconds, lease_seconds=LEASE_SECONDS, poll_seconds=0.01
    )


def message(body: bytes = b"{}", **properties: Any) -> Message:
    return Message(properties.pop("event_id", None) or new_event_id(), "a.b", body, **properties)


async def publish(transport: EmbeddedTransport, *several: Message) -> None:
    for one in several:
        await transport.publish(one, timeout_seconds=DEADLINE_SECONDS)


def execute(database: Database, statement: str) -> list[Any]:
    """Change or ask the file as another program would."""
    with closing(sqlite3.connect(database.path, isolation_level=None, timeout=DEADLINE_SECONDS)) as other:
        return other.execute(statement).fetchall()


def count(database: Database, table: str) -> int:
    return execute(database, f"SELECT count(*) FROM {table}")[0][0]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


async def test_entries_older_than_the_retention_are_forgotten_at_opening(database: Database) -> None:
    old, new = [message() for _ in range(1200)], message()
    async with opened(database) as transport:
        await transport.publish_many([*old, new], timeout_seconds=DEADLINE_SECONDS)
        execute(database, "UPDATE log SET logged_at = logged_at - 7200000000 WHERE position <= 1200")
    async with opened(database) as transport:
        await until(lambda: count(database, "log") == 1)
        assert await transport.get(new.event_id) == new
        assert [entry.position async for entry in transport.read_log()] == [1201]


async def test_positions_are_not_used_again_after_all_is_forgotten(database: Database) -> None:
    async with opened(database) as transport:
        await publish(transport, message(), message())
        execute(database, "UPDATE log SET logged_at = 0")
    async with opened(database) as transport:
        await until(lambda: count(database, "log") == 0)
        receipt = await transport.publish(message(), timeout_seconds=DEADLINE_SECONDS)
        assert receipt.position == 3


async def test_groups_that_nobody_listened_to_are_forgotten_with_all_they_hold(database: Database) -> None:
    async with opened(database) as transport:
        async with transport.subscribe("#", group="gone", prefetch=1) as deliveries:
            await publish(transport, message())
            await anext(deliveries)
        async with transport.subscribe("#", group="stays", prefetch=1):
            pass
        execute(database, "UPDATE consumer_group SET seen_at = 0 WHERE name = 'gone'")
        assert count(database, "delivery") == 1
    async with opened(database):
        await until(lambda: count(database, "consumer_group") == 1)
        assert execute(database, "SELECT name FROM consumer_group") == [("stays",)]
        assert (count(database, "group_pattern"), count(database, "delivery")) == (1, 0)


async def test_what_a_group_held_and_the_log_forgot_does_not_come_again(database: Database) -> None:
    async with opened(database) as transport:
        async with transport.subscribe("#", group="workers", prefetch=1) as deliveries:
            await publish(transport, message())
            await anext(deliveries)
        execute(database, "UPDATE log SET logged_at = 0")
    async with opened(database) as transport:
        await until(lambda: count(database, "log") == 0)
        marker = message()
        async with transport.subscribe("#", group="workers", prefetch=1) as deliveries:
            await publish(transport, marker)
            assert (await anext(deliveries)).message == marker


async def test_a_dead_letter_outlives_its_entry_by_the_retention(database: Database) -> None:
    poison = message(b"poison", headers={"a": "b"})
    async with opened(database) as transport:
        async with transport.subscribe("#", group="workers", prefetch=1) as deliveries:
            await publish(transport, poison)
            await (await anext(deliveries)).dead_letter("because")
        execute(database, "UPDATE log SET logged_at = 0")
    async with opened(database) as transport:
        await until(lambda: count(database, "log") == 0)
        (kept,) = [letter async for letter in transport.dead_letters()]
        assert (kept.group, kept.attempts, kept.failure, kept.message) == ("workers", 1, Failure("because"), poison)
        execute(database, "UPDATE dead_letter SET dead_at = 0")
    async with opened(database):
        await until(lambda: count(database, "dead_letter") == 0)


async def test_the_lease_is_renewed_while_the_consumer_lives(database: Database, transport: EmbeddedTransport) -> None:
    held = message()
    async with (
        transport.subscribe("#", group="workers", prefetch=1) as slow,
        transport.subscribe("#", group="workers", prefetch=1) as other,
    ):
        await publish(transport, held)
        waiting = [asyncio.ensure_future(anext(one)) for one in (slow, other)]
        (done,), (still,) = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        delivery = done.result()
        lease_ends = "SELECT due_at FROM delivery"
        first = execute(database, lease_ends)[0][0]
        # More than a whole lease later.
        await until(lambda: execute(database, lease_ends)[0][0] > first + 1.5 * LEASE_SECONDS * 1_000_000)
        assert not still.done()
        await delivery.ack()
        assert count(database, "delivery") == 0
        still.cancel()


async def test_settling_what_another_consumer_took_over_says_so(
    database: Database, transport: EmbeddedTransport
) -> None:
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, message(), message(), message())
        one, two, three = [await anext(deliveries) for _ in range(3)]
        execute(database, "UPDATE delivery SET owner = x'00', due_at = due_at + 60000000")
        with pytest.raises(TransportUnavailable, match="lease"):
            await one.ack()
        with pytest.raises(TransportUnavailable, match="lease"):
            await two.retry(0)
        with pytest.raises(TransportUnavailable, match="lease"):
            await three.dead_letter("late")
    assert (count(database, "delivery"), count(database, "dead_letter")) == (3, 0)


async def test_what_was_fetched_ahead_and_not_tried_is_no_attempt(transport: EmbeddedTransport) -> None:
    tried, untried = message(), message()
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await transport.publish_many([tried, untried], timeout_seconds=DEADLINE_SECONDS)
        await anext(deliveries)
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        again = [await anext(deliveries) for _ in range(2)]
    assert [(one.message, one.attempt) for one in again] == [(tried, 2), (untried, 1)]


async def test_settling_after_the_subscription_ended_says_so(transport: EmbeddedTransport) -> None:
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, message())
        delivery = await anext(deliveries)
    with pytest.raises(TransportUnavailable, match="closed"):
        await delivery.ack()


@pytest.mark.parametrize("delay_seconds", [-1, float("nan"), float("inf"), 1e12])
async def test_a_delay_that_is_none_is_refused(transport: EmbeddedTransport, delay_seconds: float) -> None:
    async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
        await publish(transport, message())
        delivery = await anext(deliveries)
        with pytest.raises(InvalidQuery):
            await delivery.retry(delay_seconds)
        await delivery.ack()


async def test_a_consumer_finds_what_lies_behind_thousands_that_do_not_fit(transport: EmbeddedTransport) -> None:
    wanted = Message(new_event_id(), "wanted.key", b"")
    for group in ("workers", None):
        async with transport.subscribe("wanted.*", group=group, prefetch=1) as deliveries:
            await transport.publish_many([message() for _ in range(2500)], timeout_seconds=DEADLINE_SECONDS)
            await publish(transport, wanted)
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert (await anext(deliveries)).message.routing_key == "wanted.key"
        wanted = Message(new_event_id(), "wanted.key", b"")


async def test_a_retry_that_is_due_while_the_file_cannot_be_read_comes_later(
    database: Database, transport: EmbeddedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    async def fail(_: Callable[[sqlite3.Connection], Any]) -> Any:
        nonlocal failures
        failures += 1
        raise sqlite3.OperationalError("disk I/O error")

    async with transport.subscribe("#", group=None, prefetch=10) as deliveries, asyncio.timeout(DEADLINE_SECONDS):
        await publish(transport, message())
        delivery = await anext(deliveries)
        with monkeypatch.context() as outage:
            outage.setattr(database, "read", fail)
            await delivery.retry(0)
            while not failures:
                await asyncio.sleep(0.01)
        assert (await anext(deliveries)).attempt == 2


async def test_without_digests_equal_bytes_are_a_duplicate(transport: EmbeddedTransport) -> None:
    sent = message(b"body")
    await publish(transport, sent)
    same = await transport.publish(message(b"body", event_id=sent.event_id), timeout_seconds=DEADLINE_SECONDS)
    assert same == Receipt(sent.event_id, duplicate=True, position=1)
    with pytest.raises(EventConflict):
        await transport.publish(message(b"other", event_id=sent.event_id), timeout_seconds=DEADLINE_SECONDS)


@pytest.mark.parametrize("properties", [{"app_id": "\ud800"}, {"headers": {"a": "\ud800"}}], ids=["app_id", "headers"])
async def test_properties_that_are_no_text_are_rejected(
    transport: EmbeddedTransport, properties: dict[str, Any]
) -> None:
    with pytest.raises(PublishRejected):
        await transport.publish(message(**properties), timeout_seconds=DEADLINE_SECONDS)


async def test_a_publish_that_could_not_begin_is_certainly_not_stored(
    database: Database, transport: EmbeddedTransport
) -> None:
    sent = message()
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransportUnavailable, match="Nothing was stored"):
            await transport.publish(sent, timeout_seconds=0.1)
        with pytest.raises(TransportUnavailable, match="locked"):
            await transport.publish(sent, timeout_seconds=DEADLINE_SECONDS)
    await publish(transport, message())
    assert count(database, "log") == 1


async def test_a_publish_whose_commit_takes_too_long_is_unknown_and_safe_to_repeat(
    database: Database, transport: EmbeddedTransport
) -> None:
    sent, first, behind = message(), Gate(), Gate()
    holding = asyncio.create_task(database.write(first))
    assert await asyncio.to_thread(first.reached.wait, DEADLINE_SECONDS)
    publishing = asyncio.create_task(transport.publish(sent, timeout_seconds=0.2))
    await asyncio.sleep(0)
    # In the same transaction, behind the publish.
    holding_behind = asyncio.create_task(database.write(behind))
    await asyncio.sleep(0)
    first.released.set()
    with pytest.raises(PublishUnknown):
        await publishing
    behind.released.set()
    await asyncio.gather(holding, holding_behind)
    assert (await transport.publish(sent, timeout_seconds=DEADLINE_SECONDS)).duplicate


async def test_transport_and_store_share_one_file(database: Database) -> None:
    async with opened(database) as transport, SqliteStore(database) as store:
        await publish(transport, message())
        await store.check()
    async with SqliteStore(database) as store:
        await store.check()
    assert count(database, "log") == 1


async def test_what_was_put_back_outlives_its_entry_in_the_log(database: Database) -> None:
    poison = message(b"poison", digest=b"d" * 16, headers={"a": "b"}, app_id="app", correlation_id=new_event_id())
    async with opened(database) as transport:
        async with transport.subscribe("#", group="workers", prefetch=1) as deliveries:
            await publish(transport, poison)
            await (await anext(deliveries)).dead_letter("because")
        execute(database, "UPDATE log SET logged_at = 0")
    async with opened(database) as transport:
        await until(lambda: count(database, "log") == 0)
        (letter,) = [letter async for letter in transport.dead_letters()]
        assert await transport.redeliver([letter.number]) == 1
    async with opened(database) as transport:
        await publish(transport, message())
        async with transport.subscribe("#", group="workers", prefetch=1) as deliveries:
            again = await anext(deliveries)
            assert tuple(again.message) == tuple(poison)
            assert count(database, "resent") == 1
            await again.ack()
    assert count(database, "resent") == 0


async def test_dead_letters_of_a_forgotten_group_stay_and_say_so(database: Database) -> None:
    async with opened(database) as transport:
        for group in ("stays", "gone"):
            async with transport.subscribe("#", group=group, prefetch=1) as deliveries:
                await publish(transport, message())
                await (await anext(deliveries)).dead_letter("because")
        async with transport.subscribe("#", group="gone", prefetch=1):
            await transport.replay([message()], group="gone")
        execute(database, "UPDATE consumer_group SET seen_at = 0 WHERE name = 'gone'")
    async with opened(database) as transport:
        await until(lambda: count(database, "consumer_group") == 1)
        assert (count(database, "resent"), count(database, "delivery")) == (0, 0)
        numbers = [letter.number async for letter in transport.dead_letters()]
        with pytest.raises(InvalidQuery, match="no group 'gone'"):
            await transport.redeliver(numbers)
        assert [letter.number async for letter in transport.dead_letters()] == numbers


async def test_a_number_of_a_dead_letter_is_never_used_again(database: Database, transport: EmbeddedTransport) -> None:
    numbers: list[int] = []
    for _ in range(2):
        async with transport.subscribe("#", group="workers", prefetch=1) as deliveries:
            await publish(transport, message())
            await (await anext(deliveries)).dead_letter("because")
        numbers += [letter.number async for letter in transport.dead_letters()]
        await transport.discard(numbers)
    assert len(set(numbers)) == 2


async def test_what_is_put_back_while_consumers_of_another_process_wait_reaches_them(database: Database) -> None:
    async with (
        opened(database) as mine,
        opened(Database(database.path)) as theirs,
        theirs.subscribe("#", group="workers", prefetch=1) as deliveries,
    ):
        await publish(mine, sent := message())
        await (await anext(deliveries)).dead_letter("because")
        (letter,) = [letter async for letter in mine.dead_letters()]
        await mine.redeliver([letter.number])
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert (await anext(deliveries)).message == sent


FORMAT_1 = (Path(__file__).parent / "embedded_format_1.sql").read_text()
"""The tables of version 0.2.0, and what it left in them: an entry, one in the hands of a killed consumer, and two dead
letters, one of which the log has forgotten."""


def as_version_0_2_left_it(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as older:
        older.execute("PRAGMA journal_mode = WAL")
        older.executescript(FORMAT_1)


async def test_a_file_of_version_0_2_is_taken_over_with_all_that_is_in_it(database: Database) -> None:
    as_version_0_2_left_it(database.path)
    async with opened(database) as transport:
        assert [(entry.position, entry.message.body) async for entry in transport.read_log()] == [
            (4, b"held"),
            (5, b"waiting"),
        ]
        held, forgotten = [letter async for letter in transport.dead_letters()]
        assert (held.number, held.group, held.failure, held.attempts) == (7, "workers", Failure("broken"), 3)
        assert (held.first_at, held.message.app_id, held.message.digest) == (None, "app", b"d" * 16)
        assert (forgotten.number, forgotten.group, forgotten.message.body) == (9, "", b"forgotten")
        async with transport.subscribe("#", group="workers", prefetch=5) as deliveries:
            first, second = await anext(deliveries), await anext(deliveries)
            assert [one.message.body for one in (first, second)] == [b"held", b"waiting"]
            # The old version did not note when it began.
            assert (first.attempt, first.first_attempt_at) == (2, None)
            assert second.first_attempt_at is not None
            await first.ack()
            await second.dead_letter("new")
        assert [letter.number async for letter in transport.dead_letters()] == [7, 9, 10]
        assert await transport.redeliver([7]) == 1
    async with opened(Database(database.path)) as transport:
        assert [letter.number async for letter in transport.dead_letters()] == [9, 10]


async def test_a_file_that_was_taken_over_has_the_tables_of_a_new_one(database: Database, tmp_path: Path) -> None:
    as_version_0_2_left_it(database.path)
    new = Database(tmp_path / "new.db")
    async with opened(database), opened(new):
        pass

    def tables(of: Database) -> dict[str, list[Any]]:
        names = [name for (name,) in execute(of, "SELECT name FROM sqlite_schema WHERE type IN ('table', 'index')")]
        return {name: sorted(row[1:] for row in execute(of, f"PRAGMA table_xinfo('{name}')")) for name in names}

    assert tables(database) == tables(new)
    # The place where `resent` begins to count.
    start = "SELECT seq FROM sqlite_sequence WHERE name = 'resent'"
    assert execute(database, start) == execute(new, start)


async def test_a_file_of_format_2_is_taken_over_with_its_dead_letters(database: Database) -> None:
    async with opened(database) as transport, transport.subscribe("#", group="workers", prefetch=1) as deliveries:
        await transport.publish(Message(new_event_id(), "a.b", b"{}"), timeout_seconds=DEADLINE_SECONDS)
        await (await anext(deliveries)).dead_letter("because")
    execute(database, "ALTER TABLE dead_letter DROP COLUMN replayed")
    execute(database, "UPDATE format SET version = 2 WHERE part = 'log'")
    async with opened(Database(database.path)) as transport:
        [letter] = [letter async for letter in transport.dead_letters()]
        assert await transport.redeliver([letter.number]) == 1
        async with transport.subscribe("#", group="workers", prefetch=1) as deliveries:
            assert not (await anext(deliveries)).replayed


async def test_a_file_that_cannot_be_taken_over_is_left_as_it_was(database: Database) -> None:
    as_version_0_2_left_it(database.path)
    execute(database, "DROP TABLE delivery")
    before = execute(database, "SELECT name, sql FROM sqlite_schema ORDER BY name")
    with pytest.raises(TransportUnavailable):
        await opened(database).__aenter__()
    assert execute(database, "SELECT name, sql FROM sqlite_schema ORDER BY name") == before
    assert execute(database, "SELECT version FROM format WHERE part = 'log'") == [(1,)]


async def test_two_processes_take_a_file_over_once(database: Database) -> None:
    as_version_0_2_left_it(database.path)
    async with asyncio.timeout(DEADLINE_SECONDS):
        transports = [opened(Database(database.path)) for _ in range(3)]
        await asyncio.gather(*(transport.__aenter__() for transport in transports))
        for transport in transports:
            assert [letter.number async for letter in transport.dead_letters()] == [7, 9]
        await asyncio.gather(*(transport.__aexit__(None, None, None) for transport in transports))


@pytest.mark.parametrize("part", ["log", "index"])
async def test_a_file_of_a_newer_version_is_refused(database: Database, part: str) -> None:
    async with opened(database), SqliteStore(database):
        pass
    execute(database, f"UPDATE format SET version = 99 WHERE part = '{part}'")
    refused = opened(database) if part == "log" else SqliteStore(database)
    with pytest.raises(StoreFormatError, match=f"format 99 of the {part}"):
        await refused.__aenter__()
    # Nothing stays open behind the refusal.
    version = log.FORMAT if part == "log" else 1
    execute(database, f"UPDATE format SET version = {version} WHERE part = '{part}'")
    async with refused:
        pass


async def test_reading_ends_where_the_log_ended_when_it_began(transport: EmbeddedTransport) -> None:
    messages = [Message(new_event_id(), "a.b", b"{}") for _ in range(log.PAGE_ENTRIES + 1)]
    await transport.publish_many(messages, timeout_seconds=DEADLINE_SECONDS)
    entries = transport.read_log()
    read = [(await anext(entries)).message.event_id]
    # In the page that is read last, and behind the end.
    await transport.publish(Message(new_event_id(), "a.late", b"{}"), timeout_seconds=DEADLINE_SECONDS)
    read += [entry.message.event_id async for entry in entries]
    assert read == [message.event_id for message in messages]


async def test_an_error_of_the_disk_leaves_the_outcome_unknown(
    transport: EmbeddedTransport, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(database, "submit", fail)
        with pytest.raises(PublishUnknown, match="same id again is safe"):
            await transport.publish(Message(new_event_id(), "a.b", b"{}"), timeout_seconds=1)


async def test_what_waits_is_counted_in_so_many_entries_and_no_more(
    transport: EmbeddedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "GROUPS_SCAN", 30)
    for name, count in (("far behind", 40), ("behind", 20), ("new", 5)):
        async with transport.subscribe("a.*", group=name, prefetch=1):
            pass
        several = [Message(new_event_id(), key, b"{}") for _ in range(count) for key in ("a.b", "other")][:count]
        await transport.publish_many(several, timeout_seconds=DEADLINE_SECONDS)
    states = {state.name: (state.waiting, state.more) for state in await transport.groups()}
    # 65 entries, of which those of "a.*" are every other one; the newest 30 were looked at.
    assert states == {"new": (3, False), "behind": (13, False), "far behind": (15, True)}
