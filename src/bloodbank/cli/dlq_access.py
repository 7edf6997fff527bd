"""Dead letters and replay, whether a server is asked for them or the bus is opened in this process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self
from uuid import UUID

from bloodbank.cli.bus import Json

if TYPE_CHECKING:
    from bloodbank.config import Settings
    from bloodbank.progress import Progress, Report

Action = Literal["retry", "discard"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are to be replayed, and to whom.

    pattern, since, until: of types, and of when the bus accepted them (aware). event_id: this one instead;
    descendants: and all that it led to. to: a group; None: every group whose patterns fit.
    """

    pattern: str = "#"
    since: datetime | None = None
    until: datetime | None = None
    event_id: UUID | None = None
    descendants: bool = False
    to: str | None = None


class DeadLetterAccess(Protocol):
    """Looks at dead letters, settles them, and replays. All methods raise BloodbankError and nothing else."""

    async def __aenter__(self) -> Self:
        """Open. Raises StoreFormatError, Unavailable."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        ...

    async def letters(self, *, group: str | None, key: str | None, cursor: str | None, limit: int) -> Json:
        """Return what `GET /dlq` does: `{"items", "next"}`."""
        ...

    async def letter_groups(self, *, cursor: str | None) -> Json:
        """Return what `GET /dlq/groups` does: `{"items", "next"}`."""
        ...

    async def letter(self, number: int) -> Json:
        """Return what `GET /dlq/{number}` does. Raises DeadLetterNotFound."""
        ...

    async def settle(self, action: Action, number: int) -> None:
        """Give a dead letter back, or discard it. Raises DeadLetterNotFound, InvalidQuery."""
        ...

    async def settle_group(self, action: Action, key: str, report: Report) -> Progress:
        """Give all of a group back, or discard them; return the last progress. Raises DeadLetterNotFound."""
        ...

    async def resolve(self, text: str) -> UUID:
        """Return the event id that a full id or a prefix means; see `Bus.resolve`."""
        ...

    async def replay(self, wanted: Wanted, report: Report, *, dry_run: bool) -> Progress:
        """Deliver events again, or count them only; return the last progress. Raises EventNotFound, InvalidQuery."""
        ...


def reach(settings: Settings) -> DeadLetterAccess:
    """Return what commands work on, not open yet: the server at BLOODBANK_URL, or the bus opened here."""
    if settings.server_url is not None:
        from bloodbank.cli.dlq_remote import RemoteDeadLetters

        return RemoteDeadLetters(settings, settings.server_url)
    from bloodbank.cli.dlq_local import LocalDeadLetters

    return LocalDeadLetters(settings)
