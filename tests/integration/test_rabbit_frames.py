"""The frames of a publish, held against the frame library, which reads them as any broker does."""

from __future__ import annotations

import time
from types import MappingProxyType
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

from bloodbank import ids
from bloodbank.errors import PublishRejected
from bloodbank.transports import _rabbit_frames
from bloodbank.transports._rabbit_frames import PUBLISHED_HEADER, EventFrames, frames, outgoing_with
from bloodbank.transports.base import Message

words = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=20)
keys = st.lists(words, min_size=2, max_size=8).map(".".join)
header_names = st.text(min_size=1, max_size=40).filter(lambda name: len(name.encode()) <= 120)


def read(frames: bytes) -> list[object]:
    """Return what the frames are, and fail when a byte is left over."""
    found: list[object] = []
    while frames:
        used, channel, frame = unmarshal(frames)
        assert channel == 7
        found.append(frame)
        frames = frames[used:]
    return found


def written(message: Message, most_bytes: int = 1000, frames_of: EventFrames | None = None) -> list[object]:
    """Return the frames of an event: method, header, bodies."""
    return read(b"".join((frames_of or EventFrames(7, "an.exchange", most_bytes)).of(message)))


def header_in(found: list[object]) -> ContentHeader:
    header = found[1]
    assert isinstance(header, ContentHeader)
    return header


@given(
    routing_key=keys,
    body=st.binary(max_size=300),
    parent=st.none() | st.uuids(),
    event_id=st.uuids(),
    app_id=st.none() | st.text(min_size=1, max_size=300),
    headers=st.dictionaries(header_names, st.text(max_size=300), max_size=4),
)
def test_every_property_arrives_as_it_was_set(
    routing_key: str, body: bytes, parent: UUID | None, event_id: UUID, app_id: str | None, headers: dict[str, str]
) -> None:
    before = time.time()
    found = written(Message(event_id, routing_key, body, b"", parent, app_id, headers))
    header = header_in(found)
    properties = header.properties
    published_ms = dict(properties.headers or {}).pop(PUBLISHED_HEADER)
    assert header.body_size == len(body)
    method = found[0]
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("an.exchange", routing_key, True)
    assert properties.headers == {**headers, PUBLISHED_HEADER: published_ms}
    assert isinstance(published_ms, int)
    assert int(before * 1000) <= published_ms <= time.time() * 1000
    assert properties.timestamp is not None
    assert properties.timestamp.timestamp() == published_ms // 1000
    assert (properties.content_type, properties.content_encoding) == ("application/json", "utf-8")
    assert properties.delivery_mode == 2
    assert properties.correlation_id == (str(parent) if parent else None)
    assert properties.message_id == str(event_id)
    assert properties.message_type == routing_key
    assert properties.app_id == (app_id.encode()[:255].decode(errors="ignore") if app_id else None)
    assert (properties.priority, properties.reply_to, properties.expiration) == (None, None, None)
    assert properties.user_id is None


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 201, 1000])
def test_a_body_is_split_into_frames_no_larger_than_agreed(size: int) -> None:
    body = bytes(n % 251 for n in range(size))
    of_event = written(Message(ids.new_event_id(), "llm.prompt", body), 100)
    of_any_kind = read(b"".join(frames(7, outgoing_with(Basic.Properties(), body, exchange="e", routing_key="k"), 100)))
    for found in (of_event, of_any_kind):
        assert header_in(found).body_size == size
        bodies = [frame.value or b"" for frame in found[2:] if isinstance(frame, ContentBody)]
        assert len(bodies) == len(found) - 2
        assert [len(body) for body in bodies] == [100] * (size // 100) + [size % 100] * bool(size % 100)
        assert b"".join(bodies) == body


constant_headers = MappingProxyType({"bloodbank-version": "2.0.0"})
messages = st.builds(
    Message,
    event_id=st.uuids(),
    routing_key=st.sampled_from(["a.b", "a.bc"]),
    body=st.binary(max_size=30),
    digest=st.just(b""),
    correlation_id=st.none() | st.uuids(),
    app_id=st.sampled_from([None, "one", "another"]),
    headers=st.sampled_from([constant_headers, MappingProxyType({"other": "value"}), {"a": "dict"}]),
)


@given(several=st.lists(messages, max_size=12))
def test_what_was_learned_of_one_event_does_not_colour_another(several: list[Message]) -> None:
    frames_of = EventFrames(7, "an.exchange", 20)
    for message in several:
        found = written(message, frames_of=frames_of)
        properties = header_in(found).properties
        assert isinstance(found[0], Basic.Publish)
        assert found[0].routing_key == message.routing_key
        assert properties.message_id == str(message.event_id)
        assert properties.correlation_id == (str(message.correlation_id) if message.correlation_id else None)
        assert properties.app_id == message.app_id
        assert dict(message.headers).items() <= dict(properties.headers or {}).items()
        assert len(properties.headers or {}) == len(message.headers) + 1
        assert b"".join(frame.value or b"" for frame in found[2:] if isinstance(frame, ContentBody)) == message.body


def test_headers_that_change_between_two_events_are_sent_as_they_are() -> None:
    frames_of, headers = EventFrames(7, "an.exchange", 100), {"n": "1"}
    message = Message(ids.new_event_id(), "a.b", b"", headers=headers)
    written(message, frames_of=frames_of)
    headers["n"] = "2"
    assert (header_in(written(message, frames_of=frames_of)).properties.headers or {})["n"] == "2"


def test_the_memory_for_shapes_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rabbit_frames, "_MOST_SHAPES", 3)
    frames_of = EventFrames(7, "an.exchange", 100)
    for number in range(10):
        message = Message(ids.new_event_id(), f"a.b{number}", b"", headers=constant_headers)
        assert header_in(written(message, frames_of=frames_of)).properties.message_type == f"a.b{number}"
        assert len(frames_of._shapes) <= 3


def test_properties_of_any_kind_are_sent_as_they_are() -> None:
    properties = Basic.Properties(
        message_id="m", headers={"n": 1, "yes": True}, delivery_mode=2, expiration="5", priority=3, reply_to="r"
    )
    sent = outgoing_with(properties, b"body", exchange="", routing_key="q")
    method, header, _ = read(b"".join(frames(7, sent, 1000)))
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("", "q", True)
    assert isinstance(header, ContentHeader)
    assert header.properties == properties
    assert sent.message_id == "m"


@pytest.mark.parametrize(
    "message",
    [
        Message(ids.new_event_id(), "k" * 256, b""),
        Message(ids.new_event_id(), "llm.prompt", b"", headers={"n" * 256: "v"}),
        Message(ids.new_event_id(), "llm.prompt", b"", headers={"name": "\ud800"}),
    ],
)
def test_what_amqp_cannot_carry_is_refused_before_anything_is_sent(message: Message) -> None:
    with pytest.raises(PublishRejected, match="was not sent"):
        written(message)


def test_a_name_that_amqp_cannot_carry_is_refused() -> None:
    with pytest.raises(PublishRejected, match="was not sent"):
        EventFrames(7, "e" * 256, 100).of(Message(ids.new_event_id(), "llm.prompt", b""))
    with pytest.raises(PublishRejected, match="was not sent"):
        outgoing_with(Basic.Properties(message_id="m" * 256), b"", exchange="", routing_key="q")
    with pytest.raises(PublishRejected, match="was not sent"):
        frames(7, outgoing_with(Basic.Properties(), b"", exchange="e" * 256, routing_key="q"), 100)
