"""A process that kills itself when it is about to send to the broker: `python -m tests.chaos.dying METHOD`.

METHOD, of the transport: publish or publish_many. What it publishes, if anything, is an envelope on its standard
input. Whatever is done before an event is sent has been done then, and nothing that is done after its confirm.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from bloodbank import Publisher, codec
from bloodbank.transports.rabbit import RabbitTransport


async def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _main(method: str) -> None:
    setattr(RabbitTransport, method, _die)
    body = sys.stdin.buffer.read()
    async with Publisher(enable_correlation_tracking=True) as publisher:
        if body and method == "publish":
            await publisher.publish(codec.decode(body))
        elif body:
            await publisher.publish_many([codec.decode(body)])
        # The outbox is forwarded without being asked.
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
