"""The events that are being handled here and now: what a new event gets as its parents.

A context variable follows asyncio tasks and `asyncio.to_thread` by itself. Where nothing carries it, this module does:
`bound` and `CausalThreadPool` into threads of a pool, `environment` into a process that is started, and
`parents_header` into a request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token, copy_context
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar
from uuid import UUID

from bloodbank.errors import InvalidEvent

logger = logging.getLogger(__name__)

PARENTS_HEADER = "X-Bloodbank-Parents"
"""Header of a request that names its parents: event ids separated by commas."""
PARENTS_VARIABLE = "BLOODBANK_PARENTS"
"""Environment variable that names the parents of all that a process does: event ids separated by commas."""
LONGEST_PARENTS_HEADER = 4096
"""Most characters of the header's values that are looked at; 64 parents take 2367."""

P = ParamSpec("P")
T = TypeVar("T")


class HasEventId(Protocol):
    """Anything that carries an event id, such as an envelope or a publish result."""

    @property
    def event_id(self) -> UUID:
        """Id of the event."""
        ...


def parents_in(environment: Mapping[str, str]) -> tuple[UUID, ...]:
    """Return the event ids that BLOODBANK_PARENTS holds, in order, without duplicates.

    An entry that is no UUID is logged and left out: a program must not fail because of how it was started.
    """
    parents: list[UUID] = []
    for entry in filter(None, map(str.strip, environment.get(PARENTS_VARIABLE, "").split(","))):
        try:
            parents.append(UUID(entry))
        except ValueError:
            logger.warning("%s holds %r, which is no event id; it is no parent here.", PARENTS_VARIABLE, entry[:80])
    return tuple(dict.fromkeys(parents))


def parents_of_request(values: Sequence[str]) -> tuple[UUID, ...]:
    """Return the event ids that the values of X-Bloodbank-Parents hold, in order, without duplicates.

    Raises InvalidEvent for what is no UUID, or for very long values: a caller that names causes wants them kept.
    """
    text = ",".join(values)
    if len(text) > LONGEST_PARENTS_HEADER:
        raise InvalidEvent(
            f"{PARENTS_HEADER} is longer than {LONGEST_PARENTS_HEADER} characters. Name fewer parents.",
            [(PARENTS_HEADER, "too long")],
        )
    try:
        return tuple(dict.fromkeys(UUID(entry) for entry in filter(None, map(str.strip, text.split(",")))))
    except ValueError as error:
        raise InvalidEvent(
            f"{PARENTS_HEADER} must be event ids separated by commas, and one of them is no UUID. Nothing was "
            "published.",
            [(PARENTS_HEADER, "Input should be UUIDs separated by commas")],
        ) from error


_inherited = parents_in(os.environ)
_current: ContextVar[tuple[UUID, ...]] = ContextVar("bloodbank_current_parents", default=_inherited)


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


def handling(event_id: UUID) -> AbstractContextManager[None]:
    """Within the block, this event is the one parent, whatever outer blocks said: it is what is being handled."""
    return _Handling((event_id,))


class _Handling(AbstractContextManager[None]):
    """A generator as context manager would cost three times as much, for each event."""

    __slots__ = ("_parents", "_token")

    def __init__(self, parents: tuple[UUID, ...]) -> None:
        self._parents = parents
        self._token: Token[tuple[UUID, ...]] | None = None

    def __enter__(self) -> None:
        self._token = _current.set(self._parents)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _current.reset(self._token)


def bound(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that runs, wherever it is called, with the parents of here and now.

    For threads that nothing carries the context into: `pool.submit(bound(work))`, `Thread(target=bound(work))`. Each
    call has a copy of all context variables of its own, so that several may run at the same time.
    """
    context = copy_context()

    @wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.copy().run(function, *args, **kwargs)

    return within


class CausalThreadPool(ThreadPoolExecutor):
    """A ThreadPoolExecutor whose `submit`, and so `map` and `run_in_executor`, carry the context variables along."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in a thread of the pool, with the context of who submits it."""
        return super().submit(copy_context().run, fn, *args, **kwargs)


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process whose events have the parents of here and now.

        subprocess.run(command, env=causation.environment())

    base: what to start from; default: the environment of this process. What it says of parents is replaced.
    """
    variables = dict(os.environ if base is None else base)
    variables.pop(PARENTS_VARIABLE, None)
    parents = _current.get()
    if parents:
        variables[PARENTS_VARIABLE] = _joined(parents)
    return variables


def parents_header() -> dict[str, str]:
    """Return the header that passes the parents of here and now on with a request; empty when there are none."""
    parents = _current.get()
    return {PARENTS_HEADER: _joined(parents)} if parents else {}


def _joined(parents: tuple[UUID, ...]) -> str:
    return ",".join(map(str, parents))
