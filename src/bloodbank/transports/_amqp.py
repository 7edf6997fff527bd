"""The edge to the AMQP driver: its channels, and what its errors mean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from typing import cast

from aiormq import exceptions as driver
from aiormq.channel import Channel
from aiormq.connection import Connection
from pamqp.exceptions import PAMQPException

from bloodbank.errors import BloodbankError, TransportUnavailable

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 2.0
CLOSE_SECONDS = 2.0
"""How long a connection or channel may take to say goodbye."""


_CUT_OFF = "Server connection unexpectedly closed"
"""What the driver says, with a count of bytes, where the connection ends within a frame or where one should begin."""


class Meaning(Enum):
    """What an error of the driver tells of the operation that met it."""

    REFUSED = "the broker said no; the same again will not help"
    MISSING = "a queue or exchange is not there"
    LOST = "the connection or channel is gone"
    NOT_CONFIRMED = "the broker did not take responsibility for a message"
    NOT_SENT = "the channel was closed before anything was sent"


MEANINGS: Mapping[type[Exception], tuple[Meaning, str]] = {
    driver.ChannelAccessRefused: (Meaning.REFUSED, "the user lacks a permission"),
    driver.ChannelPreconditionFailed: (Meaning.REFUSED, "the broker refused"),
    driver.ChannelLockedResource: (Meaning.REFUSED, "another client holds the queue"),
    driver.ChannelNotFoundEntity: (Meaning.MISSING, "a queue or exchange is missing"),
    driver.AuthenticationError: (Meaning.LOST, "the broker offers no way to log in that is known here"),
    driver.ProbableAuthenticationError: (Meaning.LOST, "the user name or password is wrong"),
    driver.IncompatibleProtocolError: (Meaning.LOST, "the server does not speak AMQP 0-9-1"),
    driver.ProtocolSyntaxError: (Meaning.LOST, "the server does not speak AMQP 0-9-1"),
    driver.InvalidFrameError: (Meaning.LOST, "the server sent what was not expected"),
    driver.ConnectionNotAllowed: (Meaning.LOST, "the broker does not allow it"),
    driver.ConnectionResourceError: (Meaning.LOST, "the broker lacks resources"),
    driver.ConnectionInternalError: (Meaning.LOST, "the broker failed"),
    driver.ConnectionNotImplemented: (Meaning.LOST, "the broker cannot do this"),
    driver.ConnectionChannelError: (Meaning.LOST, "the connection was closed"),
    driver.ConnectionCommandInvalid: (Meaning.LOST, "the connection was closed"),
    driver.ConnectionFrameError: (Meaning.LOST, "the connection was closed"),
    driver.ConnectionSyntaxError: (Meaning.LOST, "the connection was closed"),
    driver.ConnectionUnexpectedFrame: (Meaning.LOST, "the connection was closed"),
    driver.ConnectionClosed: (Meaning.LOST, "the connection was closed"),
    driver.AMQPConnectionError: (Meaning.LOST, "there is no connection"),
    driver.DuplicateConsumerTag: (Meaning.LOST, "the channel was closed"),
    driver.ChannelClosed: (Meaning.LOST, "the channel was closed"),
    driver.AMQPChannelError: (Meaning.LOST, "the channel was closed"),
    driver.ChannelInvalidStateError: (Meaning.NOT_SENT, "the channel is closed"),
    driver.MethodNotImplemented: (Meaning.LOST, "the broker cannot do this"),
    driver.PublishError: (Meaning.NOT_CONFIRMED, "the broker found no queue for the message"),
    driver.DeliveryError: (Meaning.NOT_CONFIRMED, "the broker did not take the message"),
    driver.AMQPError: (Meaning.LOST, "the driver failed"),
    PAMQPException: (Meaning.LOST, "the server sent what cannot be read"),
    OSError: (Meaning.LOST, "there is no connection"),
    StopAsyncIteration: (Meaning.LOST, "the server hung up"),  # from the driver's reader, where a frame should begin
}
"""Every exception class of the driver; a test fails on one that is not here."""

DRIVER_ERRORS: tuple[type[Exception], ...] = tuple(MEANINGS)


def meaning_of(error: BaseException) -> Meaning:
    """Return what an error of the driver means: as its nearest class in `MEANINGS` says."""
    return _entry(error)[0]


def explain(error: BaseException) -> str:
    """Return a clause that says what happened, with the server's own words where it gave some."""
    sentence = _entry(error)[1]
    if isinstance(error, driver.InvalidFrameError) and "Connection.Close " in str(error):
        return "the virtual host does not exist, or the user may not use it"
    if isinstance(error, driver.DeliveryError):
        return sentence
    if isinstance(error, driver.AMQPConnectionError) and _CUT_OFF in str(error):
        return "the connection was lost"
    words = [str(part) for part in error.args if isinstance(part, str) and part]
    return f"{sentence} ({words[-1]})" if words else sentence


def was_cancelled() -> bool:
    """Say whether the running task is being cancelled.

    The driver ends what waits on a closed channel with CancelledError too; that one is a lost connection.
    """
    return _cancels() > 0


@contextmanager
def translated(doing: str) -> Generator[None]:
    """Turn what the driver raises into TransportUnavailable. `doing`: such as "subscribe to x".

    A task that is cancelled within the block leaves it with CancelledError, whatever the driver made of that: where
    the connection is lost at the same moment it raises an error of its own instead.
    """
    cancels = _cancels()
    try:
        with _of_a_class():
            yield
    except asyncio.CancelledError as error:
        if was_cancelled():
            raise
        raise TransportUnavailable(f"Cannot {doing}: the connection to RabbitMQ was lost.") from error
    except (TimeoutError, BloodbankError, *DRIVER_ERRORS) as error:
        if _cancels() > cancels:
            raise asyncio.CancelledError from error
        if isinstance(error, BloodbankError):
            # TransportUnavailable is an OSError; it has its sentence already.
            raise
        if isinstance(error, TimeoutError):
            raise TransportUnavailable(f"Cannot {doing}: RabbitMQ did not answer in time.") from error
        raise TransportUnavailable(f"Cannot {doing}: {explain(error)}.") from error


@contextmanager
def _of_a_class() -> Generator[None]:
    """Give a class of the driver to what has none.

    It ends what waits for an answer with a bare Exception when a connection or channel is closed without a reason.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise driver.AMQPConnectionError("closed") from error


async def open_channel(connection: Connection, *, confirms: bool = False) -> Channel:
    """Open a channel; with `confirms` the broker confirms what is published on it."""
    if connection.is_closed:
        raise driver.AMQPConnectionError("closed")
    with _of_a_class():
        return cast("Channel", await connection.channel(publisher_confirms=confirms))


def on_close(resource: Connection | Channel, callback: Callable[[], None]) -> None:
    """Have a callback called once when a connection or channel is closed, whoever closes it."""
    _closing(resource).add_done_callback(lambda _: callback())


def why_closed(channel: Channel) -> Exception:
    """Return the reason for which a channel was closed."""
    closing = _closing(channel)
    reason = closing.exception() if closing.done() and not closing.cancelled() else None
    return reason if isinstance(reason, Exception) else driver.ChannelClosed(None, "closed")


async def close_channel(channel: Channel) -> None:
    """Close a channel within CLOSE_SECONDS; what is wrong with it does not matter any more."""
    cancels = _cancels()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            with _of_a_class():
                await channel.close()
    except (asyncio.CancelledError, TimeoutError, *DRIVER_ERRORS) as error:
        if _cancels() > cancels:
            raise asyncio.CancelledError from error
        # Also where the driver ends what waits with CancelledError, because the connection ends.
        logger.debug("A channel did not close in order: %s", explain(error), exc_info=True)


@asynccontextmanager
async def scratch_channel(connection: Connection, *, confirms: bool = False) -> AsyncGenerator[Channel]:
    """A channel for a few calls, so that a refusal closes no other channel."""
    channel = await open_channel(connection, confirms=confirms)
    try:
        with _of_a_class():
            yield channel
    finally:
        await close_channel(channel)


async def is_blocked(connection: Connection) -> bool:
    """Say whether the broker has told this connection that it takes nothing (a memory or disk alarm)."""
    try:
        async with asyncio.timeout(0):
            await connection.ready()
    except TimeoutError:
        return True
    return False


def _cancels() -> int:
    """How often the running task was asked to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _closing(resource: Connection | Channel) -> asyncio.Future[None]:
    return cast("asyncio.Future[None]", resource.closing)  # pyright: ignore[reportUnknownMemberType], bare Future


def _entry(error: BaseException) -> tuple[Meaning, str]:
    for kind in type(error).__mro__:
        if kind in MEANINGS:
            return MEANINGS[kind]
    return Meaning.LOST, "the connection was lost"
