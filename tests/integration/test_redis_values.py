"""What the Redis store does without a server: its values, its errors, its address."""

from __future__ import annotations

import inspect
import struct
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions

from bloodbank.config import Settings
from bloodbank.errors import ConfigurationError, StoreFormatError, StoreUnavailable
from bloodbank.stores._redis_errors import DRIVER_ERRORS, MEANINGS, store_error
from bloodbank.stores._redis_values import Group, Kind, children_of, pack_parents, pack_rest, rows_of, unpack
from bloodbank.stores.base import Link, Row
from bloodbank.stores.redis import RedisStore

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


KIND = b"\0\1\0\2"
KINDS = {b"\1" + KIND: ("llm.prompt", "app"), b"\1\0\0\0\0": ("", ""), b"\1\0\1\0\0": ("llm.prompt", "")}


def packed(row: Row, kind: bytes = KIND) -> bytes:
    return pack_parents(row.parents or ()) + kind + pack_rest(row.accepted_at, row.happened_at, row.digest)


def text(several: str) -> bytes:
    encoded = several.encode()
    return len(encoded).to_bytes(2) + encoded


@given(LINKS)
def test_what_is_packed_comes_back(link: Link) -> None:
    row = Row.of(link)._replace(event_type="llm.prompt", source="app")
    assert unpack(row.event_id, 0, packed(row), b"\1", KINDS) == row


@given(LINKS)
def test_names_without_a_number_stand_in_the_value(link: Link) -> None:
    row = Row.of(link)
    both = b"\0\0\0\0" + text(row.event_type) + text(row.source)
    assert unpack(row.event_id, 0, packed(row, both), b"\1", KINDS) == row
    source_only = b"\0\1\0\0" + text(row.source)
    assert unpack(row.event_id, 0, packed(row, source_only), b"\1", KINDS) == row._replace(event_type="llm.prompt")


@pytest.mark.parametrize(("parents", "size"), [(0, 16), (1, 32), (2, 48)])
def test_a_value_of_two_parents_fits_into_a_listpack(parents: int, size: int) -> None:
    row = Row.of(LINK._replace(timestamp=LINK.accepted_at))._replace(parents=(bytes(16),) * parents, digest=bytes(16))
    assert len(packed(row)) == size + 16 <= 64


def test_more_parents_than_a_byte_counts_come_back() -> None:
    row = Row.of(LINK)._replace(parents=tuple(number.to_bytes(16) for number in range(300)), source="app")
    assert unpack(row.event_id, 0, packed(row), b"\1", KINDS) == row


@pytest.mark.parametrize("length", range(len(packed(Row.of(LINK)))))
def test_a_value_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(StoreFormatError, match="BLOODBANK_REDIS_PREFIX"):
        unpack(LINK.event_id.bytes, 0, packed(Row.of(LINK))[:length], b"\1", KINDS)


@given(st.binary(max_size=120))
def test_no_value_raises_anything_else(value: bytes) -> None:
    with suppress(StoreFormatError):
        assert unpack(LINK.event_id.bytes, 0, value, b"\1", KINDS).event_id == LINK.event_id.bytes


@given(st.lists(LINKS, min_size=1, max_size=9), st.integers(0, 3), st.integers(0, 9), st.booleans())
def test_a_group_is_read_as_each_of_its_values(links: list[Link], parents: int, children: int, near: bool) -> None:
    rows = [
        Row.of(one, children)._replace(
            parents=tuple(bytes((n,)) * 16 for n in range(parents)), event_type="llm.prompt", source="app"
        )
        for one in links
    ]
    if near:
        rows = [row._replace(accepted_at=10**15, happened_at=10**15 - 7) for row in rows]
    kinds = [Kind("", "", in_value=True), Kind("llm.prompt", "app", in_value=False)]
    for length in {len(packed(row)) for row in rows}:
        same = [row for row in rows if len(packed(row)) == length]
        events = b"".join(struct.pack(">HII", 2, children, 2) + packed(row) for row in same)
        group = Group(length, parents, b"".join(row.event_id for row in same), events, bytes(range(32)) * len(same))
        assert rows_of(group, kinds[1:] * 2) == rows_of(group, kinds) == same
        assert list(children_of(group)) == [(bytes(range(16)), bytes(range(16, 32)))] * len(same)


def test_a_group_of_events_that_were_only_named_has_no_values() -> None:
    group = Group(0, 0, bytes(range(32)), struct.pack(">HIIHII", 0, 7, 0, 0, 1, 0), b"")
    assert list(rows_of(group, [])) == [Row.unseen(bytes(range(16)), 7), Row.unseen(bytes(range(16, 32)), 1)]


@pytest.mark.parametrize("length", range(1, len(packed(Row.of(LINK)))))
def test_a_group_that_is_cut_short_is_refused(length: int) -> None:
    events = struct.pack(">HII", 1, 0, 0) + packed(Row.of(LINK))[:length]
    with pytest.raises(StoreFormatError, match="BLOODBANK_REDIS_PREFIX"):
        rows_of(Group(length, 1, LINK.event_id.bytes, events, b""), [Kind("llm.prompt", "app", in_value=False)])


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
        (exceptions.MovedError("12182 10.0.0.1:6381"), "redis+cluster"),
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
