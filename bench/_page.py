"""Put results into docs/benchmarks.md, and draw docs/images/growth.svg: `python -m bench._page [RESULTS]`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bench._harness import Row, read, table
from bench._plot import Panel, Points, draw

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "images" / "growth.svg"
BEGIN, END = "<!-- results: begin, written by python -m bench._page -->", "<!-- results: end -->"
_PAYLOAD = re.compile(r"(.+), payload of ([\d,]+) B")
_GRAPH = re.compile(r"graph of ([\d,]+) nodes, (.+)")


def fill(page: str, rows: Sequence[Row]) -> str:
    """Return the page with the results between its marks. Raises ValueError when it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page has no {BEGIN!r} and {END!r}.")
    figures = [row for row in rows if not isinstance(row.value, str)]
    about = [f"{row.name}: {row.value}" for row in rows if isinstance(row.value, str)]
    text = [f"Measured on {', '.join(about)}."]
    for title, holds in (("Targets that hold", True), ("Targets that are missed", False), ("Without a target", None)):
        chosen = [row for row in figures if row.holds is holds]
        text += [f"### {title}: {len(chosen)}" if holds is not None else f"### {title}"]
        text += [table(chosen, markdown=True) if chosen else "None."]
    return f"{before}{begin}\n" + "\n\n".join(text) + f"\n{end}{after}"


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Return what there is to plot: throughput by payload, answers by graph."""
    rates: dict[str, list[tuple[float, float]]] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if isinstance(row.value, str):
            continue
        if match := _PAYLOAD.fullmatch(row.name):
            rates.setdefault(match[1], []).append((_number(match[2]), row.value))
        elif match := _GRAPH.fullmatch(row.name):
            times.setdefault(match[2], []).append((_number(match[1]), row.value))
    found: list[tuple[str, str, dict[str, list[tuple[float, float]]]]] = [
        ("Publishing, quorum queue: events/s", "bytes of the payload", rates),
        ("The whole graph of an event: ms", "events in the graph", times),
    ]
    return [Panel(title, across, dict[str, Points](lines)) for title, across, lines in found if lines]


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def main(arguments: Sequence[str]) -> None:
    """Read the results, and write page and plot."""
    file = Path(arguments[0]) if arguments else ROOT / "bench" / "results.json"
    if not file.exists():
        sys.exit(f"{file} is not there: `make bench` writes it.")
    rows = read(file)
    PAGE.write_text(fill(PAGE.read_text(), rows))
    drawn = panels(rows)
    if drawn:
        PLOT.parent.mkdir(exist_ok=True)
        PLOT.write_text(draw(drawn))


if __name__ == "__main__":
    main(sys.argv[1:])
