"""What the Redis store does without a server: its values, its errors, its address."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions

from bloodbank.config import Settings
from bloodbank.errors import ConfigurationError, StoreFormatError, StoreUnavailable
from bloodbank.stores.base import Link
from bloodbank.stores.redis import DRIVER_ERRORS, MEANINGS, RedisStore, pack, store_error, unpack

ADDRESS = "redis://h:6379"
UTC_TIMES = st.datetimes(timezones=st.just(UTC))
LINKS = st.builds(
    Link,
    event_id=st.uuids(),
    parents=st.lists(st.uuids(), max_size=64).map(tuple),
    event_type=st.from_regex(r"[a-z0-9_-]{1,20}\.[a-z0-9_-]{1,20}", fullmatch=True),
    timestamp=UTC_TIMES,
    source=st.text(st.characters(codec="utf-8"), max_size=255),
    accepted_at=UTC_TIMES,
    digest=st.binary(max_size=16),
)
LINK = Link(UUID(int=1), (UUID(int=2),), "llm.prompt", datetime(2026, 1, 1, tzinfo=UTC), "app", datetime.now(UTC))

# No call of ours can meet these: a lock that forks, and the routing policies of a cluster client.
NOT_OURS = {"ChildDeadlockedError", "IncorrectPolicyType"}


@given(LINKS)
def test_what_is_packed_comes_back(link: Link) -> None:
    assert unpack(link.event_id, pack(link)) == link


def test_a_value_is_small() -> None:
    assert len(pack(LINK)) == 22 + 16 + len("llm.prompt") + len("app")


@pytest.mark.parametrize("length", range(len(pack(LINK)) - len("app")))
def test_a_value_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(StoreFormatError, match="BLOODBANK_REDIS_PREFIX"):
        unpack(LINK.event_id, pack(LINK)[:length])


@given(st.binary(max_size=80))
def test_a_value_of_another_format_is_refused(value: bytes) -> None:
    with pytest.raises(StoreFormatError):
        unpack(LINK.event_id, b"\x02" + value)


@given(st.binary(max_size=120))
def test_no_value_raises_anything_else(value: bytes) -> None:
    try:
        link = unpack(LINK.event_id, b"\x01" + value)
    except StoreFormatError:
        return
    assert pack(link) == b"\x01" + value


def driver_classes() -> list[type[Exception]]:
    found = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, Exception)]
    return [kind for kind in found if kind.__module__ == exceptions.__name__ and kind.__name__ not in NOT_OURS]


def test_the_driver_has_exceptions_to_map() -> None:
    assert len(driver_classes()) > 20


@pytest.mark.parametrize("kind", driver_classes(), ids=lambda kind: kind.__name__)
def test_each_exception_of_the_driver_has_a_meaning(kind: type[Exception]) -> None:
    assert issubclass(kind, DRIVER_ERRORS), "a call would let it through"
    assert kind.__name__ in MEANINGS
    text = "12182 10.0.0.1:6381" if issubclass(kind, exceptions.AskError) else "something happened"
    error = store_error(kind(text), ADDRESS)
    assert isinstance(error, StoreUnavailable)
    assert str(error).startswith(f"Redis at {ADDRESS} ")
    assert str(error).endswith("Published events are safe in the log.")


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (exceptions.AuthenticationError("WRONGPASS invalid"), "REDIS_PASSWORD"),
        (exceptions.NoPermissionError("NOPERM this user"), "Allow it"),
        (exceptions.OutOfMemoryError("OOM command not allowed"), "maxmemory"),
        (exceptions.ReadOnlyError("READONLY You can't write"), "primary"),
        (exceptions.BusyLoadingError("LOADING"), "when that is over"),
        (exceptions.MovedError("12182 10.0.0.1:6381"), "standalone"),
        (exceptions.ConnectionError("Error 111 connecting"), "Error 111 connecting. Start it"),
        (exceptions.ResponseError("ERR unknown command"), "ERR unknown command"),
        (TimeoutError(), "no answer in time"),
        (ConnectionResetError(104, "Connection reset by peer"), "reset by peer"),
    ],
    ids=repr,
)
def test_an_error_says_what_to_do(error: Exception, hint: str) -> None:
    assert hint in str(store_error(error, ADDRESS))


def test_an_exception_that_a_later_driver_adds_means_what_its_parent_means() -> None:
    class NewError(exceptions.ReadOnlyError):
        pass

    assert "primary" in str(store_error(NewError("new"), ADDRESS))


def test_a_long_error_is_cut() -> None:
    assert len(str(store_error(exceptions.ResponseError("x" * 10_000), ADDRESS))) < 400


def test_braces_in_an_error_are_only_text() -> None:
    assert "{detail}" in str(store_error(exceptions.ResponseError("{detail} {0}"), ADDRESS))


def test_keys_of_another_kind_are_a_matter_of_format() -> None:
    error = store_error(exceptions.ResponseError("WRONGTYPE Operation against a key"), ADDRESS)
    assert isinstance(error, StoreFormatError)


def store(**changes: Any) -> RedisStore:
    return RedisStore(Settings(_env_file=None, **changes))  # pyright: ignore[reportCallIssue]


def test_a_store_without_an_address_says_which_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("REDIS_HOST", raising=False)
    with pytest.raises(ConfigurationError, match="REDIS_URL or REDIS_HOST"):
        store()


@pytest.mark.parametrize("option", ["colour=red", "socket_timeout=soon"])
def test_an_option_that_nobody_knows_stops_the_start(option: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL") as caught:
        store(redis_url=f"redis://:s3cret@h/0?{option}")
    assert "s3cret" not in str(caught.value)


def test_a_store_can_be_made_without_a_running_loop_and_a_server() -> None:
    assert store(redis_url="rediss://:s3cret@h:6380/2")
