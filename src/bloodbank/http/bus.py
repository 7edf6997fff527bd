"""What the routes work with while the server runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import to_thread
from fastapi import Request
from starlette.types import Scope

from bloodbank.config import Settings, load_settings, unknown_variables
from bloodbank.dead_letters import DeadLetters
from bloodbank.errors import NotOpen
from bloodbank.event_log import EventLog
from bloodbank.events import load_plugins
from bloodbank.http.background import Jobs
from bloodbank.http.feed import Feed
from bloodbank.http.keys import KeyRing
from bloodbank.http.statistics import Statistics
from bloodbank.http.streams import Streams
from bloodbank.publisher import Publisher
from bloodbank.replay import Replay

logger = logging.getLogger(__name__)
_BUS = "bloodbank.bus"


@dataclass(frozen=True, slots=True)
class Bus:
    """The open bus of one application object."""

    settings: Settings
    publisher: Publisher
    log: EventLog
    dead_letters: DeadLetters
    replay: Replay
    jobs: Jobs
    feed: Feed
    streams: Streams
    statistics: Statistics
    keys: KeyRing


@asynccontextmanager
async def open_bus(
    settings: Settings | None, *, is_stopping: Callable[[], bool] = lambda: False
) -> AsyncGenerator[Bus]:
    """Open the bus that the settings describe.

    settings: default: the environment and `.env`, read now. is_stopping: says whether the server is about to end.

    Raises ConfigurationError, and what `Publisher.start` raises.
    """
    if settings is None:
        settings = await to_thread.run_sync(load_settings)
        for name in unknown_variables():
            logger.warning("%s is no setting and is ignored. Is it misspelt?", name)
    # It writes a traceback for each connection that is lost. Ours says the same in a line.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    await to_thread.run_sync(load_plugins)
    async with (
        Publisher(settings, enable_correlation_tracking=settings.correlation_tracking) as publisher,
        Jobs(settings) as jobs,
        Feed(publisher.transport, settings) as feed,
        Streams(feed, settings, is_stopping) as streams,
    ):
        tracker = publisher.tracker if publisher.tracking_enabled else None
        transport = publisher.transport
        yield Bus(
            settings,
            publisher,
            EventLog(transport, tracker, settings),
            DeadLetters(transport, settings),
            Replay(transport, tracker, settings),
            jobs,
            feed,
            streams,
            Statistics(feed, publisher.outbox),
            KeyRing(settings.api_keys),
        )


def bus_of(request: Request) -> Bus:
    """Return the bus of the application that serves a request. Raises NotOpen outside its lifespan."""
    return bus_in(request.scope)


def bus_in(scope: Scope) -> Bus:
    """Return the bus of the application in an ASGI scope. Raises NotOpen outside its lifespan."""
    bus: Bus | None = scope.get(_BUS)
    if bus is None:
        bus = getattr(scope["app"].state, "bus", None)
        if bus is None:
            raise NotOpen("The server is starting or stopping. Try again.")
        # Who may ask, what the body says, what to publish: each looks for it again.
        scope[_BUS] = bus
    return bus
