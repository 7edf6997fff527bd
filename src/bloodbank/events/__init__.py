"""Payload models and the registry that maps event types to them."""

from bloodbank.events.artifact import (
    Artifact,
    ArtifactCreated,
    ArtifactDeleted,
    ArtifactIngestionFailedPayload,
    ArtifactUpdated,
)
from bloodbank.events.failures import FailurePayload, Payload, is_failure
from bloodbank.events.fireflies import (
    AIFilters,
    FirefliesMeetingPayload,
    FirefliesMeetingSummarizedPayload,
    FirefliesMeetingTranscribedPayload,
    FirefliesTranscriptFailedPayload,
    FirefliesTranscriptProcessedPayload,
    FirefliesTranscriptReadyPayload,
    FirefliesTranscriptUploadPayload,
    FirefliesUser,
    FirefliesWebhookPayload,
    MeetingParticipant,
    SentimentType,
    TranscriptSentence,
)
from bloodbank.events.llm import LLMErrorPayload, LLMPrompt, LLMResponse
from bloodbank.events.registry import EventRegistry, event, load_plugins

__all__ = [
    "AIFilters",
    "Artifact",
    "ArtifactCreated",
    "ArtifactDeleted",
    "ArtifactIngestionFailedPayload",
    "ArtifactUpdated",
    "EventRegistry",
    "FailurePayload",
    "FirefliesMeetingPayload",
    "FirefliesMeetingSummarizedPayload",
    "FirefliesMeetingTranscribedPayload",
    "FirefliesTranscriptFailedPayload",
    "FirefliesTranscriptProcessedPayload",
    "FirefliesTranscriptReadyPayload",
    "FirefliesTranscriptUploadPayload",
    "FirefliesUser",
    "FirefliesWebhookPayload",
    "LLMErrorPayload",
    "LLMPrompt",
    "LLMResponse",
    "MeetingParticipant",
    "Payload",
    "SentimentType",
    "TranscriptSentence",
    "event",
    "is_failure",
    "load_plugins",
]
