"""Publishing to the embedded log, durable before it is confirmed, against queues on SQLite."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import litequeue
import persistqueue
from persistqueue.serializers import json as json_serializer

from bench import _events
from bench._harness import Options, Row, Sample, main, measured, paired, rate
from bench._ours import Ours

ACK_QUEUE, LITE, LITE_FULL = "persist-queue", "litequeue as it comes", "litequeue, synchronous=FULL"
SYNCHRONOUS = {1: "NORMAL", 2: "FULL"}


async def measure(options: Options) -> list[Row]:
    """Publish to a file of its own each time. The peers take one item after the other and know no other way."""
    values = _events.payload()
    event = _events.ready_dict(values)
    runs: dict[str, Callable[[Path, int], Awaitable[Sample]]] = {
        "publish": partial(_ours, values),
        "publish, tracking on": partial(_ours, values, tracking=True),
        ACK_QUEUE: partial(_in_thread, _ack_queue, event),
        LITE: partial(_in_thread, partial(_litequeue, durable=False), event),
        LITE_FULL: partial(_in_thread, partial(_litequeue, durable=True), event),
    }
    rounds = await paired({name: partial(_in_folder, run, options.count) for name, run in runs.items()}, options.rounds)
    targets = {ACK_QUEUE: "ratio >= 6", LITE: "ratio >= 1", LITE_FULL: "ratio >= 1"}
    name = "embedded publish, 1,000 in flight"
    rows = [
        rounds.row(name, "publish", "rate", "events/s", versus=peer, target=target) for peer, target in targets.items()
    ]
    rows.append(rounds.row(f"{name}, tracking on", "publish, tracking on", "rate", "events/s", versus="publish"))
    rows += [rounds.row(peer, peer, "rate", "events/s") for peer in targets]
    return rows


async def _in_folder(run: Callable[[Path, int], Awaitable[Sample]], count: int) -> Sample:
    with TemporaryDirectory(prefix="bloodbank-bench-") as folder:
        return await run(Path(folder), count)


async def _ours(values: dict[str, Any], folder: Path, count: int, *, tracking: bool = False) -> Sample:
    client = Ours(values, tracking=tracking, data_dir=folder)
    await client.open("", "")
    try:
        await client.publish()
        with measured() as watch:
            await client.send(count)
    finally:
        await client.close()
    with closing(sqlite3.connect(folder / "bloodbank.db")) as connection:
        _require_all(connection.execute("SELECT count(*) FROM log").fetchone()[0], count + 1)
    return rate(watch, count)


async def _in_thread(
    run: Callable[[dict[str, Any], Path, int], Sample], event: dict[str, Any], folder: Path, count: int
) -> Sample:
    return await asyncio.to_thread(run, event, folder, count)


def _ack_queue(event: dict[str, Any], folder: Path, count: int) -> Sample:
    queue = persistqueue.SQLiteAckQueue(str(folder), serializer=json_serializer)
    with closing(queue):
        _require_synchronous(queue._putter, "FULL")
        queue.put(event)
        with measured() as watch:
            for _ in range(count):
                queue.put(event)
        _require_all(queue.size, count + 1)
    return rate(watch, count)


def _litequeue(event: dict[str, Any], folder: Path, count: int, *, durable: bool) -> Sample:
    queue = litequeue.LiteQueue(str(folder / "queue.db"))
    with closing(queue):
        if durable:
            queue.conn.execute("PRAGMA synchronous = FULL")
        _require_synchronous(queue.conn, "FULL" if durable else "NORMAL")
        queue.put(json.dumps(event))
        with measured() as watch:
            for _ in range(count):
                queue.put(json.dumps(event))
        _require_all(queue.qsize(), count + 1)
    return rate(watch, count)


def _require_all(stored: int, count: int) -> None:
    if stored != count:
        raise RuntimeError(f"{count} events were accepted, and the file has {stored}.")


def _require_synchronous(connection: sqlite3.Connection, expected: str) -> None:
    """With NORMAL a power cut loses what was committed last; the names of the rows say which one it is."""
    level = SYNCHRONOUS.get(connection.execute("PRAGMA synchronous").fetchone()[0])
    if level != expected:
        raise RuntimeError(f"synchronous is {level} where {expected} was expected.")


if __name__ == "__main__":
    main(measure, count=1500, packages=("persist-queue", "litequeue", "pydantic"))
