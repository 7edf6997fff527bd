"""A process that records until it is killed, or until standard input ends: `journalling.py REDIS_URL PREFIX FOLDER`.

It prints the id, the parent and the answer of each event once it has the answer.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from uuid import uuid4

from bloodbank._sqlite import Database
from bloodbank.config import Settings
from bloodbank.events.registry import utc_now
from bloodbank.stores.base import Link
from bloodbank.stores.redis import RedisStore
from bloodbank.wiring import build_journal, build_tracker


async def main(url: str, prefix: str, folder: str) -> None:
    settings = Settings(
        _env_file=None,
        redis_url=url,
        redis_prefix=prefix,
        data_dir=Path(folder),
        breaker_reset_seconds=0.05,
        correlation_timeout_seconds=1,
    )
    journal = build_journal(settings, Database(settings.data_dir / "outbox.db"))
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    async with build_tracker(settings, RedisStore(settings), journal=journal) as tracker:

        async def record() -> None:
            while not ended.done():
                now = utc_now()
                link = Link(uuid4(), (uuid4(),), "llm.prompt", now, "tests", now)
                lineage = await tracker.record(link)
                print(link.event_id, link.parents[0], lineage, flush=True)

        await asyncio.gather(*(record() for _ in range(20)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
