"""The events that are being handled here and now follow tasks and threads, and leak nowhere."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import httpx
import pytest

from bloodbank import causation
from bloodbank.causation import CausalThreadPool, caused_by, current_parents, uncaused
from bloodbank.config import unknown_variables
from bloodbank.contrib.httpx_hook import pass_on_parents, pass_on_parents_sync
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


def test_pools_carry_the_parents_of_who_submits() -> None:
    with CausalThreadPool(1) as pool:
        with caused_by(A):
            submitted = pool.submit(current_parents)
            mapped = list(pool.map(lambda _: current_parents(), range(3)))
        later = pool.submit(current_parents)
    assert (submitted.result(), mapped, later.result()) == ((A,), [(A,)] * 3, ())


async def test_run_in_executor_carries_the_parents_with_our_pool() -> None:
    with CausalThreadPool(1) as pool, caused_by(A):
        assert await asyncio.get_running_loop().run_in_executor(pool, current_parents) == (A,)


def test_a_bound_function_has_the_parents_of_where_it_was_bound_in_every_thread() -> None:
    both_inside = threading.Barrier(2)

    def work() -> tuple[UUID, ...]:
        both_inside.wait(60)
        return current_parents()

    with caused_by(A):
        carried = causation.bound(work)
    with ThreadPoolExecutor(2) as pool, caused_by(B):
        assert [future.result() for future in [pool.submit(carried), pool.submit(carried)]] == [(A,), (A,)]
        assert pool.submit(current_parents).result() == ()
        assert current_parents() == (B,)


def test_what_is_handled_hides_outer_blocks() -> None:
    with caused_by(A):
        with causation.handling(B), caused_by(C):
            assert current_parents() == (B, C)
        assert current_parents() == (A,)


def test_a_process_inherits_the_parents_by_its_environment() -> None:
    code = "from bloodbank import create_envelope; print(*create_envelope('a.b', {}).correlation_ids)"
    with caused_by(A, B):
        variables = causation.environment()
    inherited = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True, timeout=60
    )
    assert inherited.stdout.split() == [str(A), str(B)]


def test_the_environment_says_nothing_where_there_are_no_parents() -> None:
    base = {"PATH": "/bin", "BLOODBANK_PARENTS": str(A)}
    assert causation.environment(base) == {"PATH": "/bin"}
    assert base["BLOODBANK_PARENTS"] == str(A)
    with caused_by(B):
        assert causation.environment(base) == {"PATH": "/bin", "BLOODBANK_PARENTS": str(B)}


def test_what_is_no_id_in_the_environment_is_said_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert causation.parents_in({"BLOODBANK_PARENTS": f" {A},, nonsense ,{B},{A}"}) == (A, B)
    assert "nonsense" in caplog.text
    assert causation.parents_in({}) == ()
    assert "BLOODBANK_PARENTS" not in unknown_variables({"BLOODBANK_PARENTS": str(A)})


async def test_requests_name_the_parents_unless_they_do_already() -> None:
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("X-Bloodbank-Parents"))
        return httpx.Response(200)

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, event_hooks={"request": [pass_on_parents]}) as client:
        await client.get("http://bus/")
        with caused_by(A, B):
            await client.get("http://bus/")
            await client.get("http://bus/", headers={"x-bloodbank-parents": str(C)})
    with (
        httpx.Client(transport=transport, event_hooks={"request": [pass_on_parents_sync]}) as plain,
        caused_by(A),
    ):
        plain.get("http://bus/")
    assert seen == [None, f"{A},{B}", str(C), str(A)]
