"""The bus behind a server, over its HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote
from uuid import UUID

import httpx
import orjson

from bloodbank import errors
from bloodbank.cli.bus import Json
from bloodbank.config import Settings, redact_url
from bloodbank.errors import (
    BloodbankError,
    ConfigurationError,
    EventNotFound,
    InvalidQuery,
    NotOpen,
    PublishUnknown,
    TransportUnavailable,
)
from bloodbank.event_log import only_match, parse_prefix
from bloodbank.ids import time_of

POLL_SECONDS = 0.5
"""How often a tail asks for new events."""

OVERLAP = timedelta(seconds=10)
"""How far a tail looks back at each question: clocks differ, and events of one time become visible one by one."""

FIRST_UUID7 = datetime(2020, 1, 1, tzinfo=UTC)
"""Ids that seem to be older are no UUIDv7."""

CLOCK_SKEW = timedelta(hours=1)
"""How far the clocks of hosts may lie apart."""

OUTBOX = "/outbox"
EVENTS = "/events"

LOOPBACK = ("localhost", "127.0.0.1", "::1")

RESULT = frozenset({"event_id", "status", "lineage"})
ENVELOPE = frozenset({"event_id", "event_type", "payload"})
GRAPH = frozenset({"focus", "nodes", "edges", "cycle", "truncated"})
PAGE = frozenset({"items", "next"})
OUTBOX_PAGE = frozenset({"on", "totals", "items", "next"})
STATS = frozenset({"per_second", "types", "groups", "outbox", "dead_letters"})
RETRIED = frozenset({"retried"})
DROPPED = frozenset({"event_id", "dropped"})
"""Fields by which an answer of each kind is known as ours."""

KINDS: Mapping[str, type[BloodbankError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, BloodbankError) and kind is not errors.AmbiguousEventId
}
"""The errors that the `code` of a problem names. Others are judged by their status."""


class ServerUnavailable(TransportUnavailable):
    """There is no server of ours that answers; else the error is one that the server told of."""


class RemoteBus:
    """Asks the server at a URL. Use it inside `async with`."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._url = url.rstrip("/")
        self._stack = AsyncExitStack()
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        key = self._settings.server_key
        answer_seconds = max(self._settings.query_timeout_seconds, self._settings.publish_timeout_seconds) + 5
        client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx.Timeout(answer_seconds, connect=self._settings.connect_timeout_seconds),
            # Loading certificates takes longer than most answers, and plain HTTP needs none.
            verify=self._url.startswith("https:"),
            # A proxy from the environment cannot reach this machine's own loopback.
            trust_env=not is_loopback(self._url),
        )
        self._client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def publish(self, event: Mapping[str, Any]) -> Json:
        """See `Bus.publish`."""
        headers = {"Content-Type": "application/json"}
        return await self._ask("POST", "/events", RESULT, content=orjson.dumps(event), headers=headers)

    async def get(self, event_id: UUID) -> Json:
        """See `Bus.get`."""
        return await self._ask("GET", f"/events/{event_id}", ENVELOPE)

    async def lineage(self, event_id: UUID, direction: str, *, max_depth: int, limit: int) -> Json:
        """See `Bus.lineage`."""
        parameters = {"direction": direction, "max_depth": max_depth, "limit": limit}
        return await self._ask("GET", f"/events/{event_id}/lineage", GRAPH, params=parameters)

    async def page(
        self, *, pattern: str, since: datetime | None, until: datetime | None, cursor: str | None, limit: int
    ) -> Json:
        """See `Bus.page`."""
        parameters = {
            "type": pattern,
            "since": since.isoformat() if since else None,
            "until": until.isoformat() if until else None,
            "cursor": cursor,
            "limit": limit,
        }
        return await self._ask("GET", "/events", PAGE, params={k: v for k, v in parameters.items() if v is not None})

    @asynccontextmanager
    async def tail(self, pattern: str) -> AsyncGenerator[AsyncIterator[Json]]:
        """See `Bus.tail`. Asks again and again for the last seconds, and passes on what was not there before."""
        _, server_time = await self._newest(pattern, datetime.now(UTC))
        items, _ = await self._newest(pattern, server_time - OVERLAP)
        yield self._later_than(items, pattern, server_time)

    async def _later_than(self, items: list[Json], pattern: str, server_time: datetime) -> AsyncIterator[Json]:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            # Each window begins later than the one before, so what it holds of the past was in that one.
            seen = {item["event_id"] for item in items}
            items, answered_at = await self._newest(pattern, server_time - OVERLAP)
            server_time = max(server_time, answered_at)
            for item in reversed(items):
                if item["event_id"] not in seen:
                    yield item

    async def resolve(self, text: str) -> UUID:
        """See `Bus.resolve`. Prefixes are looked for among the newest `scan_limit` events."""
        prefix = parse_prefix(text)
        if isinstance(prefix, UUID):
            return prefix
        items, _ = await self._newest("#", earliest_time(prefix))
        ids = [UUID(item["event_id"]) for item in items]
        return only_match(text, [event_id for event_id in dict.fromkeys(ids) if event_id.hex.startswith(prefix)])

    async def stats(self) -> Json:
        """See `Bus.stats`."""
        return await self._ask("GET", "/stats", STATS)

    async def schemas(self) -> Json:
        """See `Bus.schemas`."""
        return await self._ask("GET", "/schemas", PAGE)

    async def schema(self, event_type: str) -> Json:
        """See `Bus.schema`."""
        return await self._ask("GET", f"/schemas/{quote(event_type, safe='')}", frozenset())

    async def outbox_page(self, *, set_aside: bool | None, cursor: str | None, limit: int) -> Json:
        """See `OutboxAccess.outbox_page`."""
        parameters = {"set_aside": set_aside, "cursor": cursor, "limit": limit}
        given = {name: value for name, value in parameters.items() if value is not None}
        return await self._ask("GET", OUTBOX, OUTBOX_PAGE, params=given)

    async def retry_in_outbox(self, event_id: UUID | None) -> int:
        """See `OutboxAccess.retry_in_outbox`."""
        path = f"{OUTBOX}/retry" if event_id is None else f"{OUTBOX}/{event_id}/retry"
        return (await self._ask("POST", path, RETRIED))["retried"]

    async def drop_from_outbox(self, event_id: UUID) -> None:
        """See `OutboxAccess.drop_from_outbox`."""
        await self._ask("DELETE", f"{OUTBOX}/{event_id}", DROPPED)

    async def _newest(self, pattern: str, since: datetime | None) -> tuple[list[Json], datetime]:
        """Return the events since a time, newest first, at most `scan_limit`, and the server's time before that."""
        items: list[Json] = []
        parameters: dict[str, Any] = {"type": pattern, "limit": self._settings.page_limit}
        if since is not None:
            parameters["since"] = since.isoformat()
        server_time: datetime | None = None
        while True:
            response = await self._send("GET", "/events", params=parameters)
            server_time = server_time or date_of(response)
            page = _object_in(response, self._url, PAGE)
            items.extend(page["items"])
            if page["next"] is None or len(items) >= self._settings.scan_limit:
                return items, server_time
            parameters["cursor"] = page["next"]

    async def _ask(self, method: str, path: str, fields: frozenset[str], **arguments: Any) -> Json:
        return _object_in(await self._send(method, path, **arguments), self._url, fields)

    async def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        if self._client is None:
            raise NotOpen("The bus is not open. Use it inside 'async with'.")
        where = redact_url(self._url)
        try:
            response = await self._client.request(method, self._url + path, **arguments)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ServerUnavailable(
                f"No server answers at {where} ({_reason(error)}). Start it with 'bb serve', correct BLOODBANK_URL, "
                "or unset it to open the bus without a server."
            ) from error
        except httpx.HTTPError as error:
            if method == "GET" or path.startswith(OUTBOX):
                raise ServerUnavailable(f"The server at {where} broke off ({_reason(error)}). Try again.") from error
            if not path.startswith(EVENTS):
                raise ServerUnavailable(
                    f"The server at {where} broke off ({_reason(error)}), and may do what it was asked for. Look "
                    "before you try again."
                ) from error
            raise PublishUnknown(
                f"The server at {where} broke off ({_reason(error)}); the event may be on the bus. "
                "Publishing it again with the same id is safe."
            ) from error
        if not response.is_success:
            raise problem(response, where)
        return response


def is_loopback(url: str) -> bool:
    """Say whether a URL means this machine. Raises ConfigurationError when it is none."""
    try:
        return httpx.URL(url).host in LOOPBACK
    except httpx.InvalidURL as error:
        raise ConfigurationError(
            f"BLOODBANK_URL is no URL: {error}. Set it to one such as http://host:8682."
        ) from error


def problem(response: httpx.Response, where: str) -> BloodbankError:
    """Return the error that an answer tells of: the one of its problem's `code` where there is one."""
    try:
        fields = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict) or "code" not in fields:
        return ServerUnavailable(
            f"What answers at {where} is no Bloodbank server, or something stands before it: "
            f"status {response.status_code}. Correct BLOODBANK_URL."
        )
    told = cast("Json", fields)
    text = str(told.get("detail") or told.get("title") or f"status {response.status_code}")
    if response.status_code in (401, 403):
        return ConfigurationError(f"{text} The key is the one in BLOODBANK_KEY.")
    return KINDS.get(str(told["code"]), _fallback(response.status_code))(text)


def _fallback(status_code: int) -> type[BloodbankError]:
    if status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        return TransportUnavailable
    return EventNotFound if status_code == httpx.codes.NOT_FOUND.value else InvalidQuery


def _object_in(response: httpx.Response, url: str, fields: frozenset[str]) -> Json:
    """Return the answer, which must have some fields. Raises TransportUnavailable when it is no answer of ours."""
    try:
        answer = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict) or not fields <= cast("Json", answer).keys():
        raise ServerUnavailable(f"What answers at {redact_url(url)} is no Bloodbank server. Correct BLOODBANK_URL.")
    return cast("Json", answer)


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def date_of(response: httpx.Response) -> datetime:
    """Return the server's time; by our clock where it says none."""
    try:
        return parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return datetime.now(UTC)


def earliest_time(prefix: str) -> datetime | None:
    """Return a time before which no event was accepted whose id begins so, or None where the prefix tells none.

    A UUIDv7 begins with the millisecond when it was made; an event is accepted after that.
    """
    if prefix[12:13] not in ("", "7"):
        return None
    made = time_of(UUID(f"{prefix[:12]:0<12}7{'0' * 3}8{'0' * 15}"))
    if made is None or not FIRST_UUID7 < made < datetime.now(UTC) + CLOCK_SKEW:
        return None
    return made - CLOCK_SKEW
