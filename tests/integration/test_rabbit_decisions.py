"""What the RabbitMQ transport decides without a broker."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime
from uuid import UUID, uuid5

import aiormq.exceptions
import pamqp.exceptions
import pytest
from aiormq.abc import DeliveredMessage
from aiormq.connection import FrameReceiver
from hypothesis import given
from hypothesis import strategies as st
from pamqp import base, commands
from pamqp.header import ContentHeader

from bloodbank import ids
from bloodbank.config import Settings
from bloodbank.errors import ConfigurationError, InvalidQuery, NotOpen, TransportUnavailable
from bloodbank.transports import _amqp
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._rabbit_log import Start
from bloodbank.transports._rabbit_publishing import Sent, refused
from bloodbank.transports.base import Message
from bloodbank.transports.rabbit import RabbitTransport


def driver_exceptions() -> list[type[Exception]]:
    found = inspect.getmembers(aiormq.exceptions, inspect.isclass)
    return [kind for _, kind in found if issubclass(kind, Exception) and kind.__module__ == "aiormq.exceptions"]


@pytest.mark.parametrize("kind", driver_exceptions(), ids=lambda kind: kind.__name__)
def test_every_exception_of_the_driver_has_a_meaning_of_its_own(kind: type[Exception]) -> None:
    assert kind in _amqp.MEANINGS


@pytest.mark.parametrize(
    "kind",
    [kind for _, kind in inspect.getmembers(pamqp.exceptions, inspect.isclass) if issubclass(kind, Exception)],
    ids=lambda kind: kind.__name__,
)
async def test_every_exception_of_the_frame_library_is_translated(kind: type[Exception]) -> None:
    with pytest.raises(TransportUnavailable), _amqp.translated("do it"):
        raise kind


def test_the_driver_has_exceptions_to_list() -> None:
    assert len(driver_exceptions()) > 20


@pytest.mark.parametrize("kind", [ConnectionResetError, TimeoutError, asyncio.CancelledError])
async def test_what_ends_a_call_from_outside_is_translated(kind: type[BaseException]) -> None:
    """The driver raises CancelledError for calls on a closed channel, without any cancellation."""
    with pytest.raises(TransportUnavailable, match="Cannot subscribe"), _amqp.translated("subscribe"):
        raise kind


async def test_what_the_driver_ends_without_a_reason_is_translated_and_an_error_of_ours_is_not() -> None:
    """It raises Exception itself for what waits on a connection that is closed without one."""
    with pytest.raises(TransportUnavailable, match=r"there is no connection \(closed\)"), _amqp.translated("subscribe"):
        raise Exception
    with pytest.raises(ZeroDivisionError), _amqp.translated("subscribe"):
        raise ZeroDivisionError


async def test_a_cancellation_is_one_also_where_the_driver_makes_something_else_of_it() -> None:
    """As it does when the connection is lost at the same moment. Swallowed, it left a task that nobody could end."""

    async def call() -> None:
        with _amqp.translated("subscribe"):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                raise aiormq.exceptions.AMQPConnectionError("closed") from error

    calling = asyncio.create_task(call())
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait({calling})
    assert calling.cancelled()


async def test_a_real_cancellation_is_not_translated() -> None:
    started = asyncio.Event()

    async def wait() -> None:
        with _amqp.translated("wait"):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_programming_error_is_not_translated() -> None:
    with pytest.raises(KeyError), _amqp.translated("do it"):
        raise KeyError


def test_the_reason_of_the_broker_is_told() -> None:
    error = aiormq.exceptions.ChannelAccessRefused("ACCESS_REFUSED - access to exchange 'x' refused")
    assert _amqp.explain(error) == ("the user lacks a permission (ACCESS_REFUSED - access to exchange 'x' refused)")


@pytest.mark.parametrize("received", [b"", b"\x01\x00"])
async def test_a_connection_that_ends_is_told_without_counts_of_bytes(received: bytes) -> None:
    reader = asyncio.StreamReader()
    frames = FrameReceiver(reader)
    waiting = asyncio.ensure_future(frames.get_frame())
    await asyncio.sleep(0)
    reader.feed_data(received)
    reader.feed_eof()
    with pytest.raises(aiormq.exceptions.AMQPConnectionError) as caught:
        await waiting
    assert _amqp.explain(caught.value) == "the connection was lost"


TOO_LARGE = "message size 2000 is larger than configured max size 1000"
TOPIC = "access to topic 'a.b' in exchange 'e' in vhost '/' refused for user 'u'"
EXCHANGE = "access to exchange 'e' in vhost '/' refused for user 'u'"
DEFAULT = "access to exchange 'amq.default' in vhost '/' refused for user 'u'"


@pytest.mark.parametrize(
    ("reason", "is_new", "sent", "meant"),
    [
        (TOO_LARGE, False, [("e", "a.b", 900), ("e", "a.b", 2000), ("e", "a.b", 1000)], {1}),
        (TOO_LARGE, True, [("e", "a.b", 900)], set()),
        (TOPIC, False, [("e", "a.c", 1), ("e", "a.b", 1), ("e", "a.c", 1)], {1}),
        (TOPIC, True, [("e", "a.c", 1)], set()),
        (EXCHANGE, True, [("e", "a.b", 1)] * 3, {0, 1, 2}),
        (EXCHANGE, False, [("e", "a.b", 1)] * 3, {2}),
        (EXCHANGE, True, [("e", "a.b", 1), ("amq.default", "a.b", 1)], {0}),
        (DEFAULT, True, [("e", "a.b", 1), ("amq.default", "a.b", 1)], {1}),
        ("something else", True, [("e", "a.b", 1)], {0}),
        ("something else", True, [("e", "a.b", 1)] * 2, set()),
    ],
)
def test_a_refusal_is_blamed_on_the_message_it_means(
    reason: str, is_new: bool, sent: list[tuple[str, str, int]], meant: set[int]
) -> None:
    assert refused(reason, [Sent(*one) for one in sent], is_new=is_new) == meant


@given(st.floats(min_value=0, max_value=wire.LONGEST_RETRY_SECONDS))
def test_a_delay_is_rounded_up_by_a_fifth_at_most(delay_seconds: float) -> None:
    bucket = wire.retry_bucket_ms(delay_seconds)
    assert bucket >= delay_seconds * 1000 * (1 - 1e-6)
    assert bucket <= max(wire.SHORTEST_RETRY_MS, delay_seconds * 1000 * 1.2 + 1)


def test_all_delays_up_to_a_month_need_few_queues() -> None:
    assert len({wire.retry_bucket_ms(seconds / 10) for seconds in range(30 * 86_400 * 10 // 1000)}) < 120


@pytest.mark.parametrize("delay_seconds", [-1, float("nan"), float("inf"), wire.LONGEST_RETRY_SECONDS + 1])
def test_an_impossible_delay_is_refused(delay_seconds: float) -> None:
    with pytest.raises(InvalidQuery, match="delay"):
        wire.retry_bucket_ms(delay_seconds)


def test_the_names_follow_from_the_exchange() -> None:
    names = wire.Names("bloodbank.events.v1")
    assert (names.log, names.dead, names.group("billing")) == ("bloodbank.log", "bloodbank.dead", "bloodbank.billing")
    assert wire.Names("other").log == "other.log"


@pytest.mark.parametrize("group", ["log", "dead", "", "a b", "x" * 250, "a..b", "ä"])
def test_a_name_that_cannot_be_a_group_is_refused(group: str) -> None:
    with pytest.raises(InvalidQuery, match="group"):
        wire.Names("bloodbank.events.v1").group(group)


def delivered(
    body: bytes = b"{}",
    *,
    redelivered: bool = False,
    headers: dict[str, base.FieldValue] | None = None,
    **properties: str,
) -> DeliveredMessage:
    return DeliveredMessage(
        delivery=commands.Basic.Deliver("tag", 1, redelivered, "exchange", "a.b"),
        header=ContentHeader(properties=commands.Basic.Properties(headers=headers, **properties)),
        body=body,
        channel=None,
    )


def test_a_foreign_message_without_a_uuid_gets_an_id_of_its_body() -> None:
    assert wire.message_of(delivered(b'{"a":1}')).event_id == uuid5(ids.NAMESPACE, '{"a":1}')
    assert wire.message_of(delivered(b'{"a":1}', message_id="17")).event_id == uuid5(ids.NAMESPACE, '{"a":1}')
    assert wire.message_of(delivered(b"\xff\x00")).event_id.version == 5


@pytest.mark.parametrize(
    ("redelivered", "headers", "attempt"),
    [
        (False, {}, 1),
        (True, {}, 2),
        (True, {"x-delivery-count": 3}, 4),
        (False, {wire.ATTEMPTS_HEADER: 2}, 3),
        (True, {wire.ATTEMPTS_HEADER: 2, "x-delivery-count": 1}, 4),
        (False, {wire.ATTEMPTS_HEADER: "two"}, 1),
    ],
)
def test_attempts_count_retries_and_lost_consumers(
    redelivered: bool, headers: dict[str, base.FieldValue], attempt: int
) -> None:
    assert wire.attempt_from(headers or {}, redelivered=redelivered) == attempt


def test_headers_of_the_broker_and_of_the_transport_are_not_the_message() -> None:
    headers: dict[str, base.FieldValue] = {
        "x-death": "y",
        "bloodbank-version": "2.0.0",
        "n": 1,
        wire.ROUTING_KEY_HEADER: "c.d",
    }
    message = wire.message_of(delivered(headers=headers))
    assert message.headers == {"bloodbank-version": "2.0.0"}
    assert message.routing_key == "c.d"


def test_the_time_of_publishing_is_kept_to_the_millisecond() -> None:
    assert wire.published_at(delivered(headers={wire.PUBLISHED_HEADER: 1_700_000_000_123})) == datetime.fromtimestamp(
        1_700_000_000.123, UTC
    )
    assert wire.published_at(delivered(headers={wire.PUBLISHED_HEADER: 2**60})) is None
    assert wire.published_at(delivered()) is None


@pytest.mark.parametrize(
    ("after", "end", "lowest"), [(None, 9, 0), (0, 9, 1), (4, 9, 5), (-1, 9, 9), (-3, 9, 7), (-30, 9, 0)]
)
def test_a_reader_begins_behind_a_position_or_before_the_end(after: int | None, end: int, lowest: int) -> None:
    assert Start(after=after).lowest(end) == lowest


def test_a_transport_without_a_url_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="RABBIT_URL"):
        RabbitTransport(Settings(_env_file=None, rabbit_url=None))


async def test_a_transport_that_is_not_open_says_so() -> None:
    transport = RabbitTransport(Settings(_env_file=None, rabbit_url="amqp://localhost:1"))
    with pytest.raises(NotOpen):
        await transport.publish(Message(UUID(int=1), "a.b", b""), timeout_seconds=1)
    with pytest.raises(NotOpen):
        await transport.check(timeout_seconds=1)
    with pytest.raises(NotOpen):
        await anext(aiter(transport.read_log()))


@pytest.mark.parametrize(("pattern", "prefetch"), [("", 1), ("a..b", 1), ("a.b", 0), ("a.b", 70_000)])
def test_a_subscription_that_cannot_be_is_refused(pattern: str, prefetch: int) -> None:
    transport = RabbitTransport(Settings(_env_file=None, rabbit_url="amqp://localhost:1"))
    with pytest.raises(InvalidQuery):
        transport.subscribe(pattern, group=None, prefetch=prefetch)
