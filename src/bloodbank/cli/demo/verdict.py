"""Whether an answer about the demo's day is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from bloodbank.story import Expectation


def mistakes(answer: Mapping[str, Any], expected: Expectation, ids: Mapping[str, UUID]) -> list[str]:
    """Return what is wrong with an answer, in sentences; nothing when it is exactly right.

    answer: as `GET /events/{id}/lineage` gives it. ids: the event of each scene.
    """
    names = {str(event_id): name for name, event_id in ids.items()}
    events = Counter(names.get(node["id"], node["id"]) for node in answer["nodes"])
    edges = Counter(
        (names.get(edge["parent"], edge["parent"]), names.get(edge["child"], edge["child"])) for edge in answer["edges"]
    )
    wrong = _differences("event", events, Counter(expected.events))
    wrong += _differences("edge", edges, Counter(expected.edges))
    if answer["focus"] != str(ids[expected.focus]):
        wrong.append(f"The answer is about {answer['focus']} instead of {expected.focus}.")
    wrong += [f"The event {names.get(event_id, event_id)} counts as never seen." for event_id in answer["missing"]]
    if answer["truncated"]["depth"] or answer["truncated"]["limit"]:
        wrong.append("The answer is cut short.")
    if answer["cycle"]:
        wrong.append("The answer tells of a circle.")
    return wrong


def _differences(what: str, found: Counter[Any], wanted: Counter[Any]) -> list[str]:
    missing = [f"The {what} {_written(each)} is missing." for each in sorted(wanted - found)]
    return missing + [f"The {what} {_written(each)} is too much." for each in sorted(found - wanted)]


def _written(each: object) -> str:
    return " -> ".join(cast("tuple[str, ...]", each)) if isinstance(each, tuple) else str(each)
