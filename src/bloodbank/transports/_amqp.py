"""The edge to the AMQP driver: a connection that comes back, and what the driver's errors mean."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from aiormq import exceptions as driver
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.connection import (
    Connection,
    SSLContextProvider,
    TCPTransportFactory,
    TLSTransportFactory,
    TransportFactory,
)
from pamqp.exceptions import PAMQPException

from bloodbank.config import redact_url
from bloodbank.errors import BloodbankError, NotOpen, TransportUnavailable

if TYPE_CHECKING:
    # The driver's own dependency; only its name is needed.
    from yarl import URL

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10
"""Unless the URL says otherwise. The driver gives a silent broker up after three of them."""
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 2.0
CLOSE_SECONDS = 2.0
"""How long a connection or channel may take to say goodbye."""


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
    words = [str(part) for part in error.args if isinstance(part, str) and part]
    return f"{sentence} ({words[-1]})" if words else sentence


def was_cancelled() -> bool:
    """Say whether the running task is being cancelled.

    The driver ends what waits on a closed channel with CancelledError too; that one is a lost connection.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def translated(doing: str) -> Generator[None]:
    """Turn what the driver raises into TransportUnavailable. `doing`: such as "subscribe to x"."""
    try:
        yield
    except asyncio.CancelledError as error:
        if was_cancelled():
            raise
        raise TransportUnavailable(f"Cannot {doing}: the connection to RabbitMQ was lost.") from error
    except BloodbankError:
        # TransportUnavailable is an OSError; it has its sentence already.
        raise
    except TimeoutError as error:
        raise TransportUnavailable(f"Cannot {doing}: RabbitMQ did not answer in time.") from error
    except DRIVER_ERRORS as error:
        raise TransportUnavailable(f"Cannot {doing}: {explain(error)}.") from error


async def open_channel(connection: Connection, *, confirms: bool = False) -> Channel:
    """Open a channel; with `confirms` the broker confirms what is published on it."""
    if connection.is_closed:
        raise driver.AMQPConnectionError("closed")
    return cast("Channel", await connection.channel(publisher_confirms=confirms))


def on_close(resource: Connection | Channel, callback: Callable[[], None]) -> None:
    """Have a callback called once when a connection or channel is closed, whoever closes it."""
    _closing(resource).add_done_callback(lambda _: callback())


def why_closed(channel: Channel) -> Exception:
    """Return the reason for which a channel was closed."""
    closing = _closing(channel)
    reason = closing.exception() if closing.done() and not closing.cancelled() else None
    return reason if isinstance(reason, Exception) else driver.ChannelClosed(None, "closed")


def confirms_of(channel: Channel) -> dict[int, asyncio.Future[object]]:
    """Return the driver's table of delivery tags and the futures that it resolves with the confirm."""
    return cast("dict[int, asyncio.Future[object]]", channel.confirmations)  # pyright: ignore[reportUnknownMemberType], bare Future


def write_queue_of(channel: Channel) -> asyncio.Queue[ChannelFrame]:
    """Return the queue of frames that the driver's writer sends."""
    return cast("asyncio.Queue[ChannelFrame]", channel.write_queue)  # pyright: ignore[reportUnknownMemberType], bare Queue


def is_open(channel: Channel) -> bool:
    """Say whether frames may be sent on a channel.

    When the broker closes it, the driver takes it from the connection's table first, and answers. A frame
    behind that answer would make the broker close the whole connection.
    """
    return not channel.is_closed and channel.connection.channels.get(channel.number) is channel


async def close_channel(channel: Channel) -> None:
    """Close a channel within CLOSE_SECONDS; what is wrong with it does not matter any more."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await channel.close()
    except (TimeoutError, *DRIVER_ERRORS) as error:
        logger.debug("A channel did not close in order: %s", explain(error), exc_info=True)


@asynccontextmanager
async def scratch_channel(connection: Connection, *, confirms: bool = False) -> AsyncGenerator[Channel]:
    """A channel for a few calls, so that a refusal closes no other channel."""
    channel = await open_channel(connection, confirms=confirms)
    try:
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


class Link:
    """One connection that is made again for ever, by a task that belongs to the link.

    name: what it is for; shown in the broker's list of connections.
    connect_timeout_seconds: longest time for one attempt, `prepare` included.
    prepare: awaited on every new connection before anyone else gets it.
    on_up: called after every new connection; to be set before `start`.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        connect_timeout_seconds: float,
        prepare: Callable[[Connection], Awaitable[None]],
    ) -> None:
        self.address = redact_url(url)
        self._url = _driver_url(url, name)
        self._name = name
        self._connect_timeout_seconds = connect_timeout_seconds
        self._prepare = prepare
        self._task: asyncio.Task[None] | None = None
        self._wire: _Wire | None = None
        self._connection: Connection | None = None
        self._failure: TransportUnavailable | None = None
        self._was_lost = False
        self._changed = asyncio.Event()
        self._wake = asyncio.Event()
        self._closed = False
        self.on_up: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin to connect. Idempotent."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._keep_connected(), name=f"bloodbank-{self._name}")
            self._task.add_done_callback(self._ended)

    async def first_attempt(self) -> None:
        """Return when the first attempt to connect has succeeded or failed."""
        while self._connection is None and self._failure is None and not self._closed:
            await self._changed.wait()

    async def connection(self, *, patient: bool = False) -> Connection:
        """Return the connection.

        While it is being made again this waits. When the last attempt failed it raises TransportUnavailable,
        unless `patient`. Raises NotOpen after `close`.
        """
        self.start()
        while True:
            if self._closed:
                raise NotOpen("The RabbitMQ transport is closed. Nothing was sent.")
            if self._connection is not None and not self._connection.is_closed:
                return self._connection
            if self._failure is not None and not patient:
                raise TransportUnavailable(str(self._failure)) from self._failure
            await self._changed.wait()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were written and that the socket has not taken yet: the driver's writer waits for none."""
        return 0 if self._wire is None else self._wire.unsent_bytes

    def wake(self) -> None:
        """Try again now, because the broker was seen; whoever asks for the connection waits for the outcome."""
        if self._failure is not None:
            self._failure = None
            self._wake.set()

    async def close(self) -> None:
        """End the connection, within a few seconds also when the broker is frozen. Idempotent."""
        self._closed = True
        self._announce()
        if self._task is None:
            return
        if self._connection is None and self._wire is not None:
            # Nothing worth a goodbye: a half-made connection could wait for the broker for long.
            self._wire.abort()
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _keep_connected(self) -> None:
        backoff_seconds = FIRST_BACKOFF_SECONDS
        while True:
            try:
                async with self._connected() as connection:
                    backoff_seconds = FIRST_BACKOFF_SECONDS
                    self._up(connection)
                    await _until_closed(connection)
                    self._connection = None
                    self._was_lost = True
                    logger.warning("The connection to RabbitMQ at %s was lost (%s).", self.address, self._name)
            except TransportUnavailable as error:
                self._down(error)
                # Half to all of it, so that many clients do not come back at the same moment.
                await self._pause(backoff_seconds * random.uniform(0.5, 1))  # noqa: S311, jitter is no secret
                backoff_seconds = min(2 * backoff_seconds, LONGEST_BACKOFF_SECONDS)

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Connection]:
        self._wire = wire = _Wire()
        connection = Connection(self._url, transport_factory=wire)
        # Cutting the wire ends the attempt wherever it hangs; the driver's calls do not all take a timeout.
        deadline = asyncio.get_running_loop().call_later(self._connect_timeout_seconds, wire.abort)
        try:
            try:
                with translated(f"reach RabbitMQ at {self.address}"):
                    async with asyncio.timeout(self._connect_timeout_seconds):
                        await wire.open(connection)
                    await connection.connect()  # pyright: ignore[reportUnknownMemberType], its decorator hides its type
                    await self._prepare(connection)
            except TransportUnavailable as error:
                if wire.aborted:
                    raise TransportUnavailable(
                        f"RabbitMQ at {self.address} did not answer within {self._connect_timeout_seconds:g} s."
                    ) from error
                raise
            finally:
                deadline.cancel()
            yield connection
        finally:
            self._connection = None
            await _shut(connection, wire)

    def _up(self, connection: Connection) -> None:
        # A warning where it ends one: whoever saw that the broker was away shall see that it is back.
        level = logging.INFO if self._failure is None and not self._was_lost else logging.WARNING
        logger.log(level, "Connected to RabbitMQ at %s (%s).", self.address, self._name)
        self._was_lost = False
        self._connection, self._failure = connection, None
        self._announce()
        if self.on_up is not None:
            self.on_up()

    def _down(self, error: TransportUnavailable) -> None:
        if self._failure is None:
            logger.warning("%s Trying again until it works (%s).", error, self._name)
        self._failure = error
        self._announce()

    def _ended(self, task: asyncio.Task[None]) -> None:
        defect = None if task.cancelled() else task.exception()
        if defect is not None:
            logger.error("The task that keeps RabbitMQ connected failed (%s).", self._name, exc_info=defect)
            self._down(TransportUnavailable(f"RabbitMQ at {self.address} is given up because of {defect!r}."))

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Wire(TransportFactory):
    """The socket, opened by us: the driver logs each attempt that fails, and cannot drop a socket that hangs."""

    def __init__(self) -> None:
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.aborted = False

    async def open(self, connection: Connection) -> None:
        """Open the socket that `connection` is to use. Raises what the driver raises."""
        loop = asyncio.get_running_loop()
        tls = SSLContextProvider(ssl_context=None, ssl_certs=connection.ssl_certs, loop=loop)
        factory = TLSTransportFactory() if connection.url.scheme == "amqps" else TCPTransportFactory()
        self._reader, self._writer = await factory.create(connection.url, ssl_context_provider=tls)

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Give the driver the open socket."""
        if self._reader is None or self._writer is None:
            raise driver.AMQPConnectionError(f"The socket to {redact_url(str(url))} is not open")
        return self._reader, self._writer

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the socket."""
        return 0 if self._writer is None else self._writer.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Drop the socket without a goodbye."""
        self.aborted = True
        if self._writer is not None:
            self._writer.transport.abort()


async def _shut(connection: Connection, wire: _Wire) -> None:
    closing = asyncio.ensure_future(connection.close(driver.AMQPConnectionError("closed")))
    try:
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    finally:
        wire.abort()
    await closing


async def _until_closed(connection: Connection) -> None:
    closed = asyncio.Event()
    on_close(connection, closed.set)
    await closed.wait()


def _closing(resource: Connection | Channel) -> asyncio.Future[None]:
    return cast("asyncio.Future[None]", resource.closing)  # pyright: ignore[reportUnknownMemberType], bare Future


def _driver_url(url: str, name: str) -> str:
    """Return the URL with what the driver reads from its query: our heartbeat and the name, unless given."""
    parts = urlsplit(url)
    query = {"heartbeat": str(HEARTBEAT_SECONDS), "name": f"bloodbank {name}"} | dict(parse_qsl(parts.query))
    return urlunsplit(parts._replace(query=urlencode(query)))


def _entry(error: BaseException) -> tuple[Meaning, str]:
    for kind in type(error).__mro__:
        if kind in MEANINGS:
            return MEANINGS[kind]
    return Meaning.LOST, "the connection was lost"
