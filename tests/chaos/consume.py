"""A consuming process: `python -m tests.chaos.consume NAME FOLDER GROUP [URL]`; it writes down what it gets, then acks.

With a URL, or several of a cluster, it is a plain AMQP client that knows nothing of Bloodbank. It ends by SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from itertools import cycle
from pathlib import Path
from uuid import UUID

import aiormq
from aiormq.abc import DeliveredMessage

from bloodbank import wiring
from bloodbank.config import load_settings
from tests.chaos.ledger import Ledger, fingerprint_of

logger = logging.getLogger(__name__)

PREFETCH = 500
PAUSE_SECONDS = 0.3
EXCHANGE = "bloodbank.events.v1"


async def _subscribe(ledger: Ledger, group: str) -> None:
    transport = wiring.build(load_settings(), tracking=False).transport
    async with transport, transport.subscribe("chaos.*", group=group, prefetch=PREFETCH) as deliveries:
        ledger.write(["ready"])
        async for delivery in deliveries:
            message = delivery.message
            ledger.write(["got", str(message.event_id), fingerprint_of(message.body)])
            try:
                await delivery.ack()
            except ConnectionError:
                # It comes again.
                continue


async def _consume_plainly(ledger: Ledger, queue: str, url: str) -> None:
    for node in cycle(_nodes(url)):
        try:
            await _consume_until_lost(ledger, queue, node)
        except (aiormq.AMQPError, OSError, TimeoutError) as error:
            logger.info("The connection was lost: %r", error)
        await asyncio.sleep(PAUSE_SECONDS)


async def _consume_until_lost(ledger: Ledger, queue: str, url: str) -> None:
    async with asyncio.timeout(10):
        connection = await aiormq.connect(url)
    try:
        async with asyncio.timeout(10):
            channel = await connection.channel()
            await channel.basic_qos(prefetch_count=PREFETCH)
            await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
            await channel.queue_bind(queue, EXCHANGE, "chaos.*")

        async def on_message(message: DeliveredMessage) -> None:
            event_id = message.header.properties.message_id or ""
            ledger.write(["got", event_id and str(UUID(event_id)), fingerprint_of(message.body)])
            await channel.basic_ack(message.delivery_tag or 0, wait=False)

        async with asyncio.timeout(10):
            await channel.basic_consume(queue, on_message)
        ledger.write(["ready"])
        await asyncio.wait({connection.closing, channel.closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await connection.close()


def _nodes(url: str) -> list[str]:
    """Return a URL for each node that a URL names."""
    scheme, _, rest = url.partition("://")
    user, _, hosts = rest.rstrip("/").rpartition("@")
    return [f"{scheme}://{user}@{host}/" for host in hosts.split(",")]


async def _main(name: str, folder: Path, group: str, url: str | None) -> None:
    ledger = Ledger(folder / f"{name}.ledger")
    await (_subscribe(ledger, group) if url is None else _consume_plainly(ledger, group, url))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None))
