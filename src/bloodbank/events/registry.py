"""Which model belongs to which event type."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import entry_points
from typing import TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bloodbank.errors import InvalidEvent, UnknownEventType

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "bloodbank.events"
"""Packages name modules under this entry point; loading one registers the models in it."""

MOST_PROBLEMS = 1000

Model = TypeVar("Model", bound=type[BaseModel])


class EventRegistry:
    """Maps event types to payload models.

    Types that are registered with the `event` decorator are seen by every registry; `register` adds a
    type to this one only.
    """

    def __init__(self, *, accept_unknown: bool = True) -> None:
        self._accept_unknown = accept_unknown
        self._own: dict[str, type[BaseModel]] = {}

    def register(self, event_type: str, model: type[BaseModel]) -> None:
        """Register a model with this registry alone. Raises ValueError when the type is taken."""
        _register(self._own, event_type, model)

    def model_for(self, event_type: str) -> type[BaseModel] | None:
        """Return the model of a type, or None."""
        return self._own.get(event_type) or _declared.get(event_type)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*_declared, *self._own}))

    def validate(self, event_type: str, payload: object) -> BaseModel | dict[str, object]:
        """Return the payload as its model, or as the JSON object it is when no model is registered.

        Raises InvalidEvent with the path of each problem, UnknownEventType when unknown types are refused.
        """
        if not isinstance(event_type, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without types
            raise InvalidEvent("event_type must be a text.", [("event_type", "Input should be a valid string")])
        model = self.model_for(event_type)
        if model is None:
            return self._validate_unknown(event_type, payload)
        if type(payload) is not dict:  # asked first, since pydantic makes isinstance slow
            if isinstance(payload, model):
                return payload
            if isinstance(payload, BaseModel):
                payload = payload.model_dump()
        try:
            # What model_validate calls; it takes a fifth longer.
            return model.__pydantic_validator__.validate_python(payload)
        except ValidationError as error:
            raise invalid_event(error, event_type, "payload") from error

    def _validate_unknown(self, event_type: str, payload: object) -> BaseModel | dict[str, object]:
        if not self._accept_unknown:
            raise UnknownEventType(
                f"No model is registered for {event_type[:255]!r}, and unknown types are refused. "
                "Register one, or set BLOODBANK_UNKNOWN_EVENT_TYPES=accept."
            )
        if isinstance(payload, BaseModel):
            return payload
        if isinstance(payload, dict):
            return cast("dict[str, object]", payload)
        raise InvalidEvent(
            f"The payload of {event_type[:255]!r} must be a JSON object.", [("payload", "Input should be an object")]
        )


def event(event_type: str) -> Callable[[Model], Model]:
    """Class decorator: register a payload model for a type.

        @event("invoice.paid")
        class InvoicePaid(BaseModel):
            amount_cents: int

    Raises ValueError when another model has the type already.
    """

    def decorate(model: Model) -> Model:
        _register(_declared, event_type, model)
        return model

    return decorate


def load_plugins() -> list[str]:
    """Import the modules that installed packages name under `bloodbank.events`; return their names.

    A plugin that cannot be imported is logged and left out, so that it cannot stop the bus.
    """
    loaded: list[str] = []
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception:
            logger.exception("The event plugin %s could not be loaded; its types are unknown.", entry.name)
        else:
            loaded.append(entry.name)
    return loaded


def invalid_event(
    error: ValidationError, event_type: str, *prefix: str, outcome: str = "Nothing was published."
) -> InvalidEvent:
    """Turn pydantic's error into InvalidEvent, with a dotted path for each problem and no input echoed.

    Above MOST_PROBLEMS they are only counted: a body of 1 MiB can be wrong in half a million places, and
    listing those takes seconds. outcome: the last sentence, about what was done or left.
    """
    if error.error_count() > MOST_PROBLEMS:
        message = f"{error.error_count()} values are wrong, too many to list"
        path = ".".join(prefix)
        return InvalidEvent(f"Invalid {event_type[:255]} event: {message}. {outcome}", [(path, message)])
    problems = [
        (".".join([*prefix, *map(str, problem["loc"])]), _message(problem))
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    listed = "; ".join(f"{path or 'event'}: {message}" for path, message in problems[:5])
    return InvalidEvent(f"Invalid {event_type[:255]} event. {listed}. {outcome}", problems)


def _message(problem: ErrorDetails) -> str:
    if problem["type"] == "string_pattern_mismatch" and problem["loc"][-1:] == ("event_type",):
        return "Write two to eight words of a-z, 0-9, _ and - joined by dots, such as 'llm.prompt'"
    return problem["msg"].removeprefix("Value error, ")


def utc_now() -> datetime:
    """Return the time now, aware, in UTC."""
    return datetime.now(UTC)


_declared: dict[str, type[BaseModel]] = {}


def _register(models: dict[str, type[BaseModel]], event_type: str, model: type[BaseModel]) -> None:
    known = models.get(event_type) or _declared.get(event_type)
    if known is not None and known is not model:
        raise ValueError(f"{event_type!r} is registered for {known.__qualname__} already")
    models[event_type] = model
