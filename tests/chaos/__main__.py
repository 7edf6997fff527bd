"""Plays runs of chaos: `python -m tests.chaos --seed N --seconds S`; the folder of one that fails stays.

Exit code 0: every verdict passed, 1: one did not.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos import conductor, mutations
from tests.chaos.faults import count, script
from tests.chaos.single import SingleStage
from tests.chaos.stage import Stage
from tests.chaos.verdict import Verdict

RATE, CLUSTER_RATE = 2000.0, 600.0
SECONDS, CLUSTER_SECONDS = 50.0, 40.0
EVENTS = 67_000
"""Accepted at least for each seed of `--all`; three seeds make 200,000."""
FAULTS = 10
"""Faults at least for each seed of `--all`."""


def main() -> int:
    # Told to end it cleans up as after Ctrl-C: it unmounts its disk and ends its servers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _arguments()
    seeds: list[int] = arguments.seeds or [1]
    stage: type[Stage] = _clusters() if arguments.clusters else SingleStage
    if arguments.script:
        for seed in seeds:
            _print_script(seed, arguments.seconds, stage)
        return 0
    if arguments.all:
        return _play_all(seeds)
    verdicts = [
        play(
            stage,
            seed,
            seconds=arguments.seconds,
            rate=arguments.rate,
            folder=arguments.folder,
            keep=arguments.keep,
            events=arguments.events,
        )
        for seed in seeds
    ]
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def play(
    stage: type[Stage],
    seed: int,
    *,
    seconds: float,
    rate: float,
    events: int = 0,
    folder: Path | None = None,
    keep: bool = False,
) -> Verdict:
    """Play one run, print its verdict, and remove its folder unless it is to be looked at. folder: its parent."""
    began = time.monotonic()
    own = Path(tempfile.mkdtemp(prefix=f"bloodbank-chaos-{seed}-", dir=folder))
    verdict = asyncio.run(conductor.run(stage(own, seed=seed, rate=rate), seed=seed, seconds=seconds, events=events))
    print(f"{stage.__name__}, seed {seed}, {time.monotonic() - began:.0f} s\n{verdict.table()}\n", flush=True)
    if verdict.passed and not keep:
        shutil.rmtree(own)
    else:
        print(f"The run's folder is kept: {own}", flush=True)
    return verdict


def _play_all(seeds: list[int]) -> int:
    """Play every seed, the clusters, and the mutations."""
    verdicts = [play(SingleStage, seed, seconds=SECONDS, rate=RATE, events=EVENTS) for seed in seeds]
    accepted = sum(verdict.accepted for verdict in verdicts)
    faults = sum(verdict.faults for verdict in verdicts)
    print(f"{len(seeds)} seeds: {accepted:,} events accepted, {faults} faults\n", flush=True)
    enough = accepted >= EVENTS * len(seeds) and faults >= FAULTS * len(seeds)
    verdicts.append(play(_clusters(), seeds[0], seconds=CLUSTER_SECONDS, rate=CLUSTER_RATE))
    caught = mutations.main()
    return 0 if enough and all(verdict.passed for verdict in verdicts) and caught == 0 else 1


def _clusters() -> type[Stage]:
    from tests.chaos.clusters import ClusterStage  # noqa: PLC0415, what is not used is not imported

    return ClusterStage


def _print_script(seed: int, seconds: float, stage: type[Stage]) -> None:
    slots = script(seed, seconds, stage.lanes)
    print(f"seed {seed}: {count(slots)} faults")
    for slot in slots:
        faults = " and ".join(f"{fault.kind}, {fault.seconds:g} s" for fault in slot.faults)
        print(f"  {slot.calm_seconds:g} s of calm, then {faults}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, action="append", dest="seeds", metavar="N", help="may be given again")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="of faults, for each seed")
    parser.add_argument("--rate", type=float, default=RATE, metavar="R", help="events a second that are tried")
    parser.add_argument("--events", type=int, default=0, metavar="N", help="accepted at least, for each seed")
    parser.add_argument("--clusters", action="store_true", help="three nodes of RabbitMQ and six of Redis")
    parser.add_argument("--all", action="store_true", help="every seed, then the clusters, then the mutations")
    parser.add_argument("--folder", type=Path, help="where the runs' folders are made")
    parser.add_argument("--keep", action="store_true", help="keep the folder in any case")
    parser.add_argument("--script", action="store_true", help="print the script of faults, and run nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
