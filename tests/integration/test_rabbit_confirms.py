"""What stands between the socket and the driver: confirms are taken out, all else goes on."""

from __future__ import annotations

import asyncio
from unittest.mock import MagicMock, create_autospec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection
from pamqp.frame import marshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from bloodbank.errors import TransportUnavailable
from bloodbank.ids import new_event_id
from bloodbank.transports import _rabbit_confirms, _rabbit_publishing
from bloodbank.transports._rabbit_confirms import ConfirmingProtocol
from bloodbank.transports._rabbit_frames import EventFrames
from bloodbank.transports.base import Message


class Heard:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def confirmed(self, tag: int, *, multiple: bool) -> None:
        self.calls.append(("ack", tag, multiple))

    def not_confirmed(self, tag: int, *, multiple: bool) -> None:
        self.calls.append(("nack", tag, multiple))

    def returned(self, message_id: str) -> None:
        self.calls.append(("returned", message_id))

    def closing(self) -> None:
        self.calls.append(("closing",))

    def may_write(self) -> None:
        self.calls.append(("may write",))


class Received:
    """A driver's reader that keeps what reaches it."""

    def __init__(self) -> None:
        loop = asyncio.new_event_loop()
        self.reader = asyncio.StreamReader(loop=loop)
        self.protocol = ConfirmingProtocol(self.reader, loop)
        self.heard = Heard()
        self.protocol.listen(1, self.heard)
        self.protocol.connection_made(create_autospec(asyncio.Transport))
        self._loop = loop

    def feed(self, data: bytes, sizes: list[int] | None = None) -> bytes:
        """Take the bytes in pieces, and return what the driver got."""
        for size in sizes or []:
            if data:
                self.protocol.data_received(data[:size])
                data = data[size:]
        if data:
            self.protocol.data_received(data)
        self.reader.feed_eof()
        try:
            return self._loop.run_until_complete(self.reader.read())
        finally:
            self._loop.close()


def returned(message_id: str, body: bytes = b"returned body", channel: int = 1) -> bytes:
    return (
        marshal(Basic.Return(312, "NO_ROUTE", "e", "a.b"), channel)
        + marshal(ContentHeader(body_size=len(body), properties=Basic.Properties(message_id=message_id)), channel)
        + marshal(ContentBody(body), channel)
    )


TAKEN = [
    (marshal(Basic.Ack(5, False), 1), ("ack", 5, False)),
    (marshal(Basic.Ack(2**40, True), 1), ("ack", 2**40, True)),
    (marshal(Basic.Nack(6, False, False), 1), ("nack", 6, False)),
    (marshal(Basic.Nack(7, True, True), 1), ("nack", 7, True)),
    (returned("an-id"), ("returned", "an-id")),
]
PASSED = [
    marshal(Basic.Ack(5, False), 2),
    marshal(Channel.OpenOk(), 1),
    marshal(Basic.GetEmpty(), 2),
    returned("other", channel=2),
    marshal(Basic.Deliver("tag", 1, False, "e", "k"), 2)
    + marshal(ContentHeader(body_size=3000, properties=Basic.Properties(headers={"a": "b"})), 2)
    + marshal(ContentBody(b"\xce" * 3000), 2),
    marshal(Heartbeat(), 0),
]


@given(
    frames=st.lists(st.sampled_from([*TAKEN, *((frame, None) for frame in PASSED)]), max_size=12),
    sizes=st.lists(st.integers(1, 60), max_size=200),
)
def test_confirms_go_to_the_publisher_and_all_else_to_the_driver(
    frames: list[tuple[bytes, tuple[object, ...] | None]], sizes: list[int]
) -> None:
    """However the bytes are cut into pieces."""
    received = Received()
    got = received.feed(b"".join(frame for frame, _ in frames), sizes)
    assert received.heard.calls == [call for _, call in frames if call is not None]
    assert got.replace(marshal(Heartbeat(), 0), b"") == b"".join(
        frame for frame, call in frames if call is None and frame != marshal(Heartbeat(), 0)
    )


@pytest.mark.parametrize(
    "frame", [marshal(Channel.Close(406, "no", 60, 40), 1), marshal(Connection.Close(320, "going", 0, 0), 0)]
)
def test_a_close_is_told_at_once_and_goes_on_to_the_driver(frame: bytes) -> None:
    received = Received()
    assert received.feed(frame) == frame
    assert received.heard.calls == [("closing",)]


@pytest.mark.parametrize("is_closed_by_broker", [True, False])
def test_a_closed_channel_is_the_drivers_also_when_its_number_is_used_again(is_closed_by_broker: bool) -> None:
    received = Received()
    closed = marshal(Channel.Close(406, "no", 60, 40) if is_closed_by_broker else Channel.CloseOk(), 1)
    received.protocol.data_received(closed)
    if not is_closed_by_broker:
        received.protocol.forget(received.heard)
    confirm = marshal(Basic.Ack(1, False), 1)
    assert received.feed(confirm) == closed + confirm
    assert received.heard.calls == [("closing",)] * is_closed_by_broker


def test_a_channel_is_not_taken_from_who_listens_now() -> None:
    received = Received()
    received.protocol.forget(Heard())
    received.feed(marshal(Basic.Ack(1, False), 1))
    assert received.heard.calls == [("ack", 1, False)]


def test_a_blocked_connection_is_noted_and_its_end_is_told() -> None:
    received = Received()
    blocked, unblocked = marshal(Connection.Blocked("low on memory"), 0), marshal(Connection.Unblocked(), 0)
    received.protocol.data_received(blocked)
    assert received.protocol.blocked
    assert received.heard.calls == []
    assert received.feed(unblocked) == blocked + unblocked
    assert not received.protocol.blocked
    assert received.heard.calls == [("may write",)]


def test_a_full_socket_is_noted_and_its_end_is_told() -> None:
    received = Received()
    received.protocol.pause_writing()
    assert received.protocol.paused
    received.protocol.resume_writing()
    assert not received.protocol.paused
    assert received.feed(b"") == b""
    assert received.heard.calls == [("may write",)]


def test_the_driver_hears_of_a_broker_that_sends_nothing_but_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a broker for dead that it does not hear for long, and RabbitMQ sends no heartbeat beside others."""
    monkeypatch.setattr(_rabbit_confirms, "_HEARD_SECONDS", -1.0)
    received = Received()
    assert received.feed(marshal(Basic.Ack(1, False), 1)) == marshal(Heartbeat(), 0)


@pytest.mark.parametrize("answer", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_not_amqp_is_left_to_the_driver(answer: bytes) -> None:
    assert Received().feed(answer, [9, 3]) == answer


async def test_one_confirm_for_several_that_came_back_is_no_success_for_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(resource: object, callback: object) -> None:
        pass

    monkeypatch.setattr(_rabbit_publishing, "on_close", never)
    wire, channel = MagicMock(takes=True), MagicMock(number=1, max_content_size=1000)
    opened = _rabbit_publishing._OpenChannel("a broker", MagicMock(), channel, wire, EventFrames(1, "x", 1000))
    message, other = (Message(new_event_id(), "a.b", b"{}") for _ in range(2))
    confirms = [opened.loop.create_future() for _ in range(4)]
    for confirm, event in zip(confirms, (message, message, message, other), strict=True):
        opened.publish(_rabbit_publishing._Single(event, opened.loop.time() + 9, 9, confirm))
    for _ in range(2):
        opened.returned(str(message.event_id))
    opened.confirmed(4, multiple=True)
    assert [type(confirm.exception()) for confirm in confirms] == [TransportUnavailable] * 2 + [type(None)] * 2
