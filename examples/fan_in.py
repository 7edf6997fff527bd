"""Two recordings of one meeting are transcribed apart; the minutes are made of both, and name both."""

import asyncio

from pydantic import BaseModel

from bloodbank import Consumer, EventEnvelope, Publisher, create_envelope, event_id
from bloodbank.testing import InMemoryBus
from lineage import print_lineage


class Recording(BaseModel):
    meeting: str
    microphone: str


class Transcript(BaseModel):
    meeting: str
    microphone: str
    text: str


consumer = Consumer("minutes")
heard: dict[str, dict[str, EventEnvelope[Transcript]]] = {}
"""Transcripts by meeting and microphone; several processes would keep them in a database."""
MICROPHONES = {"left", "right"}


@consumer.on("meeting.recording.ready", group="transcriber", concurrency=2)
async def transcribe(recording: Recording, publisher: Publisher) -> None:
    said = {"left": "We ship on Friday.", "right": "Grace writes the notes."}[recording.microphone]
    transcript = Transcript(**recording.model_dump(), text=said)
    await publisher.publish(create_envelope("meeting.transcript.ready", transcript))


@consumer.on("meeting.transcript.ready", group="minutes", ordered_by=lambda event: event.payload.meeting)
async def join(event: EventEnvelope[Transcript], publisher: Publisher) -> None:
    of_meeting = heard.setdefault(event.payload.meeting, {})
    of_meeting[event.payload.microphone] = event
    if of_meeting.keys() < MICROPHONES:
        return
    parts = [of_meeting[name] for name in sorted(MICROPHONES)]
    minutes = create_envelope(
        "meeting.minutes.written",
        {"text": " ".join(part.payload.text for part in parts)},
        correlation_ids=[part.event_id for part in parts],
        # Whichever transcript comes last, and however often: one event.
        event_id=event_id("meeting.minutes.written", meeting=event.payload.meeting),
    )
    await publisher.publish(minutes)


async def main() -> None:
    # In memory, so that nothing is left behind. `bb consume fan_in:consumer` runs the same handlers on your bus.
    async with InMemoryBus() as bus:
        async with bus.consuming(consumer):
            recordings = [Recording(meeting="planning", microphone=name) for name in sorted(MICROPHONES)]
            made = [create_envelope("meeting.recording.ready", recording) for recording in recordings]
            await bus.publisher.publish_many(made)
        minutes = bus.assert_published("meeting.minutes.written")
        print(f"The minutes: {minutes.payload['text']}")
        print("What are they made of?")
        await print_lineage(bus.tracker, minutes.event_id)


if __name__ == "__main__":
    asyncio.run(main())
