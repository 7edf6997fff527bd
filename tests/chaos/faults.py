"""The script of faults: which, when and how long, from a seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain


class Kind(StrEnum):
    """What is done to the bus."""

    BROKER_KILLED = "broker killed -9 and started again"
    BROKER_FROZEN = "broker frozen (SIGSTOP)"
    BROKER_FULL = "broker out of memory (alarm)"
    WIRES_CUT = "connections to the broker cut"
    WIRES_HALF_OPEN = "connections to the broker half-open"
    DISK_FULL = "disk of an outbox full while the broker is away"
    REDIS_KILLED = "Redis killed -9 and started again"
    REDIS_FROZEN = "Redis frozen (SIGSTOP)"
    REDIS_HALF_OPEN = "connections to Redis half-open"
    REDIS_EMPTIED = "Redis started again empty, then bb reindex"
    PUBLISHER_KILLED = "publisher killed -9 and started again"
    SERVER_KILLED = "HTTP server killed -9 and started again"
    CONSUMER_KILLED = "consumer killed -9 and started again"
    LEADER_KILLED = "node that leads the log killed -9 and started again"
    NODE_CUT_OFF = "node of the broker cut off from the others"
    MASTER_KILLED = "master of the Redis Cluster killed -9 and started again"


BROKER = (
    Kind.BROKER_KILLED,
    Kind.BROKER_FROZEN,
    Kind.BROKER_FULL,
    Kind.WIRES_CUT,
    Kind.WIRES_HALF_OPEN,
    Kind.DISK_FULL,
)
REDIS = (Kind.REDIS_KILLED, Kind.REDIS_FROZEN, Kind.REDIS_HALF_OPEN, Kind.REDIS_EMPTIED)
PROCESS = (Kind.PUBLISHER_KILLED, Kind.SERVER_KILLED, Kind.CONSUMER_KILLED)
Lanes = Sequence[Sequence[Kind]]
LANES: Lanes = (BROKER, REDIS, PROCESS)
CLUSTER_LANES: Lanes = ((Kind.LEADER_KILLED, Kind.NODE_CUT_OFF), (Kind.MASTER_KILLED,), PROCESS)
ALONE = {Kind.REDIS_FROZEN}
"""While one of these lasts nothing else is wrong, so that waits can be laid to it."""

SECONDS = {
    Kind.BROKER_KILLED: (0.2, 2.0),
    Kind.BROKER_FROZEN: (2.0, 8.0),
    Kind.BROKER_FULL: (2.0, 5.0),
    Kind.WIRES_CUT: (0.5, 2.0),
    Kind.WIRES_HALF_OPEN: (2.0, 8.0),
    Kind.DISK_FULL: (2.0, 4.0),
    Kind.REDIS_KILLED: (0.2, 3.0),
    Kind.REDIS_FROZEN: (2.0, 5.0),
    Kind.REDIS_HALF_OPEN: (1.0, 4.0),
    Kind.REDIS_EMPTIED: (0.2, 1.0),
    Kind.PUBLISHER_KILLED: (0.0, 1.0),
    Kind.SERVER_KILLED: (0.0, 1.0),
    Kind.CONSUMER_KILLED: (0.0, 1.0),
    Kind.LEADER_KILLED: (1.0, 3.0),
    Kind.NODE_CUT_OFF: (3.0, 6.0),
    Kind.MASTER_KILLED: (3.0, 5.0),
}
"""How long a fault lasts, at least and at most; what it takes to start something again comes on top."""
MORE_SECONDS = {
    Kind.BROKER_KILLED: 6.0,
    Kind.BROKER_FULL: 3.0,
    Kind.REDIS_EMPTIED: 4.0,
    Kind.SERVER_KILLED: 1.5,
    Kind.LEADER_KILLED: 10.0,
    Kind.NODE_CUT_OFF: 5.0,
}
"""About what comes on top, to fill a given time."""
LAST_CALM_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. after_seconds: from the beginning of its slot. chance: in [0, 1), decides what is left open."""

    kind: Kind
    seconds: float
    chance: float
    after_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Slot:
    """Calm, and then faults that run beside each other."""

    calm_seconds: float
    faults: tuple[Fault, ...]


def script(seed: int, seconds: float, lanes: Lanes = LANES) -> list[Slot]:
    """Return the slots that fill about `seconds`; the same for the same arguments, on every machine.

    The kinds are drawn without putting back, so that each comes before any comes again.
    """
    chances = random.Random(f"faults {seed}")
    bag: list[Kind] = []
    slots: list[Slot] = []
    left = seconds - LAST_CALM_SECONDS
    while True:
        first = _draw(bag, chances, lanes)
        kinds = [first]
        if first not in ALONE and chances.random() < 0.5:
            lane = next(lane for lane in lanes if first in lane)
            second = next((kind for kind in bag if kind not in lane and kind not in ALONE), None)
            if second is not None:
                bag.remove(second)
                kinds.append(second)
        faults = tuple(
            Fault(kind, round(chances.uniform(*SECONDS[kind]), 2), round(chances.random(), 3), place * 0.5)
            for place, kind in enumerate(kinds)
        )
        # A client that was held up by the fault before must not be taken for one that waits for Redis.
        calm = 2.0 if first in ALONE else round(chances.uniform(0.3, 1.2), 2)
        left -= calm + max(_cost(fault) for fault in faults)
        if slots and left < 0:
            return slots
        slots.append(Slot(calm, faults))


def count(slots: list[Slot]) -> int:
    return sum(len(slot.faults) for slot in slots)


def _cost(fault: Fault) -> float:
    return fault.after_seconds + fault.seconds + MORE_SECONDS.get(fault.kind, 0.5)


def _draw(bag: list[Kind], chances: random.Random, lanes: Lanes) -> Kind:
    """Take a kind out of the bag, which is filled anew when it is empty."""
    if not bag:
        bag.extend(chain.from_iterable(lanes))
        chances.shuffle(bag)
    return bag.pop(0)
