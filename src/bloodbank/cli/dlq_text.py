"""Dead letters as lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from bloodbank.cli.bus import Json
from bloodbank.cli.text import Line, Span, clock, printable, table
from bloodbank.ids import short_ids

LONGEST_REASON = 100
NO_GROUP = "(no group)"


def counted_letters(count: int) -> str:
    """Return how many dead letters there are, in words."""
    return "1 dead letter" if count == 1 else f"{count:,} dead letters"


def group_lines(groups: Sequence[Json], now: datetime) -> list[Line]:
    """Return a line for each group: its key, how many, whose, the error, when the last one was, and its reason."""
    time = clock([group["last_at"] for group in groups], now)
    return table(
        [
            (
                Span(group["key"], "cyan"),
                Span(f"{group['count']:,}", "bold"),
                Span(printable(group["group"] or NO_GROUP)),
                Span(printable(group["consumer"]), "green"),
                Span(printable(group["error"]), "yellow"),
                Span(f"last {time(group['last_at'])}"),
                Span(_reason(group["sample"]), "dim"),
            )
            for group in groups
        ]
    )


def letter_lines(items: Sequence[Json], now: datetime) -> list[Line]:
    """Return a line for each: number, when it was set aside, its event, whose it was, the error and the reason."""
    short = short_ids(item["event_id"] for item in items)
    time = clock([item["dead_at"] for item in items], now)
    return table(
        [
            (
                Span(str(item["number"]), "cyan"),
                Span(time(item["dead_at"])),
                Span(short[item["event_id"]]),
                Span(printable(item["event_type"]), "bold"),
                Span(printable(item["consumer"] or item["group"] or NO_GROUP), "green"),
                Span(_attempts(item["attempts"])),
                Span(printable(item["error"]), "yellow"),
                Span(_reason(item), "dim"),
            )
            for item in items
        ]
    )


def whole_letter(item: Json, now: datetime) -> list[Line]:
    """Return all that is known of a dead letter, and the beginning of its body."""
    time = clock([item["first_at"], item["dead_at"]], now)
    begun = f", the first at {time(item['first_at'])}" if item["first_at"] else ""
    fields = (
        ("number", str(item["number"])),
        ("event", item["event_id"]),
        ("type", item["event_type"]),
        ("group", item["group"] or NO_GROUP),
        ("consumer", item["consumer"]),
        ("error", item["error"]),
        ("reason", item["reason"]),
        ("attempts", f"{_attempts(item['attempts'])}{begun}; set aside at {time(item['dead_at'])}"),
    )
    lines = table([(Span(name, "dim"), Span(printable(text))) for name, text in fields])
    if item["traceback"]:
        lines += [(), *_text(item["traceback"])]
    cut = ", of which this is the beginning" if item["body_cut"] else ""
    return [*lines, (), (Span(f"body, {item['body_bytes']:,} bytes{cut}", "dim"),), *_text(item["body"])]


def _text(text: str) -> list[Line]:
    return [(Span(printable(line)),) for line in text.splitlines()]


def _attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count:,} attempts"


def _reason(item: Json) -> str:
    reason = printable(item["reason"])
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"
