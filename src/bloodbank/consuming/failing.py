"""What becomes of an event whose handler failed for good: an event that says so, then the dead letters.

In this order, so that nothing is missing when the process dies in between: the delivery comes again, the handler fails
again, and the same id makes no second event.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Self
from uuid import UUID

from pydantic import BaseModel, ValidationError

from bloodbank import ids
from bloodbank.causation import uncaused
from bloodbank.envelope import AnyEnvelope, EventEnvelope, Source, TriggerType
from bloodbank.errors import EventConflict, InvalidEvent, PublishRejected, PublishUnknown, Unavailable
from bloodbank.events.failures import FailurePayload
from bloodbank.events.registry import EventRegistry
from bloodbank.transports.base import Delivery, Failure

logger = logging.getLogger(__name__)

POISON = "poison"
"""Stands for the class of the exception where a message is no event, or its payload not what the handler takes."""
MAX_MESSAGE_CHARACTERS = 2000
"""Longest message of a failure event; what is longer is cut."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Between attempts to publish a failure event while the bus takes none."""
UNNAMED = "bloodbank.message.failed"
"""Type of the failure of a message whose routing key makes no event type."""
_ORIGIN = "failed_in"

Publish = Callable[[EventEnvelope[Any]], Awaitable[object]]


class _Failed(NamedTuple):
    """The event that was given up, as far as it could be read. payload: as JSON."""

    event_type: str
    event_id: UUID
    payload: Mapping[str, Any]

    @classmethod
    def of(cls, event: EventEnvelope[Any]) -> Self:
        payload = event.payload
        if isinstance(payload, BaseModel):
            try:
                payload = payload.model_dump()
            except Exception as error:  # noqa: BLE001, a model's serializer is code of others
                logger.warning("The payload of event %s cannot be told: %s", event.event_id, message_of(error))
                payload = {}
        return cls(event.event_type, event.event_id, payload)


def failure_of(error: Exception, consumer: str, *, poison: bool = False) -> Failure:
    """Tell of an exception: its class, one line, and the end of its traceback."""
    name = type(error).__name__
    return Failure(
        reason=_cut(" ".join(message_of(error).split()) or name),
        error=POISON if poison else name,
        traceback="".join(traceback.format_exception(error)),
        consumer=consumer,
    ).kept()


def message_of(error: Exception) -> str:
    """Return what an exception says, also where it fails to say it."""
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001, code of others, which must not end the consumer
        return f"{type(error).__name__}, whose text cannot be made: {type(second).__name__}"


def failure_event(
    failed: _Failed, failure: Failure, *, group: str, attempts: int, registry: EventRegistry
) -> EventEnvelope[Any]:
    """Return the event that says that a handler gave an event up.

    failed: the event, which is its one parent. group: of the handler. attempts: so far.

    Its type are the first two words of the type that failed, and `failed`. Its payload is that of every failure, with
    what the model of its type adds (`FailurePayload.of_handler`).
    """
    event_type = ".".join([*failed.event_type.split(".")[:2], "failed"])
    # The source is no part of what tells duplicates, so that another host makes the same event.
    source = Source.local(type=TriggerType.HOOK).model_copy(
        update={"meta": {_ORIGIN: {"group": group, "consumer": failure.consumer}}}
    )
    fields: dict[str, Any] = {
        "event_id": ids.event_id("bloodbank.failure", group=group, event_id=failed.event_id, outcome="failed"),
        "source": source,
        "correlation_ids": [failed.event_id],
        "payload": _payload(event_type, failed, failure, attempts, registry),
    }
    try:
        return AnyEnvelope(event_type=event_type, **fields)
    except ValidationError:
        return AnyEnvelope(event_type=UNNAMED, **fields)


def _payload(
    event_type: str, failed: _Failed, failure: Failure, attempts: int, registry: EventRegistry
) -> FailurePayload:
    common: dict[str, Any] = {
        "error_message": failure.reason,
        "error_code": failure.error,
        "retry_count": max(0, attempts - 1),
        "is_retryable": False,
    }
    model = registry.model_for(event_type)
    if model is None or not issubclass(model, FailurePayload):
        return FailurePayload(**common)
    try:
        return model.of_handler(common, failed.event_type, failed.payload)
    except Exception as error:  # noqa: BLE001, code of others; better a failure of the common shape than none
        logger.warning(
            "%s cannot tell that a handler failed: %s Override its of_handler.", model.__name__, message_of(error)
        )
        return FailurePayload(**common)


def failed_in(event: EventEnvelope[Any]) -> str | None:
    """Return the group whose giving up an event tells of; None for any other event."""
    origin = (event.source.meta or {}).get(_ORIGIN)
    group = origin.get("group") if isinstance(origin, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return group if isinstance(group, str) else None


async def give_up(
    delivery: Delivery,
    failure: Failure,
    *,
    event: EventEnvelope[Any] | None,
    group: str,
    attempts: int,
    told: int,
    publish: Publish,
    registry: EventRegistry,
) -> None:
    """Publish the failure, confirmed; then set the delivery aside, which settles it.

    event: None where the message is none. A failure to handle what tells of a failure is set aside without a word, or
    one would follow another for ever.
    attempts: how many there were, for the dead letter.
    told: how many the failure event says; it has one id, and should say the same whenever it is told.

    While the bus takes nothing this waits. Raises TransportUnavailable when the delivery comes again.
    """
    message = delivery.message
    failed = _Failed.of(event) if event is not None else _Failed(message.routing_key, message.event_id, {})
    event_id = failed.event_id
    if event is None or failed_in(event) is None:
        tells = failure_event(failed, failure, group=group, attempts=told, registry=registry)
        await _publish(tells, publish, event_id)
    await delivery.dead_letter(failure, attempts=attempts)
    logger.error(
        "%s gave up event %s (%s) at attempt %d: %s: %s",
        failure.consumer,
        event_id,
        message.routing_key,
        attempts,
        failure.error,
        failure.reason,
    )


async def _publish(told: EventEnvelope[Any], publish: Publish, event_id: UUID) -> None:
    pause_seconds = FIRST_PAUSE_SECONDS
    while True:
        try:
            with uncaused():
                await publish(told)
        except EventConflict:
            # It was told before, in other words.
            return
        except (PublishRejected, InvalidEvent) as error:
            # The dead letter says all that this event would have.
            logger.error("That event %s failed could not be published, and will not be: %s", event_id, error)
            return
        except (Unavailable, PublishUnknown) as error:
            if pause_seconds == FIRST_PAUSE_SECONDS:
                logger.warning("That event %s failed cannot be published now: %s Trying again.", event_id, error)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        else:
            return


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
