"""Events around Fireflies transcripts, and what a Fireflies webhook itself can say.

Units: `duration` and `*_minutes` are minutes, `start_time`, `end_time` and `*_seconds` are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import AwareDatetime, Field

from bloodbank.events.failures import FailurePayload, Payload, no_fields, no_items
from bloodbank.events.registry import event


class SentimentType(StrEnum):
    """How a sentence sounds."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    NEUTRAL = "neutral"


class AIFilters(Payload):
    """What Fireflies reads out of one sentence."""

    text_cleanup: str
    task: str | None = None
    pricing: str | None = None
    metric: str | None = None
    question: str | None = None
    date_and_time: str | None = None
    sentiment: SentimentType


class TranscriptSentence(Payload):
    """One sentence; `start_time` and `end_time` in seconds from the start of the recording."""

    index: int = Field(ge=0)
    speaker_name: str | None = None
    speaker_id: int
    raw_text: str
    text: str
    start_time: float = Field(ge=0)
    end_time: float = Field(ge=0)
    ai_filters: AIFilters


class MeetingParticipant(Payload):
    """Somebody who took part."""

    name: str
    email: str | None = None


class FirefliesUser(Payload):
    """The Fireflies user who owns the transcript."""

    user_id: str
    email: str
    name: str
    num_transcripts: int = Field(ge=0)
    minutes_consumed: float = Field(ge=0)
    is_admin: bool


@event("fireflies.transcript.upload")
class FirefliesTranscriptUploadPayload(Payload):
    """A recording shall be transcribed.

    Pass the id of this event to Fireflies as `client_reference_id`: the webhook then names it as cause.

    created_at: when the recording was made; absent: at the time of the event. It has no default of its own,
        so that sending the same request again says the same.
    """

    media_file: str = Field(min_length=1)
    media_duration_seconds: int = Field(ge=0)
    media_type: str
    title: str | None = None
    user_id: str | None = None
    created_at: AwareDatetime | None = None


@event("fireflies.transcript.ready")
class FirefliesTranscriptReadyPayload(Payload):
    """The whole transcript, fetched from Fireflies; consumers need no further call."""

    id: str = Field(min_length=1, description="Transcript id at Fireflies")
    title: str
    date: datetime
    duration: float = Field(ge=0, description="Minutes")
    transcript_url: str
    audio_url: str | None = None
    video_url: str | None = None
    sentences: list[TranscriptSentence]
    summary: str | None = None
    participants: list[MeetingParticipant] = Field(default_factory=no_items)
    speakers: list[str] = Field(default_factory=no_items)
    user: FirefliesUser
    host_email: str
    organizer_email: str
    privacy: str
    meeting_link: str | None = None
    calendar_id: str | None = None
    calendar_type: str | None = None
    raw_meeting_info: dict[str, Any] | None = None


@event("fireflies.transcript.processed")
class FirefliesTranscriptProcessedPayload(Payload):
    """A transcript was ingested, for example into a vector store."""

    transcript_id: str
    rag_document_id: str
    title: str
    ingestion_timestamp: AwareDatetime
    sentence_count: int = Field(ge=0)
    speaker_count: int = Field(ge=0)
    duration_minutes: float = Field(ge=0)
    vector_store: str
    chunk_count: int = Field(0, ge=0)
    embedding_model: str | None = None
    metadata: dict[str, Any] = Field(default_factory=no_fields)


@event("fireflies.transcript.failed")
class FirefliesTranscriptFailedPayload(FailurePayload):
    """Upload, transcription or processing of a recording failed.

    timestamp: when it failed; absent: at the time of the event.
    """

    failed_stage: Literal["upload", "transcription", "processing"]
    transcript_id: str | None = None
    media_file: str | None = None
    timestamp: AwareDatetime | None = None
    is_retryable: bool = True
    metadata: dict[str, Any] = Field(default_factory=no_fields)

    @classmethod
    def of_handler(cls, common: Mapping[str, Any], event_type: str, payload: Mapping[str, Any]) -> Self:
        """Return what a handler's failure is here: whoever handles an upload uploads, all others process."""
        stage = "upload" if event_type == "fireflies.transcript.upload" else "processing"
        named = {
            "transcript_id": payload.get("transcript_id", payload.get("id")),
            "media_file": payload.get("media_file"),
        }
        told = {name: value for name, value in named.items() if isinstance(value, str)}
        return cls(failed_stage=stage, **told, **common)


class FirefliesMeetingPayload(Payload):
    """What a Fireflies webhook says of a meeting. The transcript itself is fetched from their API.

    occurred_at: time that the webhook names; absent in the first version of their format.
    """

    meeting_id: str = Field(min_length=1)
    client_reference_id: str | None = None
    occurred_at: AwareDatetime | None = None


@event("fireflies.meeting.transcribed")
class FirefliesMeetingTranscribedPayload(FirefliesMeetingPayload):
    """Fireflies finished a transcript."""


@event("fireflies.meeting.summarized")
class FirefliesMeetingSummarizedPayload(FirefliesMeetingPayload):
    """Fireflies finished a summary."""


@event("fireflies.webhook.received")
class FirefliesWebhookPayload(Payload):
    """A Fireflies webhook that is none of the above, such as a test ping: recorded as it came.

    event: what the webhook calls itself.
    body: the whole JSON body.
    """

    event: str
    body: dict[str, Any]
