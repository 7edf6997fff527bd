"""Settings to backends: the only module that names one. What is not used is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from bloodbank._rabbit_url import rabbit_nodes
from bloodbank._redis_url import Servers, redis_servers
from bloodbank._sqlite import Database
from bloodbank.breaker import CircuitBreaker
from bloodbank.config import Settings, redact_url
from bloodbank.consuming.inbox import GuardedInbox, Inbox
from bloodbank.correlation_tracker import CorrelationTracker
from bloodbank.deferral import Journal
from bloodbank.journal import SqliteJournal
from bloodbank.outbox import SHORTEST_LEASE_SECONDS, Outbox, Stranded, stranded
from bloodbank.stores.base import CorrelationStore
from bloodbank.transports.base import Transport

if TYPE_CHECKING:
    from bloodbank.transports.embedded import EmbeddedTransport

DATABASE_FILE = "bloodbank.db"
SECONDS_A_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Backends:
    """What a bus is made of; nothing is open yet.

    tracker: None when tracking is off. outbox: None when it is switched off, and for the embedded log, which is on the
    same disk.
    """

    transport: Transport
    tracker: CorrelationTracker | None
    outbox: Outbox | None


def build(settings: Settings, *, tracking: bool) -> Backends:
    """Return the transport and the tracker that the settings ask for."""
    # Not opened before somebody enters it; transport and store share the one file.
    database = Database(settings.data_dir / DATABASE_FILE)
    kept = Database(outbox_path(settings))
    may_keep = settings.outbox == "on"
    has_outbox = may_keep and settings.rabbit_url is not None
    journal = build_journal(settings, kept) if may_keep else None
    return Backends(
        _transport(settings, database),
        _tracker(settings, database, journal) if tracking else None,
        build_outbox(settings, kept) if has_outbox else None,
    )


@dataclass(frozen=True, slots=True)
class InMemory:
    """A bus in the memory of this process, whose parts share one database; nothing is open yet."""

    database: Database
    transport: EmbeddedTransport
    tracker: CorrelationTracker
    inbox: GuardedInbox


def build_in_memory(settings: Settings) -> InMemory:
    """Return the embedded bus without its file, with the limits of the settings, wherever their URLs point."""
    from bloodbank.consuming._inbox_sqlite import SqliteInbox  # noqa: PLC0415, what is not used is not imported
    from bloodbank.stores.sqlite import SqliteStore  # noqa: PLC0415, as above

    database = Database.in_memory()
    return InMemory(
        database,
        _embedded(settings, database),
        build_tracker(settings, SqliteStore(database)),
        _guarded(settings, SqliteInbox(database, keep_seconds=settings.inbox_days * SECONDS_A_DAY)),
    )


def _transport(settings: Settings, database: Database) -> Transport:
    if settings.rabbit_url is not None:
        from bloodbank.transports.rabbit import RabbitTransport  # noqa: PLC0415, what is not used is not imported

        return RabbitTransport(settings)
    return _embedded(settings, database)


def _embedded(settings: Settings, database: Database) -> EmbeddedTransport:
    from bloodbank.transports.embedded import EmbeddedTransport  # noqa: PLC0415, as above

    return EmbeddedTransport(
        database,
        retention_seconds=settings.log_retention_days * SECONDS_A_DAY,
        lease_seconds=settings.lease_seconds,
        poll_seconds=settings.poll_seconds,
    )


def _tracker(settings: Settings, database: Database, journal: Journal | None) -> CorrelationTracker:
    if (address := settings.redis_address()) is not None:
        servers = redis_servers(address)
        if servers is not None and servers.kind is Servers.CLUSTER:
            from bloodbank.stores.redis_cluster import RedisClusterStore  # noqa: PLC0415, as above

            return build_tracker(settings, RedisClusterStore(settings), journal=journal)
        from bloodbank.stores.redis import RedisStore  # noqa: PLC0415, as above

        return build_tracker(settings, RedisStore(settings), journal=journal)
    from bloodbank.stores.sqlite import SqliteStore  # noqa: PLC0415, as above

    retention_seconds = settings.correlation_ttl_days * SECONDS_A_DAY
    return build_tracker(settings, SqliteStore(database), retention_seconds=retention_seconds, journal=journal)


def outbox_path(settings: Settings) -> Path:
    """Return the file for what waits for the bus of the settings: each bus has its own, or one would get another's."""
    if settings.rabbit_url is None:
        bus = ["embedded"]
    else:
        nodes = [urlsplit(node) for node in rabbit_nodes(settings.rabbit_url.get_secret_value())]
        hosts = sorted({node.netloc.rpartition("@")[2].lower() for node in nodes})
        bus = [*hosts, unquote(nodes[0].path[1:]) or "/", settings.exchange_name]
    digest = blake2b("\n".join(bus).encode(), digest_size=6).hexdigest()
    return settings.data_dir / f"outbox-{digest}.db"


def build_outbox(settings: Settings, database: Database) -> Outbox:
    """Return the outbox in a file, with the limits of the settings."""
    bus = f"{describe(settings, tracking=False)['transport']}, exchange {settings.exchange_name}"
    # A batch may be sent twice before it is heard of.
    lease_seconds = max(SHORTEST_LEASE_SECONDS, 2 * settings.publish_timeout_seconds + 5)
    return Outbox(database, limit_bytes=settings.outbox_limit_bytes, bus=bus, lease_seconds=lease_seconds)


def find_stranded(settings: Settings) -> list[Stranded]:
    """Return what lies in the data folder and is not forwarded with these settings. Blocks."""
    own = outbox_path(settings) if settings.outbox == "on" else None
    return stranded(settings.data_dir, own)


def build_journal(settings: Settings, database: Database) -> SqliteJournal:
    """Return the journal in a file, with the limit of the settings."""
    return SqliteJournal(database, limit=settings.journal_limit)


def build_inbox(settings: Settings) -> GuardedInbox:
    """Return what remembers which events a group has handled: in Redis where there is one, in the file otherwise."""
    return _guarded(settings, _inbox(settings))


def _guarded(settings: Settings, inbox: Inbox) -> GuardedInbox:
    breaker = CircuitBreaker(
        failure_threshold=settings.breaker_failure_threshold, reset_seconds=settings.breaker_reset_seconds
    )
    return GuardedInbox(inbox, timeout_seconds=settings.inbox_timeout_seconds, breaker=breaker)


def _inbox(settings: Settings) -> Inbox:
    if settings.redis_address() is not None:
        from bloodbank.consuming._inbox_redis import RedisInbox  # noqa: PLC0415, as above

        return RedisInbox(settings)
    from bloodbank.consuming._inbox_sqlite import SqliteInbox  # noqa: PLC0415, as above

    return SqliteInbox(Database(settings.data_dir / DATABASE_FILE), keep_seconds=settings.inbox_days * SECONDS_A_DAY)


def build_tracker(
    settings: Settings,
    store: CorrelationStore,
    *,
    retention_seconds: float | None = None,
    journal: Journal | None = None,
) -> CorrelationTracker:
    """Return a tracker over a store, with the limits of the settings."""
    breaker = CircuitBreaker(
        failure_threshold=settings.breaker_failure_threshold, reset_seconds=settings.breaker_reset_seconds
    )
    return CorrelationTracker(
        store,
        timeout_seconds=settings.correlation_timeout_seconds,
        query_timeout_seconds=settings.query_timeout_seconds,
        breaker=breaker,
        batch_limit=settings.tracker_batch_limit,
        queue_limit=settings.tracker_queue_limit,
        retention_seconds=retention_seconds,
        journal=journal,
    )


def describe(settings: Settings, *, tracking: bool) -> dict[str, str]:
    """Say in words what the settings choose, without credentials: {"transport": …, "store": …}."""
    file = str(settings.data_dir / DATABASE_FILE)
    rabbit = settings.rabbit_url
    redis = settings.redis_address()
    return {
        "transport": f"RabbitMQ at {redact_url(rabbit.get_secret_value())}" if rabbit else f"embedded log in {file}",
        "store": "off" if not tracking else _redis_name(redis) if redis else f"SQLite in {file}",
    }


def _redis_name(address: str) -> str:
    servers = redis_servers(address)
    kind = "" if servers is None else " Cluster" if servers.kind is Servers.CLUSTER else " behind Sentinels"
    return f"Redis{kind} at {redact_url(address)}"
