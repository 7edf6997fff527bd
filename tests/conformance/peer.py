"""Another process on the same bus: `python -m tests.conformance.peer <JSON>`.

{"bus": {...}, "publish": 10}   publishes and prints one id a line, each when it is confirmed
{"bus": {...}, "hold": "group"} takes one delivery of the group, prints its id, and never settles it
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from tests.conformance.backends import Bus, make_transport
from tests.conformance.messages import messages, publish_patiently, soon

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def peer(bus: Bus, **order: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the other process within the block; it is killed at its end, unless it has ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.conformance.peer",
        json.dumps({"bus": bus.description, **order}),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def printed_id(process: asyncio.subprocess.Process) -> UUID:
    """Return the next id that the other process prints."""
    assert process.stdout is not None
    return UUID((await soon(process.stdout.readline())).decode().strip())


async def main(order: dict[str, object]) -> None:
    bus = order["bus"]
    assert isinstance(bus, dict)
    async with make_transport(bus) as transport:
        if "publish" in order:
            for message in messages(int(str(order["publish"])), "peer.event"):
                await publish_patiently(transport, message)
                print(message.event_id, flush=True)
            return
        async with transport.subscribe("#", group=str(order["hold"]), prefetch=1) as deliveries:
            print((await anext(deliveries)).message.event_id, flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
