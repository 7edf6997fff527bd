"""The events that are being handled here and now follow tasks and threads, and leak nowhere."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from bloodbank.causation import caused_by, current_parents, uncaused
from bloodbank.envelope import create_envelope
from bloodbank.ids import new_event_id

A, B, C = (new_event_id() for _ in range(3))


def test_outside_of_a_handler_there_are_no_parents() -> None:
    assert current_parents() == ()


def test_within_the_block_its_events_are_the_parents() -> None:
    with caused_by(A, B):
        assert current_parents() == (A, B)
    assert current_parents() == ()


def test_inner_blocks_add_to_outer_ones_without_duplicates() -> None:
    with caused_by(A, B):
        with caused_by(B, C):
            assert current_parents() == (A, B, C)
        assert current_parents() == (A, B)


def test_an_envelope_counts_as_its_event() -> None:
    envelope = create_envelope("a.b", {})
    with caused_by(envelope, A):
        assert current_parents() == (envelope.event_id, A)


def test_uncaused_hides_outer_blocks_and_only_them() -> None:
    with caused_by(A):
        with uncaused():
            assert current_parents() == ()
            with caused_by(B):
                assert current_parents() == (B,)
        assert current_parents() == (A,)


def test_an_error_ends_the_block_all_the_same() -> None:
    with pytest.raises(KeyError), caused_by(A):
        raise KeyError
    assert current_parents() == ()


async def test_tasks_and_threads_inherit_the_parents() -> None:
    async def handler() -> tuple[UUID, ...]:
        return current_parents()

    with caused_by(A):
        task = asyncio.create_task(handler())
        in_thread = await asyncio.to_thread(current_parents)
    assert await task == (A,)
    assert in_thread == (A,)


async def test_concurrent_handlers_do_not_see_each_other() -> None:
    both_inside = asyncio.Barrier(2)

    async def handler(cause: UUID) -> tuple[UUID, ...]:
        with caused_by(cause):
            await both_inside.wait()
            seen = current_parents()
            await both_inside.wait()
            return seen

    async with asyncio.TaskGroup() as group:
        one, other = group.create_task(handler(A)), group.create_task(handler(B))
    assert (one.result(), other.result()) == ((A,), (B,))
    assert current_parents() == ()
