"""How long `bb --help` takes, against importing Typer alone."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

from bench._harness import Options, Row, Sample, main, paired

BB = Path(sys.executable).with_name("bb")
COMMANDS = {
    "bb --help": [str(BB), "--help"],
    'python -c "import typer"': [sys.executable, "-c", "import typer"],
    'python -c ""': [sys.executable, "-c", ""],
}


async def measure(options: Options) -> list[Row]:
    """Run each command as a process `count` times a round, in turns."""
    for command in COMMANDS.values():
        _run(command)  # compiles and caches
    contestants = {name: partial(_sample, command, options.count) for name, command in COMMANDS.items()}
    rounds = await paired(contestants, options.rounds)
    ours, typer, python = COMMANDS
    return [
        rounds.row(ours, ours, "ms", "ms", versus=typer, target="ratio <= 1.6"),
        *(rounds.row(name, name, "ms", "ms") for name in (typer, python)),
    ]


async def _sample(command: list[str], count: int) -> Sample:
    return {"ms": median(_run(command) for _ in range(count)) * 1000}


def _run(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603, commands of this file
    return time.perf_counter() - begun


if __name__ == "__main__":
    main(measure, count=1, rounds=25, packages=("typer", "click", "rich"))
