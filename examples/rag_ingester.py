"""A document is cut into chunks and indexed; an answer names the question and the very chunks that it was made of."""

import asyncio

from pydantic import BaseModel

from bloodbank import Consumer, EventEnvelope, Publisher, create_envelope
from bloodbank.testing import InMemoryBus
from lineage import print_lineage


class Document(BaseModel):
    title: str
    text: str


class Chunk(BaseModel):
    title: str
    text: str


class Question(BaseModel):
    text: str


consumer = Consumer("rag")
index: list[EventEnvelope[Chunk]] = []
"""Stands for a vector store: what is kept of a chunk must name its event."""


@consumer.on("rag.document.added", group="cutter")
async def cut(document: Document, publisher: Publisher) -> None:
    chunks = [Chunk(title=document.title, text=sentence) for sentence in document.text.split(". ")]
    await publisher.publish_many([create_envelope("rag.chunk.made", chunk) for chunk in chunks])


@consumer.on("rag.chunk.made", group="indexer")
async def keep(event: EventEnvelope[Chunk]) -> None:
    index.append(event)


@consumer.on("rag.question.asked", group="answerer")
async def answer(question: Question, publisher: Publisher) -> None:
    asked = set(question.text.lower().strip("?").split())
    found = sorted(index, key=lambda chunk: -len(asked & set(chunk.payload.text.lower().split())))[:2]
    text = " / ".join(chunk.payload.text for chunk in found)
    # The question is the cause by itself; the chunks are named.
    given = create_envelope("rag.answer.given", {"text": text}, correlation_ids=[chunk.event_id for chunk in found])
    await publisher.publish(given)


async def main() -> None:
    # In memory, so that nothing is left behind. `bb consume rag_ingester:consumer` runs the same handlers on your bus.
    async with InMemoryBus() as bus:
        async with bus.consuming(consumer):
            text = "The parser ships on Friday. Grace writes the notes. Lunch is at noon"
            await bus.publish("rag.document.added", Document(title="Planning", text=text))
        async with bus.consuming(consumer):
            await bus.publish("rag.question.asked", Question(text="When ships the parser?"))
        given = bus.assert_published("rag.answer.given")
        print(f"{len(index)} chunks are indexed. The answer: {given.payload['text']}")
        print("Why this answer?")
        await print_lineage(bus.tracker, given.event_id)


if __name__ == "__main__":
    asyncio.run(main())
