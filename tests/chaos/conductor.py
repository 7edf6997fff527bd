"""One run: starts everything, plays the script of faults, waits until all is healed, and calls the verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from bloodbank import wiring
from bloodbank.config import Settings
from tests.chaos.faults import Fault, Slot, script
from tests.chaos.ledger import Ledger, Reader, fingerprint_of
from tests.chaos.stage import GROUP, PLAIN_QUEUE, Stage
from tests.chaos.verdict import Evidence, Known, Verdict, collect_ledgers, judge
from tests.chaos.watch import Watch

SAMPLE_SECONDS = 1.0
SETTLE_SECONDS = 90.0
DRAIN_SECONDS = 60.0
FINISH_SECONDS = 20.0
LOG_SECONDS = 60.0
IDLE_SECONDS = 30.0
"""Waiting for what is missing ends when none of it came for so long."""
MOST_SECONDS_MORE = 300.0
"""Longest that a run takes beyond its script."""
NODES_AT_ONCE = 500
GROUPS = {GROUP: ("consumer-a", "consumer-b"), PLAIN_QUEUE: ("consumer-plain",)}


async def run(stage: Stage, *, seed: int, seconds: float, events: int = 0) -> Verdict:
    """Play one seed and return the verdict, which is also written to `verdict.json` in the run's folder.

    stage: not entered yet. seconds: of faults. events: the load goes on until so many are accepted, for at most as
    long again.
    """
    limit_seconds = 2 * seconds + MOST_SECONDS_MORE
    async with asyncio.timeout(limit_seconds), stage:
        evidence = await _Run(stage, script(seed, seconds, stage.lanes)).play(seconds, events)
    verdict = await asyncio.to_thread(judge, evidence)
    (stage.folder / "verdict.json").write_bytes(verdict.json())
    return verdict


class _Run:
    def __init__(self, stage: Stage, slots: list[Slot]) -> None:
        self._stage = stage
        self._slots = slots
        self._folder = stage.folder
        self._journal = Ledger(self._folder / "faults.journal")
        self._evidence = Evidence()
        self._watch = Watch()
        self._began = time.monotonic()
        self._progress = {
            worker.name: Reader(self._folder / f"{worker.name}.ledger")
            for worker in [*stage.publishers, *stage.consumers]
        }
        self._tried: dict[str, tuple[str, ...]] = {}
        self._accepted: set[str] = set()
        self._unjournalled: dict[str, int] = {}
        self._consumed: dict[str, set[str]] = {group: set() for group in GROUPS}

    async def play(self, seconds: float, events: int) -> Evidence:
        sampling = asyncio.create_task(self._sample())
        try:
            began = time.monotonic()
            for slot in self._slots:
                await asyncio.sleep(slot.calm_seconds)
                await asyncio.gather(*[self._inject(fault) for fault in slot.faults])
            await self._go_on_until(events, deadline=time.monotonic() + seconds)
            self._say("faults are over", seconds=time.monotonic() - began)
            await self._settle()
            if any(self._unjournalled.values()):
                # What /readyz asks an operator for.
                self._say("bb reindex", unjournalled=self._unjournalled)
                await asyncio.to_thread(self._stage.reindex)
            await self._drain()
            self._note_the_dead()
        finally:
            sampling.cancel()
            with suppress(asyncio.CancelledError):
                await sampling
        await self._finish()
        await self._read_log()
        self._evidence.lives = self._watch.lives
        publishers = [self._folder / f"{worker.name}.ledger" for worker in self._stage.publishers]
        consumers = {group: [self._folder / f"{name}.ledger" for name in names] for group, names in GROUPS.items()}
        await asyncio.to_thread(collect_ledgers, self._evidence, publishers, consumers)
        return self._evidence

    async def _inject(self, fault: Fault) -> None:
        await asyncio.sleep(fault.after_seconds)
        entry: dict[str, Any] = {"kind": fault.kind, "began": time.monotonic(), "ended": 0.0, "error": ""}
        self._say("begin", fault=fault.kind, seconds=fault.seconds, chance=fault.chance)
        try:
            await self._stage.inject(fault)
        except Exception as error:
            entry["error"] = repr(error)
        entry["ended"] = time.monotonic()
        self._say("end", fault=fault.kind, error=entry["error"])
        self._evidence.faults.append(entry)

    async def _go_on_until(self, events: int, *, deadline: float) -> None:
        await asyncio.to_thread(self._follow)
        while len(self._accepted) < events and time.monotonic() < deadline:
            await asyncio.sleep(1)
            await asyncio.to_thread(self._follow)

    async def _settle(self) -> None:
        """Let the publishers make no more events, and wait until all that they tried is answered."""
        (self._folder / "stop").touch()
        for worker in self._stage.publishers:
            with suppress(TimeoutError):
                await asyncio.to_thread(worker.wait, "settled", seconds=SETTLE_SECONDS)
        self._say("settled")

    async def _drain(self) -> None:
        """Wait until consumers and index have everything, or nothing more comes."""
        began = last = time.monotonic()
        missing = -1
        while time.monotonic() < began + DRAIN_SECONDS:
            await asyncio.to_thread(self._follow)
            now_missing = sum(len(self._accepted - consumed) for consumed in self._consumed.values())
            now_missing += await self._ask_index()
            if now_missing != missing:
                missing, last = now_missing, time.monotonic()
            if missing == 0 or time.monotonic() > last + IDLE_SECONDS:
                break
            await asyncio.sleep(0.5)
        self._say("drained", seconds=time.monotonic() - began, missing=missing)

    async def _ask_index(self) -> int:
        """Ask the index for what it did not have before; return how many events are not complete in it."""
        index, tried = self._evidence.index, self._tried
        wanted = [event_id for event_id in self._accepted if _parents(index, event_id) != tried[event_id]]
        # Parents as well, since an edge has two ends.
        await self._look_up({*wanted, *[parent for event_id in wanted for parent in tried[event_id]]})
        return sum(_parents(index, event_id) != tried[event_id] for event_id in wanted)

    async def _look_up(self, event_ids: Iterable[str]) -> None:
        tracker = wiring.build(self._settings(), tracking=True).tracker
        assert tracker is not None
        asked = [UUID(event_id) for event_id in event_ids]
        async with tracker:
            for start in range(0, len(asked), NODES_AT_ONCE):
                for event_id, node in (await tracker.nodes(asked[start : start + NODES_AT_ONCE])).items():
                    parents = tuple(map(str, node.parents)) if node.known else None
                    self._evidence.index[str(event_id)] = Known(parents, node.children_total)

    async def _finish(self) -> None:
        """End the processes, publishers first; and look once more at the whole index."""
        (self._folder / "finish").touch()
        for worker in self._stage.publishers:
            with suppress(TimeoutError):
                await asyncio.to_thread(worker.wait, "end", seconds=FINISH_SECONDS)
        for worker in self._stage.consumers:
            await asyncio.to_thread(worker.end, seconds=FINISH_SECONDS)
        self._evidence.index.clear()
        await self._look_up({*self._accepted, *[one for each in self._accepted for one in self._tried[each]]})

    async def _read_log(self) -> None:
        transport = wiring.build(self._settings(), tracking=False).transport
        log = self._evidence.log
        async with transport, asyncio.timeout(LOG_SECONDS):
            async for entry in transport.read_log():
                log.append((str(entry.message.event_id), fingerprint_of(entry.message.body)))
        self._say("log read", entries=len(log))

    async def _sample(self) -> None:
        while True:
            await asyncio.to_thread(self._watch.sample, self._stage.pids())
            await asyncio.sleep(SAMPLE_SECONDS)

    def _follow(self) -> None:
        """Read what the ledgers have got since the last time."""
        for name, reader in self._progress.items():
            group = next((group for group, names in GROUPS.items() if name in names), None)
            for kind, *rest in reader.lines():
                if kind == "try":
                    self._tried[rest[0]] = tuple(rest[2])
                elif kind == "ok":
                    self._accepted.add(rest[0])
                elif kind == "unjournalled":
                    self._unjournalled[name] = rest[0]
                elif kind == "got" and group:
                    self._consumed[group].add(rest[0])

    def _note_the_dead(self) -> None:
        workers = [*self._stage.publishers, *self._stage.consumers]
        self._evidence.died = [worker.name for worker in workers if worker.pid is None]

    def _settings(self) -> Settings:
        url, redis_url = self._stage.rabbit_url, self._stage.redis_url
        folder = self._folder / "verdict"
        return Settings(_env_file=None, rabbit_url=url, redis_url=redis_url, data_dir=folder)

    def _say(self, what: str, **figures: object) -> None:
        self._journal.write([round(time.monotonic() - self._began, 2), what, figures])


def _parents(index: Mapping[str, Known], event_id: str) -> tuple[str, ...] | None:
    known = index.get(event_id)
    return known.parents if known else None
