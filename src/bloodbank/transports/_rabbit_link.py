"""A connection to one of the nodes of RabbitMQ that comes back, over a socket of our own."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from aiormq import exceptions as driver
from aiormq.connection import Connection, SSLContextProvider, TransportFactory

from bloodbank._rabbit_url import rabbit_nodes
from bloodbank.config import redact_url
from bloodbank.errors import NotOpen, TransportUnavailable
from bloodbank.transports._amqp import (
    CLOSE_SECONDS,
    FIRST_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    on_close,
    translated,
)
from bloodbank.transports._rabbit_confirms import ConfirmingProtocol

if TYPE_CHECKING:
    # The driver's own dependency; only its name is needed.
    from yarl import URL

logger = logging.getLogger(__name__)

SILENCE_MARGIN_SECONDS = 2.0
"""How long beyond the heartbeat a broker may say nothing at all before its connection is dropped.

RabbitMQ looks twice in a heartbeat whether it has sent anything, and sends one when it has not: one that lives is never
silent for longer than the heartbeat, also while it takes nothing from publishers. The margin is for a busy machine.
"""
_TICK_SECONDS = 1.0
"""Silence is counted in ticks between which the socket was looked at: a loop that hung itself accuses nobody."""
READ_LIMIT_BYTES = 65_536
"""How much the driver may leave unread before the socket is read no further; asyncio's default."""
UNSENT_LIMIT_BYTES = 1_048_576
"""How much may wait for the socket before a publisher waits."""


class Link:
    """One connection that is made again for ever, by a task that belongs to the link.

    url: of one node or of several. When the connection is lost, or an attempt fails, the next node is tried at once;
        only when all of them failed in a row there is a pause. The first one is chosen by lot: clients that start in
        the order of a list would all be on one node, and after its death all on the next.
    name: what it is for; shown in the broker's list of connections.
    connect_timeout_seconds: longest time for one attempt, `prepare` included. While there are nodes that were not
        tried yet, one that does not greet gets its share of it only.
    heartbeat_seconds: unless the URL says otherwise; 0 for none. See SILENCE_MARGIN_SECONDS.
    prepare: awaited on every new connection before anyone else gets it.
    on_up: called after every new connection; to be set before `start`.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        connect_timeout_seconds: float,
        heartbeat_seconds: int,
        prepare: Callable[[Connection], Awaitable[None]],
    ) -> None:
        self._all = redact_url(url)
        self._nodes = [_Node(_driver_url(node, name, heartbeat_seconds)) for node in rabbit_nodes(url)]
        # By which node the next attempt is made; moved on after each.
        self._turn = random.randrange(len(self._nodes))  # noqa: S311, a lot is no secret
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

    @property
    def address(self) -> str:
        """The node that is connected, or all of them, fit for a log line."""
        return self._all if self._connection is None else self._node.address

    def start(self) -> None:
        """Begin to connect. Idempotent."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._keep_connected(), name=f"bloodbank-{self._name}")
            self._task.add_done_callback(self._ended)

    async def first_attempt(self) -> None:
        """Return when a connection is made, all nodes were tried in vain, or about the time of one attempt is over."""
        try:
            async with asyncio.timeout(self._connect_timeout_seconds + CLOSE_SECONDS):
                while self._connection is None and self._failure is None and not self._closed:
                    await self._changed.wait()
        except TimeoutError:
            logger.debug("No node of RabbitMQ was reached yet (%s).", self._name)

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

    def wire_of(self, connection: Connection) -> ConfirmingProtocol:
        """Return what reads and writes the socket of a connection. Raises TransportUnavailable when it is gone."""
        if self._wire is None or self._wire.protocol is None or self._connection is not connection:
            raise TransportUnavailable("The event was not sent: the connection to RabbitMQ was lost. Try again.")
        return self._wire.protocol

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

    @property
    def _node(self) -> _Node:
        return self._nodes[self._turn]

    async def _keep_connected(self) -> None:
        backoff_seconds = FIRST_BACKOFF_SECONDS
        failures: list[TransportUnavailable] = []
        # Nodes that greet slowly, all of them, get the whole time from the second round on.
        is_first_round = True
        while not self._closed:
            try:
                async with self._connected(in_haste=is_first_round) as (connection, wire):
                    backoff_seconds = FIRST_BACKOFF_SECONDS
                    failures.clear()
                    is_first_round = True
                    self._up(connection)
                    await self._until_lost(connection, wire)
                    self._was_lost = True
                    address, self._connection = self.address, None
                    logger.warning("The connection to RabbitMQ at %s was lost (%s).", address, self._name)
            except TransportUnavailable as error:
                failures.append(error)
                if len(failures) < len(self._nodes):
                    # Once: what goes on after a round in vain has been said by then.
                    level = logging.INFO if is_first_round else logging.DEBUG
                    logger.log(level, "%s Trying the next node (%s).", error, self._name)
                else:
                    self._down(_none_of(failures, self._all))
                    failures.clear()
                    is_first_round = False
                    # Half to all of it, so that many clients do not come back at the same moment.
                    await self._pause(backoff_seconds * random.uniform(0.5, 1))  # noqa: S311, jitter is no secret
                    backoff_seconds = min(2 * backoff_seconds, LONGEST_BACKOFF_SECONDS)
            self._turn = (self._turn + 1) % len(self._nodes)

    async def _until_lost(self, connection: Connection, wire: _Wire) -> None:
        """Return when the connection is closed; drop it when the broker is silent for too long."""
        closed = asyncio.Event()
        on_close(connection, closed.set)
        limit_seconds = connection.heartbeat_timeout + SILENCE_MARGIN_SECONDS if connection.heartbeat_timeout else None
        silent_seconds = 0.0
        heard = -1
        while not closed.is_set():
            try:
                async with asyncio.timeout(_TICK_SECONDS if limit_seconds else None):
                    await closed.wait()
            except TimeoutError:
                if (now_heard := wire.heard) != heard:
                    heard, silent_seconds = now_heard, 0.0
                    continue
                silent_seconds += _TICK_SECONDS
                if limit_seconds and silent_seconds >= limit_seconds:
                    logger.warning(
                        "RabbitMQ at %s sent nothing for %g s, not even a heartbeat; its connection is dropped (%s).",
                        self.address,
                        silent_seconds,
                        self._name,
                    )
                    wire.abort()
                    limit_seconds = None

    async def _pause(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    @asynccontextmanager
    async def _connected(self, *, in_haste: bool) -> AsyncGenerator[tuple[Connection, _Wire]]:
        self._wire = wire = _Wire()
        node = self._node
        connection = Connection(node.url, transport_factory=wire)
        loop = asyncio.get_running_loop()
        seconds = self._connect_timeout_seconds
        greeting_seconds = seconds / len(self._nodes) if in_haste else seconds
        last = loop.time() + seconds
        # Cutting the wire ends the attempt wherever it hangs; the driver's calls do not all take a timeout.
        deadline = loop.call_later(greeting_seconds, wire.abort)
        try:
            try:
                with translated(f"reach RabbitMQ at {node.address}"):
                    async with asyncio.timeout(greeting_seconds):
                        await wire.open(connection)
                    await connection.connect()  # pyright: ignore[reportUnknownMemberType], its decorator hides its type
                    deadline.cancel()
                    greeting_seconds = seconds
                    deadline = loop.call_at(last, wire.abort)
                    await self._prepare(connection)
            except TransportUnavailable as error:
                if wire.aborted:
                    raise TransportUnavailable(
                        f"RabbitMQ at {node.address} did not answer within {greeting_seconds:g} s."
                    ) from error
                raise
            finally:
                deadline.cancel()
            yield connection, wire
        finally:
            self._connection = None
            await _shut(connection, wire)

    def _up(self, connection: Connection) -> None:
        # A warning where it ends one: whoever saw that the broker was away shall see that it is back.
        level = logging.INFO if self._failure is None and not self._was_lost else logging.WARNING
        self._was_lost = False
        self._connection, self._failure = connection, None
        logger.log(level, "Connected to RabbitMQ at %s (%s).", self.address, self._name)
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


class _Node:
    """One node. url: for the driver. address: fit for a log line."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.address = redact_url(url)


class _Wire(TransportFactory):
    """The socket, opened by us: the driver logs each attempt that fails, and cannot drop a socket that hangs.

    What comes in passes `ConfirmingProtocol` before the driver gets it.
    """

    def __init__(self) -> None:
        self.aborted = False
        self.protocol: ConfirmingProtocol | None = None
        self._reader: asyncio.StreamReader | None = None

    @property
    def heard(self) -> int:
        """How often bytes have come in, or a number that grows by itself while nobody reads them."""
        protocol = self.protocol
        if protocol is None:
            return 0
        if protocol.transport is not None and not protocol.transport.is_reading():
            # The driver has enough to do; what the broker says waits in the socket.
            protocol.heard += 1
        return protocol.heard

    async def open(self, connection: Connection) -> None:
        """Open the socket that `connection` is to use. Raises what the driver raises."""
        loop = asyncio.get_running_loop()
        url = connection.url
        tls: ssl.SSLContext | None = None
        if url.scheme == "amqps":
            tls = await SSLContextProvider(ssl_context=None, ssl_certs=connection.ssl_certs, loop=loop).get_context()
        self._reader = reader = asyncio.StreamReader(limit=READ_LIMIT_BYTES, loop=loop)
        transport, self.protocol = await loop.create_connection(
            lambda: ConfirmingProtocol(reader, loop), host=url.host or "", port=url.port or 0, ssl=tls
        )
        transport.set_write_buffer_limits(high=UNSENT_LIMIT_BYTES)

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Give the driver the open socket."""
        if self._reader is None or self.protocol is None or self.protocol.transport is None:
            raise driver.AMQPConnectionError(f"The socket to {redact_url(str(url))} is not open")
        loop = asyncio.get_running_loop()
        return self._reader, asyncio.StreamWriter(self.protocol.transport, self.protocol, self._reader, loop)

    def abort(self) -> None:
        """Drop the socket without a goodbye."""
        self.aborted = True
        if self.protocol is not None and self.protocol.transport is not None:
            self.protocol.transport.abort()


async def _shut(connection: Connection, wire: _Wire) -> None:
    closing = asyncio.ensure_future(connection.close(driver.AMQPConnectionError("closed")))
    try:
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    finally:
        wire.abort()
    # Without its socket nothing is left to wait for; still, a driver that hangs keeps nobody from the next connection.
    await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
    if not closing.done():
        logger.warning("The driver did not close a connection to RabbitMQ; it is left behind.")
        closing.cancel()
        return
    await closing


def _none_of(failures: Sequence[TransportUnavailable], address: str) -> TransportUnavailable:
    """Return one error for a whole round in vain."""
    *others, last = failures
    if not others:
        return last
    error = TransportUnavailable(f"None of the nodes of RabbitMQ at {address} can be used. The last one: {last}")
    error.__cause__ = last
    return error


def _driver_url(url: str, name: str, heartbeat_seconds: int) -> str:
    """Return the URL with what the driver reads from its query: our heartbeat and the name, unless given."""
    parts = urlsplit(url)
    query = {"heartbeat": str(heartbeat_seconds), "name": f"bloodbank {name}"} | dict(parse_qsl(parts.query))
    return urlunsplit(parts._replace(query=urlencode(query)))
