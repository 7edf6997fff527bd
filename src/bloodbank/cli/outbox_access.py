"""The outbox, whether a server is asked for it or its file is opened in this process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self
from uuid import UUID

import orjson

from bloodbank.cli.bus import Json
from bloodbank.errors import InvalidQuery

if TYPE_CHECKING:
    from bloodbank.config import Settings
    from bloodbank.outbox import Outbox


class OutboxAccess(Protocol):
    """Looks into the outbox and settles what was set aside there. All methods raise BloodbankError and nothing else."""

    async def __aenter__(self) -> Self:
        """Open. Raises StoreFormatError, Unavailable."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; idempotent."""
        ...

    async def outbox_page(self, *, set_aside: bool | None, cursor: str | None, limit: int) -> Json:
        """Return what `GET /outbox` does: `{"on", "totals", "items", "next"}`."""
        ...

    async def retry_in_outbox(self, event_id: UUID | None) -> int:
        """Let what was set aside wait again, None: all of it; return how many events. Raises EventNotFound."""
        ...

    async def drop_from_outbox(self, event_id: UUID) -> None:
        """Delete an event that was set aside. Raises EventNotFound."""
        ...


class LocalOutbox:
    """The outbox in the data folder. The rest of the bus is not opened, so that looking sends nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._outbox: Outbox | None = None

    async def __aenter__(self) -> Self:
        from bloodbank import wiring

        # In a thread, since it imports the backends that are chosen.
        outbox = (await asyncio.to_thread(wiring.build, self._settings, tracking=False)).outbox
        if outbox is not None:
            self._outbox = await self._stack.enter_async_context(outbox)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def outbox_page(self, *, set_aside: bool | None, cursor: str | None, limit: int) -> Json:
        """See `OutboxAccess.outbox_page`."""
        from bloodbank.http.answers import outbox_page

        if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
            raise InvalidQuery(f"{cursor[:80]!r} is no cursor. Give the one that the page before ended with.")
        after = int(cursor or 0)
        answer, following = await outbox_page(self._outbox, set_aside=set_aside, after=after, limit=limit)
        page: Json = orjson.loads(orjson.dumps(answer))
        return page | {"next": None if following is None else str(following)}

    async def retry_in_outbox(self, event_id: UUID | None) -> int:
        """See `OutboxAccess.retry_in_outbox`."""
        from bloodbank.http.answers import retry_in_outbox

        return (await retry_in_outbox(self._outbox, event_id))["retried"]

    async def drop_from_outbox(self, event_id: UUID) -> None:
        """See `OutboxAccess.drop_from_outbox`."""
        from bloodbank.http.answers import drop_from_outbox

        await drop_from_outbox(self._outbox, event_id)


def reach(settings: Settings) -> OutboxAccess:
    """Return the outbox that commands work on, not open yet: that of the server at BLOODBANK_URL, or the one here."""
    if settings.server_url is not None:
        from bloodbank.cli.remote import RemoteBus

        return RemoteBus(settings, settings.server_url)
    return LocalOutbox(settings)
