"""Ids: new ones ascend and follow RFC 9562; deterministic ones never meet and never change."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import RFC_4122, UUID, uuid4, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodbank import ids


class Clock:
    """Wall clock that a test sets, in nanoseconds since 1970."""

    def __init__(self, nanoseconds: int) -> None:
        self.nanoseconds = nanoseconds

    def __call__(self) -> int:
        return self.nanoseconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A clock that stands at the time of the test vector in RFC 9562, appendix A.6."""
    standing = Clock(1_645_557_742_000 * 1_000_000)
    monkeypatch.setattr(time, "time_ns", standing)
    monkeypatch.setattr(ids, "_last_tick", 0)
    yield standing
    monkeypatch.undo()


def test_a_new_id_has_the_layout_of_rfc_9562(clock: Clock) -> None:
    clock.nanoseconds += 250_000
    made = ids.new_event_id()
    assert made.version == 7
    assert made.variant == RFC_4122
    assert made.int >> 80 == 0x017F22E279B0, "48 bits of milliseconds, as in the test vector"
    assert made.int >> 64 & 0xFFF == 1024, "12 bits of sub-milliseconds: a quarter of 4096"


def test_the_time_of_the_test_vector_of_rfc_9562() -> None:
    vector = UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")
    assert ids.time_of(vector) == datetime(2022, 2, 22, 19, 22, 22, tzinfo=UTC)


def test_other_versions_have_no_time() -> None:
    assert ids.time_of(uuid4()) is None
    assert ids.time_of(ids.event_id("a.b")) is None


def test_a_time_beyond_the_calendar_is_no_time() -> None:
    assert ids.time_of(UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")) is None


def test_a_new_id_tells_when_it_was_made() -> None:
    before = datetime.now(UTC)
    made = ids.time_of(ids.new_event_id())
    assert made is not None
    assert before - timedelta(milliseconds=1) <= made <= datetime.now(UTC) + timedelta(seconds=1)


def test_ids_ascend() -> None:
    made = [ids.new_event_id() for _ in range(5000)]
    assert all(one < next_one for one, next_one in pairwise(made))


def test_ids_ascend_while_the_clock_stands_still(clock: Clock) -> None:
    made = [ids.new_event_id() for _ in range(5000)]
    assert all(one < next_one for one, next_one in pairwise(made))


def test_ids_ascend_when_the_clock_steps_back(clock: Clock) -> None:
    before = ids.new_event_id()
    clock.nanoseconds -= 3_600_000_000_000
    assert ids.new_event_id() > before


def test_ids_of_all_threads_ascend_in_each_and_differ() -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: [ids.new_event_id() for _ in range(1000)], range(4)))
    assert all(one < next_one for run in runs for one, next_one in pairwise(run))
    assert len({made for run in runs for made in run}) == 4000


@pytest.mark.parametrize(
    ("event_type", "fields", "expected"),
    [
        ("llm.prompt", {}, "aba87139-5ee1-5e69-9f88-cd8b226388e8"),
        ("llm.prompt", {"prompt": "hello", "n": 1}, "db72a4b9-f0e6-5cd2-b595-db1fd90930cc"),
        (
            "fireflies.meeting.transcribed",
            {"event": "meeting.transcribed", "meeting_id": "ASxwZxCstx", "timestamp": 1732374000000},
            "4d2a98be-4c55-56e2-921d-b557da7ed768",
        ),
        (
            "a.b",
            {"text": "Grüße ☃ \U0001f600", "nested": {"z": [1, 2.5, None, True], "a": {}}},
            "ac3ddd1f-5933-54e5-96ba-1cba10780a43",
        ),
    ],
)
def test_deterministic_ids_never_change(event_type: str, fields: dict[str, object], expected: str) -> None:
    assert ids.event_id(event_type, **fields) == UUID(expected)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from([0.5, -1.25, 1.0, 3.0]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), JSON, max_size=3)


def canonical(event_type: str, fields: object) -> str:
    return json.dumps([event_type, fields], sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@given(FIELDS)
def test_an_id_is_the_uuid5_of_canonical_json(fields: dict[str, object]) -> None:
    assert ids.event_id("a.b", **fields) == uuid5(ids.NAMESPACE, canonical("a.b", fields))


@given(FIELDS, FIELDS)
def test_different_fields_have_different_ids(one: dict[str, object], other: dict[str, object]) -> None:
    same = canonical("a.b", one) == canonical("a.b", other)
    assert (ids.event_id("a.b", **one) == ids.event_id("a.b", **other)) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": "1|b=2"}, {"a": "1", "b": "2"}),
        ({"a": 1}, {"a": "1"}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": None}, {}),
        ({"a": ""}, {"a": None}),
        ({"a": ["x", "y"]}, {"a": ["x,y"]}),
        ({"a": {"b": 1}}, {"a": '{"b":1}'}),
        ({"a": "é"}, {"a": "e\u0301"}),
    ],
)
def test_fields_that_look_alike_differ(one: dict[str, object], other: dict[str, object]) -> None:
    assert ids.event_id("a.b", **one) != ids.event_id("a.b", **other)


def test_the_type_is_part_of_the_id() -> None:
    assert ids.event_id("a.b", c=1) != ids.event_id("a.c", c=1)


def test_the_order_of_fields_does_not_count_at_any_depth() -> None:
    assert ids.event_id("a.b", x={"p": 1, "q": [{"r": 1, "s": 2}]}, y=2) == ids.event_id(
        "a.b", y=2, x={"q": [{"s": 2, "r": 1}], "p": 1}
    )


def test_uuids_and_dates_count_as_their_text() -> None:
    event_id = uuid4()
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert ids.event_id("a.b", x=event_id, y=moment) == ids.event_id("a.b", x=str(event_id), y=moment.isoformat())


def test_a_tuple_counts_as_a_list() -> None:
    assert ids.event_id("a.b", x=(1, 2)) == ids.event_id("a.b", x=[1, 2])


@dataclass
class Point:
    x: float


def circle() -> dict[str, object]:
    inner: dict[str, object] = {}
    inner["itself"] = inner
    return inner


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        [1, {"deep": (math.nan,)}],
        2**64,
        -(2**63) - 1,
        {1: "a key that is no string"},
        b"bytes",
        {"a", "set"},
        object(),
        Point(math.nan),
        "\ud800",
        UTC,
        circle(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be JSON values"):
        ids.event_id("a.b", value=value)


def test_an_empty_type_is_refused() -> None:
    with pytest.raises(ValueError, match="event_type is empty"):
        ids.event_id("")
