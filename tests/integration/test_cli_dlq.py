"""`bb dlq` and `bb replay`, on the bus itself and through a server."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from typer.testing import CliRunner, Result

from bloodbank import Publisher, create_envelope
from bloodbank.cli.edge import ExitCode
from bloodbank.cli.main import app
from bloodbank.transports.base import Failure, Message, Transport
from tests.conformance.backends import LockedFile
from tests.conformance.messages import ids, message, messages, set_aside, take
from tests.servers.api import ApiServer
from tests.servers.process import free_port

BB = [sys.executable, "-m", "bloodbank.cli.main"]
REASON = Failure("the invoice\x1b[2J has no number", "ValueError", "Traceback:\n  in post\x1b[2J", "billing.post")


def bb(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, arguments, env=variables)


def printed(*arguments: str) -> str:
    result = bb(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> Any:
    return orjson.loads(printed(*arguments, "--json"))


def numbers(*arguments: str) -> list[int]:
    return [item["number"] for item in as_json("dlq", "list", *arguments)["items"]]


def keys() -> dict[str, str]:
    return {group["error"]: group["key"] for group in as_json("dlq", "groups")["items"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of an embedded bus that the commands use."""
    for name in ("RABBIT_URL", "REDIS_URL", "REDIS_HOST", "BLOODBANK_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BLOODBANK_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["bus", "server"])
def place(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, and a server of it that the commands ask, or none."""
    if request.param == "bus":
        yield folder
        return
    server = ApiServer(BLOODBANK_DATA_DIR=str(folder))
    server.start()
    try:
        monkeypatch.setenv("BLOODBANK_URL", server.url)
        yield folder
    finally:
        server.close()


@dataclass(frozen=True)
class Letters:
    """What was set aside: three by a handler of `workers`, one of another error, one by nobody's subscription."""

    failed: list[Message]
    poison: Message
    nobodys: Message


async def fill() -> Letters:
    letters = Letters(messages(3, "invoice.created"), Message(uuid4(), "a.b", b"\xff no JSON"), message("a.b"))
    async with Publisher() as publisher:
        transport = publisher.transport
        await set_aside(transport, letters.nobodys, group=None, failure=Failure("gone", "KeyError", "", "other"))
        await set_aside(transport, *letters.failed, failure=REASON)
        await set_aside(transport, letters.poison, failure=Failure("no JSON", "poison", "", "billing.post"))
    return letters


@pytest.fixture
def letters(place: Path) -> Letters:
    return asyncio.run(fill())


def received(count: int, group: str = "workers") -> list[tuple[UUID, bool]]:
    """Take so many events that wait for a group; each with whether it was replayed."""

    async def take_some(transport: Transport) -> list[tuple[UUID, bool]]:
        async with transport.subscribe("none.of.these", group=group, prefetch=count) as deliveries:
            taken = await take(deliveries, count)
            for delivery in taken:
                await delivery.ack()
            return [(delivery.message.event_id, delivery.replayed) for delivery in taken]

    async def open_bus() -> list[tuple[UUID, bool]]:
        async with Publisher() as publisher:
            return await take_some(publisher.transport)

    return asyncio.run(open_bus())


def test_what_failed_is_counted_by_consumer_and_error(letters: Letters) -> None:
    first, *lines = printed("dlq").splitlines()
    assert first == "5 dead letters in 3 groups."
    assert [line.split()[1:4] for line in lines] == [
        ["1", "(no", "group)"],
        ["3", "workers", "billing.post"],
        ["1", "workers", "billing.post"],
    ]
    assert lines[1].endswith("the invoice\ufffd[2J has no number")
    assert printed("dlq", "groups").splitlines()[1:] == lines
    assert as_json("dlq")["items"][1]["count"] == 3
    assert bb("dlq", "--json", "list").exit_code == ExitCode.USAGE


def test_they_are_listed_whole_in_parts_and_by_group(letters: Letters) -> None:
    listed = as_json("dlq", "list")["items"]
    sent = [letters.nobodys, *letters.failed, letters.poison]
    assert [UUID(item["event_id"]) for item in listed] == ids(sent)
    assert numbers("--key", keys()["ValueError"]) == [item["number"] for item in listed[1:4]]
    assert len(numbers("--group", "workers")) == 4
    part = bb("dlq", "list", "--limit", "3", BLOODBANK_PAGE_LIMIT="2")
    assert len(part.stdout.splitlines()) == 3
    cursor = part.stderr.split("--cursor ")[1].strip().rstrip(".")
    assert numbers("--cursor", cursor) == [item["number"] for item in listed[3:]]
    assert bb("dlq", "list", "--cursor", "?").exit_code == ExitCode.USAGE
    assert printed("dlq", "list", "--group", "nobody") == "There are no such dead letters.\n"


def test_one_is_shown_with_its_traceback_and_what_the_consumer_got(letters: Letters) -> None:
    _, failed, *_, poison = numbers()
    shown = printed("dlq", "show", str(failed))
    assert str(letters.failed[0].event_id) in shown
    assert "  in post\ufffd[2J" in shown
    assert shown.endswith('body, 7 bytes\n{"n":0}\n')
    assert "no JSON" in as_json("dlq", "show", str(poison))["body"]
    unknown = bb("dlq", "show", str(poison + 1000))
    assert (unknown.exit_code, unknown.stdout) == (ExitCode.NOT_FOUND, "")


def test_one_or_a_group_or_all_are_given_back(letters: Letters) -> None:
    nobodys, first, *_ = numbers()
    assert printed("dlq", "retry", str(first)) == f"{first}  given back\n"
    key, poison = keys()["ValueError"], keys()["poison"]
    assert printed("dlq", "retry", "--key", key) == f"{key}  2 dead letters given back\n"
    assert bb("dlq", "retry", "--key", key).exit_code == ExitCode.NOT_FOUND
    assert bb("dlq", "retry", str(nobodys)).exit_code == ExitCode.USAGE
    assert printed("dlq", "retry", "--all") == f"{poison}  1 dead letter given back\n"
    assert numbers() == [nobodys]
    assert received(4) == [(event_id, False) for event_id in ids([*letters.failed, letters.poison])]
    for arguments in [(), (str(first), "--all"), (str(first), "--key", key)]:
        assert bb("dlq", "retry", *arguments).exit_code == ExitCode.USAGE


def test_they_are_discarded_when_one_is_sure(letters: Letters) -> None:
    nobodys, *failed, poison = numbers()
    unsure = bb("dlq", "discard", str(nobodys))
    assert (unsure.exit_code, unsure.stdout) == (ExitCode.USAGE, "")
    assert "--yes" in unsure.stderr
    assert printed("dlq", "discard", str(nobodys), "--yes") == f"{nobodys}  discarded\n"
    key = keys()["ValueError"]
    assert bb("dlq", "discard", "--key", key).exit_code == ExitCode.USAGE
    assert len(numbers()) == len([*failed, poison])
    assert printed("dlq", "discard", "--key", key, "--yes") == f"{key}  3 dead letters discarded\n"
    assert printed("dlq", "discard", "--all", "--yes").endswith("  1 dead letter discarded\n")
    assert printed("dlq") == "There are no dead letters.\n"
    assert printed("dlq", "discard", "--all", "--yes") == "There are no such dead letters.\n"
    assert printed("dlq", "retry", "--all") == "There are no such dead letters.\n"


def _answered(answer: bytes, *arguments: str) -> tuple[bytes, bytes]:
    """Run a command on a terminal that says something; return both of its outputs."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen([*BB, *arguments], stdin=theirs, stdout=-1, stderr=-1) as command:
            os.write(ours, answer)
            output, errors = command.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert command.returncode == 0, errors
    # The question leaves a space there.
    return output.lstrip(b" "), errors


def test_on_a_terminal_discarding_is_asked_for_and_what_is_shown(folder: Path) -> None:
    asyncio.run(fill())
    key = keys()["ValueError"]
    output, errors = _answered(b"n\n", "dlq", "discard", "--key", key)
    assert b"Discard 3 dead letters?" in errors
    assert b"billing.post" in errors
    assert (output, len(numbers())) == (b"", 5)
    output, _ = _answered(b"y\n", "dlq", "discard", "--key", key)
    assert (output, len(numbers())) == (f"{key}  3 dead letters discarded\n".encode(), 2)


@pytest.mark.parametrize("place", ["server"], indirect=True)
def test_a_group_that_cannot_be_settled_ends_in_the_reason(place: Path, letters: Letters) -> None:
    key = keys()["ValueError"]
    lock = LockedFile(place)
    lock.path = place / "bloodbank.db"

    async def while_locked() -> Result:
        async with lock.outage():
            return await asyncio.to_thread(bb, "dlq", "retry", "--key", key)

    result = asyncio.run(while_locked())
    assert (result.exit_code, result.stdout) == (ExitCode.UNAVAILABLE, "")
    assert "bloodbank.db" in result.stderr
    assert len(numbers()) == 5


@dataclass(frozen=True)
class Chain:
    """Three events, each of which caused the next, and one beside them."""

    ids: list[UUID]
    beside: UUID


async def publish_chain() -> Chain:
    async with Publisher(enable_correlation_tracking=True) as publisher:
        transport = publisher.transport
        beside = create_envelope("other.thing", {})
        chain: list[UUID] = []
        for number in range(3):
            event = create_envelope("chain.step", {"n": number}, correlation_ids=chain[-1:])
            await publisher.publish(event)
            chain.append(event.event_id)
        await publisher.publish(beside)
        for group, pattern in (("rag", "chain.*"), ("others", "other.*")):
            async with transport.subscribe(pattern, group=group, prefetch=1):
                pass
    return Chain(chain, beside.event_id)


@pytest.fixture
def chain(place: Path) -> Chain:
    return asyncio.run(publish_chain())


def test_a_replay_goes_to_one_group_without_a_question(chain: Chain) -> None:
    assert printed("replay", "--type", "chain.*", "--to", "others", "--since", "1h") == "3 events replayed to others.\n"
    assert received(3, "others") == [(event_id, True) for event_id in chain.ids]
    none = as_json("replay", "--until", "1h", "--to", "rag")
    assert none == {"total": 0, "done": 0, "skipped": 0}
    unknown = bb("replay", "--to", "nobody")
    assert (unknown.exit_code, unknown.stdout) == (ExitCode.USAGE, "")
    assert "no group 'nobody'" in unknown.stderr


def test_a_replay_to_all_is_asked_for_and_can_be_counted(chain: Chain) -> None:
    assert printed("replay", "--dry-run") == "4 events would be replayed.\n"
    unsure = bb("replay")
    assert (unsure.exit_code, unsure.stdout) == (ExitCode.USAGE, "")
    assert "--yes" in unsure.stderr
    assert printed("replay", "--yes") == "4 events replayed to all groups.\n"
    assert received(3, "rag") == [(event_id, True) for event_id in chain.ids]
    assert received(1, "others") == [(chain.beside, True)]


def test_one_event_is_replayed_with_what_it_led_to(chain: Chain) -> None:
    begin = str(chain.ids[1])[:23]
    assert printed("replay", "--event", begin, "--to", "rag") == "1 event replayed to rag.\n"
    assert printed("replay", "--event", begin, "--descendants", "--to", "rag") == "2 events replayed to rag.\n"
    assert [event_id for event_id, _ in received(3, "rag")] == [chain.ids[1], *chain.ids[1:]]
    assert bb("replay", "--event", str(uuid4()), "--to", "rag").exit_code == ExitCode.NOT_FOUND
    for arguments in [("--descendants",), ("--event", begin, "--type", "a.b"), ("--event", begin, "--since", "1h")]:
        assert bb("replay", *arguments, "--to", "rag").exit_code == ExitCode.USAGE


def test_on_a_terminal_the_question_says_how_many(folder: Path) -> None:
    chain = asyncio.run(publish_chain())
    output, errors = _answered(b"n\n", "replay", "--type", "chain.*")
    assert b"Replay 3 events to every group whose patterns fit?" in errors
    assert output == b""
    output, _ = _answered(b"y\n", "replay", "--type", "chain.*")
    assert output == b"3 events replayed to all groups.\n"
    assert received(3, "rag") == [(event_id, True) for event_id in chain.ids]


def test_without_a_server_that_answers_nothing_is_done(folder: Path) -> None:
    away = {"BLOODBANK_URL": f"http://127.0.0.1:{free_port()}"}
    for arguments in (("dlq",), ("dlq", "retry", "1"), ("replay", "--to", "rag")):
        result = bb(*arguments, **away)
        assert (result.exit_code, result.stdout) == (ExitCode.UNAVAILABLE, "")
        assert "No server answers" in result.stderr
