"""`bb dlq`: what consumers gave up; it is given to them again, or discarded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bloodbank.cli.bus import Json
from bloodbank.cli.confirm import confirmed
from bloodbank.cli.dlq_access import Action, DeadLetterAccess, reach
from bloodbank.cli.dlq_text import counted_letters, group_lines, letter_lines, whole_letter
from bloodbank.cli.edge import at_edge, run_async
from bloodbank.cli.progress import counted
from bloodbank.cli.text import Line, Span, note, write_json, write_lines
from bloodbank.errors import DeadLetterNotFound, InvalidQuery

if TYPE_CHECKING:
    from bloodbank.config import Settings

DEFAULT_LIMIT = 50
MOST_GROUPS = 1000
"""Most groups that are told apart; beyond that there is something to look at already."""
DONE: dict[Action, str] = {"retry": "given back", "discard": "discarded"}

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Numbers = Annotated[list[int] | None, typer.Argument(metavar="NUMBER", min=0, help="Numbers of dead letters.")]
Keys = Annotated[list[str] | None, typer.Option("--key", help="All of the group with this key; see 'bb dlq groups'.")]


@app.callback()
@at_edge
def dlq(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what consumers gave up; give it to them again, or discard it."""
    if context.invoked_subcommand is None:
        _groups(as_json=as_json)
    elif as_json:
        raise InvalidQuery("--json stands behind the command: bb dlq groups --json.")


@app.command("groups")
@at_edge
def show_groups(as_json: AsJson = False) -> None:
    """Count dead letters by consumer and error, with the reason of the last one."""
    _groups(as_json=as_json)


@app.command("list")
@at_edge
def list_letters(
    group: Annotated[str | None, typer.Option(help="Only those of this group of consumers.")] = None,
    key: Annotated[str | None, typer.Option(help="Only those of the group with this key.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Go on from here: `next` of the list before.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most dead letters.")] = DEFAULT_LIMIT,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the oldest first."""
    from bloodbank.config import load_settings

    answer = run_async(_page(load_settings(), group, key, cursor, limit))
    if as_json:
        write_json(answer)
        return
    write_lines(letter_lines(answer["items"], datetime.now(UTC)) or [(Span("There are no such dead letters."),)])
    if answer["next"] is not None:
        note(f"There are more. Ask for them with --limit, or with --cursor {answer['next']}.")


@app.command()
@at_edge
def show(
    number: Annotated[int, typer.Argument(metavar="NUMBER", min=0, help="Number of the dead letter.")],
    as_json: AsJson = False,
) -> None:
    """Show a dead letter with its traceback, and the beginning of what the consumer got."""
    from bloodbank.config import load_settings

    settings = load_settings()

    async def ask() -> Json:
        async with reach(settings) as access:
            return await access.letter(number)

    letter = run_async(ask())
    if as_json:
        write_json(letter)
    else:
        write_lines(whole_letter(letter, datetime.now(UTC)))


@app.command()
@at_edge
def retry(
    numbers: Numbers = None,
    keys: Keys = None,
    every: Annotated[bool, typer.Option("--all", help="All that belong to a group of consumers.")] = False,
) -> None:
    """Give dead letters to their consumers again: once what made them fail is mended."""
    from bloodbank.config import load_settings

    _require_one_kind(numbers, keys, every=every)
    settings = load_settings()
    if every:
        groups, _ = run_async(_all_groups(settings))
        keys = [group["key"] for group in groups if group["group"] is not None]
    run_async(_settle(settings, "retry", numbers or [], keys or []))


@app.command()
@at_edge
def discard(
    numbers: Numbers = None,
    keys: Keys = None,
    every: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take dead letters off the list. Their events stay in the log."""
    from bloodbank.config import load_settings

    _require_one_kind(numbers, keys, every=every)
    settings = load_settings()
    if every or (keys and not yes):
        groups, _ = run_async(_all_groups(settings))
        chosen = groups if every else [_of_key(groups, key) for key in keys or []]
        keys = [group["key"] for group in chosen]
        count, shown = sum(group["count"] for group in chosen), group_lines(chosen, datetime.now(UTC))
    else:
        items = [] if yes else run_async(_letters(settings, numbers or []))
        count, shown = len(items), letter_lines(items, datetime.now(UTC))
    if yes or not (numbers or keys) or _is_sure(count, shown):
        run_async(_settle(settings, "discard", numbers or [], keys or []))
    else:
        note("Nothing was discarded.")


def _is_sure(count: int, shown: Sequence[Line]) -> bool:
    question = f"Discard {counted_letters(count)}? Nobody handles the events then."
    return confirmed(question, "What is discarded is not given back", shown)


def _require_one_kind(numbers: Sequence[int] | None, keys: Sequence[str] | None, *, every: bool) -> None:
    if [bool(numbers), bool(keys), every].count(True) != 1:
        raise InvalidQuery("Say which dead letters: their numbers, --key of a group, or --all.")


def _of_key(groups: Sequence[Json], key: str) -> Json:
    for group in groups:
        if group["key"] == key:
            return group
    raise DeadLetterNotFound(f"No dead letters have the key {key[:80]}. List the keys: bb dlq groups.")


def _groups(*, as_json: bool) -> None:
    from bloodbank.config import load_settings

    groups, is_complete = run_async(_all_groups(load_settings()))
    if as_json:
        write_json({"items": groups, "next": None} if is_complete else {"items": groups, "complete": False})
        return
    count = sum(group["count"] for group in groups)
    first = f"{counted_letters(count)} in {len(groups):,} group{'s' if len(groups) != 1 else ''}."
    heading = Span(first, "bold") if groups else Span("There are no dead letters.")
    write_lines([(heading,), *group_lines(groups, datetime.now(UTC))])
    if not is_complete:
        note("There are more groups; settle some of these first.")


async def _all_groups(settings: Settings) -> tuple[list[Json], bool]:
    """Return the groups of all pages, each once, and whether these are all."""
    found: dict[str, Json] = {}
    cursor: str | None = None
    async with reach(settings) as access:
        while True:
            page = await access.letter_groups(cursor=cursor)
            for group in page["items"]:
                known = found.get(group["key"])
                if known is None and len(found) == MOST_GROUPS:
                    return list(found.values()), False
                found[group["key"]] = group if known is None else _joined(known, group)
            cursor = page["next"]
            if cursor is None:
                return list(found.values()), True


def _joined(earlier: Json, later: Json) -> Json:
    first_at = min(earlier["first_at"], later["first_at"], key=datetime.fromisoformat)
    return later | {"count": earlier["count"] + later["count"], "first_at": first_at}


async def _page(settings: Settings, group: str | None, key: str | None, cursor: str | None, limit: int) -> Json:
    """Return a list of at most `limit` dead letters, of as many pages as that takes."""
    async with reach(settings) as access:
        items: list[Json] = []
        while True:
            size = min(limit - len(items), settings.page_limit)
            page = await access.letters(group=group, key=key, cursor=cursor, limit=size)
            items += page["items"]
            cursor = page["next"]
            if cursor is None or len(items) == limit:
                return {"items": items, "next": cursor}


async def _letters(settings: Settings, numbers: Sequence[int]) -> list[Json]:
    async with reach(settings) as access:
        return [await access.letter(number) for number in numbers]


async def _settle(settings: Settings, action: Action, numbers: Sequence[int], keys: Sequence[str]) -> None:
    if not numbers and not keys:
        write_lines([(Span("There are no such dead letters."),)])
        return
    async with reach(settings) as access:
        for number in dict.fromkeys(numbers):
            await access.settle(action, number)
            write_lines([(Span(f"{number}  {DONE[action]}"),)])
        for key in dict.fromkeys(keys):
            await _settle_group(access, action, key)


async def _settle_group(access: DeadLetterAccess, action: Action, key: str) -> None:
    with counted(DONE[action].capitalize()) as report:
        result = await access.settle_group(action, key, report)
    left = f", {result.skipped:,} left: gone meanwhile, or without a group" if result.skipped else ""
    write_lines([(Span(f"{key}  {counted_letters(result.done)} {DONE[action]}{left}"),)])
