"""A plot in SVG, both axes logarithmic; drawn by hand, so that no library is needed for two panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 40, 48
FONT = 'font-family="sans-serif" font-size="11"'
COLOURS = ("#0b6e99", "#c2410c", "#6b7280")
SHAPES = ("none", "6 3", "2 3")
"""Dashes too, for readers who do not see the colours apart."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One coordinate system. lines: points by name."""

    title: str
    across: str
    lines: Mapping[str, Points]


def draw(panels: Sequence[Panel]) -> str:
    """Return the panels side by side as an SVG document, readable on light and on dark pages."""
    total = WIDTH * len(panels)
    title = "; ".join(panel.title for panel in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT}" {FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{total}" height="{HEIGHT}" fill="white"/>',
    ]
    for place, panel in enumerate(panels):
        parts.append(f'<g transform="translate({place * WIDTH} 0)">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> list[str]:
    points = [point for line in panel.lines.values() for point in line]
    across, up = _decades([x for x, _ in points]), _decades([y for _, y in points])
    parts = [f'<text x="{LEFT}" y="18" font-size="13">{escape(panel.title)}</text>']
    parts += [_tick_across(decade, across) for decade in range(across[0], across[1] + 1)]
    parts += [_tick_up(decade, up) for decade in range(up[0], up[1] + 1)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(panel.across)}</text>')
    for number, (name, line) in enumerate(panel.lines.items()):
        parts += _line(name, [(_x(x, across), _y(y, up)) for x, y in line], number)
    return parts


def _line(name: str, places: Points, number: int) -> list[str]:
    colour, dashes = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    legend = LEFT + 8 + number * 90
    style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
    return [
        f'<polyline points="{path}" fill="none" {style}/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places),
        f'<line x1="{legend}" x2="{legend + 18}" y1="31" y2="31" {style}/>',
        f'<text x="{legend + 23}" y="35">{escape(name)}</text>',
    ]


def _tick_across(decade: int, across: tuple[int, int]) -> str:
    x = _x(10.0**decade, across)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_label(decade)}</text>'
    )


def _tick_up(decade: int, up: tuple[int, int]) -> str:
    y = _y(10.0**decade, up)
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_label(decade)}</text>'
    )


def _label(decade: int) -> str:
    return f"{10**decade:,}" if decade >= 0 else f"{10.0**decade:g}"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """Return the powers of ten around values, at least one apart. Raises ValueError for values that are not > 0."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _x(value: float, across: tuple[int, int]) -> float:
    return LEFT + (math.log10(value) - across[0]) / (across[1] - across[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, up: tuple[int, int]) -> float:
    return HEIGHT - BOTTOM - (math.log10(value) - up[0]) / (up[1] - up[0]) * (HEIGHT - BOTTOM - TOP)
