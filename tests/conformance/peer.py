"""Another process on the same bus: `python -m tests.conformance.peer <JSON>`.

{"bus": {...}, "publish": 10}   publishes and prints one id a line, each when it is confirmed
{"bus": {...}, "hold": "group"} takes one delivery of the group, prints its id, and never settles it
"""

from __future__ import annotations

import asyncio
import json
import sys

from tests.conformance.backends import make_transport
from tests.conformance.messages import messages, publish_patiently


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
