"""What the benchmarks publish: ours begin with payload values, the peers have the finished envelope as a dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from bloodbank import EventEnvelope, Source, TriggerType, create_envelope

EVENT_TYPE = "llm.prompt"
SOURCE = Source(host="bench", type=TriggerType.AGENT, app="bench")
BODY_BYTES = 600
"""Size of an event as JSON, about that of a short prompt with its envelope."""


def payload(body_bytes: int = BODY_BYTES) -> dict[str, Any]:
    """Return the values of a prompt whose envelope has `body_bytes` bytes as JSON, at least some 450."""
    values = _payload("")
    missing = body_bytes - len(create_envelope(EVENT_TYPE, values, SOURCE).model_dump_json())
    return _payload("x" * max(1, missing))


def build(values: dict[str, Any], parents: Sequence[UUID] = ()) -> EventEnvelope[Any]:
    """Make and validate an envelope; this belongs to the timed part."""
    return create_envelope(EVENT_TYPE, values, SOURCE, parents)


def ready_dict(values: dict[str, Any]) -> dict[str, Any]:
    """Return the envelope as a dict of JSON values: what peers are given."""
    return build(values).model_dump(mode="json")


def _payload(prompt: str) -> dict[str, Any]:
    return {"provider": "anthropic", "model": "a-model", "prompt": prompt, "project": "bench", "tags": ["bench"]}
