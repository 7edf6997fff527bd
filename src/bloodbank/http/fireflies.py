"""What a Fireflies webhook says, and whether Fireflies said it.

Sources: https://docs.fireflies.ai/graphql-api/webhooks (version 1) and …/webhooks-v2 (version 2).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

from pydantic import SecretStr

from bloodbank import ids
from bloodbank.errors import InvalidEvent

MEETING_TRANSCRIBED = "fireflies.meeting.transcribed"
MEETING_SUMMARIZED = "fireflies.meeting.summarized"
RECEIVED = "fireflies.webhook.received"
UPLOAD = "fireflies.transcript.upload"

V1_EVENTS: Mapping[object, str] = {"Transcription completed": MEETING_TRANSCRIBED}
V2_EVENTS: Mapping[object, str] = {
    "meeting.transcribed": MEETING_TRANSCRIBED,
    "meeting.summarized": MEETING_SUMMARIZED,
}
_PREFIX = "sha256="


@dataclass(frozen=True, slots=True)
class Notice:
    """A webhook as an event. The same delivery, sent again, has the same id.

    client_reference_id: the reference, where it is a UUID and so may be the id of an upload event.
    """

    event_id: UUID
    event_type: str
    payload: Mapping[str, Any]
    client_reference_id: UUID | None = None


def is_signed(body: bytes, signature: str, secrets: Sequence[SecretStr]) -> bool:
    """Say whether any of the secrets made the signature: hex HMAC-SHA256 of the raw body, `sha256=` or bare.

    Takes the same time whichever fits.
    """
    presented = signature.strip().lower().removeprefix(_PREFIX).encode()
    fits = [
        hmac.compare_digest(hmac.new(secret.get_secret_value().encode(), body, sha256).hexdigest().encode(), presented)
        for secret in secrets
    ]
    return any(fits)


def read_notice(body: Mapping[str, Any]) -> Notice:
    """Return what a webhook says. What is no known event, or not in its known form, is kept as it came.

    Refusing it would lose it: the sender understands only success, and its format may grow. Raises InvalidEvent
    for what cannot be kept at all: an integer beyond 64 bits.
    """
    read = _read_v1 if "eventType" in body or "meetingId" in body else _read_v2
    return read(body) or _received(body)


def _read_v1(body: Mapping[str, Any]) -> Notice | None:
    event, meeting, reference = body.get("eventType"), body.get("meetingId"), body.get("clientReferenceId")
    event_type = _known(V1_EVENTS, event)
    if event_type is None or not _is_meeting(meeting) or not isinstance(reference, str | None):
        return None
    event_id = ids.event_id(event_type, event=event, meeting_id=meeting)
    payload = {"meeting_id": meeting, "client_reference_id": reference}
    return Notice(event_id, event_type, payload, _as_uuid(reference))


def _read_v2(body: Mapping[str, Any]) -> Notice | None:
    event, meeting, reference = body.get("event"), body.get("meeting_id"), body.get("client_reference_id")
    event_type, occurred_at = _known(V2_EVENTS, event), _time(body.get("timestamp"))
    if event_type is None or occurred_at is None or not _is_meeting(meeting) or not isinstance(reference, str | None):
        return None
    event_id = ids.event_id(event_type, event=event, meeting_id=meeting, timestamp=body["timestamp"])
    payload = {"meeting_id": meeting, "client_reference_id": reference, "occurred_at": occurred_at}
    return Notice(event_id, event_type, payload, _as_uuid(reference))


def _received(body: Mapping[str, Any]) -> Notice:
    event = body.get("event", body.get("eventType"))
    name = event if isinstance(event, str) and event else "unnamed"
    try:
        event_id = ids.event_id(RECEIVED, body=body)
    except ValueError as error:
        raise InvalidEvent(
            f"The webhook cannot be kept: {error}. Nothing was published.", [("", "must hold JSON values only")]
        ) from error
    return Notice(event_id, RECEIVED, {"event": name, "body": body})


def _known(events: Mapping[object, str], event: object) -> str | None:
    return events.get(event) if isinstance(event, str) else None


def _is_meeting(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _time(milliseconds: object) -> datetime | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _as_uuid(reference: str | None) -> UUID | None:
    try:
        return UUID(reference or "")
    except ValueError:
        return None
