"""Lineage answers as text trees."""

from __future__ import annotations

import re
from datetime import timedelta

import orjson
from hypothesis import given
from hypothesis import strategies as st

from bloodbank.cli.text import Line, plain
from bloodbank.cli.tree import tree_lines
from bloodbank.http.answers import lineage_body
from bloodbank.ids import short_ids
from bloodbank.stores.base import Direction
from tests.cli.lineage_answers import NOON, answer_of, id_of
from tests.conformance.graphs import EVERYTHING, Causes, Oracle, causes

DIAMOND = {"call": [], "left": ["call"], "right": ["call"], "notes": ["left", "right"]}


def _short(*names: str) -> list[str]:
    return [str(id_of(name))[:13] for name in names]


def _shape(lines: list[Line]) -> list[str]:
    """The lines without the columns behind the label."""
    return [
        line.split("  ")[0] if "↑" not in line else line for line in map(_with_wide_lead, plain(lines).splitlines())
    ]


def _with_wide_lead(line: str) -> str:
    lead = len(line) - len(line.lstrip(" │├└─╌"))
    return line[:lead].replace(" ", ".") + line[lead:]


def test_causes_stand_below_what_they_caused_and_a_shared_one_once() -> None:
    lines = tree_lines(answer_of(DIAMOND, "notes"), "ancestors", now=NOON)
    call = _short("call")[0]
    assert _shape(lines) == [
        "test.notes",
        "├─.test.left",
        "│..└─.test.call",
        "└─.test.right",
        f"...└─.↑ see {call} (test.call)",
    ]


def test_effects_stand_below_their_causes() -> None:
    lines = tree_lines(answer_of(DIAMOND, "call", "descendants"), "descendants", now=NOON)
    notes = _short("notes")[0]
    assert _shape(lines) == [
        "test.call",
        "├─.test.left",
        "│..└─.test.notes",
        "└─.test.right",
        f"...└─.↑ see {notes} (test.notes)",
    ]


def test_every_line_tells_id_time_and_source_in_columns() -> None:
    lines = plain(tree_lines(answer_of(DIAMOND, "notes"), "ancestors", now=NOON)).splitlines()
    local = [(NOON + timedelta(seconds=second)).astimezone().strftime("%H:%M:%S") for second in range(4)]
    notes, left, call, right = _short("notes", "left", "call", "right")
    assert lines[:4] == [
        f"test.notes       {notes}  {local[3]}  tests",
        f"├─ test.left     {left}  {local[1]}  tests",
        f"│  └─ test.call  {call}  {local[0]}  tests",
        f"└─ test.right    {right}  {local[2]}  tests",
    ]


def test_a_parent_that_was_never_seen_is_dashed() -> None:
    answer = answer_of({"notes": ["lost"]}, "notes", unseen=["lost"])
    lines = plain(tree_lines(answer, "ancestors", now=NOON)).splitlines()
    assert lines[1].startswith("└╌ (not seen)")
    assert _short("lost")[0] in lines[1]


def test_only_failures_are_red() -> None:
    answer = answer_of({"a": [], "b": ["a"]}, "a", "descendants", types={"b": "llm.error"})
    styles = {span.text: span.style for line in tree_lines(answer, "descendants", now=NOON) for span in line}
    assert "red" in styles["llm.error"]
    assert "red" not in styles["test.a"]


def test_a_circle_ends() -> None:
    answer = answer_of({"a": ["b"], "b": ["a"]}, "a")
    assert answer["cycle"]
    assert _shape(tree_lines(answer, "ancestors", now=NOON)) == [
        "test.a",
        "└─.test.b",
        f"...└─.↑ see {_short('a')[0]} (test.a)",
    ]


def test_where_an_answer_is_cut_there_is_said_to_be_more() -> None:
    answer = answer_of({"b": [], "c": ["b"]}, "c", frontier=["b"])
    assert [line.endswith("… and more") for line in plain(tree_lines(answer, "ancestors", now=NOON)).splitlines()] == [
        False,
        True,
    ]


def test_a_node_in_both_directions_of_a_graph_is_drawn_one_way_only() -> None:
    answer = answer_of({"a": [], "b": ["a"], "c": ["b"]}, "b", "both")
    assert _shape(tree_lines(answer, "ancestors", now=NOON)) == ["test.b", "└─.test.a"]


def test_control_characters_of_others_do_not_reach_the_terminal() -> None:
    answer = answer_of({"a": []}, "a")
    answer["nodes"][0]["source"] = "app\x9b31m\x1b[31m"
    assert "\x9b" not in plain(tree_lines(answer, "ancestors", now=NOON))
    assert "\x1b" not in plain(tree_lines(answer, "ancestors", now=NOON))


def test_short_ids_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    ids = ["01a2091e-81dd-7000-8000-000000000001", "01a2091e-81dd-7001-8000-000000000001"]
    assert short_ids(ids[:1]) == {ids[0]: "01a2091e-81dd"}
    assert short_ids(ids) == {each: each[:18] for each in ids}
    twins = [ids[0], ids[0][:-1] + "2"]
    assert short_ids(twins) == {each: each for each in twins}


@given(causes(circles=True), st.sampled_from(["ancestors", "descendants"]), st.data())
def test_each_event_and_each_edge_is_drawn_once(drawn: Causes, direction: str, data: st.DataObject) -> None:
    oracle = Oracle(drawn.links())
    focus = data.draw(st.sampled_from(oracle.ids))
    graph = oracle.walk(focus, Direction(direction), max_depth=EVERYTHING, limit=EVERYTHING)
    assert graph is not None
    answer = orjson.loads(lineage_body(graph))
    short = short_ids(node["id"] for node in answer["nodes"])
    above: list[str] = []
    expanded: list[str] = []
    edges: list[tuple[str, str]] = []
    for line in plain(tree_lines(answer, direction, now=NOON)).splitlines():
        level = len(re.match(r"[ │├└─╌]*", line)[0]) // 3  # type: ignore[index]
        [event_id] = [word for word in line.split() if word in short.values()]
        if "↑ see" in line:
            assert event_id in expanded, "it was named before it was drawn"
        else:
            expanded.append(event_id)
        del above[level:]
        if above:
            edges.append((above[-1], event_id))
        above.append(event_id)
    assert sorted(expanded) == sorted(short.values())
    flip = -1 if direction == "ancestors" else 1
    expected = [(short[edge["parent"]], short[edge["child"]])[::flip] for edge in answer["edges"]]
    assert sorted(edges) == sorted(expected)
