"""Whether the publishing process grows: its resident memory after 100,000 and after 1,000,000 events.

The queue keeps the newest message only, so that the broker's disk is no part of it.
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace

from bench import _events
from bench._bus import CLASSIC, broker
from bench._harness import Options, Row, main, resident_bytes, row_of
from bench._ours import OursInBatches

FIRST_FRACTION = 10
"""The first reading is taken after a tenth of the events."""
CHUNK = 5000
LONGEST_SECONDS = 110.0
"""When the time is over, the reading is taken of what went through until then, and the row says so."""

KEEP_ONE = replace(CLASSIC, name="memory", queues={"log": {"x-queue-type": "classic", "x-max-length": 1}})


async def measure(options: Options) -> list[Row]:
    """Publish `count` events through one publisher in one process; rounds make no sense here."""
    async with broker() as bus:
        await bus.declare(KEEP_ONE)
        client = OursInBatches(_events.payload())
        await client.open(bus.url, KEEP_ONE.exchange)
        first, deadline = 0, time.monotonic() + LONGEST_SECONDS
        first_count = sent = 0
        while sent < options.count and time.monotonic() < deadline:
            await client.send(min(CHUNK, options.count - sent))
            sent += min(CHUNK, options.count - sent)
            if not first and sent * FIRST_FRACTION >= options.count:
                first, first_count = _settled(), sent
        last = _settled()
        await client.close()
        version = Row("RabbitMQ", bus.version, "version")
    if not first:
        raise RuntimeError(f"Only {sent:,} events went through in {LONGEST_SECONDS:.0f} s; nothing can be compared.")
    return [version, *_rows(first, first_count, last, sent, options.count)]


def _rows(first: int, first_count: int, last: int, sent: int, count: int) -> list[Row]:
    name = f"resident memory after {sent:,} events"
    if sent < count:
        name += f" (of {count:,}: time ran out)"
    row = row_of(
        name,
        [last / 1e6],
        "MB",
        versus=f"after {first_count:,}",
        ratios=[last / first],
        target="ratio <= 1.1",
    )
    # A target about a million events is not met by fewer.
    return [row if sent == count else replace(row, holds=False)]


def _settled() -> int:
    gc.collect()
    return resident_bytes()


if __name__ == "__main__":
    main(measure, count=1_000_000, rounds=1, packages=("aiormq", "pydantic", "orjson"))
