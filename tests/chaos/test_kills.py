"""A consumer that is killed again and again under load: every event is handled, and what fails for good is complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.kills import BUSES, Report, on_servers, play, table

EVENTS, KILLS = 1000, 20
LIMIT_SECONDS = 280
EMBEDDED, SERVERS = BUSES


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize(
    "bus", [EMBEDDED, pytest.param(SERVERS, marks=[pytest.mark.rabbit, pytest.mark.redis], id="rabbit")]
)
async def test_a_consumer_that_is_killed_again_and_again_handles_every_event(
    bus: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    variables: dict[str, str] = {}
    if bus == SERVERS:
        urls = [request.getfixturevalue(name).url for name in ("rabbit_server", "redis_server")]
        variables = on_servers(*urls)
    report = await play(bus, tmp_path, variables, events=EVENTS, kills=KILLS)
    print(table([report]))
    assert report.wrong() == []


def _report(bus: str = EMBEDDED, **changes: object) -> Report:
    """Return what two events and one that fails leave behind when nothing went wrong, with changes."""
    fields: dict[str, object] = {
        "runs": {1: 1, 2: 3},
        "broken_runs": {0: 2},
        "done": frozenset({1, 2}),
        "effects": {1: 1, 2: 2},
        "failed": {0: 1},
        "failure_ids": 1,
        "dead": {0: 1},
    }
    return Report(bus, 3, 1, **fields | changes)  # type: ignore[arg-type]


def test_the_verdict_passes_what_is_complete_and_counts_what_ran_again() -> None:
    report = _report()
    assert report.wrong() == []
    assert report.extra == 2
    assert "| 1: 1, 3: 1 | 1 | 2: 1 | 1 | 1 | 2 |" in table([report])
    assert _report(SERVERS, dead={0: 2}).wrong() == []
    assert "1 and 1 second copies" in table([_report(SERVERS, dead={0: 2})])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": {1: 1}}, "every event was handled"),
        ({"done": frozenset({1})}, "every event was handled"),
        ({"broken_runs": {}}, "was tried"),
        ({"effects": {1: 1}}, "has its effect"),
        ({"dead": {}}, "dead letters are complete"),
        ({"dead": {0: 1, 1: 1}}, "dead letters are complete"),
        ({"dead": {0: 2}}, "set aside twice"),
        ({"failed": {}}, "each failure is an event"),
        ({"failed": {0: 2}}, "in the log twice"),
        ({"failed": {0: 2}, "failure_ids": 2}, "with one id"),
        ({"runs": {1: 1, 2: 100}}, "few ran twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_verdict_names_what_does_not_hold(changes: dict[str, object], said: str) -> None:
    assert any(said in line for line in _report(**changes).wrong())
