"""How far something has come that settles many things, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """The last one is the result.

    total: how many there are to settle; None while they are counted.
    done: how many are settled.
    skipped: how many were left as they are, because they had gone meanwhile or cannot be settled.
    """

    total: int | None = None
    done: int = 0
    skipped: int = 0


Report = Callable[[Progress], None]
"""Is told of each step."""


def ignore(progress: Progress) -> None:
    """Tell nobody: for callers that only want the result."""
