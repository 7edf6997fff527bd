"""What consumers set aside: listed, grouped by what failed, given to its consumers again, or discarded.

What is kept in memory is bounded: lists come in pages without bodies, and of a group to settle only the numbers are
held, 8 bytes each.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b

import orjson

from bloodbank.config import Settings
from bloodbank.errors import DeadLetterNotFound, InvalidQuery, TransportUnavailable
from bloodbank.progress import Progress, Report, ignore
from bloodbank.transports.base import DeadLetter, Transport

FEWEST_AT_ONCE, MOST_AT_ONCE = 200, 50_000
"""How many of a group are settled by one call of the transport. RabbitMQ reads its list anew for each."""
STEPS = 10
"""In about how many calls a group is settled, between those two bounds."""
_KEY_BYTES = 6


@dataclass(frozen=True, slots=True)
class LetterPage:
    """A part of the list, oldest first, without the bodies. `next`: where to go on (`after`), or None at the end."""

    items: tuple[DeadLetter, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Dead letters that one consumer of a group set aside for one kind of error.

    key: names it, always the same for the same three.
    count: how many there are. first_at, last_at: when the first and the last of them was set aside.
    sample: the last of them, without its body.
    """

    key: str
    group: str
    consumer: str
    error: str
    count: int
    first_at: datetime
    last_at: datetime
    sample: DeadLetter


@dataclass(frozen=True, slots=True)
class GroupPage:
    """The groups of a part of the list. `next`: where the next part begins (`after`), or None at the end.

    A group may be in several parts; its counts add up.
    """

    items: tuple[LetterGroup, ...]
    next: int | None


class DeadLetters:
    """The dead letters behind a transport."""

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._transport = transport
        self._settings = settings

    async def page(
        self, *, group: str | None = None, key: str | None = None, after: int | None = None, limit: int = 50
    ) -> LetterPage:
        """Return dead letters, oldest first.

        group: of a group of consumers. key: of one `LetterGroup`. after: `next` of the page before.

        At most `scan_limit` are read for one page: a page may be short, or empty, and still have a next.
        Raises InvalidQuery, TransportUnavailable.
        """
        if limit < 1 or limit > self._settings.page_limit:
            raise InvalidQuery(f"limit must be between 1 and {self._settings.page_limit}.")
        found: list[DeadLetter] = []
        scanned = 0
        async with (
            self._in_time("be listed"),
            aclosing(self._transport.dead_letters(group=group, after=after)) as letters,
        ):
            async for letter in letters:
                if len(found) == limit or scanned == self._settings.scan_limit:
                    return LetterPage(tuple(found), after)
                scanned += 1
                after = letter.number
                if key is None or key_of(letter) == key:
                    found.append(_without_body(letter))
        return LetterPage(tuple(found), None)

    async def groups(self, *, after: int | None = None) -> GroupPage:
        """Return what failed, by consumer and error, the first that failed first.

        after: `next` of the page before. A page ends after `scan_limit` dead letters, or where there are more than
        `dead_letter_group_limit` groups. Raises TransportUnavailable.
        """
        found: dict[str, LetterGroup] = {}
        scanned = 0
        async with self._in_time("be counted"), aclosing(self._transport.dead_letters(after=after)) as letters:
            async for letter in letters:
                key = key_of(letter)
                is_full = key not in found and len(found) == self._settings.dead_letter_group_limit
                if is_full or scanned == self._settings.scan_limit:
                    return GroupPage(tuple(found.values()), after)
                scanned += 1
                after = letter.number
                found[key] = _counted(found.get(key), key, letter)
        return GroupPage(tuple(found.values()), None)

    async def get(self, number: int) -> DeadLetter:
        """Return one, with its body. Raises DeadLetterNotFound, TransportUnavailable."""
        async with (
            self._in_time("be read"),
            aclosing(self._transport.dead_letters(after=number - 1 if number > 0 else None)) as letters,
        ):
            async for letter in letters:
                if letter.number == number:
                    return letter
                break
        raise _not_found(number)

    async def retry(self, number: int) -> None:
        """Give one to its group again, with the same id and parents; its attempts begin anew.

        Raises DeadLetterNotFound, TransportUnavailable, and InvalidQuery when its group does not exist any more, or
        when it never had one.
        """
        if await self._transport.redeliver([number]):
            return
        letter = await self.get(number)
        raise InvalidQuery(
            f"Dead letter {number} was set aside by a subscription without a group, so there is nobody to give it to "
            f"again. Replay event {letter.message.event_id} to a group, or discard this one."
        )

    async def discard(self, number: int) -> None:
        """Take one off the list; its event stays in the log. Raises DeadLetterNotFound, TransportUnavailable."""
        if not await self._transport.discard([number]):
            raise _not_found(number)

    async def numbers_of(self, key: str) -> Sequence[int]:
        """Return the numbers of a group's dead letters. Raises DeadLetterNotFound, TransportUnavailable."""
        numbers = array("q")
        async with aclosing(self._transport.dead_letters()) as letters:
            async for letter in letters:
                if key_of(letter) == key:
                    numbers.append(letter.number)
        if not numbers:
            raise DeadLetterNotFound(
                f"No dead letters have the key {key[:80]}. Look which keys there are: bb dlq groups."
            )
        return numbers

    async def retry_group(self, key: str, on_progress: Report = ignore) -> Progress:
        """Give those of a group to their consumers again that are there when this begins.

        What fails again meanwhile is a new dead letter and stays. When this raises, what was reported as done is done,
        and some more may be: again does no harm, since what was put back is passed over.

        Raises DeadLetterNotFound, TransportUnavailable, and InvalidQuery when the consumers' group does not exist.
        """
        return await self._settle(await self.numbers_of(key), self._transport.redeliver, on_progress)

    async def discard_group(self, key: str, on_progress: Report = ignore) -> Progress:
        """Take those of a group off the list that are there when this begins. Raises as `retry_group`."""
        return await self._settle(await self.numbers_of(key), self._transport.discard, on_progress)

    async def _settle(
        self, numbers: Sequence[int], settle: Callable[[Sequence[int]], Awaitable[int]], on_progress: Report
    ) -> Progress:
        progress = Progress(total=len(numbers))
        on_progress(progress)
        size = max(FEWEST_AT_ONCE, min(MOST_AT_ONCE, len(numbers) // STEPS))
        for at in range(0, len(numbers), size):
            part = numbers[at : at + size]
            count = await settle(part)
            progress = replace(progress, done=progress.done + count, skipped=progress.skipped + len(part) - count)
            on_progress(progress)
        return progress

    @asynccontextmanager
    async def _in_time(self, what: str) -> AsyncGenerator[None]:
        limit_seconds = self._settings.dead_letter_timeout_seconds
        try:
            async with asyncio.timeout(limit_seconds):
                yield
        except TimeoutError as error:
            raise TransportUnavailable(
                f"The dead letters could not {what} within {limit_seconds:g} s. Try again, or give them longer: "
                "BLOODBANK_DEAD_LETTER_TIMEOUT_SECONDS."
            ) from error


def key_of(letter: DeadLetter) -> str:
    """Return the key of the group that a dead letter belongs to: 12 hexadecimal digits."""
    told = orjson.dumps([letter.group, letter.failure.consumer, letter.failure.error])
    return blake2b(told, digest_size=_KEY_BYTES).hexdigest()


def _counted(known: LetterGroup | None, key: str, letter: DeadLetter) -> LetterGroup:
    sample = _without_body(letter)
    if known is None:
        failure, at = letter.failure, letter.dead_at
        return LetterGroup(key, letter.group, failure.consumer, failure.error, 1, at, at, sample)
    first_at, last_at = min(known.first_at, letter.dead_at), max(known.last_at, letter.dead_at)
    return replace(known, count=known.count + 1, first_at=first_at, last_at=last_at, sample=sample)


def _without_body(letter: DeadLetter) -> DeadLetter:
    return replace(letter, message=letter.message._replace(body=b""))


def _not_found(number: int) -> DeadLetterNotFound:
    return DeadLetterNotFound(
        f"There is no dead letter {number}. It was given back or discarded, or is older than the log keeps."
    )
