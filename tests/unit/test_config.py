"""Settings: each by its variable, wrong ones by their name, and secrets nowhere."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bloodbank._rabbit_url import rabbit_nodes
from bloodbank._redis_url import Servers, redis_servers
from bloodbank.config import Scope, load_settings, redact_url, unknown_variables, variable_names
from bloodbank.errors import ConfigurationError
from bloodbank.publisher import Publisher

# Each setting: a value of its variable, what the setting becomes, and a value that is wrong (None: any text will do).
SAMPLES: dict[str, tuple[str, Any, str | None]] = {
    "RABBIT_URL": ("amqp://u:p@h:5672/v", SecretStr("amqp://u:p@h:5672/v"), "http://h"),
    "EXCHANGE_NAME": ("ex", "ex", "x" * 128),
    "REDIS_URL": ("rediss://h", SecretStr("rediss://h"), "redis://"),
    "REDIS_HOST": ("h", "h", None),
    "REDIS_PORT": ("1234", 1234, "0"),
    "REDIS_DB": ("3", 3, "-1"),
    "REDIS_PASSWORD": ("pw", SecretStr("pw"), None),
    "CORRELATION_TTL_DAYS": ("0.5", 0.5, "0"),
    "HTTP_HOST": ("0.0.0.0", "0.0.0.0", None),
    "HTTP_PORT": ("80", 80, "65536"),
    "SERVICE_NAME": ("svc", "svc", "a\nb"),
    "ENVIRONMENT": ("production", "production", None),
    "BLOODBANK_DATA_DIR": ("/var/lib/bb", Path("/var/lib/bb"), None),
    "BLOODBANK_URL": ("http://h:1", "http://h:1", "h:1"),
    "BLOODBANK_KEY": ("key", SecretStr("key"), None),
    "BLOODBANK_CORRELATION_TRACKING": ("false", False, "perhaps"),
    "BLOODBANK_API_KEYS": (
        "key-one1:publish+read, key:two2:admin",
        {"key-one1": {Scope.PUBLISH, Scope.READ}, "key:two2": {Scope.ADMIN}},
        "key-one1:fly",
    ),
    "BLOODBANK_ALLOW_ANONYMOUS": ("true", True, "perhaps"),
    "BLOODBANK_FIREFLIES_SECRETS": ("one, two,", (SecretStr("one"), SecretStr("two")), None),
    "BLOODBANK_FIREFLIES_ALLOW_UNSIGNED": ("1", True, "perhaps"),
    "BLOODBANK_UNKNOWN_EVENT_TYPES": ("refuse", "refuse", "ignore"),
    "BLOODBANK_BODY_LIMIT_BYTES": ("2048", 2048, "1023"),
    "BLOODBANK_BATCH_BODY_LIMIT_BYTES": ("2048", 2048, "1023"),
    "BLOODBANK_BATCH_LIMIT": ("5", 5, "0"),
    "BLOODBANK_JSON_DEPTH_LIMIT": ("8", 8, "201"),
    "BLOODBANK_PUBLISH_TIMEOUT_SECONDS": ("0.5", 0.5, "0"),
    "BLOODBANK_CONNECT_TIMEOUT_SECONDS": ("0.5", 0.5, "301"),
    "BLOODBANK_CORRELATION_TIMEOUT_SECONDS": ("0.25", 0.25, "1.1"),
    "BLOODBANK_QUERY_TIMEOUT_SECONDS": ("0.5", 0.5, "nan"),
    "BLOODBANK_BREAKER_FAILURE_THRESHOLD": ("1", 1, "0"),
    "BLOODBANK_BREAKER_RESET_SECONDS": ("0.5", 0.5, "-1"),
    "BLOODBANK_TRACKER_QUEUE_LIMIT": ("5", 5, "0"),
    "BLOODBANK_TRACKER_BATCH_LIMIT": ("5", 5, "0"),
    "BLOODBANK_JOURNAL_LIMIT": ("7", 7, "-1"),
    "BLOODBANK_LINEAGE_DEPTH_LIMIT": ("5", 5, "0"),
    "BLOODBANK_LINEAGE_NODE_LIMIT": ("5", 5, "1.5"),
    "BLOODBANK_PAGE_LIMIT": ("5", 5, "many"),
    "BLOODBANK_SCAN_LIMIT": ("500", 500, "99"),
    "BLOODBANK_SEARCH_LIMIT_EVENTS": ("500", 500, "99"),
    "BLOODBANK_DEAD_LETTER_GROUP_LIMIT": ("5", 5, "0"),
    "BLOODBANK_DEAD_LETTER_TIMEOUT_SECONDS": ("5", 5.0, "0"),
    "BLOODBANK_JOB_LIMIT": ("5", 5, "0"),
    "BLOODBANK_RUNNING_JOB_LIMIT": ("5", 5, "0"),
    "BLOODBANK_JOB_KEEP_SECONDS": ("60", 60.0, "0"),
    "BLOODBANK_STREAM_HEARTBEAT_SECONDS": ("5", 5.0, "0"),
    "BLOODBANK_STREAM_RING_EVENTS": ("16", 16, "0"),
    "BLOODBANK_STREAM_RING_BYTES": ("65536", 65_536, "65535"),
    "BLOODBANK_STREAM_CLIENTS": ("2", 2, "0"),
    "BLOODBANK_LOG_RETENTION_DAYS": ("1.5", 1.5, "inf"),
    "BLOODBANK_LEASE_SECONDS": ("2", 2.0, "0.5"),
    "BLOODBANK_POLL_SECONDS": ("0.5", 0.5, "0"),
    "BLOODBANK_CONSUMER_PREFETCH": ("5", 5, "0"),
    "BLOODBANK_INBOX_DAYS": ("1.5", 1.5, "0"),
    "BLOODBANK_INBOX_TIMEOUT_SECONDS": ("0.5", 0.5, "0"),
    "BLOODBANK_REINDEX_PATIENCE_SECONDS": ("5", 5.0, "-1"),
    "BLOODBANK_REDIS_PREFIX": ("my-bus.1", "my-bus.1", "a:b"),
    "BLOODBANK_OUTBOX": ("off", "off", "maybe"),
    "BLOODBANK_OUTBOX_LIMIT_BYTES": ("2000000", 2_000_000, "1000"),
    "BLOODBANK_STOP_DELAY_SECONDS": ("5", 5.0, "-1"),
    "BLOODBANK_STOP_TIMEOUT_SECONDS": ("20", 20.0, "0"),
    "BLOODBANK_REDIS_REPLICAS": ("2", 2, "6"),
    "BLOODBANK_REDIS_REPLICA_SECONDS": ("0.1", 0.1, "0"),
    "BLOODBANK_LOG_LEVEL": ("DEBUG", "DEBUG", "LOUD"),
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine, and no `.env` of the folder, is seen here."""
    for name in [*variable_names(), *(name for name in os.environ if name.startswith("BLOODBANK_"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_setting_has_a_sample_here() -> None:
    assert list(SAMPLES) == list(variable_names())


@pytest.mark.parametrize("variable", SAMPLES)
def test_each_setting_is_read_from_its_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, expected, _ = SAMPLES[variable]
    field = variable_names()[variable]
    assert getattr(load_settings(), field) != expected, "the sample is not the default"
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), field) == expected
    assert load_settings(**{field: expected}) == load_settings()


@pytest.mark.parametrize("variable", [name for name, (_, _, wrong) in SAMPLES.items() if wrong is not None])
def test_each_wrong_value_names_its_variable_and_is_not_repeated(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = SAMPLES[variable][2]
    assert wrong is not None
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(ConfigurationError, match=rf"^Wrong setting\. {variable}: .*start again\.$"):
        load_settings()


def test_all_wrong_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PORT", "x")
    monkeypatch.setenv("BLOODBANK_LOG_LEVEL", "x")
    with pytest.raises(ConfigurationError, match=r"HTTP_PORT: .*; BLOODBANK_LOG_LEVEL: "):
        load_settings()


@pytest.mark.parametrize("variable", SAMPLES)
def test_an_empty_variable_is_as_good_as_none(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = load_settings()
    monkeypatch.setenv(variable, "")
    assert load_settings() == default


def test_settings_stand_in_an_env_file_and_the_environment_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("HTTP_PORT=1111\nSERVICE_NAME=from-file\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("HTTP_PORT", "2222")
    settings = load_settings()
    assert (settings.http_port, settings.service_name) == (2222, "from-file")


def test_a_wrong_value_in_an_env_file_names_its_variable() -> None:
    Path(".env").write_text("HTTP_PORT=lots\n")
    with pytest.raises(ConfigurationError, match="HTTP_PORT"):
        load_settings()


def test_secrets_are_in_no_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REDIS_PASSWORD", "BLOODBANK_KEY", "BLOODBANK_FIREFLIES_SECRETS"):
        monkeypatch.setenv(variable, "hush-hush")
    monkeypatch.setenv("BLOODBANK_API_KEYS", "hush-hush:admin")
    monkeypatch.setenv("RABBIT_URL", "amqp://user:hush-hush@h/")
    monkeypatch.setenv("REDIS_URL", "redis://:hush-hush@h/")
    settings = load_settings()
    assert "hush-hush" not in f"{settings!r}{settings!s}"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RABBIT_URL", "http://user:hush-hush@h/"),
        ("RABBIT_URL", "amqp://user:hush-hush@h:port/"),
        ("REDIS_URL", "hush-hush"),
        ("BLOODBANK_API_KEYS", "hush-hush:fly"),
        ("BLOODBANK_API_KEYS", "hush-hush"),
        ("BLOODBANK_API_KEYS", "hush-hu:admin"),
    ],
)
def test_a_wrong_secret_is_not_repeated(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, value)
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigurationError, match=variable) as caught:
        load_settings()
    assert "hush" not in str(caught.value) + caplog.text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().http_port = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_the_home_folder_is_meant_by_a_tilde() -> None:
    assert load_settings(data_dir="~/bb").data_dir == Path.home() / "bb"


def test_variables_that_are_no_setting_are_found() -> None:
    environment = {"BLOODBANK_REDIS_PREFIX": "x", "BLOODBANK_REDIS_PREFX": "x", "HOME": "/", "BLOODBANK_A": ""}
    assert unknown_variables(environment) == ["BLOODBANK_A", "BLOODBANK_REDIS_PREFX"]


def test_variables_of_the_process_are_looked_at_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODBANK_MISSPELT", "1")
    assert "BLOODBANK_MISSPELT" in unknown_variables()


def test_without_redis_there_is_no_address() -> None:
    assert load_settings(redis_password=SecretStr("pw")).redis_address() is None


def test_the_url_goes_before_the_host() -> None:
    settings = load_settings(redis_url="redis://one/1", redis_host="two")
    assert settings.redis_address() == "redis://one/1"


@pytest.mark.parametrize(
    ("parts", "address"),
    [
        ({"redis_host": "h"}, "redis://h:6379/0"),
        ({"redis_host": "h", "redis_port": 7000, "redis_db": 2}, "redis://h:7000/2"),
        ({"redis_host": "::1"}, "redis://[::1]:6379/0"),
        ({"redis_host": "h", "redis_password": "p@s:s/w#?% ü"}, "redis://:p%40s%3As%2Fw%23%3F%25%20%C3%BC@h:6379/0"),
    ],
)
def test_the_address_is_made_of_its_parts(parts: dict[str, Any], address: str) -> None:
    assert load_settings(**parts).redis_address() == address


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("amqp://user:pass@h:5672/v", "amqp://h:5672/v"),
        ("amqp://user:pass@a,[::1]:7,b:5673/v?heartbeat=9", "amqp://a:5672,[::1]:7,b:5673/v"),
        ("amqps://user:pass@a/v, amqps://user:p%40ss@b/v", "amqps://a:5671,b:5671/v"),
        ("amqp://user:pa,ss@a,b", "amqp://a:5672,b:5672"),
        ("amqp://user:pass@a,,b/", "(not a URL)"),
        ("redis://:p%40ss@[::1]:6379/0?password=x#y", "redis://[::1]:6379/0"),
        ("redis://h", "redis://h"),
        ("amqp://user:pa:ss@w0rd@h/", "amqp://h:5672/"),
        ("redis://:pw@h:port/", "(not a URL)"),
        ("redis://:pw@[h/", "(not a URL)"),
        ("redis+sentinel://u:p%40ss@a:1,[::1]:2/main/3?sentinel_password=x", "redis+sentinel://a:1,[::1]:2/main/3"),
        ("rediss+cluster://:pw@a,b:7000?ssl_cert_reqs=none", "rediss+cluster://a,b:7000"),
        ("redis+cluster://:p@ss@a,b", "(not a URL)"),
        ("redis+nothing://:pw@a", "(not a URL)"),
    ],
)
def test_a_redacted_url_has_no_credentials(url: str, redacted: str) -> None:
    assert redact_url(url) == redacted


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("amqp://h", ["amqp://h:5672"]),
        ("amqps://u:p@h/v?x=y", ["amqps://u:p@h:5671/v?x=y"]),
        (
            "amqp://u:p,q@a,b:7,[::1]/v?x=1,2",
            [f"amqp://u:p,q@{host}/v?x=1,2" for host in ("a:5672", "b:7", "[::1]:5672")],
        ),
        ("amqp://u:p@b/ , amqp://u:q@a,c/", ["amqp://u:p@b:5672/", "amqp://u:q@a:5672/", "amqp://u:q@c:5672/"]),
        ("amqp://u:p@a, b,a:5672/", ["amqp://u:p@a:5672/", "amqp://u:p@b:5672/"]),
    ],
)
def test_the_nodes_of_a_cluster_are_taken_from_one_url_or_from_several(url: str, nodes: list[str]) -> None:
    assert rabbit_nodes(url) == nodes


@pytest.mark.parametrize("key", ["ключ-ключ", "hush\nhush", "hush hush", " "])
@pytest.mark.parametrize("variable", ["BLOODBANK_KEY", "BLOODBANK_API_KEYS"])
def test_a_key_that_no_header_can_carry_stops_the_start(
    variable: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"long-enough{key}long-enough:read" if variable == "BLOODBANK_API_KEYS" else key)
    with pytest.raises(ConfigurationError, match=f"{variable}: .*visible ASCII") as caught:
        load_settings()
    assert "hush" not in str(caught.value)


def test_a_key_that_stands_twice_stops_the_start_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODBANK_API_KEYS", "hush-hush:publish,other-key:read,hush-hush:read")
    with pytest.raises(ConfigurationError, match="BLOODBANK_API_KEYS: must name each key once") as caught:
        load_settings()
    assert "hush-hush" not in str(caught.value)


def test_white_space_around_a_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODBANK_KEY", "key-of-a-file\n")
    key = load_settings().server_key
    assert key is not None
    assert key.get_secret_value() == "key-of-a-file"


def test_an_env_file_that_is_no_text_is_one_sentence() -> None:
    Path(".env").write_bytes(b"HTTP_PORT=8\xff\n")
    with pytest.raises(ConfigurationError, match=r"\.env is no UTF-8"):
        load_settings()


def test_an_env_file_that_cannot_be_read_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pydantic_settings.sources.providers.dotenv.dotenv_values", refuse)
    Path(".env").write_text("HTTP_PORT=1\n")
    with pytest.raises(ConfigurationError, match=r"\.env cannot be read: Permission denied"):
        load_settings()


def test_the_home_of_nobody_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODBANK_DATA_DIR", "~no-such-user/bb")
    with pytest.raises(ConfigurationError, match="BLOODBANK_DATA_DIR: must name a home folder"):
        load_settings()


def test_a_redis_host_given_to_a_publisher_wins_over_the_url_of_the_settings() -> None:
    settings = load_settings(redis_url="redis://one/1")
    assert Publisher(settings, redis_host="two").settings.redis_address() == "redis://two:6379/0"
    assert Publisher(settings).settings.redis_address() == "redis://one/1"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDIS_HOST", "redis://localhost"),
        ("REDIS_HOST", "localhost:6379"),
        ("REDIS_HOST", "local host"),
        ("REDIS_URL", "redis://localhost:6379/first"),
        ("REDIS_URL", "redis://:s3cret#x@localhost/0"),
        ("REDIS_URL", "redis+sentinel://:s3cret@localhost:26379"),
        ("REDIS_URL", "redis+sentinel://:s3cret@localhost:26379/main/first"),
        ("REDIS_URL", "redis+sentinel://:s3cret@localhost:99999/main"),
        ("REDIS_URL", "redis+sentinel://:s3cret@a,:s3cret@b/main"),
        ("REDIS_URL", "redis+cluster://:s3cret@"),
        ("REDIS_URL", "redis+cluster://:s3cret@a,,b"),
        ("REDIS_URL", "redis+cluster://:s3cret@a,b/1"),
        ("REDIS_URL", "redis+cluster://:s3cret@a?sentinel_password=s3cret"),
        ("REDIS_URL", "redis+cluster://:s3cret#x@a"),
        ("REDIS_URL", "redis+other://:s3cret@a"),
        ("RABBIT_URL", "amqp://a:s3cret@ss#w/d@localhost:1/"),
        ("RABBIT_URL", "amqp://a:s3cret/d@localhost:1/"),
        ("RABBIT_URL", "amqp://guest:s3cret@localhost:99999/"),
        ("RABBIT_URL", "http://guest:s3cret@localhost/"),
        ("RABBIT_URL", "amqp://guest:s3cret@/"),
        ("RABBIT_URL", "amqp://guest:s3cret@one,,two/"),
        ("RABBIT_URL", "amqp://guest:s3cret@one:5672,two:/"),
        ("RABBIT_URL", "amqp://guest:s3cret@one:5672,two:0/"),
        ("RABBIT_URL", "amqp://guest:s3cret@one,[::1/"),
        ("RABBIT_URL", "amqp://guest:s3cret@one,t wo/"),
        ("RABBIT_URL", "amqp://guest:s3cret@one/a,amqp://guest:s3cret@two/b"),
        ("RABBIT_URL", "amqp://guest:s3cret@one,amqps://guest:s3cret@two"),
        ("RABBIT_URL", "amqp://guest:s3cret@one,http://guest:s3cret@two"),
        ("BLOODBANK_URL", "localhost:8682"),
    ],
)
def test_an_address_that_cannot_work_is_named_and_not_repeated(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"{variable}: must") as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "redis-1.internal", "10.0.0.7", "::1", "fe80::1:2", "::ffff:10.0.0.7"])
def test_a_redis_host_is_a_name_or_an_address(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_HOST", host)
    assert load_settings().redis_host == host


def test_the_level_of_the_log_may_be_written_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODBANK_LOG_LEVEL", "debug")
    assert load_settings().log_level == "DEBUG"


def test_a_url_names_several_servers() -> None:
    sentinels = redis_servers("rediss+sentinel://me:p%40ss@a,[::1]:27000/main/3?sentinel_password=x&ssl_cert_reqs=none")
    assert sentinels is not None
    assert (sentinels.kind, sentinels.tls, sentinels.master, sentinels.database) == (Servers.SENTINEL, True, "main", 3)
    assert sentinels.hosts == (("a", 26379), ("::1", 27000))
    assert (sentinels.sentinel_username, sentinels.sentinel_password) == (None, "x")
    assert sentinels.url_of("::1", 1) == "rediss://me:p%40ss@[::1]:1/3?ssl_cert_reqs=none"
    cluster = redis_servers("redis+cluster://a:7000,b/0")
    assert cluster is not None
    assert (cluster.kind, cluster.hosts) == (Servers.CLUSTER, (("a", 7000), ("b", 6379)))
    assert redis_servers("redis://a") is None
    assert "p%40ss" not in repr(sentinels)
