"""The one shape that all error payloads share, and how a failure is told from its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class Payload(BaseModel):
    """Base of all payload models: unknown fields are an error, so that a typing mistake is seen."""

    # Without "constants" a NaN within `metadata` would be written as null instead of being refused.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


def no_items() -> list[Any]:
    """Return a new empty list: the default of a field. `list[str]` does it too, and takes ten times as long."""
    return []


def no_fields() -> dict[str, Any]:
    """Return a new empty dict: the default of a field."""
    return {}


class FailurePayload(Payload):
    """What every error event says, whatever failed.

    error_message: what happened, for people.
    error_code: stable code of the system that failed, for programs.
    retry_count: tries so far, 0 after the first.
    is_retryable: whether trying again may help.
    """

    error_message: str
    error_code: str | None = None
    retry_count: int = Field(0, ge=0)
    is_retryable: bool = False

    @classmethod
    def of_handler(cls, common: Mapping[str, Any], event_type: str, payload: Mapping[str, Any]) -> Self:
        """Return the payload that tells of a handler which gave an event up.

        common: the fields above. event_type, payload: of the event that was given up; the payload is empty where that
        could not be read. A model that wants more says here where it comes from. It must be the same each time.
        Where it raises, the payload is the common one.
        """
        return cls(**common)


def is_failure(event_type: str) -> bool:
    """Say whether a type tells of a failure: its last word is `failed` or `error`."""
    return event_type.rpartition(".")[2] in ("failed", "error")
