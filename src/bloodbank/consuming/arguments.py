"""What a handler is called with: each parameter gets what its annotation asks for."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from bloodbank.consuming.attempt import Attempt
from bloodbank.envelope import EventEnvelope, with_payload
from bloodbank.errors import ConfigurationError
from bloodbank.events.registry import EventRegistry, invalid_event

Function = Callable[..., Any]
Reader = Callable[[EventEnvelope[Any]], EventEnvelope[Any]]
Filler = Callable[[Attempt], object]

_BY_NAME: Mapping[str, object] = {"event": EventEnvelope, "payload": dict, "attempt": Attempt}
_WANTED = (
    "Annotate it with EventEnvelope, EventEnvelope[YourModel], a payload model, dict, Attempt or Publisher "
    "(BlockingPublisher in a function that is not async), or give it a default"
)


class Arguments:
    """How to call one handler.

    function: the handler. provided: objects that do not come from the event, by class.
    registry: returns the models of payloads whose class the annotations leave open.
    namespace: names that the annotations may use beside those of the function's module.

    Raises ConfigurationError for a parameter that nothing fits.
    """

    def __init__(
        self,
        function: Function,
        *,
        provided: Mapping[type, Callable[[], object]],
        registry: Callable[[], EventRegistry],
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        self._provided = provided
        self._registry = registry
        self._payload_type: object = None
        self._positional: list[Filler] = []
        self._named: dict[str, Filler] = {}
        self._label = name_of(function)
        self._find_sources(function, namespace or {})
        self._reader = self._choose_reader()

    def read(self, event: EventEnvelope[Any]) -> EventEnvelope[Any]:
        """Return the event with its payload as the handler wants it. Raises InvalidEvent."""
        return self._reader(event)

    def fill(self, attempt: Attempt) -> tuple[list[object], dict[str, object]]:
        """Return the positional and the named arguments for an attempt at an event that `read` returned."""
        positional = [filler(attempt) for filler in self._positional]
        return positional, {name: filler(attempt) for name, filler in self._named.items()}

    def _find_sources(self, function: Function, namespace: Mapping[str, Any]) -> None:
        try:
            parameters = inspect.signature(function).parameters.values()
            hints = typing.get_type_hints(_annotated(function), localns=dict(namespace))
        except (NameError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"The annotations of the handler {self._label} cannot be read: {error}. They must be names that "
                "exist when the program runs, so import them outside of `if TYPE_CHECKING`."
            ) from error
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            annotation = hints.get(parameter.name, _BY_NAME.get(parameter.name))
            filler = self._filler(annotation)
            if filler is None and parameter.default is not parameter.empty:
                continue
            if filler is None:
                raise ConfigurationError(
                    f"The parameter {parameter.name!r} of the handler {self._label} asks for nothing that can be "
                    f"given. {_WANTED}."
                )
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self._positional.append(filler)
            else:
                self._named[parameter.name] = filler

    def _filler(self, annotation: object) -> Filler | None:
        if annotation is Attempt:
            return lambda attempt: attempt
        for provided, provide in self._provided.items():
            if _is_kind_of(annotation, provided):
                return lambda _: provide()
        if _is_kind_of(annotation, EventEnvelope):
            self._want(_payload_type(cast("type[EventEnvelope[Any]]", annotation)))
            return lambda attempt: attempt.event
        if _is_object(annotation) or _is_kind_of(annotation, BaseModel):
            self._want(annotation)
            return lambda attempt: attempt.event.payload
        return None

    def _want(self, payload_type: object) -> None:
        """Note that the payload is wanted as this class; one that leaves it open goes with any other."""
        if self._payload_type in (None, Any):
            self._payload_type = payload_type
        elif payload_type not in (Any, self._payload_type):
            raise ConfigurationError(f"The handler {self._label} asks for the payload in two shapes. Take one of them.")

    def _choose_reader(self) -> Reader:
        wanted, registry = self._payload_type, self._registry
        if wanted is None or _is_object(wanted):
            return lambda event: event
        if isinstance(wanted, type) and issubclass(wanted, BaseModel):
            return lambda event: _typed(event, wanted)
        return lambda event: with_payload(event, registry().validate(event.event_type, event.payload))


def name_of(function: Function) -> str:
    """Return the name of a handler: that of the function, or of the class of an object that can be called."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    return getattr(function, "__name__", type(function).__name__)


def _annotated(function: Function) -> Function:
    """Return what has the annotations: the function, that of a `partial`, or the `__call__` of an object."""
    while isinstance(function, functools.partial):
        function = cast("functools.partial[Any]", function).func
    return function if inspect.isroutine(function) else type(function).__call__


def _payload_type(envelope: type[EventEnvelope[Any]]) -> object:
    arguments = envelope.__pydantic_generic_metadata__["args"]
    return arguments[0] if arguments else Any


def _is_kind_of(annotation: object, base: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, base)


def _is_object(annotation: object) -> bool:
    origin = typing.get_origin(annotation) or annotation
    return isinstance(origin, type) and issubclass(dict, origin) and origin is not object


def _typed(event: EventEnvelope[Any], model: type[BaseModel]) -> EventEnvelope[Any]:
    if isinstance(event.payload, model):
        return event
    try:
        return with_payload(event, model.model_validate(event.payload))
    except ValidationError as error:
        raise invalid_event(error, event.event_type, "payload", outcome="The handler was not called.") from error
