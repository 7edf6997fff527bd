"""The frames of a publish, held against the frame library, which reads them as any broker does."""

from __future__ import annotations

import time
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
from bloodbank.transports._rabbit_frames import (
    PUBLISHED_HEADER,
    Outgoing,
    content,
    outgoing,
    outgoing_with,
    publish_method,
)
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


def header_of(sent: Outgoing, most_bytes: int = 1000) -> ContentHeader:
    header = read(b"".join(content(7, sent.properties, sent.body, most_bytes)))[0]
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
    sent = outgoing(Message(event_id, routing_key, body, b"", parent, app_id, headers), "an.exchange")
    header = header_of(sent)
    properties = header.properties
    published_ms = dict(properties.headers or {}).pop(PUBLISHED_HEADER)
    assert header.body_size == len(body)
    assert (sent.exchange, sent.routing_key, sent.message_id) == ("an.exchange", routing_key, str(event_id))
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
    sent = outgoing(Message(ids.new_event_id(), "llm.prompt", body), "e")
    header, *bodies = read(b"".join(content(7, sent.properties, body, 100)))
    assert isinstance(header, ContentHeader)
    assert header.body_size == size
    assert [len(frame.value or b"") for frame in bodies if isinstance(frame, ContentBody)] == (
        [100] * (size // 100) + [size % 100] * bool(size % 100)
    )
    assert b"".join(frame.value or b"" for frame in bodies if isinstance(frame, ContentBody)) == body


def test_a_publish_is_mandatory_and_names_its_exchange_and_key() -> None:
    (method,) = read(publish_method(7, "an.exchange", "llm.prompt"))
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("an.exchange", "llm.prompt", True)


def test_properties_of_any_kind_are_sent_as_they_are() -> None:
    properties = Basic.Properties(
        message_id="m", headers={"n": 1, "yes": True}, delivery_mode=2, expiration="5", priority=3, reply_to="r"
    )
    sent = outgoing_with(properties, b"body", exchange="", routing_key="q")
    assert header_of(sent).properties == properties
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
        outgoing(message, "e")


def test_a_name_that_amqp_cannot_carry_is_refused() -> None:
    with pytest.raises(PublishRejected, match="was not sent"):
        publish_method(7, "e" * 256, "llm.prompt")
    with pytest.raises(PublishRejected, match="was not sent"):
        outgoing_with(Basic.Properties(message_id="m" * 256), b"", exchange="", routing_key="q")
