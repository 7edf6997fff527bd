"""A handler fails: what may pass is tried again, what cannot is set aside, and the failure is an event with a cause."""

import asyncio

from pydantic import BaseModel

from bloodbank import Attempt, Consumer, Direction, Publisher, Retry, create_envelope
from bloodbank.testing import InMemoryBus
from lineage import print_lineage


class Upload(BaseModel):
    name: str


class Refused(Exception):
    """The other side will not take it, however often it is asked."""


consumer = Consumer("uploader")


@consumer.on("file.upload.wanted", retry=Retry(attempts=3, first_seconds=0.05, never=(Refused,)))
async def upload(wanted: Upload, attempt: Attempt, publisher: Publisher) -> None:
    print(f"{wanted.name}: attempt {attempt.number} of {attempt.most}")
    if wanted.name == "secret.txt":
        raise Refused("not allowed")
    if attempt.number < 3:
        raise ConnectionError("the network is down")
    await publisher.publish(create_envelope("file.upload.done", {"name": wanted.name}))


async def main() -> None:
    # In memory, so that nothing is left behind. `bb consume retrying_consumer:consumer` runs it on your bus.
    async with InMemoryBus() as bus:
        async with bus.consuming(consumer):
            await bus.publish("file.upload.wanted", Upload(name="notes.md"))
        async with bus.consuming(consumer):
            refused = await bus.publish("file.upload.wanted", Upload(name="secret.txt"))
        bus.assert_published("file.upload.done", name="notes.md")
        async for letter in bus.publisher.transport.dead_letters(group="uploader"):
            print(f"Set aside after {letter.attempts} attempt: {letter.failure.error}: {letter.failure.reason}")
        print("What did the refused upload lead to?")
        await print_lineage(bus.tracker, refused.event_id, Direction.DESCENDANTS)


if __name__ == "__main__":
    asyncio.run(main())
