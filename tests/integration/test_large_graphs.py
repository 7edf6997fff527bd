"""Graphs of ten thousand events, walked, ordered and drawn without a server: nothing recurs, nothing is quadratic."""

from __future__ import annotations

import time
from itertools import pairwise
from uuid import UUID

from bloodbank.cli.tree import DEEPEST_INDENT, tree_lines
from bloodbank.stores.base import Direction
from bloodbank.stores.order import topological_order
from tests.cli.lineage_answers import NOON, answer_of
from tests.cli.test_cli_tree import plain
from tests.unit.test_graph import Index, ints


def test_a_chain_of_ten_thousand_needs_no_recursion_and_no_square_of_time() -> None:
    length = 10_000
    index = Index({1: []} | {child: [child - 1] for child in range(2, length + 1)})
    began = time.perf_counter()
    graph = index.graph(length // 5, Direction.BOTH)
    assert time.perf_counter() - began < 3
    assert ints(graph.ids) == list(range(1, length + 1))


def test_ten_thousand_children_come_in_order() -> None:
    index = Index({1: []} | {child: [1] for child in range(2, 10_002)})
    graph = index.graph(1, Direction.DESCENDANTS, limit=20_000)
    assert ints(graph.ids) == list(range(1, 10_002))
    assert len(index.asked) == 2


def test_a_circle_of_ten_thousand_needs_no_recursion() -> None:
    size = 10_000
    assert topological_order([[(node + 1) % size] for node in range(size)]) == ([*range(size)], True)


def test_a_chain_of_ten_thousand_is_written_whole_and_narrow() -> None:
    answer = answer_of({"a": []}, "a")
    ids = [str(UUID(int=number)) for number in range(10_000)]
    answer["nodes"] = [{**answer["nodes"][0], "id": each, "event_type": f"test.e{each[-4:]}"} for each in ids]
    answer["edges"] = [{"parent": parent, "child": child} for parent, child in pairwise(ids)]
    answer["focus"] = ids[-1]
    text = plain(tree_lines(answer, "ancestors", now=NOON))
    written = [word for line in text.splitlines() for word in line.split() if word.startswith("test.")]
    # What goes on at the margin is named twice: where it is left, and where it is taken up.
    distinct = list(dict.fromkeys(written))
    assert distinct == [node["event_type"] for node in reversed(answer["nodes"])]
    assert len(written) - len(distinct) == (len(ids) - 1) // DEEPEST_INDENT
    assert max(map(len, text.splitlines())) < 160
