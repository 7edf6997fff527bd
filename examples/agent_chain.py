"""One agent plans, the next one writes, the last one files: nobody hands an id on, and the file knows its prompt."""

import asyncio

from bloodbank import AgentContext, AgentType, Consumer, Publisher, create_envelope
from bloodbank.events import Artifact, LLMPrompt, LLMResponse
from bloodbank.testing import InMemoryBus
from lineage import print_lineage

consumer = Consumer("agents")


def by(name: str) -> AgentContext:
    return AgentContext(type=AgentType.CUSTOM, name=name)


@consumer.on("llm.prompt", group="planner")
async def plan(prompt: LLMPrompt, publisher: Publisher) -> None:
    steps = f"1. Read. 2. Write about {prompt.prompt.lower()}"  # here a model would be asked
    planned = LLMResponse(provider=prompt.provider, response=steps)
    await publisher.publish(create_envelope("llm.response", planned, agent_context=by("planner")))


@consumer.on("llm.response", group="writer")
async def write(response: LLMResponse, publisher: Publisher) -> None:
    draft = {"text": f"Done: {response.response}"}
    await publisher.publish(create_envelope("draft.written", draft, agent_context=by("writer")))


@consumer.on("draft.written", group="archivist")
def file(payload: dict) -> None:
    # A plain function works in a thread.
    print(f"Filed: {payload['text']}")


@consumer.on("draft.written", group="publisher")
async def store(payload: dict, publisher: Publisher) -> None:
    stored = Artifact(action="created", kind="document", uri=f"drafts/{len(payload['text'])}.md")
    await publisher.publish(create_envelope("artifact.created", stored, agent_context=by("archivist")))


async def main() -> None:
    # In memory, so that nothing is left behind. `bb consume agent_chain:consumer` runs the same handlers on your bus.
    async with InMemoryBus() as bus:
        async with bus.consuming(consumer):
            await bus.publish("llm.prompt", LLMPrompt(provider="anthropic", prompt="The release"))
        stored = bus.assert_published("artifact.created")
        print(f"{stored.payload['uri']} is by {stored.agent_context.name}. Why does it exist?")
        await print_lineage(bus.tracker, stored.event_id)


if __name__ == "__main__":
    asyncio.run(main())
