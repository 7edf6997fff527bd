"""What the processes of a run write down: one line of JSON each, on its way to the file before anything else happens.

A process that is killed loses no line that it had written, for the lines are then the kernel's. So whoever answers
for an event writes before it goes on: a publisher what it is about to try and what it was answered, a consumer what
it got before it acks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from bloodbank import EventEnvelope

UNREADABLE = "unreadable"


class Event(NamedTuple):
    """An event of the load. Its payload follows from its size, so that it can be sent again the same.

    size: of a text in the payload, bytes. made: the envelope whose id the SDK chose, until the first answer.
    """

    event_id: UUID
    event_type: str
    parents: tuple[UUID, ...]
    size: int
    made: EventEnvelope[Any] | None = None

    @property
    def payload(self) -> dict[str, Any]:
        return {"text": "x" * self.size}

    def fingerprint(self) -> str:
        """Return what tells whether a body says the same, without Bloodbank's own digest."""
        return _fingerprint(str(self.event_id), self.event_type, [str(parent) for parent in self.parents], self.payload)


def fingerprint_of(body: bytes) -> str:
    """Return the fingerprint of an envelope as it came off the bus, or `unreadable`."""
    try:
        fields = orjson.loads(body)
        return _fingerprint(fields["event_id"], fields["event_type"], fields["correlation_ids"], fields["payload"])
    except (ValueError, KeyError, TypeError):
        return UNREADABLE


def _fingerprint(event_id: str, event_type: str, parents: Sequence[str], payload: object) -> str:
    meaning = orjson.dumps([event_id, event_type, parents, payload], option=orjson.OPT_SORT_KEYS)
    return blake2b(meaning, digest_size=12).hexdigest()


class Ledger:
    """A file that one process appends to. Lines are lists whose first item says what they are."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            # A process that was killed in the middle of a write left half a line.
            os.write(self._file, b"\n")

    def write(self, *lines: Sequence[object]) -> None:
        data = b"".join([orjson.dumps(line) + b"\n" for line in lines])
        if os.write(self._file, data) != len(data):
            raise OSError("the ledger's disk is full")

    def close(self) -> None:
        os.close(self._file)


class Reader:
    """Reads a ledger that is still being written; each call goes on where the last one ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def lines(self) -> Iterator[list[Any]]:
        """Yield the lines that are whole and new. A torn one, left by a kill, is passed over: nobody acted on it."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    yield orjson.loads(line)
                except orjson.JSONDecodeError:
                    continue
