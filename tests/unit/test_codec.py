"""Envelope to message and back: nothing changes on the way, and what would is refused."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from bloodbank.codec import VERSION_HEADER, decode, digest, encode, is_plain
from bloodbank.envelope import AgentContext, EventEnvelope, Source, TriggerType, create_envelope
from bloodbank.errors import InvalidEvent
from bloodbank.events import LLMPrompt
from bloodbank.ids import new_event_id
from bloodbank.transports._rabbit_frames import EventFrames

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text('abcdefghijklmnopqrstuvwxyz "\\äß', min_size=1, max_size=8)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)


@given(OBJECTS, st.lists(st.uuids(), max_size=3))
def test_what_goes_in_comes_out(payload: dict[str, Any], parents: list[Any]) -> None:
    envelope = create_envelope(
        "a.b",
        payload,
        source=Source(host="höst", type=TriggerType.HOOK, app="app", meta=payload),
        correlation_ids=parents,
        agent_context=AgentContext(type="letta", meta=payload),
    )
    decoded = decode(encode(envelope).body)
    assert decoded == envelope
    assert repr(decoded.payload) == repr(payload), "1 and 1.0 and True are equal, and not the same"


class Aliased(BaseModel):
    amount: int = Field(serialization_alias="amountCents")
    at: datetime
    blob: bytes = b"x"


@given(
    payload=OBJECTS | st.builds(Aliased, amount=st.integers(), at=st.datetimes(timezones=st.just(UTC))),
    parents=st.lists(st.uuids(), max_size=3, unique=True),
    at=st.datetimes(timezones=st.just(UTC)),
    app=st.none() | NAMES,
    meta=st.none() | OBJECTS,
    context=st.none() | st.builds(AgentContext, type=NAMES, meta=st.none() | OBJECTS),
)
def test_the_bytes_are_those_that_pydantic_writes(
    payload: Any, parents: list[Any], at: datetime, app: str | None, meta: Any, context: AgentContext | None
) -> None:
    source = Source(host="höst", type=TriggerType.AGENT, app=app, meta=meta)
    assume(not isinstance(payload, Aliased) or -(2**63) <= payload.amount < 2**64)
    envelope = create_envelope("a.b", payload, source, parents, context, timestamp=at)
    message = encode(envelope)
    assert message.body == envelope.model_dump_json().encode()
    assert message.digest == digest(message.body)
    assert encode(envelope, with_digest=False) == message


def test_an_envelope_of_a_class_of_its_own_is_written_whole() -> None:
    typed = EventEnvelope[LLMPrompt](
        event_type="llm.prompt", source=Source.local(), payload=LLMPrompt(provider="a", prompt="b")
    )
    assert encode(typed).body == typed.model_dump_json().encode()


@pytest.mark.parametrize(
    ("json", "plain"),
    [
        (b'{"a":"New and New","b":"I, Ivan","n":123456789012345678}', True),
        (b'{"a":1234567890123456789}', False),
        (b'{"a":NaN}', False),
        (b'{"a":"Ivy said no: New and New"}', True),
        (b'{"a":-Infinity}', False),
        (b'{"a":"%s"}' % (b"Ivory and New Amsterdam, nothing else. " * 200), True),
        (b'{"a":"%s","b":NaN}' % (b"x" * 5000), False),
        (b'{"a":"%s","b":Infinity}' % (b"x" * 5000), False),
        (b'{"a":"%s","b":99999999999999999999}' % (b"x" * 5000), False),
        (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", False),
    ],
)
def test_what_a_digest_refuses_is_never_plain(json: bytes, plain: bool) -> None:
    assert is_plain(json) is plain


def test_a_message_has_its_properties_from_the_envelope() -> None:
    first, second = uuid4(), uuid4()
    envelope = create_envelope(
        "llm.error", {"provider": "x", "error_message": "y"}, Source.local("app"), [first, second]
    )
    message = encode(envelope)
    assert (message.event_id, message.routing_key) == (envelope.event_id, "llm.error")
    assert (message.correlation_id, message.app_id) == (first, "app")
    assert message.headers == {VERSION_HEADER: "2.0.0"}
    assert message.digest == digest(message.body)
    assert json.loads(message.body)["correlation_ids"] == [str(first), str(second)]


def test_a_root_has_no_correlation_id() -> None:
    assert encode(create_envelope("a.b", {})).correlation_id is None


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"d": value}
    return value


def circle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["itself"] = value
    return value


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        [math.inf],
        {"deep": -math.inf},
        "\ud800",
        {"\ud800": 1},
        2**64,
        -(2**63) - 1,
        10**400,
        b"\xff",
        object(),
        circle(),
        deep(1000),
    ],
    ids=[
        "nan",
        "infinity",
        "deep infinity",
        "surrogate",
        "surrogate key",
        "2**64",
        "below -2**63",
        "10**400",
        "bytes",
        "object",
        "circle",
        "too deep",
    ],
)
@pytest.mark.parametrize("place", ["payload", "model", "source", "agent"])
def test_what_json_cannot_hold_is_refused(place: str, value: object) -> None:
    held = {"value": value}
    payloads = {"payload": ("a.b", held), "model": ("llm.prompt", {"provider": "x", "prompt": "y", "metadata": held})}
    event_type, payload = payloads.get(place, ("a.b", {}))
    envelope = create_envelope(
        event_type,
        payload,
        source=Source(host="h", type=TriggerType.AGENT, meta=held) if place == "source" else None,
        agent_context=AgentContext(type="letta", meta=held) if place == "agent" else None,
    )
    with pytest.raises(InvalidEvent, match="Nothing was published"):
        encode(envelope)


@pytest.mark.parametrize(
    "value", [2**64 - 1, -(2**63), 5e-324, 1.7976931348623157e308, "\x00", "\U0010ffff", deep(150)]
)
def test_the_extremes_of_json_are_kept(value: object) -> None:
    assert decode(encode(create_envelope("a.b", {"v": value})).body).payload == {"v": value}


def test_parents_that_were_added_behind_the_envelope_are_refused() -> None:
    envelope = create_envelope("a.b", {})
    envelope.correlation_ids.append(envelope.event_id)
    with pytest.raises(InvalidEvent, match="correlation_ids"):
        encode(envelope)
    envelope.correlation_ids[:] = [new_event_id() for _ in range(65)]
    with pytest.raises(InvalidEvent, match="65 parents"):
        encode(envelope)


def digest_of(payload: dict[str, Any], **changes: Any) -> bytes:
    return encode(create_envelope("a.b", payload, **changes)).digest


@pytest.mark.parametrize("other", ["xyz", "528f59a0-1266-4676-9bf2-ebfadfbfe3ea", 7, None])
def test_ids_that_became_something_else_behind_the_envelope_are_refused(other: Any) -> None:
    child = create_envelope("a.b", {}, correlation_ids=[uuid4()])
    child.correlation_ids[0] = other
    for envelope in (child, create_envelope("a.b", {}).model_copy(update={"event_id": other})):
        with pytest.raises(InvalidEvent, match="no UUID"):
            encode(envelope)


@pytest.mark.parametrize("with_digest", [True, False])
def test_subclasses_of_uuid_and_datetime_are_written_as_these(with_digest: bool) -> None:
    class OwnUUID(UUID):
        pass

    class OwnTime(datetime):
        pass

    event_id, parent = uuid4(), uuid4()
    plain = create_envelope(
        "a.b", {}, event_id=event_id, correlation_ids=[parent], timestamp=datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    )
    own = create_envelope(
        "a.b",
        {},
        event_id=OwnUUID(int=event_id.int),
        correlation_ids=[OwnUUID(int=parent.int)],
        timestamp=OwnTime(2026, 1, 2, 3, 4, 5, 6, UTC),
    )
    assert (type(own.event_id), type(own.timestamp)) == (OwnUUID, OwnTime)
    assert encode(own, with_digest=with_digest) == encode(plain, with_digest=with_digest)
    assert encode(own).digest == encode(plain).digest
    written = encode(own, with_digest=with_digest)
    assert EventFrames(1, "x", 1000).of(written)[0].count(str(event_id).encode()) == 1


@given(OBJECTS)
def test_the_order_of_keys_the_time_and_the_source_do_not_change_a_digest(payload: dict[str, Any]) -> None:
    turned = dict(reversed(payload.items()))
    elsewhere = Source(host="elsewhere", type=TriggerType.AGENT, meta={"x": 1})
    other = digest_of(turned, source=elsewhere, timestamp=datetime(2020, 1, 1, tzinfo=UTC), event_id=uuid4())
    assert digest_of(payload) == other


@given(OBJECTS, OBJECTS)
def test_other_payloads_have_other_digests(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest_of(one) == digest_of(other)) is same


def test_type_parents_and_agent_belong_to_the_digest() -> None:
    one, two = uuid4(), uuid4()
    digests = {
        digest_of({}),
        encode(create_envelope("a.c", {})).digest,
        digest_of({}, correlation_ids=[one]),
        digest_of({}, correlation_ids=[one, two]),
        digest_of({}, correlation_ids=[two, one]),
        digest_of({}, agent_context=AgentContext(type="letta")),
    }
    assert len(digests) == 6
    assert {len(found) for found in digests} == {16}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"nul", b"[]", b'"text"', b"null", b"1", b'{"a":' * 2000, b'{"event_type":"a.b"}'],
)
def test_bytes_that_are_no_envelope_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidEvent):
        decode(body)


def test_an_envelope_of_version_1_is_upgraded_on_reading() -> None:
    body = json.dumps({"event_type": "a.b", "id": str(uuid4()), "source": "old", "data": {"x": 1}}).encode()
    assert decode(body).payload == {"x": 1}


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    with pytest.raises(InvalidEvent):
        decode(body)
