"""Answers of Redis as they come over the wire. Source: the Redis serialization protocol, RESP2."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import (
    BusyLoadingError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from bloodbank.stores._redis_wire import parse

answers = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40), lambda inner: st.lists(inner, max_size=5)
)


def packed(answer: Any) -> bytes:
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    if isinstance(answer, bytes):
        return b"$%d\r\n%b\r\n" % (len(answer), answer)
    return b"*%d\r\n" % len(answer) + b"".join(map(packed, answer))


@given(answers, st.binary(max_size=10))
def test_an_answer_is_read_up_to_its_end(answer: Any, after: bytes) -> None:
    wire = packed(answer)
    assert parse(bytearray(b"+OK\r\n" + wire + after), 5) == (answer, 5 + len(wire))


@given(answers)
def test_an_answer_that_is_not_all_there_is_waited_for(answer: Any) -> None:
    wire = packed(answer)
    assert [parse(bytearray(wire[:end]), 0) for end in range(len(wire))] == [None] * len(wire)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"NOSCRIPT No matching script.", NoScriptError),
        (b"OOM command not allowed when used memory > 'maxmemory'.", OutOfMemoryError),
        (b"READONLY You can't write against a read only replica.", ReadOnlyError),
        (b"LOADING Redis is loading the dataset in memory", BusyLoadingError),
        (b"MOVED 3999 127.0.0.1:6381", MovedError),
        (b"WRONGTYPE Operation against a key \xff", ResponseError),
    ],
)
def test_an_error_is_what_the_driver_takes_it_for(line: bytes, kind: type[Exception]) -> None:
    found = parse(bytearray(b"-" + line + b"\r\n"), 0)
    assert found is not None
    assert type(found[0]) is kind


def test_a_simple_string_and_an_empty_array_are_answers() -> None:
    assert parse(bytearray(b"+PONG\r\n"), 0) == (b"PONG", 7)
    assert parse(bytearray(b"*-1\r\n"), 0) == (None, 5)


@pytest.mark.parametrize("line", [b"HTTP/1.1 400 Bad Request\r\n", b":one\r\n", b"$\r\n", b"%1\r\n+a\r\n+b\r\n"])
def test_what_is_no_answer_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - int() says it in words of its own
        parse(bytearray(line), 0)
