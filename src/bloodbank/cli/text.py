"""What commands write: styled lines for people, JSON for programs, notes on standard error.

Styles are kept beside the text until the last moment, so that what goes into a pipe carries none.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson


class Span(NamedTuple):
    """A piece of a line. style: as rich names it, empty for plain text."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


def plain(lines: Iterable[Line]) -> str:
    """Return lines as text without styles, each ended by a line break."""
    return "".join("".join(span.text for span in line).rstrip() + "\n" for line in lines)


def write_lines(lines: Iterable[Line]) -> None:
    """Write lines to standard output: styled on a terminal, plain and of full length otherwise."""
    if not sys.stdout.isatty():
        sys.stdout.write(plain(lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    # Captured, because rich turns a closed pipe into exit code 1, which means "not found" here.
    with console.capture() as capture:
        for line in lines:
            console.print(Text.assemble(*((span.text, span.style) for span in line)))
    sys.stdout.write(capture.get())


def write_json(value: object) -> None:
    """Write a value as indented JSON to standard output."""
    sys.stdout.write(json_text(value, orjson.OPT_INDENT_2) + "\n")


def write_json_line(value: object) -> None:
    """Write a value as one line of JSON and hand it on at once, for whoever reads a stream."""
    sys.stdout.write(json_text(value) + "\n")
    sys.stdout.flush()


def json_text(value: object, option: int = 0) -> str:
    """Return JSON in which control characters beyond ASCII are escaped: they can steer a terminal."""
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", orjson.dumps(value, option=option).decode())


def note(text: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(text + "\n")


def printable(text: object) -> str:
    """Return text of others fit for a terminal: what is not printable becomes a replacement character."""
    written = str(text)
    if written.isprintable():
        return written
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in written)


def clock(times: Sequence[str | None], now: datetime) -> Callable[[str | None], str]:
    """Return a function that writes an ISO time as local time, with the day unless all are of today.

    times: all that will be written together. now: aware.
    """
    today = now.astimezone().date()
    moments = [_local(time) for time in times if time]
    layout = "%H:%M:%S" if all(moment.date() == today for moment in moments) else "%Y-%m-%d %H:%M:%S"
    blank = " " * len(now.strftime(layout))

    def write(time: str | None) -> str:
        return _local(time).strftime(layout) if time else blank

    return write


def _local(time: str) -> datetime:
    """Return an ISO time as local time; as it is where local time has no such year: an event may be of any."""
    moment = datetime.fromisoformat(time)
    try:
        return moment.astimezone()
    except OverflowError:
        return moment


def table(rows: Sequence[Sequence[Span]]) -> list[Line]:
    """Return rows as lines whose columns are aligned, two spaces apart; the last column is as wide as it is."""
    widths = [max(len(row[column].text) for row in rows) for column in range(len(rows[0]))] if rows else []
    lines: list[Line] = []
    for row in rows:
        spans: list[Span] = []
        for cell, width in zip(row[:-1], widths, strict=False):
            spans += [cell, Span(" " * (width - len(cell.text) + 2))]
        lines.append((*spans, row[-1]))
    return lines


def source_name(source: Any) -> str:
    """Return the application that an envelope's source names, or its host."""
    if isinstance(source, str):
        return printable(source)
    return printable(source.get("app") or source.get("host") or "") if source else ""
