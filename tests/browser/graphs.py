"""Graphs of any size, published over HTTP."""

from __future__ import annotations

from typing import Any

from bloodbank.ids import new_event_id
from tests.browser.pages import published

TYPES = ("llm.response", "llm.prompt", "memo.filed")
PAYLOADS: dict[str, dict[str, Any]] = {
    "llm.response": {"provider": "anthropic", "response": "Because they ship on Friday."},
    "llm.prompt": {"provider": "anthropic", "prompt": "Why Friday?"},
}


def made(event_type: str, *causes: str, **payload: Any) -> dict[str, Any]:
    """Return an event with an id of its own."""
    return {
        "event_id": str(new_event_id()),
        "event_type": event_type,
        "correlation_ids": list(causes),
        "payload": payload or PAYLOADS.get(event_type, {"text": "We ship on Friday."}),
    }


async def publish_graph(server_url: str, count: int, *, widest: int) -> str:
    """Publish a call and what it led to, `count` events in all, in layers of which none is wider than `widest`; every
    fifth event has two causes. Return the id of the call."""
    call = made("call.recorded", title="Planning")
    events, above = [call], [call["event_id"]]
    number_of_layer = 0
    while len(events) < count:
        number_of_layer += 1
        width = min(count - len(events), widest, len(above) * 3)
        layer: list[str] = []
        for number in range(width):
            causes = [above[number * len(above) // width]]
            if number % 5 == 0 and len(above) > 1:
                causes.append(above[(number * len(above) // width + 1) % len(above)])
            event = made(TYPES[number_of_layer % 3], *causes)
            events.append(event)
            layer.append(event["event_id"])
        above = layer
    await published(server_url, *events)
    return str(call["event_id"])


async def publish_star(server_url: str, count: int) -> str:
    """Publish a call and what it led to at once: `count` events of two types. Return the id of the call."""
    call = made("call.recorded", title="Planning")
    effects = [made(TYPES[number % 2], call["event_id"]) for number in range(count - 1)]
    await published(server_url, call, *effects)
    return str(call["event_id"])
