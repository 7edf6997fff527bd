"""Dead letters and replay on the bus that this process opens."""

from __future__ import annotations

from typing import Any

import orjson

from bloodbank.cli.bus import Json
from bloodbank.cli.dlq_access import Action, Wanted
from bloodbank.cli.local import LocalBus
from bloodbank.dead_letters import DeadLetters
from bloodbank.errors import InvalidQuery
from bloodbank.http.answers import group_page_answer, letter_answer, letter_page_answer
from bloodbank.progress import Progress, Report
from bloodbank.replay import Replay


class LocalDeadLetters(LocalBus):
    """See `DeadLetterAccess`. Use it inside `async with`."""

    async def letters(self, *, group: str | None, key: str | None, cursor: str | None, limit: int) -> Json:
        """See `DeadLetterAccess.letters`."""
        page = await self._dead_letters.page(group=group, key=key, after=_number(cursor), limit=limit)
        return _as_json(letter_page_answer(page), page.next)

    async def letter_groups(self, *, cursor: str | None) -> Json:
        """See `DeadLetterAccess.letter_groups`."""
        page = await self._dead_letters.groups(after=_number(cursor))
        return _as_json(group_page_answer(page), page.next)

    async def letter(self, number: int) -> Json:
        """See `DeadLetterAccess.letter`."""
        return orjson.loads(orjson.dumps(letter_answer(await self._dead_letters.get(number), with_body=True)))

    async def settle(self, action: Action, number: int) -> None:
        """See `DeadLetterAccess.settle`."""
        letters = self._dead_letters
        await (letters.retry(number) if action == "retry" else letters.discard(number))

    async def settle_group(self, action: Action, key: str, report: Report) -> Progress:
        """See `DeadLetterAccess.settle_group`."""
        letters = self._dead_letters
        return await (letters.retry_group if action == "retry" else letters.discard_group)(key, report)

    async def replay(self, wanted: Wanted, report: Report, *, dry_run: bool) -> Progress:
        """See `DeadLetterAccess.replay`."""
        transport = self._publisher.transport
        if wanted.to is not None:
            # Told now, and not after all has been counted.
            await transport.replay([], group=wanted.to)
        replay = Replay(transport, self._tracker_if_on, self._settings)
        if wanted.event_id is not None:
            selection = await replay.select_event(wanted.event_id, descendants=wanted.descendants)
        else:
            selection = await replay.select(pattern=wanted.pattern, since=wanted.since, until=wanted.until)
        if dry_run:
            return Progress(total=selection.count)
        return await replay.send(selection, to=wanted.to, on_progress=report)

    @property
    def _dead_letters(self) -> DeadLetters:
        return DeadLetters(self._publisher.transport, self._settings)


def _number(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
        raise InvalidQuery(f"{cursor[:80]!r} is no cursor. Give the one that the page before ended with.")
    return int(cursor)


def _as_json(answer: dict[str, Any], following: int | None) -> Json:
    page: Json = orjson.loads(orjson.dumps(answer))
    return page | {"next": None if following is None else str(following)}
