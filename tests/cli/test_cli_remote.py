"""What answers of a server mean to the command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4, uuid5

import httpx
import orjson
import pytest
from typer.testing import CliRunner

from bloodbank.cli.edge import ExitCode, exit_code_of
from bloodbank.cli.main import app
from bloodbank.cli.remote import CLOCK_SKEW, RemoteBus, earliest_time, is_loopback, problem
from bloodbank.config import Settings
from bloodbank.errors import (
    BloodbankError,
    ConfigurationError,
    EventNotFound,
    PublishUnknown,
    StoreUnavailable,
    TransportUnavailable,
)
from bloodbank.http.problems import TABLE
from bloodbank.ids import NAMESPACE, new_event_id


def _answer(status: int, code: str, detail: str = "It went wrong.") -> httpx.Response:
    return httpx.Response(status, content=orjson.dumps({"status": status, "code": code, "detail": detail}))


@pytest.mark.parametrize("kind", [each for each in TABLE if each.__module__ == "bloodbank.errors"])
def test_an_error_of_the_server_ends_as_the_same_error_here(kind: type[BloodbankError]) -> None:
    here = kind("said", []) if kind.code == "ambiguous_event_id" else kind("said")
    there = problem(_answer(TABLE[kind].status, kind.code, "said"), "http://host")
    assert (str(there), exit_code_of(there)) == ("said", exit_code_of(here)) or kind is ConfigurationError


@pytest.mark.parametrize(
    ("status", "code", "ends"),
    [
        (404, "schema_not_found", ExitCode.NOT_FOUND),
        (413, "body_too_large", ExitCode.USAGE),
        (401, "key_required", ExitCode.USAGE),
        (403, "scope_missing", ExitCode.USAGE),
        (500, "internal_error", ExitCode.UNAVAILABLE),
        (503, "something_new", ExitCode.UNAVAILABLE),
    ],
)
def test_a_code_that_is_not_known_here_is_judged_by_its_status(status: int, code: str, ends: ExitCode) -> None:
    assert exit_code_of(problem(_answer(status, code), "http://host")) is ends


def test_known_codes_are_the_errors_that_they_name() -> None:
    assert isinstance(problem(_answer(404, "event_not_found"), "http://host"), EventNotFound)
    assert isinstance(problem(_answer(503, "store_unavailable"), "http://host"), StoreUnavailable)


def test_a_refused_key_is_named() -> None:
    assert "BLOODBANK_KEY" in str(problem(_answer(401, "key_required"), "http://host"))


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", b""])
def test_what_is_no_problem_is_no_bloodbank_server(content: bytes) -> None:
    error = problem(httpx.Response(404, content=content), "http://host")
    assert (exit_code_of(error), "BLOODBANK_URL" in str(error)) == (ExitCode.UNAVAILABLE, True)


def test_prefixes_of_new_ids_tell_when_the_event_was_made() -> None:
    now = datetime.now(UTC)
    hexadecimal = new_event_id().hex
    # Eight digits are the upper part of the milliseconds: they stand for 65 seconds.
    for length, window in ((8, 66), (12, 1), (16, 1), (31, 1)):
        earliest = earliest_time(hexadecimal[:length])
        assert earliest is not None
        assert timedelta(0) <= now - earliest - CLOCK_SKEW + timedelta(seconds=1) <= timedelta(seconds=window + 1)


def test_prefixes_of_other_ids_tell_no_time() -> None:
    assert earliest_time("ffffffff") is None
    assert earliest_time("00000000") is None
    assert earliest_time(new_event_id().hex[:12] + "4") is None
    others = [uuid4().hex, uuid5(NAMESPACE, "x").hex]
    assert [earliest_time(each[:20]) for each in others] == [None, None]


def test_loopback_is_told_from_other_hosts() -> None:
    assert is_loopback("http://127.0.0.1:8682")
    assert is_loopback("http://[::1]:8682/")
    assert not is_loopback("https://bus.example.com")
    with pytest.raises(ConfigurationError, match="BLOODBANK_URL"):
        is_loopback("http://[::1")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"<html>", b'{"status": "ok"}'])
@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", "a.b"),
        ("why", str(uuid4())),
        ("why", "0123456789"),
        ("events", "list"),
        ("events", "get", str(uuid4())),
        ("events", "schema"),
        ("tail", "#"),
    ],
)
def test_a_server_that_answers_something_else_is_unavailable(
    arguments: tuple[str, ...], content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(*_: object, **__: object) -> httpx.Response:
        return httpx.Response(200, content=content)

    monkeypatch.setattr(httpx.AsyncClient, "request", answer)
    result = CliRunner().invoke(app, arguments, env={"BLOODBANK_URL": "http://127.0.0.1:1"})
    assert (result.exit_code, "no Bloodbank server" in result.stderr) == (ExitCode.UNAVAILABLE, True)


async def test_a_lost_answer_to_a_publish_is_unknown_and_one_to_a_question_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def break_off(*_: object, **__: object) -> httpx.Response:
        raise httpx.ReadError("reset")

    monkeypatch.setattr(httpx.AsyncClient, "request", break_off)
    async with RemoteBus(Settings(_env_file=None), "http://127.0.0.1:1") as bus:
        with pytest.raises(PublishUnknown, match="same id is safe"):
            await bus.publish({"event_type": "a.b", "payload": {}})
        with pytest.raises(TransportUnavailable, match="Try again"):
            await bus.get(uuid4())
