"""Which argument a handler gets for which annotation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from bloodbank import Attempt, ConfigurationError, EventEnvelope, EventRegistry, InvalidEvent, create_envelope
from bloodbank.consuming.arguments import Arguments, name_of
from bloodbank.consuming.handler import is_async


class Paid(BaseModel):
    cents: int


class Door:
    """Stands for what does not come from the event."""


DOOR = Door()
EVENT = create_envelope("shop.bill.paid", {"cents": 5})


def _called(function: Callable[..., Any], event: EventEnvelope[Any] = EVENT) -> Any:
    registry = EventRegistry()
    registry.register("shop.bill.known", Paid)
    arguments = Arguments(function, provided={Door: lambda: DOOR}, registry=lambda: registry)
    attempt = Attempt(arguments.read(event), "g", "c.f", 1, 5, None, False)
    positional, named = arguments.fill(attempt)
    return function(*positional, **named)


def test_arguments_come_by_annotation_in_any_order() -> None:
    def handler(door: Door, attempt: Attempt, payload: Paid, event: EventEnvelope[Paid]) -> Any:
        return door, attempt.number, payload, event.payload, event.event_id

    assert _called(handler) == (DOOR, 1, Paid(cents=5), Paid(cents=5), EVENT.event_id)


def test_positional_keyword_and_optional_parameters() -> None:
    def handler(payload: dict[str, Any], /, *rest: int, door: Door, limit: int = 3, **more: int) -> Any:
        return payload, rest, door, limit, more

    assert _called(handler) == ({"cents": 5}, (), DOOR, 3, {})


def test_without_annotations_names_decide() -> None:
    def handler(payload, event, attempt):  # type: ignore[no-untyped-def]
        return payload, event.event_id, attempt.number

    assert _called(handler) == ({"cents": 5}, EVENT.event_id, 1)


def test_a_mapping_is_the_object_and_an_open_envelope_what_is_registered() -> None:
    def mapping(content: Mapping[str, Any]) -> Any:
        return content

    def envelope(event: EventEnvelope[Any]) -> Any:
        return event.payload

    def both(event: EventEnvelope, paid: Paid) -> Any:  # type: ignore[type-arg]
        return event.payload, paid

    known = create_envelope("shop.bill.known", {"cents": 5})
    assert _called(mapping) == {"cents": 5}
    assert (_called(envelope), _called(envelope, known)) == ({"cents": 5}, Paid(cents=5))
    assert _called(both) == (Paid(cents=5), Paid(cents=5))


def test_methods_partials_and_objects_are_handlers_too() -> None:
    class Shop:
        def method(self, paid: Paid) -> Any:
            return paid

        async def __call__(self, paid: Paid) -> Any: ...

    def named(prefix: str, paid: Paid) -> Any:
        return prefix, paid

    partial = functools.partial(named, "x")
    assert _called(Shop().method) == Paid(cents=5)
    assert _called(partial) == ("x", Paid(cents=5))
    assert (is_async(Shop()), is_async(Shop().method), is_async(partial)) == (True, False, False)
    assert is_async(functools.partial(Shop()))
    assert (name_of(Shop()), name_of(Shop().method), name_of(partial)) == ("Shop", "method", "named")


def test_a_payload_that_does_not_fit_says_where() -> None:
    def handler(paid: Paid) -> None: ...

    with pytest.raises(InvalidEvent) as caught:
        _called(handler, create_envelope("shop.bill.paid", {"cents": "many"}))
    assert caught.value.problems[0][0] == "payload.cents"
    # The event is on the bus: what is said when publishing fails would be wrong here.
    assert str(caught.value).endswith("The handler was not called.")


def test_what_cannot_be_given_is_refused_by_name() -> None:
    def number(count: int) -> None: ...
    def bare(thing) -> None: ...  # type: ignore[no-untyped-def]
    def optional(paid: Paid | None) -> None: ...
    def missing(paid: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def twice(paid: Paid, payload: dict[str, Any]) -> None: ...

    for function, said in (
        (number, "'count'"),
        (bare, "'thing'"),
        (optional, "'paid'"),
        (missing, "NotThere"),
        (twice, "two shapes"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            _called(function)
