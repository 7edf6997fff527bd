"""Lineage as text that others draw: what is said of it, and that texts of others cannot break out of a label."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html import unescape
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodbank.http.diagrams import LONGEST_TEXT, MOST_NAMED, graphviz, mermaid
from bloodbank.ids import short_ids
from tests.api.http_app import api, assert_problem
from tests.cli.lineage_answers import answer_of, id_of

DIAMOND = {"call": [], "left": ["call"], "right": ["call", "lost"], "notes.failed": ["left", "right"]}
MERMAID_NODE = re.compile(r'  n(\d+)\["([\w .<>/#;-]*)"\]')
MERMAID_EDGE = re.compile(r"  n(\d+) (-->|-\.->) n(\d+)")
QUOTED = r'"((?:[^"\\]|\\.)*)"'
DOT_NODE = re.compile(rf"  {QUOTED} \[label={QUOTED}(.*)\]")
DOT_EDGE = re.compile(rf"  {QUOTED} -> {QUOTED}( \[style=dashed\])?")


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    async with api(tmp_path_factory.mktemp("diagrams")) as client:
        yield client


def diamond(**more: Any) -> dict[str, Any]:
    return answer_of(DIAMOND, "notes.failed", unseen=["lost"], **more)


def mermaid_nodes(text: str) -> list[str]:
    return [match[2] for line in text.splitlines() if (match := MERMAID_NODE.fullmatch(line))]


def mermaid_label(label: str) -> str:
    """What Mermaid shows, as lines, without spaces of no width."""
    return unescape(re.sub(r"#(\d+);", r"&#\1;", label.replace("<br/>", "\n"))).replace("\u200b", "")


def dot_label(label: str) -> str:
    """What Graphviz shows, as lines."""
    return unescape(re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], label))


def test_mermaid_has_each_event_and_each_edge_once() -> None:
    answer = diamond()
    lines = mermaid(answer).splitlines()
    assert lines[0] == "flowchart TD"
    ids = [node["id"] for node in answer["nodes"]]
    short = short_ids(ids)
    labels = [mermaid_label(label).split("\n") for label in mermaid_nodes("\n".join(lines))]
    assert [label[1] for label in labels] == [short[each] for each in ids]
    by_id = dict(zip(ids, labels, strict=True))
    assert by_id[str(id_of("notes.failed"))][::2] == ["test.notes.failed", "tests"]
    assert by_id[str(id_of("lost"))][0] == "(not seen)"
    edges = [match.groups() for line in lines if (match := MERMAID_EDGE.fullmatch(line))]
    drawn = {(ids[int(parent)], ids[int(child)]): arrow for parent, arrow, child in edges}
    assert len(drawn) == len(edges)
    assert drawn.keys() == {(edge["parent"], edge["child"]) for edge in answer["edges"]}
    assert [pair[0] for pair, arrow in drawn.items() if arrow == "-.->"] == [str(id_of("lost"))]


def test_mermaid_marks_the_focus_what_failed_and_what_is_missing() -> None:
    answer = diamond()
    ids = [node["id"] for node in answer["nodes"]]
    name = {each: f"n{ids.index(str(id_of(each)))}" for each in ("notes.failed", "lost")}
    marked = re.findall(r"^  class (\S+) (\w+)$", mermaid(answer), re.MULTILINE)
    assert set(marked) == {(name["notes.failed"], "focus"), (name["notes.failed"], "failed"), (name["lost"], "missing")}
    assert {style for _, style in marked} == set(re.findall(r"classDef (\w+) ", mermaid(answer)))


def test_dot_has_each_event_and_each_edge_once_and_marks_them() -> None:
    answer = diamond()
    lines = graphviz(answer).splitlines()
    assert (lines[0], lines[-1]) == ("digraph lineage {", "}")
    nodes = {match[1]: match for line in lines if (match := DOT_NODE.fullmatch(line))}
    assert list(nodes) == [node["id"] for node in answer["nodes"]]
    edges = [match for line in lines if (match := DOT_EDGE.fullmatch(line))]
    assert [(match[1], match[2]) for match in edges] == [(edge["parent"], edge["child"]) for edge in answer["edges"]]
    assert [match[1] for match in edges if match[3]] == [str(id_of("lost"))]
    focus, lost = nodes[str(id_of("notes.failed"))], nodes[str(id_of("lost"))]
    assert ("penwidth" in focus[3], "#cc0000" in focus[3], "dashed" in focus[3]) == (True, True, False)
    assert ("penwidth" in lost[3], "#cc0000" in lost[3], "dashed" in lost[3]) == (False, False, True)


@pytest.mark.parametrize("write", [mermaid, graphviz])
def test_what_was_cut_off_and_circles_are_said_in_comments(write: Any) -> None:
    comment = "%% " if write is mermaid else "  // "
    whole = [line for line in write(diamond()).splitlines() if line.startswith(comment)]
    assert whole == [f"{comment}ancestors of {id_of('notes.failed')}"]
    cut = write(diamond(frontier=["call"]))
    place = [node["id"] for node in diamond()["nodes"]].index(str(id_of("call")))
    name = f"n{place}" if write is mermaid else str(id_of("call"))
    assert f"{comment}Cut short: there is more beyond max_depth.\n" in cut
    assert f"{comment}Ask there for the rest: {name}.\n" in cut
    assert "in a circle" in write(answer_of({"a": ["b"], "b": ["a"]}, "a"))
    many = answer_of({f"e{number}": [] for number in range(MOST_NAMED + 5)}, "e0")
    many["truncated"] = {"depth": False, "limit": True, "frontier": [node["id"] for node in many["nodes"]]}
    assert re.search(r"more than limit events\.\n.*Ask there for the rest: .* and 5 more\.\n", write(many))


@given(
    st.text(max_size=12)
    | st.sampled_from(['"];\n}', 'a"b]c;d', "www.a.b", "1. a", "`**a**`", "- a", "%%{init: 1}%%", "\\N\\"])
)
def test_no_text_breaks_out_of_its_label(source: str) -> None:
    answer = answer_of({"a": []}, "a")
    answer["nodes"][0]["source"] = source
    shown = " ".join(source.split())
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in shown)
    expected = ["test.a", str(id_of("a"))[:13], *([shown] if shown else [])]
    lines = mermaid(answer).splitlines()
    [label] = mermaid_nodes(mermaid(answer))
    assert mermaid_label(label).split("\n") == expected
    assert [line.partition("[")[0].split()[0] for line in lines] == ["flowchart", "%%", "n0", "classDef", "class"]
    [node] = [match for line in graphviz(answer).splitlines() if (match := DOT_NODE.fullmatch(line))]
    assert dot_label(node[2]).split("\n") == expected
    assert len(graphviz(answer).splitlines()) == 5


def test_mermaid_sees_no_markdown_and_no_links() -> None:
    answer = answer_of({"a": []}, "a")
    for source in ("www.a.b", "1. a", "_a_", "*a*", "- a", "+ a", "a~b", "https://a"):
        answer["nodes"][0]["source"] = source
        [label] = mermaid_nodes(mermaid(answer))
        written = label.rpartition("<br/>")[2]
        assert not re.search(r"www\.|\d\. |[_*~+:/]|^-|https:", written), written


def test_mermaid_sees_no_icons_and_no_formulas() -> None:
    answer = answer_of({"a": []}, "a")
    for source in ("fa:fa-car", "$$x$$", "$$$$"):
        answer["nodes"][0]["source"] = source
        [label] = mermaid_nodes(mermaid(answer))
        decoded = unescape(re.sub(r"#(\d+);", r"&#\1;", label))
        assert not re.search(r"fa:fa-|\$\$", decoded), decoded


def test_long_texts_are_cut() -> None:
    answer = answer_of({"a": []}, "a")
    answer["nodes"][0]["source"] = "x" * 500
    [label] = mermaid_nodes(mermaid(answer))
    assert mermaid_label(label).split("\n")[2] == "x" * (LONGEST_TEXT - 1) + "…"


@pytest.mark.parametrize(
    ("format", "media_type", "begins"),
    [
        ("json", "application/json", "{"),
        ("mermaid", "text/vnd.mermaid; charset=utf-8", "flowchart TD\n"),
        ("dot", "text/vnd.graphviz; charset=utf-8", "digraph lineage {\n"),
    ],
)
async def test_lineage_is_had_in_each_format(
    client: httpx.AsyncClient, format: str, media_type: str, begins: str
) -> None:
    root = (await client.post("/events", json={"event_type": "draw.root", "payload": {}})).json()["event_id"]
    body = {"event_type": "draw.failed", "payload": {}, "correlation_ids": [root]}
    child = (await client.post("/events", json=body)).json()["event_id"]
    response = await client.get(f"/events/{child}/lineage", params={"format": format})
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert response.text.startswith(begins)
    assert "draw.root" in response.text


async def test_errors_are_problems_in_each_format(client: httpx.AsyncClient) -> None:
    unknown = await client.get(f"/events/{uuid4()}/lineage", params={"format": "mermaid"})
    assert_problem(unknown, 404, "event_not_found")
    wrong = await client.get(f"/events/{uuid4()}/lineage", params={"format": "svg"})
    assert "format" in assert_problem(wrong, 400, "invalid_query")["detail"]
