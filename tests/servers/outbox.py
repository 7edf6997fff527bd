"""Fills the outbox of a data folder that no process has open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from bloodbank import Source, codec, create_envelope
from bloodbank._sqlite import Database
from bloodbank.outbox import Outbox, Settled
from bloodbank.wiring import OUTBOX_FILE


async def fill_outbox(folder: Path, waiting: int, refused: Mapping[str, str]) -> list[UUID]:
    """Keep events, and set some aside. refused: reasons by event type. Returns the ids, those that wait first."""
    source = Source.local("tester")
    types = [*(f"note.number{number}" for number in range(waiting)), *refused]
    messages = [codec.encode(create_envelope(event_type, {"text": "hello"}, source)) for event_type in types]
    async with Outbox(Database(folder / OUTBOX_FILE), limit_bytes=100_000_000) as outbox:
        for message in messages:
            await outbox.keep(message)
        batch = await outbox.exchange()
        assert batch is not None
        assert len(batch) == len(messages)
        reasons = [(kept.number, refused.get(kept.message.routing_key)) for kept in batch]
        await outbox.settle(Settled(set_aside=[(number, reason) for number, reason in reasons if reason]))
    return [message.event_id for message in messages]
