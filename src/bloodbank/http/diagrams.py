"""Lineage answers as text that others draw: a Mermaid flowchart, a Graphviz digraph.

Sources: mermaid.js.org/syntax/flowchart.html, sections "Special characters that break syntax" and "Styling and
classes"; graphviz.org/doc/info/lang.html and …/docs/attr-types/escString.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from bloodbank.ids import short_ids

MERMAID = "text/vnd.mermaid"
GRAPHVIZ = "text/vnd.graphviz"
"""Media types, as IANA lists them."""

LONGEST_TEXT = 80
"""Characters of a type or a source in a label."""
MOST_NAMED = 20
"""Events that a remark names; of more it says how many."""

_NOT_SEEN = "(not seen)"
_NO_WORD = re.compile(r"[^\w ]|_")
_JOINS_WORDS = "._-"


def mermaid(answer: Mapping[str, Any]) -> str:
    """Return a lineage answer as a Mermaid flowchart, causes above what they caused.

    answer: as `GET /events/{id}/lineage` gives it. Events that were never seen are dashed, as are the edges from
    them; the focus has a thick border, failures are red. What was cut off is said in a comment.
    """
    nodes: list[Mapping[str, Any]] = answer["nodes"]
    short = short_ids(node["id"] for node in nodes)
    name = {node["id"]: f"n{number}" for number, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    lines += [f"%% {remark}" for remark in _remarks(answer, name)]
    lines += [f'  {name[node["id"]]}["{_mermaid_label(node, short)}"]' for node in nodes]
    unseen = set(answer["missing"])
    for edge in answer["edges"]:
        arrow = "-.->" if edge["parent"] in unseen else "-->"
        lines.append(f"  {name[edge['parent']]} {arrow} {name[edge['child']]}")
    styles = {"focus": "stroke-width:4px", "failed": "stroke:#c00,color:#c00", "missing": "stroke-dasharray:5 5"}
    for style, members in _styled(answer).items():
        if members:
            lines.append(f"  classDef {style} {styles[style]}")
            lines.append(f"  class {','.join(name[event_id] for event_id in members)} {style}")
    return "\n".join(lines) + "\n"


def graphviz(answer: Mapping[str, Any]) -> str:
    """Return a lineage answer as a Graphviz digraph whose nodes are named by the ids; drawn as by `mermaid`."""
    nodes: list[Mapping[str, Any]] = answer["nodes"]
    short = short_ids(node["id"] for node in nodes)
    styled = _styled(answer)
    unseen, failed = set(styled["missing"]), set(styled["failed"])
    lines = ["digraph lineage {"]
    lines += [f"  // {remark}" for remark in _remarks(answer, {node["id"]: node["id"] for node in nodes})]
    lines.append('  node [shape=box, style=rounded, fontname="sans-serif"]')
    for node in nodes:
        event_id = node["id"]
        attributes = [f'label="{_graphviz_label(node, short)}"']
        if event_id == answer["focus"]:
            attributes.append("penwidth=3")
        if event_id in unseen:
            attributes.append('style="rounded,dashed"')
        if event_id in failed:
            attributes.append('color="#cc0000", fontcolor="#cc0000"')
        lines.append(f'  "{event_id}" [{", ".join(attributes)}]')
    for edge in answer["edges"]:
        style = " [style=dashed]" if edge["parent"] in unseen else ""
        lines.append(f'  "{edge["parent"]}" -> "{edge["child"]}"{style}')
    return "\n".join([*lines, "}"]) + "\n"


def _styled(answer: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the ids that are drawn in a way of their own."""
    failed = [node["id"] for node in answer["nodes"] if node["status"] == "failed"]
    return {"focus": [answer["focus"]], "failed": failed, "missing": list(answer["missing"])}


def _remarks(answer: Mapping[str, Any], name: Mapping[str, str]) -> Iterator[str]:
    """Yield what the picture does not show, a line each."""
    yield f"{answer['direction']} of {answer['focus']}"
    truncated = answer["truncated"]
    if truncated["depth"]:
        yield "Cut short: there is more beyond max_depth."
    if truncated["limit"]:
        yield "Cut short: there is more than limit events."
    if frontier := truncated["frontier"]:
        named = ", ".join(name[event_id] for event_id in frontier[:MOST_NAMED])
        more = f" and {len(frontier) - MOST_NAMED} more" if len(frontier) > MOST_NAMED else ""
        yield f"Ask there for the rest: {named}{more}."
    if answer["cycle"]:
        yield "Some of these events name each other as causes, in a circle."


def _parts(node: Mapping[str, Any], short: Mapping[str, str]) -> Iterable[str]:
    """Return the lines of a label: type, beginning of the id, source."""
    return (_clean(node["event_type"] or _NOT_SEEN), short[node["id"]], _clean(node["source"] or ""))


def _clean(text: str) -> str:
    """Return text of others on one line of bounded length, without what is not printable."""
    words = " ".join(text.split())
    cut = words if len(words) <= LONGEST_TEXT else words[: LONGEST_TEXT - 1] + "…"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in cut)


def _mermaid_label(node: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """Return a label for within quotation marks.

    Mermaid turns #NUMBER; into the character only after it has looked for Markdown, links and its own syntax. So what
    is no letter, digit or space is written as its number, but for what joins words: llm.prompt, note-taker. Names of
    icons (fa:fa-car) and formulas ($$x$$) it looks for after that; a space of no width keeps them apart.
    """
    return "<br/>".join(_NO_WORD.sub(_numbered, part) for part in _parts(node, short) if part)


def _numbered(match: re.Match[str]) -> str:
    text, place = match.string, match.start()
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    # www. begins a link.
    if match[0] in _JOINS_WORDS and before.isalnum() and after.isalnum() and not text[:place].lower().endswith("www"):
        return match[0]
    begins = text[place:].startswith((":fa-", "$$"))
    return f"#{ord(match[0])};" + ("#8203;" if begins else "")


def _graphviz_label(node: Mapping[str, Any], short: Mapping[str, str]) -> str:
    # Within a label \\ is a backslash, \" a quotation mark, &amp; an ampersand.
    parts = [escape(part, quote=False) for part in _parts(node, short) if part]
    return "\\n".join(part.replace("\\", "\\\\").replace('"', '\\"') for part in parts)
