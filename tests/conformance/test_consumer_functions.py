"""What a handler may be, on every bus: plain functions that hang, decorators, and what is no handler at all."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bloodbank import ConfigurationError, Consumer, Publisher, Retry
from tests.conformance.consumers import Order, dead_letters, eventually, eventually_dead, order

ONCE = Retry(attempts=1)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """As many decorators do it: a plain function around whatever it is given."""

    @functools.wraps(function)
    def around(*args: Any, **named: Any) -> Any:
        return function(*args, **named)

    return around


async def test_an_event_behind_a_thread_that_hangs_is_not_given_up_without_a_run(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    go_on = threading.Event()
    begun: list[int] = []

    @consumer.on("shop.order.placed", retry=ONCE, timeout_seconds=0.05)
    def handle(placed: Order) -> None:
        begun.append(placed.number)
        if placed.number == 0:
            go_on.wait(60)

    @consumer.on("shop.order.placed", "other")
    def other(placed: Order) -> None:
        # By then the first event's time is over, and this handler's thread is not taken by the next one.
        if placed.number == 2:
            go_on.set()

    try:
        async with consumer.running():
            await publisher.publish(order(0))
            await eventually_dead(publisher, "shop")
            await publisher.publish(order(1))
            await publisher.publish(order(2))
            await eventually(lambda: len(begun) == 3)
            letters = await dead_letters(publisher, "shop")
    finally:
        go_on.set()
    assert sorted(begun) == [0, 1, 2]
    assert [letter.failure.error for letter in letters] == ["TimeoutError"]


async def test_a_consumer_stops_although_events_wait_behind_a_thread_that_hangs(publisher: Publisher) -> None:
    settings = publisher.settings.model_copy(update={"stop_timeout_seconds": 3600.0})
    consumer = Consumer("shop", settings, publisher=publisher)
    go_on = threading.Event()
    begun: list[int] = []

    @consumer.on("shop.order.placed", retry=ONCE, timeout_seconds=0.05)
    def handle(placed: Order) -> None:
        begun.append(placed.number)
        go_on.wait(60)

    try:
        async with consumer.running():
            await publisher.publish(order(0))
            await eventually_dead(publisher, "shop")
            await publisher.publish(order(1))
        assert begun == [0]
    finally:
        go_on.set()
    async with consumer.running():
        await eventually(lambda: len(begun) == 2)


async def test_a_plain_function_that_ends_an_iterator_has_failed(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    nothing: Iterator[int] = iter(())

    @consumer.on("shop.order.placed", retry=ONCE)
    def handle(placed: Order) -> None:
        next(nothing)

    async with consumer.running():
        await publisher.publish(order())
        [letter] = await eventually_dead(publisher, "shop")
    assert "StopIteration" in letter.failure.traceback


async def test_a_coroutine_behind_a_plain_decorator_is_waited_for(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)
    threads: list[int] = []

    @consumer.on("shop.order.placed")
    @decorated
    async def handle(placed: Order) -> None:
        threads.append(threading.get_ident())

    async with consumer.running():
        await publisher.publish(order())
        await eventually(lambda: threads)
    assert threads == [threading.get_ident()]


async def test_a_generator_is_refused_and_behind_a_decorator_it_has_failed(publisher: Publisher) -> None:
    consumer = Consumer("shop", publisher=publisher)

    def handle(placed: Order) -> Iterator[None]:
        yield

    with pytest.raises(ConfigurationError, match="yields"):
        consumer.on("shop.order.placed")(handle)
    consumer.on("shop.order.placed", retry=ONCE)(decorated(handle))
    async with consumer.running():
        await publisher.publish(order())
        [letter] = await eventually_dead(publisher, "shop")
    assert letter.failure.error == "TypeError"
