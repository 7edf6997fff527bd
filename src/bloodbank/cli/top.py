"""`bb top`: what the bus does now, again and again."""

from __future__ import annotations

import asyncio
import shutil
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bloodbank.cli.bus import Bus, Json, connect
from bloodbank.cli.edge import at_edge, run_async
from bloodbank.cli.text import Line, Span, clock, note, printable, table, write_json_line, write_lines
from bloodbank.errors import BloodbankError, NotOpen

if TYPE_CHECKING:
    from bloodbank.config import Settings

BARS = "▁▂▃▄▅▆▇█"
FEWEST_TYPES = 5
"""So many types are shown however small the terminal is."""
HOME_AND_CLEAR = "\x1b[H\x1b[J"


@at_edge
def top(
    once: Annotated[bool, typer.Option("--once", help="Print once, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="How often to look.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each look as one line of JSON.")] = False,
) -> None:
    """Show rates by type, what waits for groups, the outbox and the dead letters, until Ctrl-C."""
    from bloodbank.config import load_settings

    run_async(_watch(load_settings(), once=once, every_seconds=every, as_json=as_json))


async def _watch(settings: Settings, *, once: bool, every_seconds: float, as_json: bool) -> None:
    async with connect(settings) as bus:
        _show(await bus.stats(), once=once, as_json=as_json)
        while not once:
            await asyncio.sleep(every_seconds)
            await _look_again(bus, as_json=as_json)


async def _look_again(bus: Bus, *, as_json: bool) -> None:
    """Show what there is now; what cannot be asked is said, and asked again the next time."""
    try:
        _show(await bus.stats(), once=False, as_json=as_json)
    except NotOpen:
        raise
    except BloodbankError as error:
        note(f"bb: {error}")


def _show(answer: Json, *, once: bool, as_json: bool) -> None:
    if as_json:
        write_json_line(answer)
        return
    is_screen = sys.stdout.isatty() and not once
    lines = top_lines(answer, datetime.now(UTC))
    if is_screen:
        height = shutil.get_terminal_size().lines - 1
        fewer = len(answer["types"]) - max(len(lines) - height, 0)
        lines = top_lines(answer, datetime.now(UTC), most_types=max(fewer, FEWEST_TYPES))
        sys.stdout.write(HOME_AND_CLEAR)
    write_lines(lines if once or is_screen else [*lines, ()])
    sys.stdout.flush()


def top_lines(answer: Json, now: datetime, *, most_types: int | None = None) -> list[Line]:
    """Return what `GET /stats` answers as lines. now: aware. most_types: None: all that there are."""
    rate = answer["events_per_second"]
    lines: list[Line] = [
        (
            Span(f"{rate['last_second']:g}", "bold"),
            Span(f" event{'' if rate['last_second'] == 1 else 's'} in the last second, "),
            Span(f"{rate['last_minute']:.1f}", "bold"),
            Span(" a second in the last minute"),
        ),
        (Span(_bars(answer["per_second"]), "cyan"),),
    ]
    if answer["trouble"] is not None:
        lines.append((Span(f"The log cannot be read: {printable(answer['trouble']['detail'])}", "bold red"),))
    return [
        *lines,
        (),
        *_type_lines(answer["types"], now, most_types),
        (),
        *_group_lines(answer),
        (),
        _outbox_line(answer),
        _dead_letter_line(answer),
    ]


def _bars(per_second: list[int]) -> str:
    highest = max(*per_second, 1)
    return "".join(BARS[-(-count * (len(BARS) - 1) // highest)] for count in per_second)


def _type_lines(types: list[Json], now: datetime, most: int | None) -> list[Line]:
    from bloodbank.events.failures import is_failure

    if not types:
        return [(Span("No events yet.", "dim"),)]
    shown = types[:most]
    time = clock([one["last_seen"] for one in shown], now)
    numbers = _right(["last minute", *(f"{one['last_minute']}" for one in shown)])
    totals = _right(["total", *(f"{one['total']}" for one in shown)])
    rows = [(Span("type", "dim"), Span(numbers[0], "dim"), Span(totals[0], "dim"), Span("last seen", "dim"))]
    for one, number, total in zip(shown, numbers[1:], totals[1:], strict=True):
        style = "bold red" if is_failure(one["event_type"]) else "bold"
        name = Span(printable(one["event_type"]), style)
        rows.append((name, Span(number), Span(total), Span(time(one["last_seen"]))))
    more = len(types) - len(shown)
    return [*table(rows), *([(Span(f"and {more} more types", "dim"),)] if more else [])]


def _group_lines(answer: Json) -> list[Line]:
    groups = answer["groups"]
    if answer["groups_detail"] is not None:
        return [(Span(f"groups  {printable(answer['groups_detail'])}", "red"),)]
    if not groups:
        return [(Span("No groups of consumers are known.", "dim"),)]
    waiting = _right(["waiting", *(f"{one['waiting']}{'+' if one['more'] else ''}" for one in groups)])
    in_hand = _right(["in hand", *("?" if one["delivered"] is None else f"{one['delivered']}" for one in groups)])
    rows = [(Span("group", "dim"), Span(waiting[0], "dim"), Span(in_hand[0], "dim"), Span("patterns", "dim"))]
    for one, count, held in zip(groups, waiting[1:], in_hand[1:], strict=True):
        style = "bold yellow" if one["waiting"] else ""
        patterns = ", ".join(printable(pattern) for pattern in one["patterns"])
        rows.append((Span(printable(one["group"]), "bold"), Span(count, style), Span(held), Span(patterns)))
    return table(rows)


def _outbox_line(answer: Json) -> Line:
    outbox = answer["outbox"]
    if outbox is None:
        return (Span("outbox        "), Span(printable(answer["outbox_detail"]), "dim"))
    parts = [f"{outbox['waiting']} waiting"]
    if outbox["waiting"] and outbox["oldest_seconds"] is not None:
        parts.append(f"the oldest for {outbox['oldest_seconds']:.0f} s")
    if outbox["set_aside"]:
        parts.append(f"{outbox['set_aside']} refused for good: bb outbox")
    style = "bold yellow" if outbox["waiting"] or outbox["set_aside"] else ""
    return (Span("outbox        "), Span(", ".join(parts), style))


def _dead_letter_line(answer: Json) -> Line:
    count = answer["dead_letters"]
    if count is None:
        return (Span("dead letters  "), Span(printable(answer["dead_letters_detail"]), "dim"))
    return (Span("dead letters  "), Span(f"{count}: bb dlq" if count else "0", "bold red" if count else ""))


def _right(texts: list[str]) -> list[str]:
    width = max(map(len, texts))
    return [text.rjust(width) for text in texts]
