"""What commands need of a bus, whether a server is asked or the bus is opened in this process.

Both give the JSON that the HTTP API gives, so that what is printed cannot depend on the way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self
from uuid import UUID

if TYPE_CHECKING:
    from bloodbank.config import Settings

Json = dict[str, Any]


class Bus(Protocol):
    """Publishes and answers. All methods raise BloodbankError and nothing else."""

    async def __aenter__(self) -> Self:
        """Open. Raises StoreFormatError, Unavailable."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        ...

    async def publish(self, event: Mapping[str, Any]) -> Json:
        """Publish; return `{"event_id", "status", "lineage"}`.

        event: `event_id`, `event_type`, `source`, `correlation_ids` and `payload`. The id is the caller's, so that
        it is known when the answer is lost: the same event again is safe.
        """
        ...

    async def get(self, event_id: UUID) -> Json:
        """Return an envelope."""
        ...

    async def lineage(self, event_id: UUID, direction: str, *, max_depth: int, limit: int) -> Json:
        """Return the graph around an event, as `GET /events/{id}/lineage` does."""
        ...

    async def page(
        self, *, pattern: str, since: datetime | None, until: datetime | None, cursor: str | None, limit: int
    ) -> Json:
        """Return `{"items": [envelope, …], "next": cursor or null}`, newest first."""
        ...

    def tail(self, pattern: str) -> AbstractAsyncContextManager[AsyncIterator[Json]]:
        """Within the block, iterate over envelopes whose type fits as they come, from its beginning on, for ever."""
        ...

    async def resolve(self, text: str) -> UUID:
        """Return the id that a full id or a unique prefix of at least 8 hexadecimal digits means.

        Raises AmbiguousEventId, EventNotFound, InvalidQuery.
        """
        ...

    async def stats(self) -> Json:
        """Return what `GET /stats` does."""
        ...

    async def schemas(self) -> Json:
        """Return what `GET /schemas` does: the event types that have a model."""
        ...

    async def schema(self, event_type: str) -> Json:
        """Return the JSON Schema of a type's payload. Raises EventNotFound for a type without a model."""
        ...


def connect(settings: Settings) -> Bus:
    """Return the bus that commands use, not open yet: the server at BLOODBANK_URL, or one opened here."""
    if settings.server_url is not None:
        from bloodbank.cli.remote import RemoteBus

        return RemoteBus(settings, settings.server_url)
    from bloodbank.cli.local import LocalBus

    return LocalBus(settings)
