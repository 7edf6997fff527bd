"""A lineage answer as a text tree, the event in question at the top.

A node that several others share is expanded where it comes first and named by `↑ see` after that, so that each
event and each edge stands in the tree once. Nothing here calls itself: a chain may be 10,000 events deep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bloodbank.cli.text import Line, Span, clock, printable, source_name
from bloodbank.ids import short_ids

DEEPEST_INDENT = 20
"""Levels that are drawn beside each other; what lies deeper goes on at the margin, in a block of its own."""

WIDEST_LABEL = 56
"""Columns are aligned behind labels up to this width; longer ones push their own line only."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node is drawn. before: lines of the levels above. joint: what leads to it. level: within its block."""

    event_id: str
    before: str
    joint: str
    level: int


def tree_lines(answer: Mapping[str, Any], direction: str, *, now: datetime) -> list[Line]:
    """Return the lines of a tree.

    answer: as `GET /events/{id}/lineage` gives it. direction: `ancestors` puts causes below what they caused,
    `descendants` effects below their causes. now: aware; times of today are written without the day.
    """
    return _Drawing(answer, direction, now).lines()


class _Drawing:
    def __init__(self, answer: Mapping[str, Any], direction: str, now: datetime) -> None:
        self._nodes: dict[str, Mapping[str, Any]] = {node["id"]: node for node in answer["nodes"]}
        self._next = _neighbours(answer["nodes"], answer["edges"], direction)
        self._short = short_ids(self._nodes)
        self._time = clock([node.get("timestamp") for node in self._nodes.values()], now)
        self._frontier = set(answer["truncated"]["frontier"])
        self._drawn: set[str] = set()
        self._blocks = deque([str(answer["focus"])])
        self._rows: list[tuple[Span, Span, Mapping[str, Any] | None, str]] = []

    def lines(self) -> list[Line]:
        self._draw_block(self._blocks.popleft())
        while self._blocks:
            self._rows.append((Span(""), Span(""), None, ""))
            self._draw_block(self._blocks.popleft())
        width = max(len(lead.text) + len(label.text) for lead, label, node, _ in self._rows if node is not None)
        return [self._line(*row, width=min(width, WIDEST_LABEL)) for row in self._rows]

    def _draw_block(self, root: str) -> None:
        stack = [_Place(root, "", "", 0)]
        while stack:
            place = stack.pop()
            if place.event_id in self._drawn and place.level:
                self._mention(place)
                continue
            self._drawn.add(place.event_id)
            following = self._next.get(place.event_id, ())
            goes_on = bool(following) and place.level == DEEPEST_INDENT
            self._expand(place, " ↓ goes on below" if goes_on else "")
            if goes_on:
                self._blocks.append(place.event_id)
            else:
                stack.extend(reversed(self._places_under(place, following)))

    def _places_under(self, place: _Place, following: Sequence[str]) -> list[_Place]:
        before = place.before + {"": "", "├": "│  ", "└": "   "}[place.joint[:1]]
        places: list[_Place] = []
        for event_id in following:
            corner = "└" if event_id == following[-1] else "├"
            stroke = "─" if self._nodes[event_id]["known"] else "╌"
            places.append(_Place(event_id, before, f"{corner}{stroke} ", place.level + 1))
        return places

    def _mention(self, place: _Place) -> None:
        event_type = self._nodes[place.event_id]["event_type"]
        suffix = f" ({printable(event_type)})" if event_type else ""
        label = Span(f"↑ see {self._short[place.event_id]}{suffix}", "dim")
        self._rows.append((Span(place.before + place.joint, "dim"), label, None, ""))

    def _expand(self, place: _Place, remark: str) -> None:
        node = self._nodes[place.event_id]
        if not node["known"]:
            label = Span("(not seen)", "dim italic")
        else:
            label = Span(printable(node["event_type"]), "bold red" if node["status"] == "failed" else "bold")
        more = " … and more" if place.event_id in self._frontier and not remark else ""
        self._rows.append((Span(place.before + place.joint, "dim"), label, node, remark + more))

    def _line(self, lead: Span, label: Span, node: Mapping[str, Any] | None, remark: str, *, width: int) -> Line:
        if node is None:
            return (lead, label)
        gap = " " * max(0, width - len(lead.text) - len(label.text))
        return (
            lead,
            label,
            Span(f"{gap}  {self._short[node['id']]}  ", "cyan"),
            Span(f"{self._time(node.get('timestamp'))}  "),
            Span(source_name(node.get("source")), "green"),
            Span(remark, "yellow"),
        )


def _neighbours(
    nodes: Sequence[Mapping[str, Any]], edges: Sequence[Mapping[str, str]], direction: str
) -> dict[str, list[str]]:
    """Map each id to what stands below it, in the order of the answer, which puts causes first."""
    order = {node["id"]: place for place, node in enumerate(nodes)}
    above, below = ("child", "parent") if direction == "ancestors" else ("parent", "child")
    neighbours: dict[str, list[str]] = {}
    for edge in edges:
        neighbours.setdefault(edge[above], []).append(edge[below])
    for ids in neighbours.values():
        ids.sort(key=order.__getitem__)
    return neighbours
