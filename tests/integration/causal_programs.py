"""Random programs whose events must have exactly the right parents, and who runs them.

A program is a tree of steps that an event carries. Whoever interprets it also keeps, as plain arguments and never in a
context variable, which parents there are: what must stand in the envelopes.

`python -m tests.integration.causal_programs` is a process that one of them starts: it reads the path of the bus, the
steps and the parents that its events must have, as JSON, and prints the parents that it expects of each event. That it
has parents it learns from its environment alone.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from bloodbank import (
    BlockingPublisher,
    CausalThreadPool,
    EventEnvelope,
    Publisher,
    Settings,
    caused_by,
    create_envelope,
    uncaused,
)
from bloodbank._sqlite import Database
from bloodbank.causation import bound, environment
from bloodbank.transports.embedded import EmbeddedTransport

Steps = list[list[Any]]

ROOT = Path(__file__).parents[2]
MOST_STEPS = 12
MOST_STEPS_WITH_PROCESSES = 5
"""Fewer, since each process takes half a second."""
OUTSIDE = [UUID(int=number + 1) for number in range(3)]
"""Events that nobody published here, as parents beside the one that is handled; each process knows the same."""
POOL_THREADS = 64
"""More than the steps that wait for each other, and few enough to be used by several of them."""
PROCESS_SECONDS = 60.0


def _steps(inner: st.SearchStrategy[Steps], *others: str) -> st.SearchStrategy[Steps]:
    alone = st.sampled_from(["task", "thread", "pool", "bound", "executor", "uncaused", "unbound", *others])
    several = st.sampled_from(["gather", "group", "map"])
    some = st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(["async", "plain"]), st.integers(0, 2), inner),
        st.tuples(alone, inner),
        st.tuples(several, inner, inner),
        st.tuples(st.just("caused"), st.integers(0, 2), inner),
        st.tuples(st.just("pause")),
    )
    return st.lists(some.map(list), max_size=4)


PROGRAMS = st.recursive(st.just([]), _steps, max_leaves=MOST_STEPS)
PROGRAMS_WITH_PROCESSES = st.recursive(
    st.just([["publish", "async", 1, []]]),
    lambda inner: _steps(inner, "process"),
    max_leaves=MOST_STEPS_WITH_PROCESSES,
).map(lambda steps: [["process", steps]])


class World:
    """Runs programs, and knows which parents each event must have.

    path: of the bus, where processes can use it too. inherited: the parents of all that this process does.
    """

    def __init__(self, publisher: Publisher, path: Path | None, inherited: Sequence[UUID] = ()) -> None:
        self.expected: dict[UUID, list[UUID]] = {}
        self._handled: set[UUID] = set()
        self._publisher = publisher
        self._path = path
        self._inherited = inherited
        self._lock = threading.Lock()
        self._pool = CausalThreadPool(POOL_THREADS)

    def _event(self, to: str, explicit: int, steps: Steps, parents: Sequence[UUID]) -> EventEnvelope[Any]:
        named = OUTSIDE[:explicit]
        event = create_envelope(f"work.{to}", {"steps": steps}, correlation_ids=named)
        self._expect({event.event_id: list(dict.fromkeys([*named, *parents]))})
        return event

    def _expect(self, expected: dict[UUID, list[UUID]]) -> None:
        with self._lock:
            self.expected |= expected

    def handled(self, event: EventEnvelope[Any]) -> None:
        with self._lock:
            self._handled.add(event.event_id)

    @property
    def is_all_handled(self) -> bool:
        """Whether no event is left. Whoever runs a program has an event that is not handled, until it is over."""
        with self._lock:
            return self._handled == self.expected.keys()

    def close(self) -> None:
        self._pool.shutdown()

    async def run(self, steps: Steps, parents: Sequence[UUID]) -> None:
        for kind, *rest in steps:
            inner: Steps = rest[-1] if rest else []
            match kind:
                case "publish":
                    await self._publisher.publish(self._event(rest[0], rest[1], inner, parents))
                case "task":
                    await asyncio.create_task(self.run(inner, parents))
                case "gather":
                    await asyncio.gather(self.run(rest[0], parents), self.run(inner, parents))
                case "group":
                    async with asyncio.TaskGroup() as tasks:
                        for part in rest:
                            tasks.create_task(self.run(part, parents))
                case "caused":
                    with caused_by(OUTSIDE[rest[0]]):
                        await self.run(inner, [*parents, OUTSIDE[rest[0]]])
                case "uncaused":
                    with uncaused():
                        await self.run(inner, [])
                case "pause":
                    await asyncio.sleep(0)
                case _:
                    await self._run_elsewhere(kind, rest, parents)

    async def _run_elsewhere(self, kind: str, rest: list[Any], parents: Sequence[UUID]) -> None:
        blocking = BlockingPublisher(self._publisher, asyncio.get_running_loop())
        arguments = (blocking, rest[-1], parents)
        match kind:
            case "thread":
                await asyncio.to_thread(self.run_plain, *arguments)
            case "pool":
                await asyncio.wrap_future(self._pool.submit(self.run_plain, *arguments))
            case "executor":
                await asyncio.get_running_loop().run_in_executor(self._pool, self.run_plain, *arguments)
            case "bound":
                pool = ThreadPoolExecutor(1)
                await asyncio.wrap_future(pool.submit(bound(self.run_plain), *arguments))
                pool.shutdown()
            case "map" | "unbound" | "process":
                # What waits there, waits in a thread.
                await asyncio.to_thread(self.run_plain, blocking, [[kind, *rest]], parents)
            case _:
                raise AssertionError(kind)

    def run_plain(self, publisher: BlockingPublisher, steps: Steps, parents: Sequence[UUID]) -> None:
        for kind, *rest in steps:
            inner: Steps = rest[-1] if rest else []
            match kind:
                case "publish":
                    publisher.publish(self._event(rest[0], rest[1], inner, parents))
                case "gather" | "group":
                    run = bound(self.run_plain)
                    _in_threads(*(threading.Thread(target=run, args=(publisher, part, parents)) for part in rest))
                case "unbound":
                    # Nothing carries the context into it.
                    _in_threads(threading.Thread(target=self.run_plain, args=(publisher, inner, self._inherited)))
                case "map":
                    list(self._pool.map(lambda part: self.run_plain(publisher, part, parents), rest))
                case "caused":
                    with caused_by(OUTSIDE[rest[0]]):
                        self.run_plain(publisher, inner, [*parents, OUTSIDE[rest[0]]])
                case "uncaused":
                    with uncaused():
                        self.run_plain(publisher, inner, [])
                case "bound":
                    with ThreadPoolExecutor(1) as plain:
                        plain.submit(bound(self.run_plain), publisher, inner, parents).result()
                case "process":
                    self._run_process(inner, parents)
                case "pause" | "task":
                    self.run_plain(publisher, inner, parents)
                case "thread" | "pool" | "executor":
                    self._pool.submit(self.run_plain, publisher, inner, parents).result()
                case _:
                    raise AssertionError(kind)

    def _run_process(self, steps: Steps, parents: Sequence[UUID]) -> None:
        order = {"path": str(self._path), "steps": steps, "parents": list(map(str, parents))}
        done = subprocess.run(
            [sys.executable, "-m", "tests.integration.causal_programs"],
            env=environment(),
            cwd=ROOT,
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=PROCESS_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        expected: dict[str, list[str]] = json.loads(done.stdout)
        self._expect({UUID(event): list(map(UUID, several)) for event, several in expected.items()})


def _in_threads(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def embedded(database: Database) -> EmbeddedTransport:
    return EmbeddedTransport(database, retention_seconds=3600, lease_seconds=60, poll_seconds=0.02)


async def main(order: dict[str, Any]) -> None:
    path = Path(order["path"])
    transport = embedded(Database(path, busy_seconds=PROCESS_SECONDS))
    async with transport, Publisher(Settings(_env_file=None), transport=transport) as publisher:  # pyright: ignore
        parents = list(dict.fromkeys(map(UUID, order["parents"])))
        world = World(publisher, path, parents)
        await world.run(order["steps"], parents)
        world.close()
    print(json.dumps({str(event): list(map(str, several)) for event, several in world.expected.items()}))


if __name__ == "__main__":
    asyncio.run(main(json.load(sys.stdin)))
