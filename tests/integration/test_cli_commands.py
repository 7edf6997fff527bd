"""The commands on an embedded bus of their own: what they print, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import pytest
from typer.testing import CliRunner, Result

from bloodbank import event_id
from bloodbank.cli.edge import ExitCode
from bloodbank.cli.main import app
from tests.servers.process import free_port

Run = Callable[..., Result]


@pytest.fixture
def bb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `bb` with arguments, on a bus in a new folder."""
    for name in ("RABBIT_URL", "REDIS_URL", "REDIS_HOST", "BLOODBANK_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLOODBANK_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: str | bytes | None = None, **variables: str) -> Result:
        return CliRunner().invoke(app, arguments, input=stdin, env=variables)

    return run


def _publish(bb: Run, *arguments: str) -> str:
    result = bb("publish", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.split()[0]


def test_publish_prints_id_and_status(bb: Run) -> None:
    result = bb("publish", "note.written", "-d", '{"text": "hello"}')
    event_id, status = result.stdout.split()
    assert (result.exit_code, status) == (0, "published")
    event = orjson.loads(bb("events", "get", event_id).stdout)
    assert (event["event_id"], event["payload"], event["correlation_ids"]) == (event_id, {"text": "hello"}, [])


def test_publish_takes_a_file_and_standard_input(bb: Run, tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_text('{"from": "file"}')
    ids = [_publish(bb, "a.b", "-d", f"@{tmp_path}/payload.json")]
    ids.append(bb("publish", "a.b", "-d", "-", stdin='{"from": "stdin"}').stdout.split()[0])
    payloads = [orjson.loads(bb("events", "get", each).stdout)["payload"] for each in ids]
    assert payloads == [{"from": "file"}, {"from": "stdin"}]


def test_publish_names_source_parents_and_id(bb: Run) -> None:
    first = _publish(bb, "a.b")
    unseen, own = str(uuid4()), str(uuid4())
    answer = bb("publish", "a.b", "-p", first, "-p", unseen, "--id", own, "--source-app", "tester", "--json").stdout
    assert orjson.loads(answer) == {"event_id": own, "status": "published", "lineage": "recorded"}
    event = orjson.loads(bb("events", "get", own).stdout)
    assert event["correlation_ids"] == [first, unseen]
    assert event["source"]["app"] == "tester"


def test_a_key_makes_publishing_idempotent(bb: Run) -> None:
    first = bb("publish", "a.b", "--key", "order-7")
    again = bb("publish", "a.b", "--key", "order-7")
    other = bb("publish", "a.b", "--key", "order-7", "-d", '{"other": 1}')
    assert again.stdout == first.stdout.replace("published", "duplicate")
    assert (other.exit_code, other.stdout) == (ExitCode.USAGE, "")


def test_why_and_effects_answer_as_trees_and_as_json(bb: Run) -> None:
    call = _publish(bb, "call.recorded")
    notes = _publish(bb, "notes.written", "--parent", call)
    why, effects = bb("why", notes), bb("effects", call)
    assert [line.split("  ")[0] for line in why.stdout.splitlines()] == ["notes.written", "└─ call.recorded"]
    assert [line.split("  ")[0] for line in effects.stdout.splitlines()] == ["call.recorded", "└─ notes.written"]
    answer = orjson.loads(bb("why", notes, "--json").stdout)
    assert (answer["focus"], answer["direction"]) == (notes, "ancestors")
    assert answer["edges"] == [{"parent": call, "child": notes}]


def test_an_answer_that_is_cut_short_says_so_on_standard_error(bb: Run) -> None:
    ids = [_publish(bb, "a.b")]
    for _ in range(2):
        ids.append(_publish(bb, "a.b", "--parent", ids[-1]))
    by_depth, by_limit = bb("why", ids[-1], "--depth", "1"), bb("why", ids[-1], "--limit", "2")
    assert "--depth" in by_depth.stderr
    assert "--limit" in by_limit.stderr
    assert len(by_depth.stdout.splitlines()) == len(by_limit.stdout.splitlines()) == 2
    assert bb("why", ids[-1]).stderr == ""
    chart = bb("why", ids[-1], "--depth", "1", "--mermaid")
    assert ("Cut short" in chart.stdout, "--depth" in chart.stderr) == (True, True)


def test_an_answer_has_one_form(bb: Run) -> None:
    both = bb("why", _publish(bb, "a.b"), "--json", "--mermaid")
    assert (both.exit_code, both.stdout) == (ExitCode.USAGE, "")


def test_a_cause_that_the_index_does_not_have_is_explained(bb: Run) -> None:
    unseen = str(uuid4())
    why = bb("why", _publish(bb, "a.b", "--parent", unseen))
    assert why.stdout.splitlines()[1].startswith("└╌ (not seen)")
    assert "bb reindex" in why.stderr


@pytest.mark.parametrize("event_type", ["single", "LLM.Prompt", "a..b"])
def test_a_type_that_cannot_be_is_told_in_words(bb: Run, event_type: str) -> None:
    refused = bb("publish", event_type)
    assert refused.exit_code == ExitCode.USAGE
    assert "event_type: Write two to eight words of a-z, 0-9, _ and - joined by dots" in refused.stderr


def test_ids_are_found_by_a_unique_prefix(bb: Run) -> None:
    for last in "12":
        _publish(bb, "a.b", "--id", f"0e5d7a11-0000-4000-8000-00000000000{last}")
    found = bb("events", "get", "0E5D7A11-0000-4000-8000-000000000001")
    ambiguous, unknown, short = bb("why", "0e5d7a11"), bb("why", "0e5d7a12"), bb("why", "0e5d7a1")
    assert orjson.loads(found.stdout)["event_id"].endswith("1")
    assert ambiguous.exit_code == ExitCode.USAGE
    assert all(f"0e5d7a11-0000-4000-8000-00000000000{last}" in ambiguous.stderr for last in "12")
    assert unknown.exit_code == ExitCode.NOT_FOUND
    assert short.exit_code == ExitCode.USAGE


def test_events_are_listed_newest_first(bb: Run) -> None:
    ids = [_publish(bb, event_type) for event_type in ("llm.note", "call.note", "llm.error.note")]
    listed = [item["event_id"] for item in orjson.loads(bb("events", "list", "--json").stdout)]
    of_type = bb("events", "list", "--type", "llm.#")
    limited = bb("events", "list", "--limit", "1")
    assert listed == ids[::-1]
    assert [line.split()[2] for line in of_type.stdout.splitlines()] == ["llm.error.note", "llm.note"]
    assert len(limited.stdout.splitlines()) == 1
    assert "--limit" in limited.stderr
    assert bb("events", "list", "--until", "1h", "--json").stdout == "[]\n"
    assert len(bb("events", "list", "--since", "1h").stdout.splitlines()) == 3


def test_a_list_goes_on_behind_the_largest_page(bb: Run) -> None:
    for _ in range(3):
        _publish(bb, "a.b")
    assert len(bb("events", "list", BLOODBANK_PAGE_LIMIT="2").stdout.splitlines()) == 3


def test_schemas_are_listed_and_shown(bb: Run) -> None:
    types = bb("events", "schema").stdout.split()
    schema = orjson.loads(bb("events", "schema", "llm.prompt").stdout)
    assert {"llm.prompt", "artifact.created", "fireflies.transcript.ready"} <= set(types)
    assert {"provider", "prompt"} <= schema["properties"].keys()
    assert bb("events", "schema", "no.such").exit_code == ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("why", str(UUID(int=0))), ExitCode.NOT_FOUND, "No event"),
        (("events", "get", str(UUID(int=0))), ExitCode.NOT_FOUND, "no event"),
        (("why", "not-an-id"), ExitCode.USAGE, "not-an-id"),
        (("publish", "llm.prompt"), ExitCode.USAGE, "payload.provider"),
        (("publish", "Not A Type"), ExitCode.USAGE, "event_type"),
        (("publish", "a.b", "--id", "x"), ExitCode.USAGE, "--id"),
        (("publish", "a.b", "--id", str(UUID(int=1)), "--key", "k"), ExitCode.USAGE, "--key"),
        (("publish", "a.b", "--source-app", "a\nb"), ExitCode.USAGE, "--source-app"),
        (("why", str(UUID(int=0)), "--depth", "0"), ExitCode.USAGE, "--depth"),
        (("why", str(UUID(int=0)), "--limit", "50001"), ExitCode.USAGE, "50000"),
        (("events", "list", "--type", "a..b"), ExitCode.USAGE, "a..b"),
        (("events", "list", "--since", "soon"), ExitCode.USAGE, "soon"),
        (("tail", ""), ExitCode.USAGE, "pattern"),
        (("nonsense",), ExitCode.USAGE, "nonsense"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_an_exit_code(
    bb: Run, arguments: tuple[str, ...], code: ExitCode, said: str
) -> None:
    result = bb(*arguments)
    assert result.exit_code == code
    assert said.lower() in result.stderr.lower()
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_without_tracking_events_are_published_and_why_is_unavailable(bb: Run) -> None:
    off = {"BLOODBANK_CORRELATION_TRACKING": "false"}
    published = bb("publish", "a.b", "--json", **off)
    why = bb("why", orjson.loads(published.stdout)["event_id"], **off)
    assert orjson.loads(published.stdout)["lineage"] == "disabled"
    assert (why.exit_code, "BLOODBANK_CORRELATION_TRACKING" in why.stderr) == (ExitCode.UNAVAILABLE, True)


def test_a_wrong_setting_is_named(bb: Run) -> None:
    result = bb("events", "list", BLOODBANK_PAGE_LIMIT="many")
    assert (result.exit_code, "BLOODBANK_PAGE_LIMIT" in result.stderr) == (ExitCode.USAGE, True)


def test_no_server_at_the_url_is_unavailable(bb: Run) -> None:
    result = bb("events", "list", BLOODBANK_URL="http://127.0.0.1:1")
    assert (result.exit_code, "bb serve" in result.stderr) == (ExitCode.UNAVAILABLE, True)


def test_version_and_help_are_told(bb: Run) -> None:
    assert bb("--version").stdout.startswith("bb 0.")
    assert "Exit codes" in bb("--help").stdout


NOT_TEXT = "a\udcff"
"""What Python makes of an argument that is no UTF-8."""


@pytest.mark.parametrize("where", ["embedded", "server"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("publish", NOT_TEXT),
        ("publish", "a.b", "--key", NOT_TEXT),
        ("publish", "a.b", "--parent", NOT_TEXT),
        ("why", NOT_TEXT),
        ("events", "list", "--type", NOT_TEXT),
        ("events", "schema", NOT_TEXT),
        ("tail", NOT_TEXT),
    ],
)
def test_an_argument_that_is_no_text_is_wrong_usage(bb: Run, arguments: tuple[str, ...], where: str) -> None:
    variables = {"BLOODBANK_URL": "http://127.0.0.1:1"} if where == "server" else {}
    result = bb(*arguments, **variables)
    assert (result.exit_code, "UTF-8" in result.stderr) == (2, True)


def test_a_key_without_a_type_is_wrong_usage(bb: Run) -> None:
    result = bb("publish", "", "--key", "k")
    assert (result.exit_code, "Nothing was published" in result.stderr) == (2, True)


@pytest.mark.parametrize("variable", ["BLOODBANK_LINEAGE_NODE_LIMIT", "BLOODBANK_LINEAGE_DEPTH_LIMIT"])
def test_limits_that_settings_lower_lower_the_defaults_too(bb: Run, variable: str) -> None:
    event_id = _publish(bb, "a.b")
    for command in ("why", "effects"):
        assert bb(command, event_id, **{variable: "10"}).exit_code == 0
        assert bb(command, event_id, "--limit", "11", "--depth", "11", **{variable: "10"}).exit_code == 2


def test_a_key_makes_the_id_that_the_header_of_the_api_makes(bb: Run) -> None:
    made = event_id("a.b", idempotency_key="order-17")
    assert _publish(bb, "a.b", "--key", "order-17") == str(made)
    assert bb("publish", "a.b", "--key", "order-17").stdout.split() == [str(made), "duplicate"]


def test_an_event_and_causes_that_wait_are_said_to_wait(bb: Run) -> None:
    dead = {"RABBIT_URL": f"amqp://127.0.0.1:{free_port()}/", "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    result = bb("publish", "a.b", **dead)
    assert (result.exit_code, result.stdout.split()[1]) == (0, "queued")
    assert result.stderr == (
        "The broker takes nothing now; 'bb doctor' says why. The event is kept on disk, and a process that uses this "
        "bus sends it when the broker is back; 'bb outbox' shows what waits.\n"
        "The index of causes is away: 'bb why' does not know this event yet; its causes are kept on disk and recorded "
        "later.\n"
    )
    unkept = bb("publish", "a.b", REDIS_URL=dead["REDIS_URL"], BLOODBANK_OUTBOX="off")
    assert unkept.stdout.split()[1] == "published"
    assert "bb reindex" in unkept.stderr


@pytest.mark.parametrize("command", ["why", "effects"])
def test_while_the_log_is_away_a_whole_id_is_enough(bb: Run, command: str) -> None:
    event_id = _publish(bb, "a.b")
    away = f"amqp://127.0.0.1:{free_port()}/"
    result = bb(command, event_id[:13], RABBIT_URL=away)
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert result.stderr.endswith(" Give the whole id: then the log is not needed.\n")
    assert bb(command, event_id, RABBIT_URL=away).exit_code == 0
    assert "whole id" not in bb("events", "get", event_id[:13], RABBIT_URL=away).stderr
    assert "whole id" not in bb(command, event_id[:13], BLOODBANK_URL=f"http://127.0.0.1:{free_port()}").stderr


def test_an_index_that_is_away_is_told_with_the_cause(bb: Run) -> None:
    address = f"127.0.0.1:{free_port()}"
    result = bb("why", str(uuid4()), REDIS_URL=f"redis://{address}/0")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert f"The reason: Redis at redis://{address}/0 cannot be reached: " in result.stderr


def test_help_tells_that_a_reindex_since_a_time_reads_earlier_events_too(bb: Run) -> None:
    assert "some earlier ones" in " ".join(bb("reindex", "--help").stdout.replace("│", " ").split())
