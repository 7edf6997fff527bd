"""The events that are being handled here and now: what a new event gets as its parents.

A context variable follows asyncio tasks and `asyncio.to_thread` by itself.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol
from uuid import UUID


class HasEventId(Protocol):
    """Anything that carries an event id, such as an envelope or a publish result."""

    @property
    def event_id(self) -> UUID:
        """Id of the event."""
        ...


_current: ContextVar[tuple[UUID, ...]] = ContextVar("bloodbank_current_parents", default=())


def current_parents() -> tuple[UUID, ...]:
    """Return the ids that an event created here gets as parents, in order, without duplicates."""
    return _current.get()


@contextmanager
def caused_by(*causes: UUID | HasEventId) -> Generator[None]:
    """Within the block, new envelopes have these events as parents, beside those of outer blocks."""
    ids = [cause if isinstance(cause, UUID) else cause.event_id for cause in causes]
    token = _current.set(tuple(dict.fromkeys([*_current.get(), *ids])))
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def uncaused() -> Generator[None]:
    """Within the block, new envelopes get no parents but those that they name themselves."""
    token = _current.set(())
    try:
        yield
    finally:
        _current.reset(token)
