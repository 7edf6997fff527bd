"""Events of artifacts: files and documents that agents write."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bloodbank.events.failures import FailurePayload, Payload, no_fields
from bloodbank.events.registry import event


class ArtifactFields(Payload):
    """What is said of an artifact.

    kind: for example `transcript`, `code`, `document`.
    uri: path or URL.
    content: the whole content, where it is small enough to travel along.
    """

    kind: str = Field(min_length=1)
    uri: str = Field(min_length=1)
    title: str | None = None
    content: str | None = None
    metadata: dict[str, Any] = Field(default_factory=no_fields)


class Artifact(ArtifactFields):
    """An artifact was created, updated or deleted: any of the three; its type is `artifact.<action>`."""

    action: Literal["created", "updated", "deleted"]


@event("artifact.created")
class ArtifactCreated(ArtifactFields):
    """An artifact was created."""

    action: Literal["created"] = "created"


@event("artifact.updated")
class ArtifactUpdated(ArtifactFields):
    """An artifact was changed."""

    action: Literal["updated"] = "updated"


@event("artifact.deleted")
class ArtifactDeleted(ArtifactFields):
    """An artifact was deleted."""

    action: Literal["deleted"] = "deleted"


@event("artifact.ingestion.failed")
class ArtifactIngestionFailedPayload(FailurePayload):
    """Ingesting an artifact, for example into a vector store, failed."""

    artifact_uri: str = Field(min_length=1)
    artifact_kind: str = Field(min_length=1)
    is_retryable: bool = True
