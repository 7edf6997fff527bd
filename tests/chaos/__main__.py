"""`python -m tests.chaos --seed N --seconds S` plays one run by hand; its folder stays when it fails.

Exit code 0: the verdict passed, 1: it did not.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos import conductor
from tests.chaos.faults import count, script

RATE = 2500.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, action="append", dest="seeds", metavar="N", help="may be given again")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of faults, for each seed")
    parser.add_argument("--events", type=int, default=0, metavar="N", help="accepted at least, for each seed")
    parser.add_argument("--rate", type=float, default=RATE, metavar="R", help="events a second that are tried")
    parser.add_argument("--keep", action="store_true", help="keep the folder in any case")
    parser.add_argument("--script", action="store_true", help="print the script of faults, and run nothing")
    arguments = parser.parse_args()
    seeds: list[int] = arguments.seeds or [1]
    if arguments.script:
        for seed in seeds:
            slots = script(seed, arguments.seconds)
            print(f"seed {seed}: {count(slots)} faults")
            for slot in slots:
                print(
                    f"  calm {slot.calm_seconds:g} s, then "
                    + " and ".join(f"{f.kind} {f.seconds:g} s" for f in slot.faults)
                )
        return 0
    passed = [play(seed, arguments) for seed in seeds]
    return 0 if all(passed) else 1


def play(seed: int, arguments: argparse.Namespace) -> bool:
    folder = Path(tempfile.mkdtemp(prefix=f"bloodbank-chaos-{seed}-"))
    verdict = asyncio.run(
        conductor.run(folder, seed=seed, seconds=arguments.seconds, rate=arguments.rate, events=arguments.events)
    )
    print(f"seed {seed}\n{verdict.table()}\n")
    if verdict.passed and not arguments.keep:
        shutil.rmtree(folder)
    else:
        print(f"The run's folder is kept: {folder}")
    return verdict.passed


if __name__ == "__main__":
    sys.exit(main())
