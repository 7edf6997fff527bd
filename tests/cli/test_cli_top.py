"""What `bb top` draws of an answer."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from bloodbank.cli.text import plain
from bloodbank.cli.top import top_lines

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SEEN = NOW.isoformat()
ANSWER: dict[str, Any] = {
    "events_per_second": {"last_second": 4.0, "last_minute": 3.25},
    "per_second": [0] * 57 + [1, 7, 4],
    "types": [
        {"event_type": "llm.prompt", "last_minute": 120, "total": 5310, "last_seen": SEEN},
        {"event_type": "artifact.ingestion.failed", "last_minute": 2, "total": 2, "last_seen": SEEN},
    ],
    "trouble": None,
    "groups": [
        {"group": "billing", "patterns": ["shop.*", "mail.#"], "waiting": 12, "more": False, "delivered": None},
        {"group": "rag", "patterns": ["#"], "waiting": 100_000, "more": True, "delivered": 3},
    ],
    "groups_detail": None,
    "outbox": {"waiting": 3, "set_aside": 1, "oldest_seconds": 12.4},
    "outbox_detail": None,
    "dead_letters": 2,
    "dead_letters_detail": None,
}


def _drawn(most_types: int | None = None, **changed: Any) -> str:
    return plain(top_lines({**ANSWER, **changed}, NOW, most_types=most_types))


def test_everything_stands_in_its_place() -> None:
    time = NOW.astimezone().strftime("%H:%M:%S")
    assert _drawn() == (
        "4 events in the last second, 3.2 a second in the last minute\n"
        f"{'▁' * 57}▂█▅\n"
        "\n"
        "type                       last minute  total  last seen\n"
        f"llm.prompt                         120   5310  {time}\n"
        f"artifact.ingestion.failed            2      2  {time}\n"
        "\n"
        "group    waiting  in hand  patterns\n"
        "billing       12        ?  shop.*, mail.#\n"
        "rag      100000+        3  #\n"
        "\n"
        "outbox        3 waiting, the oldest for 12 s, 1 refused for good: bb outbox\n"
        "dead letters  2: bb dlq\n"
    )


def test_an_empty_bus_says_so() -> None:
    said = _drawn(types=[], groups=[], outbox=None, outbox_detail="There is none.", dead_letters=0)
    assert "No events yet." in said
    assert "No groups of consumers are known." in said
    assert "outbox        There is none.\ndead letters  0\n" in said


def test_what_is_not_known_is_said() -> None:
    detail = "The broker is\x1b[2J away."
    said = _drawn(
        trouble={"code": "transport_unavailable", "detail": detail},
        groups=[],
        groups_detail=detail,
        dead_letters=None,
        dead_letters_detail=detail,
    )
    assert said.count("The broker is\ufffd[2J away.") == 3


def test_a_small_screen_gets_the_most_frequent_types() -> None:
    assert "and 1 more types" in _drawn(most_types=1)
