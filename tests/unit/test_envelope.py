"""Every rule of envelope 2.0.0, and what version 1 and the calls of version 2 become."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bloodbank.causation import caused_by
from bloodbank.envelope import (
    MAX_PARENTS,
    AgentContext,
    AnyEnvelope,
    EventEnvelope,
    Source,
    TriggerType,
    create_envelope,
    envelope_for,
    envelope_from_v2_call,
    read_envelope,
    with_payload,
)
from bloodbank.errors import InvalidEvent
from bloodbank.events import EventRegistry, LLMPrompt
from bloodbank.ids import event_id

SOURCE: dict[str, Any] = {"host": "box", "type": "agent", "app": "writer"}
PROMPT: dict[str, Any] = {"provider": "anthropic", "prompt": "hello"}


def fields(**changes: object) -> dict[str, Any]:
    return {"event_type": "llm.prompt", "source": SOURCE, "payload": PROMPT} | changes


def problem_of(changes: dict[str, object]) -> str:
    """Return the path of the one thing that is wrong."""
    with pytest.raises(InvalidEvent) as caught:
        read_envelope(fields(**changes))
    assert "Nothing was published" in str(caught.value)
    [(path, message)] = caught.value.problems
    assert message
    return path


def test_what_is_left_out_gets_its_default() -> None:
    envelope = read_envelope(fields())
    assert envelope.event_id.version == 7
    assert envelope.version == "2.0.0"
    assert envelope.correlation_ids == []
    assert envelope.correlation_id is None
    assert envelope.agent_context is None
    assert datetime.now(UTC) - envelope.timestamp < timedelta(minutes=1)


@pytest.mark.parametrize("event_type", ["a.b", "a.b.c.d.e.f.g.h", "llm-2.x_y", "0.1", "a." + "b" * 253])
def test_types_that_are_allowed(event_type: str) -> None:
    assert read_envelope(fields(event_type=event_type)).event_type == event_type


@pytest.mark.parametrize(
    "event_type",
    [
        "",
        "a",
        "a.b.c.d.e.f.g.h.i",
        "A.b",
        "a.b ",
        "a.b\n",
        "a..b",
        ".a.b",
        "a.b.",
        "a.é",
        "a.b\x00",
        "a.*",
        "a.#",
        "a." + "b" * 254,
        None,
        1,
        ["a.b"],
    ],
    ids=repr,
)
def test_types_that_are_refused(event_type: object) -> None:
    assert problem_of({"event_type": event_type}) == "event_type"


@given(st.text(max_size=20))
def test_any_type_that_is_taken_is_a_routing_key(text: str) -> None:
    try:
        envelope = read_envelope(fields(event_type=text))
    except InvalidEvent:
        return
    words = envelope.event_type.split(".")
    assert 2 <= len(words) <= 8
    assert all(words)
    assert len(text.encode()) <= 255


def test_times_are_kept_in_utc() -> None:
    envelope = read_envelope(fields(timestamp="2026-03-01T12:00:00+02:00"))
    assert envelope.timestamp == datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert envelope.timestamp.tzinfo is UTC


@pytest.mark.parametrize(
    "timestamp",
    ["2026-03-01T12:00:00", "yesterday", "9999-12-31T23:59:59-10:00", "0001-01-01T00:00:00+10:00", None],
)
def test_times_without_zone_or_beyond_the_calendar_are_refused(timestamp: object) -> None:
    assert problem_of({"timestamp": timestamp}) == "timestamp"


def test_parents_keep_their_order_and_lose_duplicates() -> None:
    one, two, three = uuid4(), uuid4(), uuid4()
    envelope = read_envelope(fields(correlation_ids=[str(two), str(one), str(two).upper(), str(three), one]))
    assert envelope.correlation_ids == [two, one, three]
    assert envelope.correlation_id == two


def test_the_limit_of_parents_counts_each_once() -> None:
    parents = [uuid4() for _ in range(MAX_PARENTS)]
    assert len(read_envelope(fields(correlation_ids=parents * 2)).correlation_ids) == 64
    assert problem_of({"correlation_ids": [*parents, uuid4()]}) == "correlation_ids"


def test_an_event_cannot_be_its_own_parent() -> None:
    own = uuid4()
    with pytest.raises(InvalidEvent, match="its own parent"):
        read_envelope(fields(event_id=str(own), correlation_ids=[str(uuid4()), str(own)]))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"event_id": "no-uuid"}, "event_id"),
        ({"correlation_ids": ["no-uuid"]}, "correlation_ids.0"),
        ({"correlation_ids": None}, "correlation_ids"),
        ({"version": "3.0.0"}, "version"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"correlation_id": "8a37504a-78ba-4f4d-b045-7311ef3ddd21"}, "correlation_id"),
        ({"source": None}, "source"),
        ({"source": SOURCE | {"type": "magic"}}, "source.type"),
        ({"source": SOURCE | {"host": ""}}, "source.host"),
        ({"source": SOURCE | {"host": "a\x00b"}}, "source.host"),
        ({"source": SOURCE | {"app": "a\nb"}}, "source.app"),
        ({"source": SOURCE | {"app": "a" * 256}}, "source.app"),
        ({"source": SOURCE | {"app": "\ud800"}}, "source.app"),
        ({"source": SOURCE | {"colour": "red"}}, "source.colour"),
        ({"source": SOURCE | {"meta": [1]}}, "source.meta"),
        ({"agent_context": {}}, "agent_context.type"),
        ({"agent_context": {"type": "letta", "mood": "good"}}, "agent_context.mood"),
        ({"agent_context": {"type": "letta", "code_state": {"commit": "x"}}}, "agent_context.code_state.commit"),
    ],
    ids=repr,
)
def test_each_wrong_field_is_named(changes: dict[str, object], path: str) -> None:
    assert problem_of(changes) == path


@pytest.mark.parametrize("payload", [None, [], "text", 1, True])
def test_a_payload_that_is_no_object_is_refused(payload: object) -> None:
    with pytest.raises(InvalidEvent, match="payload must be a JSON object"):
        read_envelope(fields(payload=payload))


def test_a_missing_payload_is_named() -> None:
    with pytest.raises(InvalidEvent) as caught:
        read_envelope({"event_type": "a.b", "source": SOURCE})
    assert caught.value.problems == (("payload", "Field required"),)


def test_the_whole_agent_context_is_kept() -> None:
    context = {
        "type": "claude-code",
        "name": "writer",
        "system_prompt": "Be brief.",
        "instance_id": "run-7",
        "mcp_servers": ["files"],
        "file_references": ["a.py"],
        "url_references": ["https://example.org"],
        "code_state": {
            "repo_url": "https://example.org/r.git",
            "branch": "main",
            "working_diff": "+1",
            "branch_diff": "+2",
            "last_commit_hash": "abc",
        },
        "checkpoint_id": "c1",
        "meta": {"any": ["thing"]},
    }
    found = read_envelope(fields(agent_context=context)).agent_context
    assert found is not None
    assert found.model_dump() == context


def test_an_envelope_is_frozen() -> None:
    envelope = read_envelope(fields())
    with pytest.raises(ValidationError, match="frozen"):
        envelope.event_type = "a.b"  # pyright: ignore[reportAttributeAccessIssue]


def test_an_envelope_can_be_read_with_its_payload_typed() -> None:
    envelope = EventEnvelope[LLMPrompt].model_validate(fields())
    assert envelope.payload.prompt == "hello"
    with pytest.raises(ValidationError, match=r"payload\.prompt"):
        EventEnvelope[LLMPrompt].model_validate(fields(payload={"provider": "anthropic"}))


def test_the_error_repeats_no_secret_of_the_payload() -> None:
    with pytest.raises(InvalidEvent) as caught:
        create_envelope("llm.prompt", {"provider": "x", "prompt": ["s3cret"]})
    assert "s3cret" not in str(caught.value) + repr(caught.value.problems)


def test_a_made_envelope_comes_from_this_machine_by_hand() -> None:
    envelope = create_envelope("a.b", {})
    assert envelope.source == Source.local()
    assert envelope.source.type is TriggerType.MANUAL


def test_a_made_envelope_has_its_payload_checked_and_typed() -> None:
    assert create_envelope("llm.prompt", PROMPT).payload == LLMPrompt(provider="anthropic", prompt="hello")
    with pytest.raises(InvalidEvent) as caught:
        create_envelope("llm.prompt", {"provider": "anthropic"})
    assert caught.value.problems == (("payload.prompt", "Field required"),)


PARENTS = st.lists(st.uuids() | st.uuids().map(str), max_size=4)


@given(
    event_type=st.sampled_from(["llm.prompt", "a.b", "no type", "x", 7]),
    source=st.none() | st.sampled_from([Source(host="h", type=TriggerType.HOOK), SOURCE, "no source"]),
    parents=PARENTS | st.lists(st.uuids(), min_size=63, max_size=66),
    context=st.none() | st.sampled_from([AgentContext(type="letta"), {"type": "letta"}, {}]),
    own_id=st.none() | st.uuids() | st.just("no id"),
    is_own_parent=st.booleans(),
)
def test_an_envelope_that_is_made_without_pydantic_is_the_one_that_pydantic_makes(
    event_type: Any, source: Any, parents: list[Any], context: Any, own_id: Any, is_own_parent: bool
) -> None:
    if is_own_parent and own_id is not None:
        parents = [*parents, own_id]

    def made(**more: Any) -> EventEnvelope[Any] | list[tuple[str, str]]:
        try:
            return create_envelope(event_type, PROMPT, source, parents, context, own_id, **more)
        except InvalidEvent as error:
            return list(error.problems)

    quick, checked = made(), made(timestamp=datetime.now(UTC))  # a time of its own goes through pydantic
    if isinstance(quick, list) or isinstance(checked, list):
        assert quick == checked
        return
    assert quick.model_fields_set | {"timestamp"} == checked.model_fields_set
    assert quick.event_id == own_id or (own_id is None and quick.event_id.version == 7)
    same = {"event_id": checked.event_id, "timestamp": checked.timestamp}
    again = quick.model_copy(update=same)
    assert again == checked
    assert again.model_dump_json() == checked.model_dump_json()
    assert list(vars(quick)) == list(vars(checked)), "fields in the order of the class"
    assert type(quick) is type(checked)
    with pytest.raises(ValidationError, match="frozen"):
        quick.event_type = "c.d"


def test_everything_can_be_given() -> None:
    source, agent, own, parent = Source.local("app"), AgentContext(type="letta"), uuid4(), uuid4()
    at = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    envelope = create_envelope("a.b", {"x": 1}, source, [parent], agent, own, timestamp=at)
    assert (envelope.source, envelope.agent_context, envelope.event_id) == (source, agent, own)
    assert envelope.correlation_ids == [parent]
    assert envelope.timestamp == at


def test_what_is_being_handled_is_added_to_the_named_parents() -> None:
    named, handled = uuid4(), uuid4()
    with caused_by(handled, named):
        assert create_envelope("a.b", {}, correlation_ids=[named]).correlation_ids == [named, handled]


@pytest.mark.parametrize("event_type", ["nodots", "x" * 100_000, 3])
def test_a_wrong_type_is_refused_in_few_words(event_type: Any) -> None:
    with pytest.raises(InvalidEvent) as caught:
        create_envelope(event_type, {})
    assert len(str(caught.value)) < 600


def test_the_arguments_of_version_1_still_make_an_envelope() -> None:
    parent = uuid4()
    envelope = envelope_for("a.b", "writer", {"x": 1}, parent)
    assert envelope.source.app == "writer"
    assert envelope.correlation_ids == [parent]
    assert envelope_for("a.b", "writer", {}).correlation_ids == []


def test_an_envelope_of_version_1_is_upgraded() -> None:
    own, parent = uuid4(), uuid4()
    envelope = read_envelope(
        {
            "id": str(own),
            "event_type": "llm.prompt",
            "ts": "2025-01-02T03:04:05Z",
            "version": "1.0.0",
            "source": "writer",
            "correlation_id": str(parent),
            "data": {"x": 1},
            "trace": "t-1",
        }
    )
    assert envelope.event_id == own
    assert envelope.timestamp == datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert envelope.version == "2.0.0"
    assert envelope.correlation_ids == [parent]
    assert envelope.payload == {"x": 1}
    assert envelope.source.app == "writer"
    assert envelope.source.meta == {"upgraded_from": "1", "trace": "t-1"}


def test_ids_of_version_1_that_are_no_uuids_keep_their_edges() -> None:
    cause = read_envelope({"event_type": "a.b", "id": "order-7", "data": {}})
    effect = read_envelope({"event_type": "a.b", "id": "order-8", "correlation_id": "order-7", "data": {}})
    assert effect.correlation_ids == [cause.event_id]
    assert cause.event_id == event_id("bloodbank.v1", id="order-7") == UUID("1b0477b3-21be-581e-b28c-d84e7285a2da")


@pytest.mark.parametrize("wrong", [{"data": [1]}, {"ts": "2025-01-02T03:04:05"}, {"source": "a\nb"}])
def test_a_wrong_envelope_of_version_1_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidEvent):
        read_envelope({"event_type": "a.b", "data": {}} | wrong)


def v2_call(routing_key: str, body: dict[str, Any], **changes: Any) -> EventEnvelope[Any]:
    arguments: dict[str, Any] = {
        "event_id": None,
        "parent_event_ids": None,
        "correlation_metadata": None,
        "source": Source.local("writer"),
        "registry": EventRegistry(),
    }
    return envelope_from_v2_call(routing_key, body, **arguments | changes)


def test_a_call_of_version_2_with_a_bare_payload() -> None:
    own, parent = uuid4(), uuid4()
    envelope = v2_call("llm.prompt", PROMPT, event_id=str(own), parent_event_ids=[str(parent)])
    assert envelope.event_id == own
    assert envelope.correlation_ids == [parent]
    assert envelope.payload == LLMPrompt(**PROMPT)
    assert envelope.source.app == "writer"


def test_a_call_of_version_2_with_an_envelope_adds_to_its_parents() -> None:
    named, added, handled = uuid4(), uuid4(), uuid4()
    body = fields(version="1.0.0", correlation_ids=[str(named)])
    with caused_by(handled):
        envelope = v2_call("llm.prompt", body, parent_event_ids=[added])
    assert envelope.correlation_ids == [named, added, handled]
    assert envelope.source.host == "box"


def test_a_call_of_version_2_with_an_envelope_of_version_1() -> None:
    body = {"event_type": "llm.prompt", "id": "x", "data": PROMPT, "source": "old"}
    assert v2_call("llm.prompt", body).source.app == "old"


def test_the_metadata_of_a_call_of_version_2_is_kept() -> None:
    envelope = v2_call("llm.prompt", PROMPT, correlation_metadata={"why": "test"})
    assert envelope.source.meta == {"correlation": {"why": "test"}}


def test_a_routing_key_that_is_not_the_type_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="routing key"):
        v2_call("llm.response", fields())


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({"provider": "anthropic"}, {}),
        (fields(payload={}), {}),
        (fields(correlation_ids=5), {}),
        (PROMPT, {"event_id": "no-uuid"}),
        (PROMPT, {"parent_event_ids": ["no-uuid"]}),
        (PROMPT, {"event_id": UUID(int=7), "parent_event_ids": [UUID(int=7)]}),
    ],
)
def test_a_wrong_call_of_version_2_is_refused(body: dict[str, Any], changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        v2_call("llm.prompt", body, **changes)


@pytest.mark.parametrize("one", [UUID(int=1), str(UUID(int=1))], ids=["uuid", "text"])
def test_one_id_in_place_of_the_list_of_parents_is_told(one: Any) -> None:
    with pytest.raises(InvalidEvent, match="must be a list of them") as caught:
        create_envelope("note.written", {}, correlation_ids=one)
    assert caught.value.problems == (("correlation_ids", "Input should be a list"),)


class _Named(EventEnvelope[Any]):
    """An envelope of somebody's own."""


@pytest.mark.parametrize("kind", [AnyEnvelope, _Named])
def test_another_payload_makes_what_a_copy_with_an_update_makes(kind: type[EventEnvelope[Any]]) -> None:
    envelope = kind(event_type="llm.prompt", source=SOURCE, correlation_ids=[uuid4()], payload={"prompt": "Why?"})
    expected = envelope.model_copy(update={"payload": {"prompt": "How?"}})
    made = with_payload(envelope, {"prompt": "How?"})
    assert made == expected
    assert type(made) is kind
    assert made.model_fields_set == expected.model_fields_set
    assert made.model_dump_json() == expected.model_dump_json()
    assert envelope.payload == {"prompt": "Why?"}
