"""Which groups there are on RabbitMQ, and how much waits for each.

AMQP tells how much is in a queue to whoever knows its name, and does not list names; that takes the management plugin.
So groups make themselves known: the stream `<base>.groups` has an entry for each group and pattern. Before a consumer
adds one it looks whether it is there, so the stream grows with new groups and not with every start of a consumer. What
came twice anyway, from two that looked at the same moment, is one name to who reads. The stream forgets its oldest
entries at REGISTRY_BYTES, some ten thousand names later; groups whose consumers are at work then add theirs again when
they connect. A group whose queue was deleted stays in the stream and is not told of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from uuid import uuid4

from aiormq.channel import Channel
from aiormq.connection import Connection
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from bloodbank.errors import NotOpen, TransportUnavailable
from bloodbank.transports import _rabbit_wire as wire
from bloodbank.transports._amqp import close_channel, open_channel, translated
from bloodbank.transports._rabbit_frames import Outgoing, outgoing_with
from bloodbank.transports._rabbit_increments import Increments
from bloodbank.transports._rabbit_link import Link
from bloodbank.transports._rabbit_log import RabbitLog
from bloodbank.transports._rabbit_publishing import Outlet
from bloodbank.transports._rabbit_sending import send_all
from bloodbank.transports.base import GroupState

logger = logging.getLogger(__name__)

REGISTRY_BYTES = 5_000_000
SEGMENT_BYTES = 1_000_000
RETRY_SECONDS = 5.0
"""Pause before a group is made known again that could not be."""
ABSENT_SECONDS = 30.0
"""How long a queue that was not there is not asked for: the broker closes the channel, and logs an error, each time."""
MOST_GROUPS = 1000
"""Most groups that are asked about, those that became known last."""


class Groups:
    """The groups of a bus.

    timeout_seconds: for a publish, and for an answer of the broker.
    """

    def __init__(
        self, link: Link, outlet: Outlet, names: wire.Names, stream: RabbitLog, timeout_seconds: float
    ) -> None:
        self._link = link
        self._outlet = outlet
        self._names = names
        self._increments = Increments(stream)
        self._timeout_seconds = timeout_seconds
        # {group: its patterns}, in the order in which they became known.
        self._known: dict[str, set[str]] = {}
        # {group: when its queue may be asked for again}
        self._absent: dict[str, float] = {}
        self._reading = asyncio.Lock()
        # Of this process: (group, pattern).
        self._own: set[tuple[str, str]] = set()
        self._announcing: asyncio.Task[None] | None = None

    def announce(self, group: str, patterns: Iterable[str]) -> None:
        """Make a group known, in the background, and again whenever the broker is found."""
        self._absent.pop(group, None)
        self._own.update((group, pattern) for pattern in patterns)
        self.look_again()

    def look_again(self) -> None:
        """Look whether the groups of this process are still known."""
        if self._own and (self._announcing is None or self._announcing.done()):
            self._announcing = asyncio.create_task(self._announce(), name="bloodbank-groups")

    async def close(self) -> None:
        """Stop making known; idempotent."""
        if self._announcing is not None:
            self._announcing.cancel()
            await asyncio.wait([self._announcing])

    async def states(self) -> list[GroupState]:
        """See `Transport.groups`. Raises TransportUnavailable."""
        known = dict(list((await self._read()).items())[-MOST_GROUPS:])
        with translated("count what waits for the groups"):
            async with asyncio.timeout(self._timeout_seconds):
                waiting = await self._count(await self._link.connection(), sorted(known))
        return [GroupState(name, tuple(sorted(known[name])), count) for name, count in waiting.items()]

    async def _count(self, connection: Connection, groups: list[str]) -> Mapping[str, int]:
        """Return how many messages each queue has; without those that are not there any more."""
        found: dict[str, int] = {}
        channel: Channel | None = None
        now = asyncio.get_running_loop().time()
        try:
            for group in groups:
                if now < self._absent.get(group, now):
                    continue
                if channel is None:
                    channel = await open_channel(connection)
                try:
                    answer = await channel.queue_declare(self._names.group(group), passive=True)
                except ChannelNotFoundEntity:
                    channel = None  # The broker closes it with this answer.
                    self._absent[group] = now + ABSENT_SECONDS
                else:
                    found[group] = answer.message_count or 0
        finally:
            if channel is not None:
                await close_channel(channel)
        return found

    async def _read(self) -> Mapping[str, set[str]]:
        """Return the groups that are known. Raises TransportUnavailable."""
        async with self._reading:
            with translated("read the names of groups"):
                async with asyncio.timeout(self._timeout_seconds):
                    await self._declare(await self._link.connection())
            async with aclosing(self._increments.read()) as entries:
                async for entry in entries:
                    if entry is None:
                        self._known.clear()
                        self._absent.clear()
                        continue
                    group, pattern = (wire.header_of(entry, name) for name in (wire.GROUP_HEADER, wire.PATTERN_HEADER))
                    if isinstance(group, str) and isinstance(pattern, str) and self._names.is_group(group):
                        self._known.setdefault(group, set()).add(pattern)
        return self._known

    async def _declare(self, connection: Connection) -> None:
        sizes = {"x-max-length-bytes": REGISTRY_BYTES, "x-stream-max-segment-size-bytes": SEGMENT_BYTES}
        await wire.declare_queue(connection, self._names.groups, {"x-queue-type": "stream"} | sizes)

    async def _announce(self) -> None:
        said = False
        while True:
            try:
                known = await self._read()
                new = [(group, pattern) for group, pattern in self._own if pattern not in known.get(group, ())]
                if not new:
                    return
                entries = [self._entry(group, pattern) for group, pattern in sorted(new)]
                await send_all(self._outlet, entries, "make a group known", timeout_seconds=self._timeout_seconds)
            except NotOpen:
                return
            except TransportUnavailable as error:
                if not said:
                    logger.info("A group is not in the list of groups yet: %s", error)
                said = True
                await asyncio.sleep(RETRY_SECONDS)

    def _entry(self, group: str, pattern: str) -> Outgoing:
        headers: dict[str, str | int] = {wire.GROUP_HEADER: group, wire.PATTERN_HEADER: pattern}
        properties = Basic.Properties(delivery_mode=2, message_id=uuid4().hex, headers=dict(headers))
        return outgoing_with(properties, b"", exchange="", routing_key=self._names.groups)
