"""`python -m tests.chaos.mutations`: takes out, one at a time, what keeps accepted events, and sees a test fail.

Each mutation is made in a copy of the source; the test that it names has to pass without it and to fail with it.
Exit code 0: all were caught.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.stage import ROOT, environment

TEST_SECONDS = 240
PASSED, FAILED = 0, 1
"""Exit codes of pytest. Others mean that the test did not run, which shows nothing."""

Edit = tuple[str, str, str]
"""File in src/bloodbank, what stands there exactly once, what stands there instead."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """What is taken out, and the test that has to notice."""

    name: str
    edits: tuple[Edit, ...]
    test: str


DISK = "tests/chaos/test_disk.py::test_an_event_that_the_disk_did_not_sync_is_not_accepted"
OUTBOX = "tests/integration/test_outbox_rabbit.py"
ORDER = "tests/chaos/test_order.py"
ACCEPT_AND_RECORD = "        receipt = await self._accept(message)\n        try:\n"
MARK_FIRST = "await tracker.enqueue(link)"
ACCEPT_MANY = "        outcomes = await self._accept_many(list(messages.values()))\n"
MARK_MANY_FIRST = "await self._record([codec.link_of(events[p], messages[p].digest) for p in messages])"
FORGET_FIRST = "await outbox.exchange(Settled([waiting.number for waiting in batch]), limit=0)"
MUTATIONS = (
    Mutation(
        "the outbox is not fsynced",
        (("_sqlite_writer.py", "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"),),
        DISK,
    ),
    Mutation(
        "the answer does not wait for the commit",
        (
            (
                "outbox.py",
                "refusal = await self._database.submit(self._keep, message)",
                "refusal = self._database.submit(self._keep, message) and None",
            ),
        ),
        DISK,
    ),
    Mutation(
        "an event whose confirm was lost is not sent again",
        (
            (
                "forwarding.py",
                "    return isinstance(outcome, PublishUnknown) and",
                "    return False and isinstance(outcome, PublishUnknown) and",
            ),
        ),
        f"{OUTBOX}::test_a_lost_connection_is_no_reason_to_queue_or_to_fail",
    ),
    Mutation(
        "an event is marked as published before it is",
        (("acceptance.py", ACCEPT_AND_RECORD, ACCEPT_AND_RECORD.replace("receipt", f"{MARK_FIRST}; receipt", 1)),),
        f"{ORDER}::test_an_id_whose_publisher_was_killed_before_the_confirm_is_published_by_the_next",
    ),
    Mutation(
        "events of a batch are marked as published before they are",
        (("acceptance.py", ACCEPT_MANY, ACCEPT_MANY.replace("outcomes", f"{MARK_MANY_FIRST}; outcomes", 1)),),
        f"{ORDER}::test_an_id_whose_publisher_was_killed_before_the_confirm_is_published_by_the_next",
    ),
    Mutation(
        "the outbox forgets an event before it is confirmed",
        (
            (
                "forwarding.py",
                "        outcomes = await self._transport.publish_many(\n",
                f"        {FORGET_FIRST}; outcomes = await self._transport.publish_many(\n",
            ),
        ),
        f"{ORDER}::test_an_outbox_whose_process_was_killed_before_the_confirm_is_sent_by_the_next",
    ),
    Mutation(
        "what the index does not take is not journalled",
        (("deferral.py", "kept = await journal.append(links)", "kept = len(links)"),),
        "tests/integration/test_tracker_waits.py::TestProcesses"
        "::test_what_a_killed_process_deferred_is_recorded_by_the_next_one",
    ),
)


def main() -> int:
    """Try all mutations and print what became of each."""
    names = list(dict.fromkeys(mutation.test for mutation in MUTATIONS))
    with _copy() as copy:
        code, output = _run(copy, names)
    if code != PASSED:
        print(f"Without any mutation the tests do not pass:\n{output}")
        return 1
    outcomes = [_try(mutation) for mutation in MUTATIONS]
    print(f"{sum(outcomes)} of {len(outcomes)} mutations were caught", flush=True)
    return 0 if all(outcomes) else 1


def mutate(source: Path, edits: Sequence[Edit]) -> None:
    """Make the edits in a copy of src/bloodbank. Raises ValueError for one that does not fit any more."""
    for name, old, new in edits:
        path = source / name
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{name} has {text.count(old)} times what the mutation looks for: {old!r}")
        path.write_text(text.replace(old, new))


def _try(mutation: Mutation) -> bool:
    began = time.monotonic()
    with _copy() as copy:
        mutate(copy / "src" / "bloodbank", mutation.edits)
        code, output = _run(copy, [mutation.test])
    caught = code == FAILED
    name = mutation.test.rpartition("::")[2]
    print(
        f"{'caught' if caught else 'NOT CAUGHT'}  {mutation.name}: {name} ({time.monotonic() - began:.0f} s)",
        flush=True,
    )
    if not caught:
        print(output)
    return caught


@contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bloodbank-mutation-") as folder:
        copy = Path(folder)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        yield copy


def _run(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]
    done = subprocess.run(
        command,
        env=environment({"PYTHONPATH": f"{copy / 'src'}:{copy}", "PYTHONDONTWRITEBYTECODE": "1"}),
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=TEST_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout[-3000:] + done.stderr[-1000:]


if __name__ == "__main__":
    sys.exit(main())
