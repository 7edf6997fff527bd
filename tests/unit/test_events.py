"""Payload models: the least they need, all they hold, and each field when it is wrong."""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from bloodbank.envelope import EventType
from bloodbank.errors import InvalidEvent
from bloodbank.events import Artifact, EventRegistry, FailurePayload, Payload, is_failure

NOW = "2026-03-01T09:00:00Z"
FAILURE: dict[str, Any] = {"error_message": "no"}
FULL_FAILURE: dict[str, Any] = {"error_message": "no", "error_code": "E1", "retry_count": 2, "is_retryable": False}
SENTENCE: dict[str, Any] = {
    "index": 0,
    "speaker_name": "Ann",
    "speaker_id": 1,
    "raw_text": "uh hello",
    "text": "Hello",
    "start_time": 0.5,
    "end_time": 1.25,
    "ai_filters": {
        "text_cleanup": "Hello",
        "task": "greet",
        "pricing": "free",
        "metric": "1",
        "question": "who?",
        "date_and_time": "today",
        "sentiment": "neutral",
    },
}
READY: dict[str, Any] = {
    "id": "t1",
    "title": "Weekly",
    "date": NOW,
    "duration": 30.5,
    "transcript_url": "https://example.org/t1",
    "sentences": [],
    "user": {
        "user_id": "u1",
        "email": "a@example.org",
        "name": "Ann",
        "num_transcripts": 3,
        "minutes_consumed": 90.5,
        "is_admin": False,
    },
    "host_email": "a@example.org",
    "organizer_email": "a@example.org",
    "privacy": "link",
}
MEETING: dict[str, Any] = {"meeting_id": "m1"}
FULL_MEETING = MEETING | {"client_reference_id": "c1", "occurred_at": NOW}
ARTIFACT: dict[str, Any] = {"kind": "code", "uri": "file:///a.py"}
FULL_ARTIFACT = ARTIFACT | {"title": "A", "content": "print()", "metadata": {"a": 1}}

SAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # type: (the least, everything)
    "artifact.created": (ARTIFACT, FULL_ARTIFACT | {"action": "created"}),
    "artifact.updated": (ARTIFACT, FULL_ARTIFACT | {"action": "updated"}),
    "artifact.deleted": (ARTIFACT, FULL_ARTIFACT | {"action": "deleted"}),
    "artifact.ingestion.failed": (
        FAILURE | {"artifact_uri": "u", "artifact_kind": "k"},
        FULL_FAILURE | {"artifact_uri": "u", "artifact_kind": "k"},
    ),
    "fireflies.meeting.summarized": (MEETING, FULL_MEETING),
    "fireflies.meeting.transcribed": (MEETING, FULL_MEETING),
    "fireflies.transcript.failed": (
        FAILURE | {"failed_stage": "upload"},
        FULL_FAILURE
        | {
            "failed_stage": "processing",
            "transcript_id": "t",
            "media_file": "f",
            "timestamp": NOW,
            "metadata": {"a": 1},
        },
    ),
    "fireflies.transcript.processed": (
        {
            "transcript_id": "t1",
            "rag_document_id": "d1",
            "title": "Weekly",
            "ingestion_timestamp": NOW,
            "sentence_count": 10,
            "speaker_count": 2,
            "duration_minutes": 30.5,
            "vector_store": "chroma",
        },
        {
            "transcript_id": "t1",
            "rag_document_id": "d1",
            "title": "Weekly",
            "ingestion_timestamp": NOW,
            "sentence_count": 10,
            "speaker_count": 2,
            "duration_minutes": 30.5,
            "vector_store": "chroma",
            "chunk_count": 4,
            "embedding_model": "e1",
            "metadata": {"a": 1},
        },
    ),
    "fireflies.transcript.ready": (
        READY,
        READY
        | {
            "audio_url": "https://example.org/a",
            "video_url": "https://example.org/v",
            "sentences": [SENTENCE],
            "summary": "All well.",
            "participants": [{"name": "Ann", "email": "a@example.org"}],
            "speakers": ["Ann"],
            "meeting_link": "https://example.org/m",
            "calendar_id": "c1",
            "calendar_type": "google",
            "raw_meeting_info": {"any": ["thing"]},
        },
    ),
    "fireflies.transcript.upload": (
        {"media_file": "a.mp3", "media_duration_seconds": 60, "media_type": "audio/mp3"},
        {
            "media_file": "a.mp3",
            "media_duration_seconds": 60,
            "media_type": "audio/mp3",
            "title": "Weekly",
            "user_id": "u1",
            "created_at": NOW,
        },
    ),
    "fireflies.webhook.received": ({"event": "test", "body": {}}, {"event": "test", "body": {"meeting_id": "test_0"}}),
    "llm.error": (FAILURE | {"provider": "x"}, FULL_FAILURE | {"provider": "x", "model": "m"}),
    "llm.prompt": (
        {"provider": "x", "prompt": ""},
        {
            "provider": "x",
            "model": "m",
            "prompt": "p",
            "project": "pr",
            "working_dir": "/w",
            "domain": "d",
            "tags": ["t"],
            "temperature": 0.5,
            "tools": [{"name": "search"}],
            "metadata": {"a": 1},
        },
    ),
    "llm.response": (
        {"provider": "x", "response": ""},
        {
            "provider": "x",
            "model": "m",
            "response": "r",
            "prompt_id": "p1",
            "tokens_used": 10,
            "duration_ms": 250,
            "usage": {"input": 4},
            "metadata": {"a": 1},
        },
    ),
}
TYPES = sorted(SAMPLES)


def validate(event_type: str, payload: dict[str, Any]) -> BaseModel:
    found = EventRegistry().validate(event_type, payload)
    assert isinstance(found, Payload)
    return found


def wrong_value(annotation: Any) -> object:
    """Return a JSON value that a field of this type cannot take."""
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    accepts_text = any(kind is str or typing.get_origin(kind) is typing.Literal for kind in kinds)
    accepts_text = accepts_text or any(isinstance(kind, type) and issubclass(kind, Enum) for kind in kinds)
    return ["neither text", "nor one of the values"] if accepts_text else "no such thing"


def wrong_fields() -> list[tuple[str, str]]:
    registry = EventRegistry()
    models = ((event_type, registry.model_for(event_type)) for event_type in TYPES)
    return [(event_type, name) for event_type, model in models if model is not None for name in model.model_fields]


def test_every_registered_type_has_a_sample_here() -> None:
    registry = EventRegistry()
    ours = [name for name in registry if getattr(registry.model_for(name), "__module__", "").startswith("bloodbank.")]
    assert ours == TYPES


@pytest.mark.parametrize("event_type", TYPES)
def test_the_least_is_enough(event_type: str) -> None:
    least, _ = SAMPLES[event_type]
    assert validate(event_type, least).model_dump(exclude_unset=True).keys() == least.keys()


@pytest.mark.parametrize("event_type", TYPES)
def test_everything_is_kept(event_type: str) -> None:
    _, full = SAMPLES[event_type]
    model = EventRegistry().model_for(event_type)
    assert model is not None
    assert full.keys() == model.model_fields.keys(), "the sample has every field"
    assert validate(event_type, full).model_dump(mode="json") == full


@pytest.mark.parametrize("event_type", TYPES)
def test_each_field_of_the_least_is_needed(event_type: str) -> None:
    least, _ = SAMPLES[event_type]
    for name in least:
        with pytest.raises(InvalidEvent) as caught:
            validate(event_type, {key: value for key, value in least.items() if key != name})
        assert caught.value.problems == ((f"payload.{name}", "Field required"),)


@pytest.mark.parametrize(("event_type", "name"), wrong_fields())
def test_each_wrong_field_is_named(event_type: str, name: str) -> None:
    _, full = SAMPLES[event_type]
    model = EventRegistry().model_for(event_type)
    assert model is not None
    with pytest.raises(InvalidEvent) as caught:
        validate(event_type, full | {name: wrong_value(model.model_fields[name].annotation)})
    assert {path.split(".")[1] for path, _ in caught.value.problems} == {name}


@pytest.mark.parametrize("event_type", TYPES)
def test_an_unknown_field_is_named(event_type: str) -> None:
    least, _ = SAMPLES[event_type]
    with pytest.raises(InvalidEvent) as caught:
        validate(event_type, least | {"misspelt": 1})
    assert [path for path, _ in caught.value.problems] == ["payload.misspelt"]


@pytest.mark.parametrize(
    ("event_type", "changes", "path"),
    [
        ("llm.prompt", {"provider": ""}, "provider"),
        ("llm.prompt", {"temperature": -0.1}, "temperature"),
        ("llm.prompt", {"temperature": float("nan")}, "temperature"),
        ("llm.response", {"tokens_used": -1}, "tokens_used"),
        ("llm.response", {"duration_ms": -1}, "duration_ms"),
        ("llm.error", {"retry_count": -1}, "retry_count"),
        ("artifact.created", {"action": "updated"}, "action"),
        ("artifact.created", {"uri": ""}, "uri"),
        ("fireflies.transcript.failed", {"failed_stage": "lunch"}, "failed_stage"),
        ("fireflies.transcript.failed", {"timestamp": "2026-03-01T09:00:00"}, "timestamp"),
        ("fireflies.transcript.upload", {"media_duration_seconds": -1}, "media_duration_seconds"),
        ("fireflies.transcript.ready", {"duration": -1}, "duration"),
        ("fireflies.transcript.ready", {"sentences": [SENTENCE | {"end_time": -1}]}, "sentences.0.end_time"),
        ("fireflies.transcript.ready", {"participants": [{"email": "x"}]}, "participants.0.name"),
        ("fireflies.meeting.transcribed", {"meeting_id": ""}, "meeting_id"),
    ],
)
def test_values_out_of_range_are_named(event_type: str, changes: dict[str, Any], path: str) -> None:
    _, full = SAMPLES[event_type]
    with pytest.raises(InvalidEvent) as caught:
        validate(event_type, full | changes)
    assert [found for found, _ in caught.value.problems] == [f"payload.{path}"]


def test_all_failures_share_one_shape() -> None:
    registry = EventRegistry()
    failing = [name for name in TYPES if is_failure(name)]
    assert failing == ["artifact.ingestion.failed", "fireflies.transcript.failed", "llm.error"]
    for name in TYPES:
        model = registry.model_for(name)
        assert model is not None
        assert issubclass(model, FailurePayload) is is_failure(name), name


def test_an_event_that_is_sent_again_says_the_same_although_time_went_by() -> None:
    for name in TYPES:
        smallest = SAMPLES[name][0]
        assert validate(name, smallest).model_dump_json() == validate(name, smallest).model_dump_json(), name


def test_one_artifact_model_fits_all_three_actions() -> None:
    for action in ("created", "updated", "deleted"):
        artifact = Artifact(action=action, kind="code", uri="file:///a.py")
        assert validate(f"artifact.{action}", artifact.model_dump()).model_dump() == artifact.model_dump()


def test_every_registered_type_is_a_legal_one() -> None:
    adapter = TypeAdapter(EventType)
    assert [adapter.validate_python(name) for name in TYPES] == TYPES
