"""Writes what the commands of README.md print into it.

`python -m tests.docs.outputs`: for when an output has changed on purpose. Outputs with a `[…]` stay as they are.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.docs.conftest import serving
from tests.docs.markdown import ROOT
from tests.docs.shell import TRIMMED, Outcome, commands, run

README = ROOT / "README.md"
STAND_IN = [
    ("make demo", "PATH=/nowhere .venv/bin/bb demo"),
    (".venv/bin/", f"{Path(sys.executable).parent.resolve()}/"),
]
"""`make demo` installs what it needs and runs `.venv/bin/bb demo`, where no `bb` is on the path; a test looks into the
Makefile."""


def outcomes(folder: Path) -> list[Outcome]:
    """Run the commands of README.md beside a running server."""
    with serving(folder) as place:
        return run(commands(README), env=place.env, cwd=folder, shown=[*STAND_IN, *place.shown])


def main() -> None:
    """Run the commands and write their outputs."""
    with tempfile.TemporaryDirectory() as folder:
        text = README.read_text()
        for outcome in outcomes(Path(folder)):
            command = outcome.command
            if command.expected is None or TRIMMED in command.expected:
                continue
            output = "\n".join(line.rstrip() for line in outcome.output.strip("\n").splitlines())
            before = f"$ {command.text}{command.expected}"
            text = text.replace(before, f"$ {command.text}{output}\n" if output else f"$ {command.text}", 1)
    README.write_text(text)


if __name__ == "__main__":
    main()
