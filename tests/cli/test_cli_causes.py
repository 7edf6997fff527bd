"""What `bb tail` tells of causes, and how often it asks."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

import pytest

from bloodbank.cli.bus import Bus
from bloodbank.cli.causes import Causes
from bloodbank.errors import EventNotFound, StoreUnavailable
from bloodbank.ids import new_event_id


class Index:
    """Answers for the events that it knows, and keeps what it was asked."""

    def __init__(self, **known: str) -> None:
        self.known = known
        self.asked: list[str] = []
        self.is_away = False

    async def lineage(self, event_id: UUID, direction: str, *, max_depth: int, limit: int) -> dict[str, Any]:
        self.asked.append(str(event_id))
        if self.is_away:
            raise StoreUnavailable("The index is away.")
        if str(event_id) not in self.known:
            raise EventNotFound(f"There is no event {event_id}.")
        return {"nodes": [{"id": str(event_id), "event_type": self.known[str(event_id)]}]}


def _event(*causes: str) -> dict[str, Any]:
    return {"event_id": str(new_event_id()), "event_type": "memo.filed", "correlation_ids": list(causes)}


async def _line(causes: Causes, event: dict[str, Any]) -> str:
    return "".join(span.text for span in await causes.of(event))


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
async def test_a_cause_is_asked_for_once(is_known: bool) -> None:
    cause = str(new_event_id())
    index = Index(**({cause: "call.recorded"} if is_known else {}))
    causes = Causes(cast("Bus", index))
    lines = [await _line(causes, _event(cause)) for _ in range(3)]
    assert lines == [f"← {cause[:13]}{' call.recorded' if is_known else ''}"] * 3
    assert index.asked == [cause]


async def test_an_unknown_cause_that_comes_later_is_told() -> None:
    index = Index()
    causes = Causes(cast("Bus", index))
    cause = _event()
    assert "memo.filed" not in await _line(causes, _event(cause["event_id"]))
    await causes.of(cause)
    assert "memo.filed" in await _line(causes, _event(cause["event_id"]))


async def test_an_index_that_is_away_is_left_alone_for_a_while() -> None:
    index = Index()
    index.is_away = True
    causes = Causes(cast("Bus", index))
    for _ in range(3):
        cause = str(new_event_id())
        assert await _line(causes, _event(cause)) == f"← {cause[:13]}"
    assert len(index.asked) == 1
