"""Questions before what cannot be undone."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import typer

from bloodbank.cli.text import Line, note
from bloodbank.errors import InvalidQuery


def confirmed(question: str, consequence: str, shown: Iterable[Line] = ()) -> bool:
    """Ask on the terminal, and return the answer.

    shown: what it is about, written before the question. consequence: said where nobody can answer, which raises
    InvalidQuery.
    """
    if not sys.stdin.isatty():
        raise InvalidQuery(f"{consequence}, and there is no terminal to ask on. Say --yes.")
    for line in shown:
        note("".join(span.text for span in line))
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        raise KeyboardInterrupt from None
