"""Bloodbank: an event bus for agent pipelines that knows what caused what.

from bloodbank import Publisher, create_envelope

async with Publisher(enable_correlation_tracking=True) as publisher:
    prompt = create_envelope("llm.prompt", {"provider": "anthropic", "prompt": "Summarise the call."})
    await publisher.publish(prompt)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bloodbank.acceptance import PublishResult, Status
    from bloodbank.causation import CausalThreadPool, caused_by, uncaused
    from bloodbank.config import Settings, load_settings
    from bloodbank.consumer import BlockingPublisher, Consumer
    from bloodbank.consuming.attempt import Attempt
    from bloodbank.consuming.retry import Retry
    from bloodbank.correlation_tracker import CorrelationTracker
    from bloodbank.dead_letters import DeadLetters, GroupPage, LetterGroup, LetterPage
    from bloodbank.deduplication import Dedup
    from bloodbank.deferral import Lineage
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
        DeadLetterNotFound,
        EventConflict,
        EventNotFound,
        InvalidEvent,
        InvalidQuery,
        NotOpen,
        OutboxFull,
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
    from bloodbank.events.failures import FailurePayload, Payload
    from bloodbank.events.registry import EventRegistry, event
    from bloodbank.ids import event_id, new_event_id
    from bloodbank.kinship import CausalPath, CommonCauses, Impact
    from bloodbank.outbox import Outbox, OutboxEntry, OutboxTotals
    from bloodbank.progress import Progress
    from bloodbank.publisher import Publisher
    from bloodbank.replay import Replay, Selection
    from bloodbank.search import Search
    from bloodbank.stores.base import Direction, Graph, Node, Step
    from bloodbank.transports.base import DeadLetter, Failure

__all__ = [
    "SCHEMA_VERSION",
    "AgentContext",
    "AgentType",
    "AmbiguousEventId",
    "Attempt",
    "BlockingPublisher",
    "BloodbankError",
    "CausalPath",
    "CausalThreadPool",
    "CodeState",
    "CommonCauses",
    "ConfigurationError",
    "Consumer",
    "CorrelationTracker",
    "DeadLetter",
    "DeadLetterNotFound",
    "DeadLetters",
    "Dedup",
    "Direction",
    "EventConflict",
    "EventEnvelope",
    "EventLog",
    "EventNotFound",
    "EventRegistry",
    "Failure",
    "FailurePayload",
    "Graph",
    "GroupPage",
    "Impact",
    "InvalidEvent",
    "InvalidQuery",
    "LetterGroup",
    "LetterPage",
    "Lineage",
    "LoggedEvent",
    "Node",
    "NotOpen",
    "Outbox",
    "OutboxEntry",
    "OutboxFull",
    "OutboxTotals",
    "Page",
    "Payload",
    "Progress",
    "PublishError",
    "PublishRejected",
    "PublishResult",
    "PublishUnknown",
    "Publisher",
    "Replay",
    "Retry",
    "Search",
    "Selection",
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

# Imported when they are asked for (PEP 562): `bb --help` and a program that only makes ids need not load the rest.
_HOME = {
    "SCHEMA_VERSION": "envelope",
    "AgentContext": "envelope",
    "AgentType": "envelope",
    "AmbiguousEventId": "errors",
    "Attempt": "consuming.attempt",
    "BlockingPublisher": "consumer",
    "BloodbankError": "errors",
    "CausalPath": "kinship",
    "CausalThreadPool": "causation",
    "CodeState": "envelope",
    "CommonCauses": "kinship",
    "ConfigurationError": "errors",
    "Consumer": "consumer",
    "CorrelationTracker": "correlation_tracker",
    "DeadLetter": "transports.base",
    "DeadLetterNotFound": "errors",
    "DeadLetters": "dead_letters",
    "Dedup": "deduplication",
    "Direction": "stores.base",
    "EventConflict": "errors",
    "EventEnvelope": "envelope",
    "EventLog": "event_log",
    "EventNotFound": "errors",
    "EventRegistry": "events.registry",
    "Failure": "transports.base",
    "FailurePayload": "events.failures",
    "Graph": "stores.base",
    "GroupPage": "dead_letters",
    "Impact": "kinship",
    "InvalidEvent": "errors",
    "InvalidQuery": "errors",
    "LetterGroup": "dead_letters",
    "LetterPage": "dead_letters",
    "Lineage": "deferral",
    "LoggedEvent": "event_log",
    "Node": "stores.base",
    "NotOpen": "errors",
    "Outbox": "outbox",
    "OutboxEntry": "outbox",
    "OutboxFull": "errors",
    "OutboxTotals": "outbox",
    "Page": "event_log",
    "Payload": "events.failures",
    "Progress": "progress",
    "PublishError": "errors",
    "PublishRejected": "errors",
    "PublishResult": "acceptance",
    "PublishUnknown": "errors",
    "Publisher": "publisher",
    "Replay": "replay",
    "Retry": "consuming.retry",
    "Search": "search",
    "Selection": "replay",
    "Settings": "config",
    "Source": "envelope",
    "Status": "acceptance",
    "Step": "stores.base",
    "StoreFormatError": "errors",
    "StoreUnavailable": "errors",
    "TrackingDisabled": "errors",
    "TransportUnavailable": "errors",
    "TriggerType": "envelope",
    "Unavailable": "errors",
    "UnknownEventType": "errors",
    "caused_by": "causation",
    "create_envelope": "envelope",
    "envelope_for": "envelope",
    "event": "events.registry",
    "event_id": "ids",
    "load_settings": "config",
    "new_event_id": "ids",
    "uncaused": "causation",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'bloodbank' has no attribute {name!r}")
    value = getattr(import_module(f"bloodbank.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
