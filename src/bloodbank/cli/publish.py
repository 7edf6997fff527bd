"""`bb publish`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from uuid import UUID

import orjson
import typer

from bloodbank.cli.bus import Json, connect
from bloodbank.cli.edge import at_edge, run_async
from bloodbank.cli.text import note, write_json
from bloodbank.errors import InvalidEvent
from bloodbank.ids import event_id as deterministic_event_id
from bloodbank.ids import new_event_id

if TYPE_CHECKING:
    from bloodbank.config import Settings

QUEUED = (
    "The broker takes nothing now; 'bb doctor' says why. The event is kept on disk, and a process that uses this bus "
    "sends it when the broker is back; 'bb outbox' shows what waits."
)
"""What is said when an event was accepted and not sent."""


@at_edge
def publish(
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="Type of the event, such as llm.prompt.")],
    data: Annotated[
        str, typer.Option("--data", "-d", metavar="JSON|@FILE|-", help="The payload; '-' reads standard input.")
    ] = "{}",
    parents: Annotated[
        list[str] | None,
        typer.Option("--parent", "-p", metavar="ID", help="An event that caused this one; may be given again."),
    ] = None,
    event_id: Annotated[UUID | None, typer.Option("--id", metavar="UUID", help="Id of the event.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Idempotency key: the same key and type make the same id.")
    ] = None,
    source_app: Annotated[str | None, typer.Option(help="Application that the event names as its source.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Publish an event; print its id and what became of it."""
    from bloodbank.config import load_settings

    if event_id is not None and key is not None:
        raise typer.BadParameter("give either --id or --key, not both")
    settings = load_settings()
    event: Json = {
        "event_type": event_type,
        "payload": read_payload(data),
        "source": _source(settings, source_app),
        "event_id": str(event_id or _new_id(event_type, key)),
    }
    answer = run_async(_publish(settings, event, parents or []))
    if as_json:
        write_json(answer)
        return
    sys.stdout.write(f"{answer['event_id']}  {answer['status']}\n")
    if answer["status"] == "queued":
        note(QUEUED)
    if answer["lineage"] == "deferred":
        note(deferred_note(settings))


def deferred_note(settings: Settings) -> str:
    """Return what is said when the index did not take the causes of an event."""
    if settings.server_url is None and settings.outbox == "off":
        later = "the log will have its causes, and 'bb reindex' brings them in"
    else:
        later = "its causes are kept on disk and recorded later"
    return f"The index of causes is away: 'bb why' does not know this event yet; {later}."


def read_payload(data: str) -> Json:
    """Return the payload that `--data` means: JSON, `@file` or `-` for standard input. Raises InvalidEvent."""
    from pydantic_core import from_json

    if data == "-":
        where, content = "Standard input", sys.stdin.buffer.read()
    elif data.startswith("@"):
        where = f"The file {data[1:]}"
        try:
            content = Path(data[1:]).read_bytes()
        except OSError as error:
            raise InvalidEvent(f"{where} cannot be read: {error.strerror}. Nothing was published.") from error
    else:
        where, content = "The payload", data.encode(errors="surrogateescape")
    try:
        # orjson refuses what is no JSON, but reads an integer beyond 64 bits as the nearest float, and writes none.
        orjson.loads(content)
        payload: Any = from_json(content)
        orjson.dumps(payload)
    except ValueError as error:
        raise InvalidEvent(f"{where} is not JSON: {error}. Nothing was published.") from error
    except TypeError as error:
        raise InvalidEvent(f"{where} holds what an event cannot carry: {error}. Nothing was published.") from error
    if not isinstance(payload, dict):
        raise InvalidEvent(f'{where} is JSON but no object; write one such as {{"name": 1}}. Nothing was published.')
    return cast("Json", payload)


def _new_id(event_type: str, key: str | None) -> UUID:
    # The same id that the HTTP API makes of the header Idempotency-Key.
    if key is None:
        return new_event_id()
    try:
        return deterministic_event_id(event_type, idempotency_key=key)
    except ValueError as error:
        raise InvalidEvent(f"TYPE and --key make no id: {error}. Nothing was published.") from error


def _source(settings: Settings, app: str | None) -> Json:
    from pydantic import ValidationError

    from bloodbank.envelope import Source

    try:
        return Source.local(app or settings.service_name).model_dump(mode="json", exclude_none=True)
    except ValidationError as error:
        raise InvalidEvent("--source-app must be 1 to 255 characters without control characters.") from error


async def _publish(settings: Settings, event: Json, parents: list[str]) -> Json:
    async with connect(settings) as bus:
        event["correlation_ids"] = [str(await bus.resolve(parent)) for parent in parents]
        return await bus.publish(event)
