"""What waits in the outbox: kept once, in order, within its limit, and forwarded by one process at a time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from bloodbank import ids
from bloodbank import outbox as outbox_module
from bloodbank._sqlite import Database
from bloodbank.errors import EventConflict, NotOpen, OutboxFull, TransportUnavailable
from bloodbank.outbox import Outbox, Settled
from bloodbank.transports.base import Message

LIMIT_BYTES = 50_000_000


def message(number: int = 0, *, event_id: UUID | None = None, size: int = 0) -> Message:
    body = b'{"number":%d,"fill":"%b"}' % (number, b"x" * size)
    return Message(event_id or ids.new_event_id(), "llm.prompt", body, digest=number.to_bytes(16, "big"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
async def outbox(file: Path) -> AsyncIterator[Outbox]:
    async with Outbox(Database(file), limit_bytes=LIMIT_BYTES) as opened:
        yield opened


async def test_what_is_kept_comes_back_whole_and_in_order(outbox: Outbox) -> None:
    rich = Message(uuid4(), "a.b", b"{}", b"d" * 16, uuid4(), "app\x00é", {"bloodbank-version": "2.0.0", "x": "ü"})
    bare = Message(uuid4(), "c.d", b"\x00\xff")
    messages = [message(1), rich, bare, message(2)]
    for one in messages:
        await outbox.keep(one)
    batch = await outbox.exchange()
    assert batch is not None
    assert [tuple(waiting.message) for waiting in batch] == [tuple(one) for one in messages]
    assert [waiting.attempts for waiting in batch] == [0, 0, 0, 0]


async def test_what_is_kept_at_the_same_time_keeps_the_order_of_the_calls(outbox: Outbox) -> None:
    messages = [message(number) for number in range(2500)]
    assert await outbox.keep_many(messages) == [None] * 2500
    seen: list[UUID] = []
    settled = Settled()
    while batch := await outbox.exchange(settled):
        seen += [waiting.message.event_id for waiting in batch]
        settled = Settled(forwarded=[waiting.number for waiting in batch])
    assert seen == [one.event_id for one in messages]


async def test_the_same_event_again_is_kept_once(outbox: Outbox) -> None:
    one = message(1)
    await outbox.keep(one)
    await outbox.keep(one)
    assert await outbox.keep_many([one, message(2), one]) == [None, None, None]
    assert (await outbox.totals()).waiting == 2


async def test_an_id_with_another_body_is_a_conflict_and_harms_no_other(outbox: Outbox) -> None:
    event_id = uuid4()
    first, _, third = await outbox.keep_many([message(1, event_id=event_id), message(2), message(3, event_id=event_id)])
    assert first is None
    assert isinstance(third, EventConflict)
    with pytest.raises(EventConflict, match=str(event_id)):
        await outbox.keep(message(4, event_id=event_id))
    assert (await outbox.totals()).waiting == 2


async def test_bodies_tell_where_there_is_no_digest(outbox: Outbox) -> None:
    one = message(1)._replace(digest=b"")
    await outbox.keep(one)
    await outbox.keep(one)
    with pytest.raises(EventConflict):
        await outbox.keep(one._replace(body=b"{}"))


async def test_a_full_outbox_refuses_and_drops_nothing(file: Path) -> None:
    async with Outbox(Database(file), limit_bytes=1_048_576) as outbox:
        answers = await outbox.keep_many([message(number, size=100_000) for number in range(15)])
        kept = answers.count(None)
        assert 5 < kept < 15
        assert {type(answer) for answer in answers[kept:]} == {OutboxFull}
        with pytest.raises(OutboxFull, match="BLOODBANK_OUTBOX_LIMIT_BYTES"):
            await outbox.keep(message(99, size=100_000))
        totals = await outbox.totals()
        assert totals.waiting == kept
        batch = await outbox.exchange()
        assert batch is not None
        await outbox.settle(Settled(forwarded=[waiting.number for waiting in batch]))
        await outbox.keep(message(99, size=100_000))
        assert file.stat().st_size <= 2 * 1_048_576


async def test_a_batch_is_bounded_in_bytes(outbox: Outbox) -> None:
    await outbox.keep_many([message(number, size=3_000_000) for number in range(3)])
    batch = await outbox.exchange()
    assert batch is not None
    assert len(batch) == 2


async def test_one_process_at_a_time_forwards(file: Path) -> None:
    async with (
        Outbox(Database(file), limit_bytes=LIMIT_BYTES) as first,
        Outbox(Database(file), limit_bytes=LIMIT_BYTES) as second,
    ):
        await first.keep(message(1))
        await second.keep(message(2))
        batch = await first.exchange()
        assert batch is not None
        assert len(batch) == 2, "also what the other one has accepted"
        assert await second.exchange() is None
        await first.settle(Settled(forwarded=[batch[0].number]))
        [left] = await second.exchange() or []
        assert left.number == batch[1].number


async def test_what_a_dead_process_was_forwarding_is_taken_over(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        Outbox(Database(file), limit_bytes=LIMIT_BYTES) as dead,
        Outbox(Database(file), limit_bytes=LIMIT_BYTES) as other,
    ):
        await dead.keep(message(1))
        monkeypatch.setattr(outbox_module, "LEASE_SECONDS", 0.2)
        assert await dead.exchange()
        async with asyncio.timeout(20):
            while not await other.exchange():
                await asyncio.sleep(0.02)


async def test_a_clock_that_was_set_back_does_not_hold_the_lease(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        Outbox(Database(file), limit_bytes=LIMIT_BYTES) as first,
        Outbox(Database(file), limit_bytes=LIMIT_BYTES) as second,
    ):
        await first.keep(message(1))
        with monkeypatch.context() as patched:
            now = outbox_module.now_microseconds()
            patched.setattr(outbox_module, "now_microseconds", lambda: now + 3_600_000_000)
            assert await first.exchange()
        assert await second.exchange()


async def test_what_is_postponed_is_not_due_and_does_not_hold_up_others(outbox: Outbox) -> None:
    await outbox.keep_many([message(1), message(2)])
    first, second = await outbox.exchange() or []
    [left] = await outbox.exchange(Settled(postponed=[(first.number, 60.0)])) or []
    assert left.number == second.number
    assert await outbox.exchange(Settled(forwarded=[second.number])) == []
    assert not await outbox.has_due()
    assert [entry.attempts for entry in await outbox.entries()] == [1]


async def test_what_was_refused_for_good_is_listed_retried_and_dropped(outbox: Outbox) -> None:
    await outbox.keep_many([message(number) for number in range(3)])
    first, second, third = await outbox.exchange() or []
    refused = Settled(set_aside=[(first.number, "too large"), (second.number, "no access")])
    assert [waiting.number for waiting in await outbox.exchange(refused) or []] == [third.number]
    aside = await outbox.entries(set_aside=True)
    assert [(entry.event_id, entry.reason) for entry in aside] == [
        (first.message.event_id, "too large"),
        (second.message.event_id, "no access"),
    ]
    assert [entry.number for entry in await outbox.entries(set_aside=False)] == [third.number]
    assert [entry.number for entry in await outbox.entries(after=first.number, limit=1)] == [second.number]
    totals = await outbox.totals()
    assert (totals.waiting, totals.set_aside) == (1, 2)

    assert await outbox.retry([second.message.event_id, uuid4()]) == 1
    assert [waiting.number for waiting in await outbox.exchange() or []] == [second.number, third.number]
    assert not await outbox.drop(third.message.event_id), "it waits, and nothing that waits is dropped"
    assert await outbox.drop(first.message.event_id)
    assert not await outbox.drop(first.message.event_id)
    assert await outbox.retry() == 0


async def test_totals_tell_how_long_the_oldest_has_waited(outbox: Outbox) -> None:
    assert (await outbox.totals()).oldest_accepted_at is None
    await outbox.keep_many([message(1, size=100), message(2)])
    totals = await outbox.totals()
    [first, second] = await outbox.entries()
    assert totals.oldest_accepted_at == first.accepted_at
    assert totals.waiting_bytes == first.size_bytes + second.size_bytes
    assert 0 < totals.used_bytes < totals.limit_bytes


async def test_it_says_that_it_is_not_open(file: Path) -> None:
    outbox = Outbox(Database(file), limit_bytes=LIMIT_BYTES)
    with pytest.raises(NotOpen):
        await outbox.keep(message())


async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "no-folder").write_text("")
    async with AsyncExitStack() as stack:
        with pytest.raises(TransportUnavailable, match="BLOODBANK_DATA_DIR"):
            await stack.enter_async_context(
                Outbox(Database(tmp_path / "no-folder" / "outbox.db"), limit_bytes=LIMIT_BYTES)
            )


KEEPS_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from bloodbank import ids
from bloodbank._sqlite import Database
from bloodbank.outbox import Outbox
from bloodbank.transports.base import Message

async def main():
    async with Outbox(Database(Path(sys.argv[1])), limit_bytes=50_000_000) as outbox:
        while True:
            batch = [Message(ids.new_event_id(), "a.b", b"{}") for _ in range(50)]
            await outbox.keep_many(batch)
            print(*[message.event_id for message in batch], sep="\\n", flush=True)

asyncio.run(main())
"""


def test_what_was_kept_outlives_a_process_that_is_killed(file: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPS_FOR_EVER, str(file)], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    assert process.stdout is not None
    try:
        told = [process.stdout.readline().strip() for _ in range(300)]
    finally:
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
    told += rest.split("\n")[:-1]

    async def waiting() -> set[str]:
        async with Outbox(Database(file), limit_bytes=LIMIT_BYTES) as outbox:
            return {str(entry.event_id) for entry in await outbox.entries(limit=1_000_000)}

    assert set(told) <= asyncio.run(waiting())


async def test_a_look_at_the_disk_leaves_nothing_behind(outbox: Outbox) -> None:
    await outbox.check()
    before = (await outbox.totals()).used_bytes
    await outbox.keep(message(1))
    for _ in range(5):
        await outbox.check()
    totals = await outbox.totals()
    assert totals.waiting == 1
    assert totals.used_bytes - before < 10_000
