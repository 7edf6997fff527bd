"""`bb doctor`: is all well, and if not, what mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bloodbank.cli.edge import ExitCode, at_edge, run_async
from bloodbank.cli.text import Line, Span, printable, write_json, write_lines
from bloodbank.errors import ConfigurationError

if TYPE_CHECKING:
    from bloodbank.cli.checks import Check
    from bloodbank.config import Settings


@at_edge
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Examine settings, data folder, broker, store, clock and port; say what is wrong and how to mend it."""
    from bloodbank.config import load_settings

    try:
        settings = load_settings()
    except ConfigurationError as error:
        checks = [_wrong_settings(error, show=not as_json)]
    else:
        checks = run_async(_examine(settings, show=not as_json))
    if as_json:
        write_json([{"name": c.name, "ok": c.ok, "found": c.found, "remedy": c.remedy or None} for c in checks])
    if not all(check.ok for check in checks):
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _wrong_settings(error: ConfigurationError, *, show: bool) -> Check:
    from bloodbank.cli.checks import Check

    check = Check("settings", str(error), "Correct the variables that it names.")
    if show:
        write_lines(check_lines(check))
    return check


async def _examine(settings: Settings, *, show: bool) -> list[Check]:
    from bloodbank.cli.checks import examine

    checks: list[Check] = []
    async for check in examine(settings):
        checks.append(check)
        if show:
            write_lines(check_lines(check))
    return checks


def check_lines(check: Check) -> list[Line]:
    """Return a line for a check, and one with the remedy where something is wrong."""
    state = Span("ok       ", "green") if check.ok else Span("problem  ", "bold red")
    lines: list[Line] = [(state, Span(f"{check.name:<12}", "bold"), Span(printable(check.found)))]
    if check.remedy:
        lines.append((Span(" " * 21), Span(f"-> {check.remedy}", "yellow")))
    return lines
