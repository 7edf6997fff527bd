"""The order of a graph of causes: parents before children, ties by rank, circles as one.

Nodes are the numbers 0, 1, 2 … in the order of their rank, `children[n]` those that n caused. No recursion: a chain
may be 10,000 deep.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

_UNSEEN = -1


def topological_order(children: Sequence[Sequence[int]]) -> tuple[list[int], bool]:
    """Return all nodes so that parents come first, of several the one with the smallest rank; and whether it cycles.

    Events of a circle stand together, in the order of rank, after what led to the circle and before what it led to.
    Source: A. B. Kahn, Topological sorting of large networks, CACM 5 (1962).
    """
    order = _sorted(children)
    if len(order) == len(children):
        return order, False
    circles = components(children)
    number_of = [0] * len(children)
    for number, members in enumerate(circles):
        for node in members:
            number_of[node] = number
    condensed = [
        [number_of[child] for node in members for child in children[node] if number_of[child] != number]
        for number, members in enumerate(circles)
    ]
    return [node for number in _sorted(condensed) for node in circles[number]], True


def components(children: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the strongly connected components, each ascending, ordered by their smallest node.

    Source: R. Tarjan, Depth-first search and linear graph algorithms, SIAM J. Comput. 1 (1972), with the
    recursion on a list of our own.
    """
    found: list[list[int]] = []
    index = [_UNSEEN] * len(children)
    low = [0] * len(children)
    on_path = [False] * len(children)
    path: list[int] = []
    visited = 0
    for root in range(len(children)):
        if index[root] != _UNSEEN:
            continue
        calls = [(root, iter(children[root]))]
        while calls:
            node, rest = calls[-1]
            if index[node] == _UNSEEN:
                index[node] = low[node] = visited
                visited += 1
                path.append(node)
                on_path[node] = True
            for child in rest:
                if index[child] == _UNSEEN:
                    calls.append((child, iter(children[child])))
                    break
                if on_path[child]:
                    low[node] = min(low[node], index[child])
            else:
                calls.pop()
                if calls:
                    parent = calls[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    members = _cut(path, node)
                    for member in members:
                        on_path[member] = False
                    found.append(sorted(members))
    return sorted(found)


def _cut(path: list[int], node: int) -> list[int]:
    """Take the end of the path off, from the node on."""
    members = [path.pop()]
    while members[-1] != node:
        members.append(path.pop())
    return members


def _sorted(children: Sequence[Sequence[int]]) -> list[int]:
    """Sort by Kahn; what lies in circles or behind them is left out."""
    waiting_for = [0] * len(children)
    for several in children:
        for child in several:
            waiting_for[child] += 1
    # Ascending already, so it is a heap.
    ready = [node for node, count in enumerate(waiting_for) if not count]
    order: list[int] = []
    while ready:
        node = heapq.heappop(ready)
        order.append(node)
        for child in children[node]:
            waiting_for[child] -= 1
            if not waiting_for[child]:
                heapq.heappush(ready, child)
    return order
