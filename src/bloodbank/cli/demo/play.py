"""Plays the day, asks the questions and says whether the answers are right."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from uuid import UUID

import httpx
import orjson

from bloodbank.cli.bus import Bus, Json
from bloodbank.cli.demo.server import DemoServer, demo_server
from bloodbank.cli.demo.verdict import mistakes
from bloodbank.cli.remote import RemoteBus, problem
from bloodbank.cli.text import Line, Span, write_lines
from bloodbank.cli.tree import tree_lines
from bloodbank.config import Settings
from bloodbank.envelope import Source, TriggerType
from bloodbank.errors import Unavailable
from bloodbank.events.failures import is_failure
from bloodbank.ids import new_event_id
from bloodbank.story import EXPECTATIONS, MEETING_ID, STORY, WEBHOOK, Expectation, Scene
from bloodbank.wiring import describe

WEBHOOK_SECONDS = 10.0
"""What Fireflies grants a webhook to be answered."""


async def play(settings: Settings, *, stay: bool) -> bool:
    """Play the day on a server of the demo's own; return whether both answers were right.

    stay: keep the server, with its explorer, until SIGINT or SIGTERM; a day that went wrong is not kept.

    Raises Unavailable when the server does not start, and whatever refuses an event.
    """
    task = cast("asyncio.Task[object]", asyncio.current_task())
    with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers on the loop
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    write_lines([(Span("A call becomes a document", "bold"),)])
    started = time.monotonic()
    async with demo_server() as server:
        ready = time.monotonic()
        settings = settings.model_copy(update={"data_dir": server.folder, "server_key": None})
        write_lines(_server_lines(settings, server.url, ready - started))
        async with RemoteBus(settings, server.url) as bus:
            ids = await _play_story(bus, server)
            played = time.monotonic()
            wrong = [line for expected in EXPECTATIONS for line in await _ask(bus, expected, ids)]
        write_lines(_closing_lines(wrong, played - ready))
        if stay and not wrong:
            await _wait_until_told(server.url, ids[EXPECTATIONS[0].focus])
    return not wrong


async def _wait_until_told(url: str, focus: UUID) -> None:
    write_lines([(Span("\nThe explorer", "bold"), Span(f": {url}/e/{focus}")), (Span("Ctrl-C ends it.", "dim"),)])
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # there Ctrl-C cancels the task
            asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()


async def _play_story(bus: Bus, server: DemoServer) -> dict[str, UUID]:
    """Publish every scene in order, each with the events that caused it; return the event of each."""
    ids: dict[str, UUID] = {}
    for number, scene in enumerate(STORY, 1):
        if scene is WEBHOOK:
            answer = await _call_webhook(server, reference=ids["upload"])
        else:
            answer = await bus.publish(_event(scene, [ids[cause] for cause in scene.causes]))
        if (answer["status"], answer["lineage"]) != ("published", "recorded"):
            raise Unavailable(
                f"{scene.event_type} was answered {answer['status']}, lineage {answer['lineage']}. "
                "Look with 'bb doctor'."
            )
        ids[scene.name] = UUID(answer["event_id"])
        write_lines([_scene_line(number, scene)])
    return ids


def _event(scene: Scene, causes: list[UUID]) -> Json:
    return {
        "event_id": str(new_event_id()),
        "event_type": scene.event_type,
        "source": Source.local(scene.app, TriggerType.AGENT).model_dump(mode="json", exclude_none=True),
        "correlation_ids": [str(cause) for cause in causes],
        "payload": scene.payload,
    }


async def _call_webhook(server: DemoServer, *, reference: UUID) -> Json:
    """Call the server back as Fireflies does: thin, signed over the raw bytes, with no API key."""
    moment = int(time.time() * 1000)
    body = orjson.dumps(
        {
            "event": "meeting.transcribed",
            "timestamp": moment,
            # Its own for each demo: on a shared bus the same meeting at the same time would be a redelivery.
            "meeting_id": f"{MEETING_ID}-{reference.hex[-8:]}",
            "client_reference_id": str(reference),
        }
    )
    signature = hmac.new(server.secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "X-Hub-Signature": f"sha256={signature}"}
    async with httpx.AsyncClient(timeout=WEBHOOK_SECONDS, trust_env=False) as fireflies:
        response = await fireflies.post(f"{server.url}/webhooks/fireflies", content=body, headers=headers)
    if not response.is_success:
        raise problem(response, server.url)
    return cast("Json", orjson.loads(response.content))


async def _ask(bus: Bus, expected: Expectation, ids: dict[str, UUID]) -> list[str]:
    """Ask a question, show the answer as a tree, and return what is wrong with it."""
    focus = ids[expected.focus]
    answer = await bus.lineage(focus, expected.direction, max_depth=50, limit=500)
    write_lines(
        [(Span(f"\n{expected.question}", "bold"),), (), *tree_lines(answer, expected.direction, now=datetime.now(UTC))]
    )
    return mistakes(answer, expected, ids)


def _server_lines(settings: Settings, url: str, start_seconds: float) -> list[Line]:
    backends = describe(settings, tracking=True)
    rows = [
        ("server", f"{url}, ready after {start_seconds:.1f} s"),
        ("explorer", f"{url}/ until this ends"),
        ("events", backends["transport"]),
        ("causes", backends["store"]),
    ]
    return [*((Span(f"  {name:<9}", "dim"), Span(text)) for name, text in rows), ()]


def _scene_line(number: int, scene: Scene) -> Line:
    style = "bold red" if is_failure(scene.event_type) else "bold"
    return (Span(f"  {number}  ", "dim"), Span(f"{scene.event_type:<31}", style), Span(scene.told))


def _closing_lines(wrong: list[str], seconds: float) -> list[Line]:
    if wrong:
        heading = (Span("\nThe answers are wrong.", "bold red"),)
        return [heading, *((Span(f"  {line}"),) for line in wrong)]
    bb = command_name()
    return [
        (Span("\nBoth answers are right", "bold green"), Span(f": {len(STORY)} events published in {seconds:.2f} s.")),
        (Span("\nNext, on a bus of your own:", "bold"),),
        (Span(f"  call=$({bb} publish call.recorded | cut -d' ' -f1)"),),
        (Span(f"  note=$({bb} publish note.written --parent $call | cut -d' ' -f1)"),),
        (Span(f"  {bb} why $note"),),
        (Span(f"  {bb} serve        "), Span("# the HTTP API and the explorer", "dim")),
        (Span(f"  {bb} demo --stay  "), Span("# this day, to look at in the explorer", "dim")),
    ]


def command_name() -> str:
    """Return how the shell finds this command: `bb` where it is on the path, else as it was called."""
    called = Path(sys.argv[0])
    found = shutil.which("bb")
    if called.name != "bb" or (found is not None and Path(found).resolve() == called.resolve()):
        return "bb"
    absolute = called.resolve()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)
