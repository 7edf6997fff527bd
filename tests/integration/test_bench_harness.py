"""The harness of the benchmarks: pairs, ratios, targets, files. What is measured is tried by running it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import __main__ as all_subjects
from bench import _events, _load, _page, _plot
from bench._harness import (
    Contestant,
    Options,
    Rounds,
    Row,
    Sample,
    environment,
    in_flight,
    main,
    measured,
    meets,
    number,
    paired,
    read,
    row_of,
    table,
    write,
)
from bench.peers.blaster import ACK, Confirms

FIELDS = {"name", "value", "unit", "versus", "ratio", "target", "holds", "low", "high"}
CONFIRMS = ((1, 0), (3, 0), (2, 1), (6, 0), (5, 1))
"""Delivery tags, and whether all before are meant as well."""
VERSION = Row("Python", "3.11", "version")
MET = Row("publish", 10.0, "events/s", "limit", 0.8, "ratio >= 0.72", True, 0.7, 0.9)


async def test_every_contestant_runs_once_a_round_in_an_order_that_changes() -> None:
    ran: list[str] = []

    def contestant(name: str) -> Contestant:
        async def run() -> Sample:
            ran.append(name)
            return {"rate": 1.0}

        return run

    names = ["a", "b", "c", "d"]
    await paired({name: contestant(name) for name in names}, 6, order=random.Random(1))
    orders = [tuple(ran[first : first + 4]) for first in range(0, 24, 4)]
    assert all(sorted(order) == names for order in orders)
    assert len(set(orders)) > 1


def test_ratios_are_formed_within_a_round() -> None:
    # Each round is as if on another machine, and ours is twice as fast in each.
    ours = [{"rate": 2.0}, {"rate": 20.0}, {"rate": 200.0}]
    peer = [{"rate": 1.0}, {"rate": 10.0}, {"rate": 100.0}]
    rounds = Rounds({"ours": ours, "peer": peer})
    row = rounds.row("publish", "ours", "rate", "events/s", versus="peer", target="ratio >= 2")
    assert (row.value, row.ratio, row.low, row.high, row.holds) == (20.0, 2.0, 2.0, 2.0, True)


def test_the_spread_without_a_comparison_is_that_of_the_values() -> None:
    row = row_of("p50", [3.0, 1.0, 2.0], "ms", target="value <= 2")
    assert (row.value, row.low, row.high, row.ratio, row.holds) == (2.0, 1.0, 3.0, None, True)


@pytest.mark.parametrize(
    ("target", "holds"),
    [("ratio >= 2.1", True), ("ratio >= 2.2", False), ("value <= 140", False), ("value <= 150", True)],
)
def test_targets_say_what_they_bind(target: str, holds: bool) -> None:
    assert meets(target, value=150.0, ratio=2.1) is holds


@pytest.mark.parametrize("target", ["fast", "ratio > 2", "ratio >= 2 or so"])
def test_what_is_no_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="no target"):
        meets(target, value=1.0, ratio=1.0)


def test_a_ratio_that_was_not_measured_meets_no_target() -> None:
    with pytest.raises(ValueError, match="no target"):
        meets("ratio >= 2", value=1.0, ratio=None)


async def test_in_flight_publishes_the_count_with_no_more_than_the_limit_at_a_time() -> None:
    running: list[None] = []
    highest = published = 0

    async def publish() -> None:
        nonlocal highest, published
        running.append(None)
        highest = max(highest, len(running))
        await asyncio.sleep(0)
        running.pop()
        published += 1

    await in_flight(publish, 25, limit=10)
    assert (published, highest) == (25, 10)


def test_cpu_of_this_process_is_measured_beside_the_time() -> None:
    with measured() as watch:
        begun = time.process_time()
        while time.process_time() < begun + 0.03:
            pass
    assert watch.cpu_seconds >= 0.02
    assert watch.seconds >= 0.02


def test_files_hold_a_list_of_rows_with_exactly_these_fields(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    write([VERSION, MET], file)
    assert [set(fields) for fields in json.loads(file.read_text())] == [FIELDS, FIELDS]
    assert read(file) == [VERSION, MET]


def test_the_machine_and_the_versions_are_rows() -> None:
    names = {row.name: row for row in environment(["pydantic"])}
    assert names["pydantic"].unit == "version"
    assert {"date", "processor", "system", "Python"} <= names.keys()


def test_the_command_line_says_rounds_count_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    main(_measure, count=5, arguments=["--rounds", "2", "--count", "9", "--json", str(file)])
    assert [row.value for row in read(file) if row.name == "asked"] == [18.0]
    assert "asked" in capsys.readouterr().out


def test_a_table_marks_what_does_not_hold() -> None:
    missed = Row("publish_many", 5.0, "events/s", "limit", 0.5, "ratio >= 0.9", False, 0.4, 0.6)
    lines = table([VERSION, MET, missed]).splitlines()
    assert lines[0] == "Python: 3.11"
    assert lines[-2].endswith("yes")
    assert lines[-1].endswith("NO")


def test_a_markdown_table_has_as_many_cells_in_every_line() -> None:
    lines = table([MET], markdown=True).splitlines()
    assert len(lines) == 3
    assert {line.count("|") for line in lines} == {9}


@pytest.mark.parametrize(
    ("value", "text"), [(12_345.6, "12,346"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"), (0.0, "0")]
)
def test_figures_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_what_all_subjects_say_of_the_machine_stands_once() -> None:
    other = Row("Python", "3.12", "version")
    assert all_subjects.merge([[VERSION, MET], [other, MET]]) == [VERSION, MET, MET]


def test_modules_with_an_underscore_are_no_subjects() -> None:
    names = all_subjects.subjects()
    assert {"publish", "tracking", "http", "embedded", "memory", "startup", "growth"} <= set(names)
    assert not [name for name in names if name.startswith("_") or name == "peers"]


def test_every_subject_that_has_a_fixed_place_is_there() -> None:
    files = {path.stem for path in Path(all_subjects.__file__).parent.glob("[a-z]*.py")}
    assert set(all_subjects.subjects()) == files


def test_a_subject_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert all_subjects.main(["nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().out


def test_events_have_the_size_that_was_asked_for() -> None:
    for size in (600, 2000):
        body = _events.build(_events.payload(size)).model_dump_json()
        assert abs(len(body) - size) <= 8  # a fraction of a second may be written with fewer digits


def test_the_page_is_filled_between_its_marks_again_and_again() -> None:
    page = f"before\n{_page.BEGIN}\nof last year\n{_page.END}\nafter\n"
    once = _page.fill(page, [VERSION, MET])
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "of last year" not in once
    assert "### Targets that hold: 1\n" in once
    assert "### Targets that are missed: 0\n\nNone." in once
    assert _page.fill(once, [VERSION, MET]) == once


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="results: begin"):
        _page.fill("nothing", [MET])


def test_the_plot_holds_every_point_within_its_frame() -> None:
    rows = [
        Row("publish, payload of 200 B", 9000.0, "events/s"),
        Row("publish, payload of 200,000 B", 90.0, "events/s"),
        Row("graph of 100 nodes, Redis", 2.0, "ms"),
        Row("graph of 100,000 nodes, Redis", 1500.0, "ms"),
    ]
    tree = ElementTree.fromstring(_plot.draw(_page.panels(rows)))
    circles = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in tree.iter() if e.tag.endswith("circle")]
    assert len(circles) == 4
    assert all(0 < x < _plot.WIDTH and 0 < y < _plot.HEIGHT for x, y in circles)
    assert circles[0][1] < circles[1][1]  # faster stands higher


def test_the_limit_counts_confirms_that_come_out_of_order_and_for_many_at_once() -> None:
    confirms = Confirms()
    frames = [ACK.pack(1, 1, 13, 60, 80, tag, multiple, 0xCE) for tag, multiple in CONFIRMS]
    data = b"".join(frames)
    for first in range(0, len(data), 10):  # reads end where they like
        confirms.read(data[first : first + 10])
    assert confirms.total == 6


def test_the_limit_takes_a_nack_for_no_confirm() -> None:
    with pytest.raises(ConnectionError, match=r"60\.120"):
        Confirms().read(ACK.pack(1, 1, 13, 60, 120, 1, 0, 0xCE))


async def test_the_load_generator_sends_each_request_once_and_reads_whole_answers() -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                assert head.startswith(b"POST /events HTTP/1.1\r\n")
                seen.append(await reader.readexactly(2))
                writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\n{")
                await writer.drain()
                writer.write(b'"":')  # an answer may come in parts
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        result = await _load.load("127.0.0.1", port, _load.post("127.0.0.1", "/events", b"{}"), 3, 20)
    assert seen == [b"{}"] * 20
    assert 0 < result["p50_ms"] <= result["p99_ms"]


async def test_the_load_generator_ends_at_an_answer_that_refuses() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 422 Unprocessable\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionError, match="422"):
            await _load.load("127.0.0.1", port, _load.post("127.0.0.1", "/events", b""), 1, 5)


async def _measure(options: Options) -> list[Row]:
    return [row_of("asked", [float(options.rounds * options.count)], "events")]
