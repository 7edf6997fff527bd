"""What `bb doctor` looks at. Each check says what it found and, where something is wrong, how to mend it."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import orjson
from redis.exceptions import RedisError

from bloodbank.cli.remote import date_of, is_loopback
from bloodbank.config import Settings, redact_url, unknown_variables
from bloodbank.errors import BloodbankError, StoreFormatError, Unavailable
from bloodbank.event_log import EventLog
from bloodbank.events import load_plugins
from bloodbank.outbox import Outbox, describe_outbox
from bloodbank.publisher import Publisher
from bloodbank.stores.clock import redis_time
from bloodbank.wiring import describe, find_stranded

CLOCK_TOLERANCE_SECONDS = 5.0
LEAST_FREE_BYTES = 100_000_000
SETTLE_WHAT_WAS_REFUSED = "See the reasons with 'bb outbox list', then 'bb outbox retry' or 'bb outbox drop'."
SET_CLOCK = "Set the clock of this machine, for example by NTP."


@dataclass(frozen=True, slots=True)
class Check:
    """What was found. remedy: how to mend it, empty when all is well."""

    name: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing needs mending."""
        return not self.remedy


async def examine(settings: Settings) -> AsyncGenerator[Check]:
    """Yield the checks, one by one, of the server at BLOODBANK_URL or of the bus that is opened here."""
    yield await asyncio.to_thread(check_settings)
    if settings.server_url is not None:
        for check in await check_server(settings, settings.server_url):
            yield check
        return
    yield await asyncio.to_thread(check_data_folder, settings.data_dir)
    newest: datetime | None = None
    try:
        async with Publisher(settings, enable_correlation_tracking=settings.correlation_tracking) as publisher:
            yield await check_broker(settings, publisher)
            yield await check_store(settings, publisher)
            if publisher.outbox is not None:
                yield await check_outbox(publisher.outbox)
            for one in await asyncio.to_thread(find_stranded, settings):
                yield Check("outbox", str(one), "Start a process with the settings of that bus, so that it is sent.")
            newest = await _newest_entry(settings, publisher)
    except BloodbankError as error:
        yield Check("bus", str(error), "Mend what the line says; the bus cannot be opened before.")
    port, server_time = await check_port(settings)
    yield await check_clock(settings, server_time, newest)
    yield port


def check_settings() -> Check:
    """Look for variables that are most likely misspelt."""
    unknown = unknown_variables()
    if unknown:
        names = ", ".join(unknown)
        return Check(
            "settings",
            f"unknown setting{'s' if len(unknown) > 1 else ''} {names}",
            "Correct the names, or remove them.",
        )
    plugins = load_plugins()
    return Check("settings", "all values are valid" + (f"; event plugins: {', '.join(plugins)}" if plugins else ""))


def check_data_folder(folder: Path) -> Check:
    """Write a file into the data folder and look at the free space."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"bloodbank")
            probe.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(
            "data folder",
            f"{folder} cannot be written: {error.strerror}",
            "Let this user write there, or set BLOODBANK_DATA_DIR to another folder.",
        )
    if free < LEAST_FREE_BYTES:
        return Check("data folder", f"{folder} has {free // 1_000_000} MB left", "Free some space on that disk.")
    return Check("data folder", f"{folder} can be written, {free / 1e9:.1f} GB free")


async def check_broker(settings: Settings, publisher: Publisher) -> Check:
    """Make a confirmed round trip through the transport."""
    where = describe(settings, tracking=False)["transport"]
    started = time.monotonic()
    try:
        await publisher.transport.check(timeout_seconds=settings.publish_timeout_seconds)
    except Unavailable as error:
        remedy = (
            "Let this user write there, or set BLOODBANK_DATA_DIR to another folder."
            if settings.rabbit_url is None
            else "Start RabbitMQ, correct RABBIT_URL, or unset it to use the embedded log."
        )
        return Check("broker", str(error), remedy)
    milliseconds = (time.monotonic() - started) * 1000
    return Check("broker", f"{where}, confirmed round trip in {milliseconds:.0f} ms")


async def check_store(settings: Settings, publisher: Publisher) -> Check:
    """Make a round trip to the correlation store."""
    where = describe(settings, tracking=settings.correlation_tracking)["store"]
    if not publisher.tracking_enabled:
        return Check("store", "off: BLOODBANK_CORRELATION_TRACKING is false, so 'bb why' cannot be answered")
    started = time.monotonic()
    try:
        await publisher.tracker.check()
    except (Unavailable, StoreFormatError) as error:
        remedy = (
            "Let this user write to BLOODBANK_DATA_DIR."
            if settings.redis_address() is None
            else "Start Redis, or correct REDIS_URL or REDIS_HOST, REDIS_PORT and REDIS_PASSWORD."
        )
        return Check("store", f"{where}: {error}", remedy)
    milliseconds = (time.monotonic() - started) * 1000
    return Check("store", f"{where}, round trip in {milliseconds:.0f} ms")


async def check_outbox(outbox: Outbox) -> Check:
    """Say how much waits for the broker, and whether it refused something for good."""
    try:
        totals = await outbox.totals()
        await outbox.check()
    except Unavailable as error:
        return Check("outbox", str(error), "Make room there and let this user write to BLOODBANK_DATA_DIR.")
    found = describe_outbox(totals)
    if totals.set_aside:
        return Check("outbox", found, SETTLE_WHAT_WAS_REFUSED)
    if totals.used_bytes >= totals.limit_bytes:
        return Check("outbox", found, "Bring the broker back, or raise BLOODBANK_OUTBOX_LIMIT_BYTES.")
    return Check("outbox", found)


async def check_port(settings: Settings) -> tuple[Check, datetime | None]:
    """See whether `bb serve` could listen, or does already; also return the time of the server that answers."""
    host, port = settings.http_host, settings.http_port
    asked = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104, compared with, not bound to
    where = f"{host}:{port}"
    async with httpx.AsyncClient(timeout=settings.connect_timeout_seconds, trust_env=False) as client:
        try:
            response = await client.get(f"http://{f'[{asked}]' if ':' in asked else asked}:{port}/healthz")
        except httpx.HTTPError:
            response = None
    if response is not None and (version := _bloodbank_version(response)):
        return Check("port", f"{where}: Bloodbank {version} answers there already"), date_of(response)
    try:
        await asyncio.to_thread(_bind, host, port)
    except OSError as error:
        reason = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        remedy = "Choose another port with HTTP_PORT or 'bb serve --port'"
        return Check("port", f"{where}: {reason}", f"{remedy}, or end the program that has it."), None
    return Check("port", f"{where} is free"), None


async def check_clock(settings: Settings, server_time: datetime | None, newest: datetime | None) -> Check:
    """Compare this clock with the best other one there is."""
    if server_time is not None:
        return compare_clocks(datetime.now(UTC), server_time, "the server's clock")
    if (address := settings.redis_address()) is not None:
        redis_time = await _redis_time(address, settings.connect_timeout_seconds)
        if redis_time is not None:
            return compare_clocks(datetime.now(UTC), redis_time, "the clock of Redis")
    if newest is not None and (newest - datetime.now(UTC)).total_seconds() > CLOCK_TOLERANCE_SECONDS:
        return Check("clock", f"the newest event is of {newest.isoformat()}, which is yet to come", SET_CLOCK)
    return Check("clock", "no other clock to compare with" + ("; no event is of the future" if newest else ""))


def compare_clocks(ours: datetime, other: datetime, whose: str) -> Check:
    """Say how far two clocks lie apart. Both times are aware; the other one may be cut to the second."""
    apart = (ours - other).total_seconds()
    if abs(apart) <= CLOCK_TOLERANCE_SECONDS:
        return Check("clock", f"agrees with {whose}")
    return Check("clock", f"{abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} {whose}", SET_CLOCK)


async def check_server(settings: Settings, url: str) -> list[Check]:
    """Ask the server at BLOODBANK_URL how it is, with the key that commands use."""
    where = redact_url(url)
    key = settings.server_key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    trust_env = not is_loopback(url)
    async with httpx.AsyncClient(
        headers=headers, timeout=settings.connect_timeout_seconds + settings.query_timeout_seconds, trust_env=trust_env
    ) as client:
        try:
            health = await client.get(f"{url.rstrip('/')}/healthz")
            ready = await client.get(f"{url.rstrip('/')}/readyz")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            found = f"no answer from {where} ({error or type(error).__name__})"
            return [Check("server", found, "Start it with 'bb serve', correct BLOODBANK_URL, or unset it.")]
    version = _bloodbank_version(health)
    if version is None:
        return [Check("server", f"what answers at {where} is no Bloodbank server", "Correct BLOODBANK_URL.")]
    clocks = compare_clocks(datetime.now(UTC), date_of(health), "the server's clock")
    return [Check("server", f"Bloodbank {version} at {where}"), *_readiness(ready), clocks]


def _readiness(response: httpx.Response) -> list[Check]:
    """Return what `/readyz` says of the server's broker and store, or that the key was refused."""
    if response.status_code in (401, 403):
        found = "refused" if response.request.headers.get("authorization") else "missing"
        return [Check("key", f"{found} by the server", "Set BLOODBANK_KEY to a key of the server with the scope read.")]
    fields = _json_object(response)
    checks: list[Check] = []
    for name, title in (("transport", "broker"), ("store", "store"), ("outbox", "outbox")):
        part = cast("dict[str, Any]", fields.get(name) or {"ok": False, "what": "", "detail": "not told by /readyz"})
        remedy = "" if part["ok"] else "Mend it where the server runs; 'bb doctor' there says more."
        if part["ok"] and part.get("set_aside"):
            remedy = SETTLE_WHAT_WAS_REFUSED
        what = part.get("what")
        checks.append(Check(title, f"{what}: {part['detail']}" if what else part["detail"], remedy))
    return checks


def _bloodbank_version(response: httpx.Response) -> str | None:
    """Return the version that a server's `/healthz` tells, or None where something else answers."""
    fields = _json_object(response)
    return str(fields["version"]) if {"ok", "service", "version", "environment"} <= fields.keys() else None


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        fields = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


async def _newest_entry(settings: Settings, publisher: Publisher) -> datetime | None:
    log = EventLog(publisher.transport, None, settings)
    try:
        page = await log.page(limit=1)
    except Unavailable:
        return None  # The broker's line has said so.
    return page.items[0].logged_at if page.items else None


async def _redis_time(address: str, timeout_seconds: float) -> datetime | None:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await redis_time(address, timeout_seconds)
    except (RedisError, TimeoutError, OSError, TypeError, ValueError):
        # The line of the store has said so; that of the bus, where the URL has an option that nobody knows.
        return None
