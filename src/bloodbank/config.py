"""Settings: every URL, limit and timeout, read from the environment and from `.env`.

docs/configuration.md holds the same table; a test compares them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bloodbank._rabbit_url import rabbit_nodes, redacted_nodes
from bloodbank._redis_url import redacted, redis_servers, require_redis_url
from bloodbank.errors import ConfigurationError

_BARE_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*")
"""A name, an IPv4 address, or an IPv6 address with its two colons or more."""
_VISIBLE = re.compile(r"[\x21-\x7e]+")


NO_SETTINGS = frozenset({"BLOODBANK_PARENTS"})
"""Variables of ours that say nothing of the bus: this one is passed from process to process."""


class Scope(StrEnum):
    """What a key may do: send events, read events and lineage, or everything."""

    PUBLISH = "publish"
    READ = "read"
    ADMIN = "admin"


class Settings(BaseSettings):
    """All settings. Names are those of the environment variables; `Settings(data_dir=...)` works too.

    Use `load_settings()` in programs: it turns a wrong value into one sentence.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        frozen=True,
        hide_input_in_errors=True,
    )

    rabbit_url: SecretStr | None = Field(
        None,
        validation_alias="RABBIT_URL",
        description="AMQP URL of RabbitMQ, `amqp://` or `amqps://`; the nodes of a cluster with commas between them. "
        "Not set: the embedded log.",
    )
    exchange_name: str = Field(
        "bloodbank.events.v1",
        min_length=1,
        max_length=127,
        validation_alias="EXCHANGE_NAME",
        description="Durable topic exchange that events are published to.",
    )
    redis_url: SecretStr | None = Field(
        None,
        validation_alias="REDIS_URL",
        description="URL of Redis, `redis://`, of Sentinels, `redis+sentinel://host:26379,…/master`, or of a cluster, "
        "`redis+cluster://host:6379,…`; `rediss` for TLS. Takes precedence over REDIS_HOST.",
    )
    redis_host: str | None = Field(
        None,
        validation_alias="REDIS_HOST",
        description="Host of Redis. Neither this nor REDIS_URL set: SQLite keeps the index.",
    )
    redis_port: int = Field(6379, ge=1, le=65535, validation_alias="REDIS_PORT", description="Port of Redis.")
    redis_db: int = Field(0, ge=0, validation_alias="REDIS_DB", description="Database number of Redis.")
    redis_password: SecretStr | None = Field(
        None, validation_alias="REDIS_PASSWORD", description="Password of Redis, used with REDIS_HOST."
    )
    correlation_ttl_days: float = Field(
        30,
        gt=0,
        le=3650,
        validation_alias="CORRELATION_TTL_DAYS",
        description="Days that the index keeps an event and its edges.",
    )
    http_host: str = Field("127.0.0.1", validation_alias="HTTP_HOST", description="Address that `bb serve` listens on.")
    http_port: int = Field(
        8682, ge=0, le=65535, validation_alias="HTTP_PORT", description="Port that `bb serve` listens on."
    )
    service_name: str = Field(
        "bloodbank",
        min_length=1,
        max_length=255,
        pattern=r"^[^\x00-\x1f]+$",
        validation_alias="SERVICE_NAME",
        description="Name of this service in `/healthz` and at the broker; `source.app` of what `bb publish` sends.",
    )
    environment: str = Field(
        "development",
        validation_alias="ENVIRONMENT",
        description="Name of the environment, shown by `/healthz` and in the log.",
    )
    data_dir: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("bloodbank"),
        validation_alias="BLOODBANK_DATA_DIR",
        description="Folder of the embedded log, index and outbox. Default: where the platform keeps user data.",
    )
    server_url: str | None = Field(
        None,
        validation_alias="BLOODBANK_URL",
        description="Server that the `bb` command speaks to. Not set: it opens the bus itself.",
    )
    server_key: SecretStr | None = Field(
        None, validation_alias="BLOODBANK_KEY", description="API key that the `bb` command sends."
    )
    correlation_tracking: bool = Field(
        True,
        validation_alias="BLOODBANK_CORRELATION_TRACKING",
        description="Whether the server and the `bb` command keep and ask the index.",
    )
    api_keys: Annotated[dict[str, frozenset[Scope]], NoDecode] = Field(
        default_factory=dict[str, frozenset[Scope]],
        repr=False,
        validation_alias="BLOODBANK_API_KEYS",
        description="Keys with their scopes: `key:publish+read,other:admin`. None: loopback only.",
    )
    allow_anonymous: bool = Field(
        False,
        validation_alias="BLOODBANK_ALLOW_ANONYMOUS",
        description="Answer other hosts although no keys are set. For networks that are closed already.",
    )
    fireflies_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        validation_alias="BLOODBANK_FIREFLIES_SECRETS",
        description="Webhook secrets of Fireflies, separated by commas; any one of them may have signed.",
    )
    fireflies_allow_unsigned: bool = Field(
        False,
        validation_alias="BLOODBANK_FIREFLIES_ALLOW_UNSIGNED",
        description="Take Fireflies webhooks without a signature while no secret is set.",
    )
    unknown_event_types: Literal["accept", "refuse"] = Field(
        "accept",
        validation_alias="BLOODBANK_UNKNOWN_EVENT_TYPES",
        description="What becomes of events whose type has no registered model.",
    )
    body_limit_bytes: int = Field(
        1_048_576,
        ge=1024,
        le=134_217_728,
        validation_alias="BLOODBANK_BODY_LIMIT_BYTES",
        description="Largest request body in bytes, and largest event.",
    )
    batch_body_limit_bytes: int = Field(
        16_777_216,
        ge=1024,
        le=134_217_728,
        validation_alias="BLOODBANK_BATCH_BODY_LIMIT_BYTES",
        description="Largest body of `/events/batch` in bytes.",
    )
    batch_limit: int = Field(
        1000,
        ge=1,
        le=100_000,
        validation_alias="BLOODBANK_BATCH_LIMIT",
        description="Most events in one batch request.",
    )
    json_depth_limit: int = Field(
        64,
        ge=8,
        le=200,
        validation_alias="BLOODBANK_JSON_DEPTH_LIMIT",
        description="Deepest nesting of JSON in a request.",
    )
    publish_timeout_seconds: float = Field(
        5.0,
        gt=0,
        le=300,
        validation_alias="BLOODBANK_PUBLISH_TIMEOUT_SECONDS",
        description="Longest wait for the confirm of a publish.",
    )
    connect_timeout_seconds: float = Field(
        5.0,
        gt=0,
        le=300,
        validation_alias="BLOODBANK_CONNECT_TIMEOUT_SECONDS",
        description="Longest wait for one attempt to connect to a broker or store.",
    )
    correlation_timeout_seconds: float = Field(
        0.5,
        gt=0,
        le=1.0,
        validation_alias="BLOODBANK_CORRELATION_TIMEOUT_SECONDS",
        description="Longest time that a publish waits for the index; the journal may add as much. At most 1.",
    )
    query_timeout_seconds: float = Field(
        10.0,
        gt=0,
        le=300,
        validation_alias="BLOODBANK_QUERY_TIMEOUT_SECONDS",
        description="Longest time for the answer to a question about lineage or the log.",
    )
    breaker_failure_threshold: int = Field(
        3,
        ge=1,
        le=1000,
        validation_alias="BLOODBANK_BREAKER_FAILURE_THRESHOLD",
        description="Failures in a row after which the store is left alone; a timeout counts as all of them.",
    )
    breaker_reset_seconds: float = Field(
        5.0,
        gt=0,
        le=3600,
        validation_alias="BLOODBANK_BREAKER_RESET_SECONDS",
        description="How long the store is left alone before one probe.",
    )
    tracker_queue_limit: int = Field(
        10_000,
        ge=1,
        validation_alias="BLOODBANK_TRACKER_QUEUE_LIMIT",
        description="Most events that wait to be recorded; beyond it lineage is deferred at once.",
    )
    tracker_batch_limit: int = Field(
        500,
        ge=1,
        le=10_000,
        validation_alias="BLOODBANK_TRACKER_BATCH_LIMIT",
        description="Most events recorded in one round trip.",
    )
    journal_limit: int = Field(
        500_000,
        ge=0,
        validation_alias="BLOODBANK_JOURNAL_LIMIT",
        description="Most links kept on disk while the index is away; beyond it `bb reindex` brings them in.",
    )
    lineage_depth_limit: int = Field(
        50_000,
        ge=1,
        validation_alias="BLOODBANK_LINEAGE_DEPTH_LIMIT",
        description="Largest `max_depth` that a lineage question may ask for.",
    )
    lineage_node_limit: int = Field(
        50_000,
        ge=1,
        validation_alias="BLOODBANK_LINEAGE_NODE_LIMIT",
        description="Largest `limit` that a lineage question may ask for.",
    )
    page_limit: int = Field(
        500,
        ge=1,
        le=10_000,
        validation_alias="BLOODBANK_PAGE_LIMIT",
        description="Most items on one page of a list.",
    )
    scan_limit: int = Field(
        50_000,
        ge=100,
        validation_alias="BLOODBANK_SCAN_LIMIT",
        description="Most log entries read for one page or one id prefix; a cursor goes on from there.",
    )
    search_limit_events: int = Field(
        10_000,
        ge=100,
        validation_alias="BLOODBANK_SEARCH_LIMIT_EVENTS",
        description="Most log entries that one request searches by id, source or text; a cursor goes on from there.",
    )
    dead_letter_group_limit: int = Field(
        1000,
        ge=1,
        le=100_000,
        validation_alias="BLOODBANK_DEAD_LETTER_GROUP_LIMIT",
        description="Most groups of dead letters in one answer; a cursor goes on from there.",
    )
    dead_letter_timeout_seconds: float = Field(
        120.0,
        gt=0,
        le=3600,
        validation_alias="BLOODBANK_DEAD_LETTER_TIMEOUT_SECONDS",
        description="Longest time to read a page of dead letters. RabbitMQ needs some 0.3 ms for each there is.",
    )
    job_limit: int = Field(
        100,
        ge=1,
        le=10_000,
        validation_alias="BLOODBANK_JOB_LIMIT",
        description="Most jobs that a server knows of, running or ended; the one that ended first is forgotten first.",
    )
    running_job_limit: int = Field(
        4,
        ge=1,
        le=100,
        validation_alias="BLOODBANK_RUNNING_JOB_LIMIT",
        description="Most jobs that a server runs at a time; beyond it a new one is refused.",
    )
    job_keep_seconds: float = Field(
        3600.0,
        ge=1,
        le=604_800,
        validation_alias="BLOODBANK_JOB_KEEP_SECONDS",
        description="How long the outcome of a job can be read after its end.",
    )
    stream_heartbeat_seconds: float = Field(
        15.0,
        gt=0,
        le=3600,
        validation_alias="BLOODBANK_STREAM_HEARTBEAT_SECONDS",
        description="How often an event stream in which nothing happens says that it is alive.",
    )
    stream_ring_events: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        validation_alias="BLOODBANK_STREAM_RING_EVENTS",
        description="Newest events that the server keeps in memory for its streams; a slower reader reads the log.",
    )
    stream_ring_bytes: int = Field(
        33_554_432,
        ge=65_536,
        validation_alias="BLOODBANK_STREAM_RING_BYTES",
        description="Most bytes of those events; with larger ones fewer are kept.",
    )
    stream_clients: int = Field(
        64,
        ge=1,
        le=10_000,
        validation_alias="BLOODBANK_STREAM_CLIENTS",
        description="Most event streams that a server serves at a time; beyond it a new one is refused.",
    )
    log_retention_days: float = Field(
        30,
        gt=0,
        le=3650,
        validation_alias="BLOODBANK_LOG_RETENTION_DAYS",
        description="Days that the log keeps an event.",
    )
    lease_seconds: float = Field(
        30.0,
        ge=1,
        le=3600,
        validation_alias="BLOODBANK_LEASE_SECONDS",
        description="How long the embedded log waits for a consumer that died before it delivers again.",
    )
    poll_seconds: float = Field(
        0.02,
        gt=0,
        le=10,
        validation_alias="BLOODBANK_POLL_SECONDS",
        description="How often the embedded log looks for events of other processes.",
    )
    consumer_prefetch: int = Field(
        50,
        ge=1,
        le=65_535,
        validation_alias="BLOODBANK_CONSUMER_PREFETCH",
        description="Most unsettled deliveries that a handler holds at a time, unless its `prefetch` says otherwise.",
    )
    inbox_days: float = Field(
        7,
        gt=0,
        le=3650,
        validation_alias="BLOODBANK_INBOX_DAYS",
        description="Days that a group remembers which events it has handled, so that it handles none twice.",
    )
    inbox_timeout_seconds: float = Field(
        2.0,
        gt=0,
        le=300,
        validation_alias="BLOODBANK_INBOX_TIMEOUT_SECONDS",
        description="Longest wait for the inbox; then the handler runs, and the inbox is left alone for a while.",
    )
    reindex_patience_seconds: float = Field(
        60.0,
        ge=0,
        le=86_400,
        validation_alias="BLOODBANK_REINDEX_PATIENCE_SECONDS",
        description="How long `bb reindex` waits, without any progress, for a broker or store that is away.",
    )
    redis_prefix: str = Field(
        "bb",
        min_length=1,
        max_length=32,
        pattern=r"^[A-Za-z0-9_.-]+$",
        validation_alias="BLOODBANK_REDIS_PREFIX",
        description="First part of every Redis key, so that several buses can share one Redis.",
    )
    outbox: Literal["on", "off"] = Field(
        "on",
        validation_alias="BLOODBANK_OUTBOX",
        description="Whether events are kept on disk while RabbitMQ takes none, and causes while the index is away.",
    )
    outbox_limit_bytes: int = Field(
        1_073_741_824,
        ge=1_048_576,
        validation_alias="BLOODBANK_OUTBOX_LIMIT_BYTES",
        description="Largest size of the outbox's file in bytes; when it is full, events are refused.",
    )
    stop_delay_seconds: float = Field(
        0.0,
        ge=0,
        le=300,
        validation_alias="BLOODBANK_STOP_DELAY_SECONDS",
        description="How long the server goes on accepting after SIGTERM, while `/readyz` says that it stops.",
    )
    stop_timeout_seconds: float = Field(
        15.0,
        gt=0,
        le=300,
        validation_alias="BLOODBANK_STOP_TIMEOUT_SECONDS",
        description="Longest time to finish what is under way when stopping; the rest stays in the outbox.",
    )
    redis_replicas: int = Field(
        1,
        ge=0,
        le=5,
        validation_alias="BLOODBANK_REDIS_REPLICAS",
        description="Replicas that must have what is recorded, where Sentinels or a cluster know of so many.",
    )
    redis_replica_seconds: float = Field(
        0.25,
        gt=0,
        le=60,
        validation_alias="BLOODBANK_REDIS_REPLICA_SECONDS",
        description="Longest wait for those replicas, in seconds; then it counts as not recorded.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", validation_alias="BLOODBANK_LOG_LEVEL", description="Level of the server's log."
    )

    @field_validator("server_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/]", value):
            raise ValueError("must be a URL that begins with http:// or https:// and names a host")
        return value

    @field_validator("rabbit_url")
    @classmethod
    def _rabbit_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            rabbit_nodes(value.get_secret_value())
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and redis_servers(value.get_secret_value()) is not None:
            return value
        if value is not None:
            require_redis_url(value.get_secret_value())
        return value

    @field_validator("redis_host")
    @classmethod
    def _bare_host(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(
            r"[A-Za-z0-9._-]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", value
        ):
            raise ValueError(
                "must be a host name or an address alone; the port is REDIS_PORT, a URL goes into REDIS_URL"
            )
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_case(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("server_key")
    @classmethod
    def _sendable_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        key = value.get_secret_value().strip()
        if not _VISIBLE.fullmatch(key):
            raise ValueError("must be visible ASCII characters, which a header can carry")
        return SecretStr(key)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _parse_keys(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        entries = [_parse_key(entry) for entry in _split(value)]
        keys = dict(entries)
        if len(keys) < len(entries):
            raise ValueError(
                "must name each key once; join the scopes of a key with '+', such as 's3cret-key:publish+read'"
            )
        return keys

    @field_validator("fireflies_secrets", mode="before")
    @classmethod
    def _parse_secrets(cls, value: object) -> object:
        return tuple(_split(value)) if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _expand_home(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError:
            raise ValueError("must name a home folder that exists after the tilde") from None

    def redis_address(self) -> str | None:
        """Return the Redis URL with its password, or None when no Redis is set."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        if self.redis_host is None:
            return None
        password = f":{quote(self.redis_password.get_secret_value(), safe='')}@" if self.redis_password else ""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        return f"redis://{password}{host}:{self.redis_port}/{self.redis_db}"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raise ConfigurationError with a sentence that names each wrong variable."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigurationError(_sentence(error)) from None
    except OSError as error:
        raise ConfigurationError(
            f"The file .env cannot be read: {error.strerror}. Mend that and start again."
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError("The file .env is no UTF-8. Correct it and start again.") from None


def unknown_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the variables that begin with BLOODBANK_ but are no setting: most likely misspelt.

    Those of the test suite, which begin with BLOODBANK_TEST_, are left out.
    """
    names = set(os.environ if environment is None else environment)
    suspects = (name for name in names if name.startswith("BLOODBANK_") and not name.startswith("BLOODBANK_TEST_"))
    return sorted(name for name in suspects if name not in variable_names() and name not in NO_SETTINGS)


def variable_names() -> dict[str, str]:
    """Return the environment variable of each setting, as {variable: field}."""
    return {str(field.validation_alias): name for name, field in Settings.model_fields.items()}


def redact_url(url: str) -> str:
    """Return a URL without its credentials and query, fit for a log line; a cluster's with all its nodes."""
    if re.match(r"\s*amqps?://", url):
        return redacted_nodes(url)
    if re.match(r"rediss?\+", url):
        return redacted(url)
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(not a URL)"
    return urlunsplit((parts.scheme, f"{host}{port}", parts.path, "", ""))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse_key(entry: str) -> tuple[str, frozenset[Scope]]:
    key, separator, scopes = entry.rpartition(":")
    try:
        parsed = frozenset(Scope(scope.strip()) for scope in scopes.split("+"))
    except ValueError:
        parsed = frozenset[Scope]()
    if not separator or len(key) < 8 or not _VISIBLE.fullmatch(key) or not parsed:
        raise ValueError(
            "each entry must be a key of at least 8 visible ASCII characters, a colon and scopes from publish, read "
            "and admin joined by '+', such as 's3cret-key:publish+read'"
        )
    return key, parsed


def _sentence(error: ValidationError) -> str:
    variables = {name: variable for variable, name in variable_names().items()}
    parts: list[str] = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        location = str(problem["loc"][0]) if problem["loc"] else "settings"
        message = problem["msg"].removeprefix("Value error, ")
        parts.append(f"{variables.get(location, location)}: {message[:1].lower()}{message[1:]}")
    return "Wrong setting. " + "; ".join(parts) + ". Correct it in the environment or in .env and start again."
