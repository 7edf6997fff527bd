"""Bloodbank's events in a FastStream application on RabbitMQ: read, typed, with their causes, and handled once.

    bus = BloodbankMiddleware("rag")
    broker = RabbitBroker(url, middlewares=[bus])
    app = FastStream(broker, lifespan=bus.lifespan)

    @broker.subscriber(RabbitQueue("rag", routing_key="llm.prompt", durable=True), bus.exchange)
    async def answer(prompt: LLMPrompt) -> None:
        await broker.publish(LLMResponse(...), exchange=bus.exchange, routing_key="llm.response")

Sources: https://faststream.ag2.ai/latest/getting-started/middlewares/ and, for what a handler's parameters are,
https://faststream.ag2.ai/latest/getting-started/subscription/
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Annotated, Any, cast
from uuid import UUID

from aio_pika import IncomingMessage
from aio_pika import Message as AioPikaMessage
from faststream import BaseMiddleware, Context
from faststream.exceptions import AckMessage
from faststream.message import AckStatus, SourceType, StreamMessage
from faststream.rabbit import ExchangeType, RabbitExchange
from faststream.rabbit.response import RabbitPublishCommand
from faststream.response.publish_type import PublishType

from bloodbank import codec, wiring
from bloodbank._rabbit_url import rabbit_nodes
from bloodbank.causation import PARENTS_HEADER, caused_by, handling, parents_header, parents_of_request
from bloodbank.config import Settings, load_settings
from bloodbank.consuming.inbox import GuardedInbox
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.envelope import EventEnvelope, Source, create_envelope
from bloodbank.errors import ConfigurationError, InvalidEvent, NotOpen
from bloodbank.publisher import Publisher

logger = logging.getLogger(__name__)

EVENT_KEY, PUBLISHER_KEY = "bloodbank_event", "bloodbank_publisher"
"""Names in FastStream's context."""

CurrentEvent = Annotated[EventEnvelope[Any], Context(EVENT_KEY)]
"""Parameter of a handler that gets the event beside its payload, which stays a JSON object there."""
BusPublisher = Annotated[Publisher, Context(PUBLISHER_KEY)]
"""Parameter of a handler that gets the open publisher."""

Next = Callable[[Any], Awaitable[Any]]


class BloodbankMiddleware:
    """A middleware for `RabbitBroker(middlewares=[…])`. Give its `lifespan` to the application.

    A message that is an event: the handler's parameter is its payload, checked against whatever model it is annotated
    with, or the whole event where the annotation is `EventEnvelope`. All that is published meanwhile, through
    FastStream or a `Publisher`, has the event as its parent. A message that is none is left as it is; the parents that
    its X-Bloodbank-Parents names hold all the same.

    `broker.publish(…)` to the bus' exchange makes an event: of a model or a dict with the routing key as its type, or
    an `EventEnvelope` as it is. Elsewhere a message stays what it is, and gets the parents as a header.

    name: of the application; the source of its events.
    settings: default: the environment and `.env`, read now.
    publisher: an open one, which is used and not closed; default: `lifespan` opens one.
    group: whose inbox the subscribers share; default: each queue has its own.
    once: whether an event that was handled is left out when it comes again.

    `url` is the address of the first RabbitMQ of the settings, for `RabbitBroker`; it holds the password.

    Raises ConfigurationError when no RabbitMQ is set.
    """

    def __init__(
        self,
        name: str,
        settings: Settings | None = None,
        *,
        publisher: Publisher | None = None,
        group: str | None = None,
        once: bool = True,
    ) -> None:
        self.settings = settings or (publisher.settings if publisher else load_settings())
        rabbit_url = self.settings.rabbit_url
        if rabbit_url is None:
            raise ConfigurationError(
                "RABBIT_URL is not set, and FastStream and Bloodbank must meet on one RabbitMQ. Set it, such as to "
                "amqp://guest:guest@localhost:5672/."
            )
        self.url = rabbit_nodes(rabbit_url.get_secret_value())[0]
        self.source = Source.local(name)
        self.publisher = publisher or Publisher(
            self.settings, enable_correlation_tracking=self.settings.correlation_tracking
        )
        self._is_own = publisher is None
        self._group = group
        self._once = once
        self._inbox: GuardedInbox | None = None
        self._is_warned = False
        self._under_way: dict[tuple[str, UUID], asyncio.Future[None]] = {}

    @property
    def exchange(self) -> RabbitExchange:
        """The exchange of the bus, as FastStream has it."""
        return RabbitExchange(self.settings.exchange_name, type=ExchangeType.TOPIC, durable=True)

    @asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Open the publisher and the inbox for as long as the application runs, and declare the exchange and the log.

        Raises TransportUnavailable when the broker cannot be reached; what `Publisher.start` raises.
        """
        inbox = await asyncio.to_thread(wiring.build_inbox, self.settings)
        if self._is_own:
            await self.publisher.start()
        try:
            await self.publisher.transport.check(timeout_seconds=self.settings.publish_timeout_seconds)
            async with inbox:
                self._inbox = inbox if self._once else None
                yield
        finally:
            self._inbox = None
            if self._is_own:
                await self.publisher.close()

    def __call__(self, msg: Any, /, *, context: Any) -> _Scope:
        """Return what goes with one message, as FastStream calls it: with None for one that is published."""
        return _Scope(self, msg, context=context)

    def group_of(self, subscriber: Any) -> str:
        """Return the group whose inbox a subscriber uses."""
        return self._group or f"faststream.{subscriber.queue.name}"

    @asynccontextmanager
    async def alone(self, group: str, event_id: UUID) -> AsyncGenerator[bool]:
        """Hold other copies of an event back within the block; give whether it was handled before."""
        if self._inbox is None:
            if self._once:
                self._warn()
            yield False
            return
        key = group, event_id
        while (other := self._under_way.get(key)) is not None:
            await asyncio.wait([other])
        ended = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            yield await self._inbox.has_seen(group, event_id)
        finally:
            del self._under_way[key]
            ended.set_result(None)

    @property
    def tracker(self) -> CorrelationTracker | None:
        """The index of causes, where there is one and it is open."""
        try:
            return self.publisher.tracker if self.publisher.tracking_enabled else None
        except NotOpen:
            self._warn()
            return None

    async def mark(self, group: str, event_id: UUID) -> None:
        """Note that an event was handled."""
        if self._inbox is not None:
            await self._inbox.mark(group, event_id)

    def _warn(self) -> None:
        if not self._is_warned:
            self._is_warned = True
            logger.warning(
                "The middleware is not open: redelivered events are handled again, and causes are not indexed. Give "
                "its lifespan to the application: FastStream(broker, lifespan=bus.lifespan)."
            )


class _Scope(BaseMiddleware[RabbitPublishCommand, IncomingMessage]):
    """What goes with one message: one that is handled, and what is published for it, or one that is published."""

    def __init__(self, bus: BloodbankMiddleware, msg: Any, /, *, context: Any) -> None:
        super().__init__(msg, context=context)
        self._is_answer = msg is not None
        self._bus = bus
        self._stack = AsyncExitStack()
        self._handled: tuple[str, UUID, StreamMessage[Any]] | None = None

    async def consume_scope(self, call_next: Next, msg: StreamMessage[Any]) -> Any:
        """Handle a message. What is set here holds until `after_processed`: answers are published in between."""
        if msg.source_type is SourceType.RESPONSE:
            return await call_next(msg)
        self._stack.enter_context(self.context.scope(PUBLISHER_KEY, self._bus.publisher))
        event = _event_in(msg)
        if event is None:
            named = msg.headers.get(PARENTS_HEADER)
            self._stack.enter_context(caused_by(*parents_of_request([named] if isinstance(named, str) else [])))
            return await call_next(msg)
        subscriber: Any = self.context.get_local("handler_")
        group = self._bus.group_of(subscriber)
        if await self._stack.enter_async_context(self._bus.alone(group, event.event_id)):
            # Here, since nobody else does it where the application acknowledges by hand.
            await msg.ack()
            raise AckMessage
        self._stack.enter_context(handling(event.event_id))
        self._stack.enter_context(self.context.scope(EVENT_KEY, event))
        body = _body_for(_parameters(subscriber, call_next), event)

        async def decoded(_: StreamMessage[Any]) -> object:
            return body

        msg.set_decoder(decoded)
        self._handled = group, event.event_id, msg
        return await call_next(msg)

    async def after_processed(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> bool | None:
        """Note that the event was handled, after all its answers were published and before it is acknowledged."""
        try:
            if self._handled is not None and (exc_val is None or isinstance(exc_val, AckMessage)):
                group, event_id, message = self._handled
                if message.committed in (None, AckStatus.ACKED):
                    await self._bus.mark(group, event_id)
        finally:
            await self._stack.aclose()
        return False

    async def publish_scope(self, call_next: Next, cmd: RabbitPublishCommand) -> Any:
        """Publish an event, or pass on another message with the parents of here and now as a header."""
        is_for_bus = cmd.publish_type is PublishType.PUBLISH and cmd.exchange.name == self._bus.settings.exchange_name
        body: Any = cmd.body
        if body is None and is_for_bus and self._is_answer:
            # A handler that returns nothing has nothing to tell.
            return None
        is_event = isinstance(body, EventEnvelope) and cmd.publish_type is PublishType.PUBLISH
        if isinstance(body, AioPikaMessage) or not (is_for_bus or is_event):
            cmd.headers = {**parents_header(), **cmd.headers}
            return await call_next(cmd)
        event = _event_of(cmd, self._bus)
        message = codec.encode(event)
        cmd.body, cmd.destination = message.body, event.event_type
        cmd.headers = {**cmd.headers, **message.headers}
        # FastStream makes one up where there is none, and a root has no parent.
        cmd.correlation_id = str(message.correlation_id or message.event_id)
        cmd.message_options = {
            **cmd.message_options,
            "persist": True,
            "content_type": "application/json",
            "content_encoding": "utf-8",
            "message_id": str(message.event_id),
            "app_id": message.app_id,
        }
        confirmed = await call_next(cmd)
        if (tracker := self._bus.tracker) is not None:
            await tracker.record(codec.link_of(event, message.digest))
        return confirmed


def _event_in(message: StreamMessage[Any]) -> EventEnvelope[Any] | None:
    """Return the event that a message is; None for another message. Raises InvalidEvent for a broken one."""
    try:
        return codec.decode(message.body)
    except InvalidEvent:
        if codec.VERSION_HEADER in message.headers:
            raise
        return None


def _event_of(cmd: RabbitPublishCommand, bus: BloodbankMiddleware) -> EventEnvelope[Any]:
    """Return the event that is to be published. Raises InvalidEvent."""
    body: Any = cmd.body
    if isinstance(body, EventEnvelope):
        event = cast("EventEnvelope[Any]", body)
        if cmd.destination not in ("", event.event_type):
            raise InvalidEvent(
                f"The routing key {cmd.destination!r} is not the event's type, {event.event_type!r}. Leave it out. "
                "Nothing was published.",
                [("routing_key", "must be the event_type")],
            )
        return event
    message_id = cmd.message_options.get("message_id") or ""
    try:
        event_id = UUID(message_id) if message_id else None
    except ValueError as error:
        raise InvalidEvent(
            f"message_id is {message_id[:80]!r}; the id of an event is a UUID. Nothing was published.",
            [("message_id", "Input should be a UUID")],
        ) from error
    return create_envelope(
        cmd.destination, cmd.body, source=bus.source, event_id=event_id, registry=bus.publisher.registry
    )


def _parameters(subscriber: Any, call_next: Any) -> Sequence[Any]:
    """Return the parameters of the handler that is about to be called which FastStream fills from the message."""
    # A subscriber may have several handlers, with filters.
    while isinstance(call_next, functools.partial):
        call_next = cast("functools.partial[Any]", call_next).args[0]
    handler = getattr(call_next, "__self__", None)
    calls = list(subscriber.calls)
    return next((call for call in calls if call.handler is handler), calls[0]).dependant.flat_params


def _body_for(parameters: Sequence[Any], event: EventEnvelope[Any]) -> object:
    """Return what FastStream shall take for the body: the payload, the event, or both by the parameters' names."""
    wanted = {parameter.field_name: _is_event(parameter.field_type) for parameter in parameters}
    if not any(wanted.values()):
        return event.payload
    if len(wanted) == 1:
        return event
    return {name: event if wants_event else event.payload for name, wants_event in wanted.items()}


def _is_event(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, EventEnvelope)
