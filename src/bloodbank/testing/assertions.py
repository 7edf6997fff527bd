"""What a test can say of published events. A failure shows what was there instead."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import UUID

from pydantic_core import to_jsonable_python

from bloodbank.causation import HasEventId
from bloodbank.envelope import EventEnvelope
from bloodbank.transports.base import matches

MOST_SHOWN = 20
"""Events that a failure shows; of more it shows the last ones."""
LONGEST_PAYLOAD = 200
"""Characters of a payload that a failure shows."""


def assert_published(
    events: Sequence[EventEnvelope[Any]], event_type: str, /, **payload_subset: object
) -> EventEnvelope[Any]:
    """Assert that an event of a type was published whose payload has these values; return the first such event.

    event_type: a type or a routing pattern, such as `llm.*`.
    payload_subset: fields of the payload; objects within it may hold more than is named here. Values are compared as
        JSON has them, so that a UUID or a time equals its text.

    Raises AssertionError.
    """
    wanted = cast("dict[str, object]", to_jsonable_python(payload_subset))
    of_type = [event for event in events if matches(event_type, event.event_type)]
    for event in of_type:
        if not _differences(wanted, _payload(event)):
            return event
    values = f" with {_as_json(wanted)}" if wanted else ""
    lines = [f"No {event_type} event{values} was published. {_there_were(events)}"]
    for event in _shown(events):
        differences = _differences(wanted, _payload(event)) if event in of_type else []
        lines += [_line(event), *(f"      {difference}" for difference in differences)]
    raise AssertionError("\n".join(lines))


def assert_caused_by(
    events: Sequence[EventEnvelope[Any]], event: UUID | HasEventId, /, *parents: UUID | HasEventId
) -> None:
    """Assert that the direct causes of an event are exactly these, in any order; without parents, that it has none.

    event, parents: ids, or whatever has an `event_id`. Raises AssertionError, also when the event was not published.
    """
    event_id, wanted = _id(event), [_id(parent) for parent in parents]
    by_id = {each.event_id: each for each in events}
    found = by_id.get(event_id)
    if found is None:
        lines = [f"The event {event_id} was not published. {_there_were(events)}", *map(_line, _shown(events))]
        raise AssertionError("\n".join(lines))
    actual = found.correlation_ids
    if set(actual) == set(wanted):
        return
    lines = [f"{found.event_type} {event_id} has other causes."]
    for parent in wanted:
        if parent not in actual:
            lines.append(f"  missing:    {_named(parent, by_id)}{_distance(parent, found, by_id)}")
    lines += [f"  unexpected: {_named(parent, by_id)}" for parent in actual if parent not in wanted]
    lines += [f"  right:      {_named(parent, by_id)}" for parent in actual if parent in wanted]
    raise AssertionError("\n".join(lines))


def _id(event: UUID | HasEventId) -> UUID:
    return event if isinstance(event, UUID) else event.event_id


def _payload(event: EventEnvelope[Any]) -> Mapping[str, object]:
    return cast("Mapping[str, object]", to_jsonable_python(event.payload, by_alias=True))


def _differences(wanted: Mapping[str, object], actual: Mapping[str, object], path: str = "") -> list[str]:
    """Say in words where the wanted values are not the actual ones."""
    found: list[str] = []
    for name, value in wanted.items():
        place = f"{path}{name}"
        if name not in actual:
            found.append(f"{place} is not there")
        elif isinstance(value, dict) and isinstance(inner := actual[name], dict):
            found += _differences(cast("dict[str, object]", value), cast("dict[str, object]", inner), f"{place}.")
        elif value != actual[name]:
            found.append(f"{place} is {_as_json(actual[name])}")
    return found


def _distance(parent: UUID, event: EventEnvelope[Any], by_id: Mapping[UUID, EventEnvelope[Any]]) -> str:
    """Say by how many steps an event that is no direct cause is one all the same; nothing when it is none."""
    steps, level, seen = 1, set(event.correlation_ids), set[UUID]()
    while level:
        if parent in level:
            return f", which is a cause by {steps} steps"
        seen |= level
        level = {above for each in level if each in by_id for above in by_id[each].correlation_ids} - seen
        steps += 1
    return ""


def _named(event_id: UUID, by_id: Mapping[UUID, EventEnvelope[Any]]) -> str:
    event = by_id.get(event_id)
    return f"{event_id}, which was not published" if event is None else f"{event.event_type} {event_id}"


def _there_were(events: Sequence[EventEnvelope[Any]]) -> str:
    if not events:
        return "Nothing was."
    return f"There were {len(events)}" + (f", the last {MOST_SHOWN} being:" if len(events) > MOST_SHOWN else ":")


def _shown(events: Sequence[EventEnvelope[Any]]) -> Sequence[EventEnvelope[Any]]:
    return events[-MOST_SHOWN:]


def _line(event: EventEnvelope[Any]) -> str:
    payload = _as_json(_payload(event))
    return f"  {event.event_type} {event.event_id} {payload}"


def _as_json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_PAYLOAD else f"{text[:LONGEST_PAYLOAD]}…"
