"""The day that the demo plays: what happens, what caused it, and what must then be true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MEETING_ID = "01DEMOPLANNINGCALL"


@dataclass(frozen=True, slots=True)
class Scene:
    """One event of the day.

    app: who makes it. causes: names of the scenes that caused it. told: what happens, in a few words.
    """

    name: str
    event_type: str
    app: str
    told: str
    causes: tuple[str, ...] = ()
    payload: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Expectation:
    """The only right answer to a question: names of scenes, and (cause, effect) among them."""

    question: str
    focus: str
    direction: str
    events: frozenset[str]
    edges: frozenset[tuple[str, str]]


def _sentence(index: int, speaker: int, text: str, start: float, **filters: str) -> dict[str, Any]:
    return {
        "index": index,
        "speaker_id": speaker,
        "speaker_name": ("Ada", "Grace")[speaker],
        "raw_text": text.lower(),
        "text": text,
        "start_time": start,
        "end_time": start + 3.5,
        "ai_filters": {"text_cleanup": text, "sentiment": "neutral", **filters},
    }


UPLOAD = Scene(
    "upload",
    "fireflies.transcript.upload",
    "recorder",
    "A call is recorded and uploaded",
    payload={
        "media_file": "calls/planning.mp3",
        "media_duration_seconds": 1860,
        "media_type": "audio/mpeg",
        "title": "Planning call",
    },
)

WEBHOOK = Scene(
    "webhook",
    "fireflies.meeting.transcribed",
    "fireflies",
    "Fireflies calls back, signed",
    causes=("upload",),
)

TRANSCRIPT = Scene(
    "transcript",
    "fireflies.transcript.ready",
    "fetcher",
    "The transcript is fetched",
    causes=("webhook",),
    payload={
        "id": MEETING_ID,
        "title": "Planning call",
        "date": "2026-03-02T09:00:00Z",
        "duration": 31,
        "transcript_url": f"https://app.fireflies.ai/view/{MEETING_ID}",
        "sentences": [
            _sentence(0, 0, "We ship on Friday.", 0.0, date_and_time="Friday"),
            _sentence(1, 1, "I will write the release notes.", 4.0, task="write the release notes"),
        ],
        "participants": [{"name": "Ada", "email": "ada@example.com"}, {"name": "Grace"}],
        "speakers": ["Ada", "Grace"],
        "user": {
            "user_id": "u-1",
            "email": "ada@example.com",
            "name": "Ada",
            "num_transcripts": 12,
            "minutes_consumed": 431,
            "is_admin": False,
        },
        "host_email": "ada@example.com",
        "organizer_email": "ada@example.com",
        "privacy": "participants",
    },
)


def _prompt(name: str, app: str, prompt: str) -> Scene:
    payload = {"provider": "anthropic", "prompt": prompt, "tags": ["planning-call"]}
    return Scene(name, "llm.prompt", app, f"Agent {app} is prompted", ("transcript",), payload)


def _response(name: str, app: str, cause: str, response: str) -> Scene:
    payload = {"provider": "anthropic", "response": response, "tokens_used": 512, "duration_ms": 1840}
    return Scene(name, "llm.response", app, f"Agent {app} answers", (cause,), payload)


ARTIFACT = Scene(
    "artifact",
    "artifact.created",
    "writer",
    "Both answers become one document",
    causes=("summary", "tasks"),
    payload={
        "kind": "document",
        "uri": "notes/planning.md",
        "title": "Notes of the planning call",
        "content": "# Planning call\n\nWe ship on Friday.\n\n- [ ] Grace: write the release notes\n",
    },
)

FAILURE = Scene(
    "failure",
    "artifact.ingestion.failed",
    "indexer",
    "Indexing the document fails",
    causes=("artifact",),
    payload={
        "error_message": "The vector store did not answer within 30 s.",
        "error_code": "timeout",
        "is_retryable": True,
        "artifact_uri": "notes/planning.md",
        "artifact_kind": "document",
    },
)

STORY = (
    UPLOAD,
    WEBHOOK,
    TRANSCRIPT,
    _prompt("ask_summary", "scribe", "Summarise the call."),
    _prompt("ask_tasks", "planner", "List who promised what."),
    _response("summary", "scribe", "ask_summary", "We ship on Friday."),
    _response("tasks", "planner", "ask_tasks", "Grace: write the release notes."),
    ARTIFACT,
    FAILURE,
)

_FROM_TRANSCRIPT_TO_ARTIFACT = frozenset(
    {
        ("transcript", "ask_summary"),
        ("transcript", "ask_tasks"),
        ("ask_summary", "summary"),
        ("ask_tasks", "tasks"),
        ("summary", "artifact"),
        ("tasks", "artifact"),
    }
)

# Written out rather than derived from the scenes: a wrong derivation would agree with a wrong answer.
EXPECTATIONS = (
    Expectation(
        "Why does the document exist?",
        "artifact",
        "ancestors",
        frozenset({"upload", "webhook", "transcript", "ask_summary", "ask_tasks", "summary", "tasks", "artifact"}),
        frozenset({("upload", "webhook"), ("webhook", "transcript")}) | _FROM_TRANSCRIPT_TO_ARTIFACT,
    ),
    Expectation(
        "What did the transcript lead to?",
        "transcript",
        "descendants",
        frozenset({"transcript", "ask_summary", "ask_tasks", "summary", "tasks", "artifact", "failure"}),
        frozenset({("artifact", "failure")}) | _FROM_TRANSCRIPT_TO_ARTIFACT,
    ),
)
