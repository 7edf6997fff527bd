"""What a search finds in a body, compared with looking through all of its texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodbank.codec import encode
from bloodbank.envelope import Source, TriggerType, create_envelope
from bloodbank.errors import InvalidQuery
from bloodbank.search import Search
from bloodbank.transports.base import LogEntry, Message

EVENT_ID = UUID("0198c2f4-7a51-7c3e-9d7e-5f0a4b8c1d20")
# Letters that fold to ASCII, to several letters, or that JSON may escape.
LETTERS = st.sampled_from('abkKs\u017f\u212a\xdf"\\/\n\t\x01\xe9\U0001f389 u0')
TEXTS = st.text(LETTERS, max_size=6)
DOCUMENTS = st.recursive(
    TEXTS | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def entry(body: bytes) -> LogEntry:
    return LogEntry(1, datetime(2026, 3, 1, tzinfo=UTC), Message(EVENT_ID, "a.b", body))


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


@given(DOCUMENTS, st.text(LETTERS, min_size=2, max_size=3), st.booleans())
def test_a_text_is_found_where_a_text_holds_it_however_it_is_written(
    document: Any, wanted: str, ensure_ascii: bool
) -> None:
    body = json.dumps(document, ensure_ascii=ensure_ascii).encode()
    expected = any(wanted.casefold() in text.casefold() for text in texts(document))
    assert Search(text=wanted).may_fit(entry(body)) is expected


@given(DOCUMENTS, st.data())
def test_what_is_there_is_found(document: Any, data: st.DataObject) -> None:
    long_enough = [text for text in texts(document) if len(text) >= 2]
    if long_enough:
        wanted = data.draw(st.sampled_from(long_enough))
        for written in (wanted, wanted.upper(), wanted.lower()):
            if len(written) >= 2 and written.casefold() == wanted.casefold():
                assert Search(text=written).may_fit(entry(json.dumps(document).encode()))


def test_names_of_fields_and_numbers_are_no_text() -> None:
    body = b'{"payload": {"amount": 4711, "note": "paid"}}'
    assert [Search(text=text).may_fit(entry(body)) for text in ("amount", "4711", "PAID")] == [False, False, True]


def test_what_is_no_json_holds_no_text() -> None:
    assert not Search(text="not").may_fit(entry(b"not JSON"))


@pytest.mark.parametrize("prefix", ["0198", "0198c2f4-7A", "0198c2f47a517c3e9d7e5f0a4b8c1d20", str(EVENT_ID)])
def test_an_id_is_found_by_its_beginning(prefix: str) -> None:
    assert Search(id_prefix=prefix).may_fit(entry(b""))
    assert not Search(id_prefix="f" + prefix[1:]).may_fit(entry(b""))


def test_a_source_is_found_by_the_whole_name_of_host_or_application() -> None:
    envelope = create_envelope(
        "a.b", {"about": "laptop"}, source=Source(host="Laptop-3", type=TriggerType.AGENT, app="Stra\xdfe")
    )
    body = encode(envelope).body
    found = {
        name: Search(source=name).may_fit(entry(body)) and Search(source=name).fits(envelope)
        for name in ("laptop-3", "STRASSE", "laptop", "agent")
    }
    assert found == {"laptop-3": True, "STRASSE": True, "laptop": False, "agent": False}


@pytest.mark.parametrize(
    "fields",
    [
        {"id_prefix": "019"},
        {"id_prefix": "019g"},
        {"id_prefix": "-"},
        {"id_prefix": "0" * 33},
        {"text": "a"},
        {"text": "a" * 256},
        {"source": "a" * 256},
    ],
)
def test_what_cannot_be_searched_for_is_said(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidQuery, match=next(iter(fields)).replace("id_prefix", "digits")):
        Search(**fields)


def test_only_a_search_for_something_is_one() -> None:
    assert not Search()
    assert Search(source="a")
