"""Searching the log of every transport, page by page: nothing is passed over, and nothing is read without limit."""

from __future__ import annotations

from pathlib import Path

from bloodbank import EventLog, Publisher, Search, Settings, create_envelope
from bloodbank.transports.base import Transport

LIMIT = 130
EVENTS = 500
EVERY = 70


async def test_pages_of_a_search_find_all_and_only_what_fits(
    transport: Transport, publisher: Publisher, tmp_path: Path
) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, search_limit_events=LIMIT)
    log = EventLog(transport, publisher.tracker, settings)
    events = [
        create_envelope("search.one", {"note": f"needle {number}" if number % EVERY == 0 else "hay"})
        for number in range(EVENTS)
    ]
    await publisher.publish_many(events)
    expected = [event.event_id for event in reversed(events[::EVERY])]
    found, searched, before = [], 0, None
    while True:
        page = await log.page(search=Search(text="NEEDLE"), before=before, limit=3)
        assert page.searched <= LIMIT
        found += [item.envelope.event_id for item in page.items]
        searched += page.searched
        if page.next is None:
            break
        before = page.next
    assert found == expected
    assert searched == EVENTS
    one = await log.page(search=Search(id_prefix=str(events[-1].event_id)), limit=1)
    assert ([item.envelope.event_id for item in one.items], one.searched) == ([events[-1].event_id], 1)
