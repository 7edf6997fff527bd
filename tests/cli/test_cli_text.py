"""What commands write, and how they read what is typed."""

from __future__ import annotations

import io
import sys
import time as clocks
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from bloodbank.cli.events import parse_time
from bloodbank.cli.publish import read_payload
from bloodbank.cli.text import Span, clock, json_text, plain, printable, table, write_lines
from bloodbank.errors import InvalidEvent, InvalidQuery

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_no_colours_and_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    write_lines([(Span("x" * 300, "bold red"), Span(" end"))])
    assert capsys.readouterr().out == "x" * 300 + " end\n"


def test_a_terminal_gets_colours_and_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    write_lines([(Span("[bold]" * 50, "bold red"), Span(" end"))])
    assert terminal.getvalue() == "\x1b[1;31m" + "[bold]" * 50 + "\x1b[0m end\n"


def test_a_terminal_of_somebody_who_wants_no_colours_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    write_lines([(Span("failed", "red"), Span(" 01a20922", "cyan"))])
    assert terminal.getvalue() == "failed 01a20922\n"


def test_json_escapes_what_steers_a_terminal_and_stays_the_same_value() -> None:
    value = {"text": "\x9b31m\x7f é"}
    assert not set(json_text(value)) & {"\x9b", "\x7f"}
    assert orjson.loads(json_text(value)) == value


def test_what_is_not_printable_is_replaced() -> None:
    assert printable("a\x1b[0m\u202eb é") == "a\ufffd[0m\ufffdb é"


def test_columns_are_aligned_but_for_the_last() -> None:
    rows = [(Span("a"), Span("b")), (Span("long"), Span("c"))]
    assert plain(table(rows)) == "a     b\nlong  c\n"
    assert table([]) == []


def test_times_of_today_go_without_the_day() -> None:
    today, before = NOW.isoformat(), (NOW - timedelta(days=2)).isoformat()
    assert clock([today, None], NOW)(today) == NOW.astimezone().strftime("%H:%M:%S")
    both = clock([today, before], NOW)
    assert both(today) == NOW.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert len(both(None)) == len(both(before))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("15m", NOW - timedelta(minutes=15)),
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("2026-03-01T09:00:00+02:00", datetime(2026, 3, 1, 7, 0, tzinfo=UTC)),
        ("2026-03-01T09:00:00Z", datetime(2026, 3, 1, 9, 0, tzinfo=UTC)),
        ("2026-03-01T09:00", datetime(2026, 3, 1, 9, 0).astimezone(UTC)),
        (None, None),
    ],
)
def test_times_are_iso_or_how_long_ago(text: str | None, meant: datetime | None) -> None:
    assert parse_time(text, NOW) == meant


@pytest.mark.parametrize("text", ["", "yesterday", "5", "5 weeks", "-3d", "9999999999d", "999999999d", "0001-01-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidQuery, match="15m"):
        parse_time(text, NOW)


@pytest.mark.parametrize("text", ["", "{", "[1]", "1", "NaN", '{"a": NaN}', "@/no/such/file", '{"a": "\udc80"}'])
def test_a_payload_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidEvent, match="Nothing was published"):
        read_payload(text)


@pytest.mark.parametrize("number", ["18446744073709551616", "123456789012345678901234567890", "-9223372036854775809"])
def test_an_integer_that_would_be_changed_is_refused(number: str) -> None:
    with pytest.raises(InvalidEvent, match="64-bit"):
        read_payload(f'{{"n": {number}}}')


def test_the_largest_integer_stays_as_it_is() -> None:
    assert read_payload('{"n": [18446744073709551615, -9223372036854775808]}') == {"n": [2**64 - 1, -(2**63)]}


@pytest.mark.parametrize("text", ['{"n": 1e400}', '{"n": NaN}'])
def test_what_is_no_number_is_no_json(text: str) -> None:
    with pytest.raises(InvalidEvent, match="not JSON"):
        read_payload(text)


@pytest.mark.parametrize("zone", ["UTC+5", "UTC-5"])
@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_a_time_at_the_end_of_the_calendar_is_written(zone: str, time: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    clocks.tzset()
    try:
        assert clock([time, None], NOW)(time)
    finally:
        monkeypatch.undo()
        clocks.tzset()
