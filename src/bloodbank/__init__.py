"""Bloodbank: an event bus for agent pipelines that knows what caused what.

from bloodbank import Publisher, create_envelope

async with Publisher(enable_correlation_tracking=True) as publisher:
    prompt = create_envelope("llm.prompt", {"provider": "anthropic", "prompt": "Summarise the call."})
    await publisher.publish(prompt)
"""

from bloodbank.causation import caused_by, uncaused
from bloodbank.config import Settings, load_settings
from bloodbank.correlation_tracker import CorrelationTracker, Lineage
from bloodbank.envelope import (
    SCHEMA_VERSION,
    AgentContext,
    AgentType,
    CodeState,
    EventEnvelope,
    Source,
    TriggerType,
    create_envelope,
    envelope_for,
)
from bloodbank.errors import (
    AmbiguousEventId,
    BloodbankError,
    ConfigurationError,
    EventConflict,
    EventNotFound,
    InvalidEvent,
    InvalidQuery,
    NotOpen,
    PublishError,
    PublishRejected,
    PublishUnknown,
    StoreFormatError,
    StoreUnavailable,
    TrackingDisabled,
    TransportUnavailable,
    Unavailable,
    UnknownEventType,
)
from bloodbank.event_log import EventLog, LoggedEvent, Page
from bloodbank.events import EventRegistry, FailurePayload, Payload, event
from bloodbank.ids import event_id, new_event_id
from bloodbank.publisher import Publisher, PublishResult, Status
from bloodbank.stores.base import Direction, Graph, Node, Step

__all__ = [
    "SCHEMA_VERSION",
    "AgentContext",
    "AgentType",
    "AmbiguousEventId",
    "BloodbankError",
    "CodeState",
    "ConfigurationError",
    "CorrelationTracker",
    "Direction",
    "EventConflict",
    "EventEnvelope",
    "EventLog",
    "EventNotFound",
    "EventRegistry",
    "FailurePayload",
    "Graph",
    "InvalidEvent",
    "InvalidQuery",
    "Lineage",
    "LoggedEvent",
    "Node",
    "NotOpen",
    "Page",
    "Payload",
    "PublishError",
    "PublishRejected",
    "PublishResult",
    "PublishUnknown",
    "Publisher",
    "Settings",
    "Source",
    "Status",
    "Step",
    "StoreFormatError",
    "StoreUnavailable",
    "TrackingDisabled",
    "TransportUnavailable",
    "TriggerType",
    "Unavailable",
    "UnknownEventType",
    "caused_by",
    "create_envelope",
    "envelope_for",
    "event",
    "event_id",
    "load_settings",
    "new_event_id",
    "uncaused",
]
