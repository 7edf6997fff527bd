"""Requests that work as they stand, for the OpenAPI description; a test sends each of them."""

from __future__ import annotations

from typing import Any

EVENT_ID = "0198c2f4-7a51-7c3e-9d7e-5f0a4b8c1d20"
PARENT_ID = "0198c2f4-1b02-7f6d-8a43-2c9e6d5b7a10"

PROMPT: dict[str, Any] = {
    "provider": "anthropic",
    "model": "claude-sonnet-4",
    "prompt": "Summarise the sales call of 4 August.",
    "project": "sales-notes",
    "tags": ["summary"],
}
RESPONSE: dict[str, Any] = {
    "provider": "anthropic",
    "model": "claude-sonnet-4",
    "response": "They want the report by Friday.",
    "tokens_used": 812,
    "duration_ms": 2140,
}
ERROR: dict[str, Any] = {
    "provider": "anthropic",
    "model": "claude-sonnet-4",
    "error_message": "Rate limit reached; try again in 20 s.",
    "error_code": "rate_limit",
    "is_retryable": True,
    "retry_count": 1,
}
ARTIFACT: dict[str, Any] = {
    "action": "created",
    "kind": "document",
    "uri": "file:///notes/2026-08-04-sales-call.md",
    "title": "Sales call of 4 August",
}
INVOICE: dict[str, Any] = {"invoice": "2026-0142", "amount_cents": 129_900}
ENVELOPE: dict[str, Any] = {
    "event_id": EVENT_ID,
    "event_type": "llm.prompt",
    "timestamp": "2026-08-04T15:04:05Z",
    "version": "2.0.0",
    "source": {"host": "laptop-3", "type": "agent", "app": "note-taker"},
    "correlation_ids": [PARENT_ID],
    "agent_context": {"type": "claude-code", "instance_id": "run-17"},
    "payload": PROMPT,
}
ENVELOPE_V1: dict[str, Any] = {
    "id": "4b1c3f0e-92f5-4d5b-8a53-0d6a4f0d9f11",
    "event_type": "llm.prompt",
    "ts": "2025-11-02T09:30:00Z",
    "source": "note-taker",
    "correlation_id": None,
    "data": PROMPT,
}
FIREFLIES_V2: dict[str, Any] = {
    "event": "meeting.transcribed",
    "timestamp": 1_785_855_845_000,
    "meeting_id": "01J4MEETING",
    "client_reference_id": PARENT_ID,
}
FIREFLIES_V1: dict[str, Any] = {"meetingId": "01J4MEETING", "eventType": "Transcription completed"}

EVENTS: dict[str, Any] = {
    "type and payload": {"event_type": "llm.prompt", "payload": PROMPT, "correlation_ids": [PARENT_ID]},
    "envelope": ENVELOPE,
    "envelope of version 1": ENVELOPE_V1,
}
BATCH: dict[str, Any] = {
    "object": {
        "events": [{"event_type": "llm.prompt", "payload": PROMPT}, {"event_type": "llm.response", "payload": RESPONSE}]
    },
    "list": [{"event_type": "invoice.paid", "payload": INVOICE}],
}
REPLAY: dict[str, Any] = {
    "a type and a time, to one group": {"type": "llm.*", "since": "2026-08-04T00:00:00Z", "to": "rag", "dry_run": True},
    "an event with its descendants, to all": {"event_id": EVENT_ID, "descendants": True, "to_all": True},
}
PUBLISHED: dict[str, Any] = {"event_id": EVENT_ID, "status": "published", "lineage": "recorded"}


def of_payload(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the two forms that a route takes whose address says the type."""
    return {"payload": payload, "payload with parents": {"payload": payload, "correlation_ids": [PARENT_ID]}}
