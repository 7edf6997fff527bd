"""Publishing on one channel with confirms, many at a time."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, cast

from aiormq.channel import Channel
from aiormq.connection import Connection

from bloodbank.errors import BloodbankError, PublishRejected, PublishUnknown, TransportUnavailable
from bloodbank.transports._amqp import (
    DRIVER_ERRORS,
    Meaning,
    close_channel,
    explain,
    meaning_of,
    on_close,
    open_channel,
    was_cancelled,
    why_closed,
)
from bloodbank.transports._rabbit_confirms import ConfirmingProtocol
from bloodbank.transports._rabbit_frames import EventFrames, Outgoing, frames
from bloodbank.transports._rabbit_link import Link
from bloodbank.transports.base import Message

IN_FLIGHT_LIMIT = 1000
"""Most messages that wait for their confirm; further ones wait for their turn, within their timeout."""
WRITE_AT_ONCE_BYTES = 65_536
"""What is published in one turn of the loop is written at its end, or when it is so much: then the broker begins
while the rest is still being made."""
NACKED_SECONDS = 0.5
"""After so long with nacks for events, and no confirm of one between them, the channel is opened again.

When the node dies that leads the log, RabbitMQ 3.10 nacks all that comes on the channels which knew that leader, for
ever, although another node leads it and new channels work. Where a full queue is the reason, this costs little.
"""

_REFUSED_TOPIC = re.compile(r"access to topic '(.*?)' in exchange")
_REFUSED_EXCHANGE = re.compile(r"exchange '(.*?)' in vhost")
_DEFAULT_EXCHANGE = "amq.default"
"""As RabbitMQ calls the one without a name."""
_TOO_LARGE = re.compile(r"message size \d+ .*?(\d+)")
_SAME_ID_IS_SAFE = "It may be stored; publishing the same id again is safe."


class Outlet:
    """Publishes with confirms over a link. The channel is opened again when the broker closes it.

    exchange: that events are published to. prepare: awaited before each new channel; declares what is published to.
    """

    def __init__(self, link: Link, exchange: str, prepare: Callable[[Connection], Awaitable[None]]) -> None:
        self._link = link
        self._exchange = exchange
        self._prepare = prepare
        self._opening = asyncio.Lock()
        self._channel: _OpenChannel | None = None

    async def send(self, message: Message | Outgoing, *, timeout_seconds: float) -> None:
        """Publish one message and return when the broker has confirmed it.

        Raises TransportUnavailable (not sent), PublishRejected, PublishUnknown, NotOpen.

        The broker confirms a message that no queue takes. It is asked to return it as well (`mandatory`), which
        it does before the confirm: that is TransportUnavailable. A nack is PublishUnknown: RabbitMQ sends it
        when any one of the queues behind the exchange did not take the message, and says nothing of the others.
        """
        channel = self._channel
        if channel is not None and channel.is_usable:
            # Not asked of asyncio, which makes a system call to tell the running loop.
            deadline = channel.loop.time() + timeout_seconds
        else:
            deadline = asyncio.get_running_loop().time() + timeout_seconds
            channel = await self._open_by(deadline, timeout_seconds)
        confirm: asyncio.Future[None] = channel.loop.create_future()
        channel.publish(_Single(message, deadline, timeout_seconds, confirm))
        await confirm

    async def send_many(self, messages: Sequence[Message], *, timeout_seconds: float) -> list[BloodbankError | None]:
        """Publish several, of which the broker confirms many at a time; one error or None for each, in order.

        `timeout_seconds` is for all together.
        """
        if not messages:
            return []
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        together = _Together(len(messages), loop.create_future())
        try:
            channel = self._channel
            if channel is None or not channel.is_usable:
                channel = await self._open_by(deadline, timeout_seconds)
        except BloodbankError as error:
            return [error] * len(messages)
        for place, message in enumerate(messages):
            entry = _OneOfMany(message, deadline, timeout_seconds, together, place)
            try:
                channel.publish(entry)
            except PublishRejected as error:
                entry.settle(error)
        try:
            await together.done
        finally:
            together.is_given_up = True
        return together.outcomes

    async def _open_by(self, deadline: float, timeout_seconds: float) -> _OpenChannel:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._open()
        except asyncio.CancelledError as error:
            if was_cancelled():
                raise
            raise TransportUnavailable(
                "The event was not sent: the connection to RabbitMQ was lost. Try again."
            ) from error
        except BloodbankError:
            # TransportUnavailable is an OSError; it has its sentence already.
            raise
        except TimeoutError as error:
            raise TransportUnavailable(
                f"RabbitMQ at {self._link.address} did not answer within {timeout_seconds:g} s. "
                "The event was not sent. Try again."
            ) from error
        except DRIVER_ERRORS as error:
            raise TransportUnavailable(f"The event was not sent: {explain(error)}. Try again.") from error

    async def _open(self) -> _OpenChannel:
        connection = await self._link.connection()
        async with self._opening:
            if self._channel is None or not self._channel.is_open_on(connection):
                if self._channel is not None and self._channel.connection is connection:
                    # Perhaps what we publish to was deleted.
                    await self._prepare(connection)
                    await self._channel.close()
                channel = await open_channel(connection, confirms=True)
                # The driver sends no larger frame either; smaller by a frame's head and end.
                frames = EventFrames(channel.number, self._exchange, channel.max_content_size)
                wire = self._link.wire_of(connection)
                self._channel = _OpenChannel(self._link.address, connection, channel, wire, frames)
            elif self._channel.was_unroutable:
                await self._prepare(connection)
                self._channel.was_unroutable = False
            return self._channel


class _Single:
    """A message on its way. deadline: on the loop's clock."""

    __slots__ = ("_confirm", "deadline", "message", "parts", "timeout_seconds")

    def __init__(
        self, message: Message | Outgoing, deadline: float, timeout_seconds: float, confirm: asyncio.Future[None]
    ) -> None:
        self.message = message
        self.deadline = deadline
        self.timeout_seconds = timeout_seconds
        self.parts: tuple[bytes, ...] = ()
        self._confirm = confirm

    @property
    def is_settled(self) -> bool:
        """Whether nobody waits for the outcome any more."""
        return self._confirm.done()

    def settle(self, error: BloodbankError | None = None) -> None:
        """Tell who waits. What comes later is not heard."""
        if self._confirm.done():
            return
        if error is None:
            self._confirm.set_result(None)
        else:
            self._confirm.set_exception(error)


class _Together:
    """The outcomes of several, which one task waits for. done: when there are all."""

    __slots__ = ("done", "is_given_up", "left", "outcomes")

    def __init__(self, count: int, done: asyncio.Future[None]) -> None:
        self.outcomes: list[BloodbankError | None] = [None] * count
        self.left = count
        self.done = done
        self.is_given_up = False


class _OneOfMany:
    """One of several messages on their way; see `_Single`."""

    __slots__ = ("_is_settled", "_place", "_together", "deadline", "message", "parts", "timeout_seconds")

    def __init__(
        self, message: Message, deadline: float, timeout_seconds: float, together: _Together, place: int
    ) -> None:
        self.message: Message | Outgoing = message
        self.deadline = deadline
        self.timeout_seconds = timeout_seconds
        self.parts: tuple[bytes, ...] = ()
        self._together = together
        self._place = place
        self._is_settled = False

    @property
    def is_settled(self) -> bool:
        """Whether nobody waits for the outcome any more."""
        return self._is_settled or self._together.is_given_up

    def settle(self, error: BloodbankError | None = None) -> None:
        """Note the outcome, and tell who waits when it was the last one."""
        together = self._together
        if self._is_settled or together.is_given_up:
            return
        self._is_settled = True
        together.outcomes[self._place] = error
        together.left -= 1
        if not together.left and not together.done.done():
            together.done.set_result(None)


_Publishing = _Single | _OneOfMany


class _OpenChannel:
    """A channel with confirms, and what is in flight on it.

    What is published in one turn of the loop is written at once. A confirm finds its message by the tag. One timer
    serves all deadlines: it is set for the earliest, and looks through what is in flight when that has come.
    """

    def __init__(
        self,
        address: str,
        connection: Connection,
        channel: Channel,
        wire: ConfirmingProtocol,
        event_frames: EventFrames,
    ) -> None:
        self.connection = connection
        self.was_unroutable = False
        self._address = address
        self._channel = channel
        self._wire = wire
        self.loop = asyncio.get_running_loop()
        self._exchange = event_frames.exchange
        self._frames_of = event_frames.of
        # What has no tag yet, because the window is full or the broker takes nothing.
        self._unsent: deque[_Publishing] = deque()
        # What has a tag and is written at the end of this turn of the loop.
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        self._in_flight: dict[int, _Publishing] = {}
        self._tag = 0
        self._lowest = 1
        # How often each: one confirm may be about several of the same id, all of which came back.
        self._returned: Counter[str] = Counter()
        self._has_confirmed = False
        # When the first of the nacks came between which no event was confirmed.
        self._nacked_at: float | None = None
        self._is_closing = False
        self._will_flush = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        wire.listen(channel.number, self)
        on_close(channel, self._end)

    @property
    def is_usable(self) -> bool:
        """Whether a message can be published here, and there is somewhere for it to go."""
        return not (self._is_closing or self.was_unroutable)

    def is_open_on(self, connection: Connection) -> bool:
        """Say whether this is an open channel of a connection."""
        return self.connection is connection and not self._is_closing

    def publish(self, entry: _Publishing) -> None:
        """Publish in this turn of the loop, or as soon as the broker takes more. Raises PublishRejected."""
        message = entry.message
        if type(message) is Message:
            parts = self._frames_of(message)
        else:
            parts = frames(self._channel.number, cast("Outgoing", message), self._channel.max_content_size)
        if self._unsent or self._is_closing or not self._wire.takes or len(self._in_flight) >= IN_FLIGHT_LIMIT:
            entry.parts = parts
            self._unsent.append(entry)
        else:
            self._take(entry, parts)
        if not self._will_flush:
            self._will_flush = True
            self.loop.call_soon(self._flush)
        if entry.deadline < self._timer_at:
            self._set_timer(entry.deadline)

    def confirmed(self, tag: int, *, multiple: bool) -> None:
        """Settle a message, or all up to it; see `Listener`."""
        self._has_confirmed = True
        for entry in self._taken(tag, multiple=multiple):
            if self._nacked_at is not None and type(entry.message) is Message:
                self._nacked_at = None
            if self._returned and self._returned[message_id := _id_of(entry.message)]:
                self._returned -= Counter((message_id,))  # drops what is at zero
                self.was_unroutable = True
                entry.settle(_unroutable())
            else:
                entry.settle()

    def not_confirmed(self, tag: int, *, multiple: bool) -> None:
        """Settle a message, or all up to it, as not taken by all queues; see `Listener`."""
        entries = self._taken(tag, multiple=multiple)
        for entry in entries:
            entry.settle(_nacked())
        if not any(type(entry.message) is Message for entry in entries):
            return
        now = self.loop.time()
        if self._nacked_at is None:
            self._nacked_at = now
        elif now - self._nacked_at >= NACKED_SECONDS:
            self._give_up()

    def returned(self, message_id: str) -> None:
        """Note a message that no queue takes, until its confirm; see `Listener`."""
        self._returned[message_id] += 1

    def closing(self) -> None:
        """Send nothing more; see `Listener`."""
        self._is_closing = True

    def may_write(self) -> None:
        """Send what waited; see `Listener`."""
        if self._unsent and not self._will_flush:
            self._will_flush = True
            self.loop.call_soon(self._flush)

    def _taken(self, tag: int, *, multiple: bool) -> list[_Publishing]:
        """Take what a confirm is about out of what is in flight: no search, each tag is looked at once."""
        if self._unsent:
            self.may_write()
        take = self._in_flight.pop
        if not multiple:
            entry = take(tag, None)
            return [] if entry is None else [entry]
        # Tag 0 stands for all. Tags below the lowest were taken by an earlier `multiple`.
        last = tag or self._tag
        entries = [entry for one in range(self._lowest, last + 1) if (entry := take(one, None)) is not None]
        self._lowest = max(self._lowest, last + 1)
        return entries

    def _take(self, entry: _Publishing, parts: tuple[bytes, ...]) -> None:
        """Give a message its tag: it is written now, or at the end of this turn of the loop, whatever happens."""
        self._tag += 1
        self._in_flight[self._tag] = entry
        self._unwritten += parts
        self._unwritten_bytes += len(entry.message.body)
        if self._unwritten_bytes >= WRITE_AT_ONCE_BYTES:
            self._write()

    def _write(self) -> None:
        unwritten, self._unwritten, self._unwritten_bytes = self._unwritten, [], 0
        transport = self._wire.transport
        if transport is not None and not transport.is_closing():
            transport.write(b"".join(unwritten))

    def _flush(self) -> None:
        self._will_flush = False
        unsent, in_flight = self._unsent, self._in_flight
        while unsent and len(in_flight) < IN_FLIGHT_LIMIT and self._wire.takes and not self._is_closing:
            entry = unsent.popleft()
            if not entry.is_settled:
                self._take(entry, entry.parts)
                entry.parts = ()
        if self._unwritten:
            self._write()

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self.loop.call_at(deadline, self._expire), deadline

    def _expire(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = self.loop.time()
        for entry in self._in_flight.values():
            if entry.deadline <= now and not entry.is_settled:
                entry.settle(PublishUnknown(f"{self._too_late(entry)}. {_SAME_ID_IS_SAFE}", reason="timed_out"))
        for entry in self._unsent:
            if entry.deadline <= now and not entry.is_settled:
                entry.settle(TransportUnavailable(f"{self._too_late(entry)}. The event was not sent. Try again."))
        self._unsent = deque(entry for entry in self._unsent if not entry.is_settled)
        waiting = [entry.deadline for entry in (*self._in_flight.values(), *self._unsent) if not entry.is_settled]
        if waiting:
            self._set_timer(min(waiting))

    def _too_late(self, entry: _Publishing) -> str:
        what = f"RabbitMQ at {self._address} did not confirm within {entry.timeout_seconds:g} s"
        return what + (": it is short of memory or disk and takes nothing from publishers" * self._wire.blocked)

    async def close(self) -> None:
        """Close what was given up; nothing happens when it is closed already."""
        if not self._channel.is_closed:
            await close_channel(self._channel)

    def _give_up(self) -> None:
        """Use this channel no more: whoever publishes next opens another one."""
        self._is_closing = True
        for entry in self._in_flight.values():
            entry.settle(_nacked())
        for entry in self._unsent:
            entry.settle(TransportUnavailable("The event was not sent: RabbitMQ does not take messages. Try again."))
        self._in_flight.clear()
        self._unsent.clear()

    def _end(self) -> None:
        self._is_closing = True
        self._wire.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        why = why_closed(self._channel)
        # Also those that nobody waits for any more: it may be one of them that was meant.
        in_flight = list(self._in_flight.values())
        blamed = frozenset[int]()
        if meaning_of(why) is Meaning.REFUSED:
            sent = [_sent(entry.message, self._exchange) for entry in in_flight]
            blamed = refused(str(why), sent, is_new=not self._has_confirmed)
        for place, entry in enumerate(in_flight):
            entry.settle(_failure(why, is_refused=place in blamed))
        for entry in self._unsent:
            entry.settle(TransportUnavailable(f"The event was not sent: {explain(why)}. Try again."))
        self._in_flight.clear()
        self._unsent.clear()


def _nacked() -> PublishUnknown:
    return PublishUnknown(
        "RabbitMQ did not confirm the event: the broker did not take the message. " + _SAME_ID_IS_SAFE, reason="nacked"
    )


def _unroutable() -> TransportUnavailable:
    return TransportUnavailable(
        "The event is not stored: the broker found no queue for the message. What is missing is declared again; "
        "try again."
    )


def _id_of(message: Message | Outgoing) -> str:
    """Return the id by which the broker's return of a message is told."""
    return message.message_id if isinstance(message, Outgoing) else str(message.event_id)


def _failure(error: Exception, *, is_refused: bool) -> BloodbankError:
    if is_refused:
        failure = PublishRejected(f"RabbitMQ refused the event, and it is not stored: {explain(error)}.")
    else:
        failure = PublishUnknown(f"The event was sent, and then {explain(error)}. {_SAME_ID_IS_SAFE}", reason="lost")
    failure.__cause__ = error
    return failure


class Sent(NamedTuple):
    """What the broker's reason for closing a channel can be compared with."""

    exchange: str
    routing_key: str
    body_bytes: int


def _sent(message: Message | Outgoing, exchange: str) -> Sent:
    name = message.exchange or _DEFAULT_EXCHANGE if isinstance(message, Outgoing) else exchange
    return Sent(name, message.routing_key, len(message.body))


def refused(reason: str, sent: Sequence[Sent], *, is_new: bool) -> frozenset[int]:
    """Return which messages the broker meant, that closed the channel for `reason`: their places in `sent`.

    It names no message. The others may be stored, or may have been thrown away; they can be sent again.

    sent: all that were in flight, in order.
    is_new: the channel has confirmed nothing. Then it refused the exchange from the beginning. Otherwise the permission
        was taken away in between, and only the last message is certainly not stored; the others find a new channel.
    """
    if topic := _REFUSED_TOPIC.search(reason):
        return frozenset(place for place, one in enumerate(sent) if one.routing_key == topic[1])
    if limit := _TOO_LARGE.search(reason):
        return frozenset(place for place, one in enumerate(sent) if one.body_bytes > int(limit[1]))
    if exchange := _REFUSED_EXCHANGE.search(reason):
        meant = [place for place, one in enumerate(sent) if one.exchange == exchange[1]]
        return frozenset(meant if is_new else meant[-1:])
    return frozenset((0,) if len(sent) == 1 else ())
