"""Answers as plain JSON, apart from the routes: the `bb` command gives the same without a server."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import cleandoc
from typing import Any
from uuid import UUID

import orjson

from bloodbank.config import Settings
from bloodbank.dead_letters import GroupPage, LetterPage
from bloodbank.errors import BloodbankError, EventNotFound, InvalidQuery
from bloodbank.events import EventRegistry, is_failure
from bloodbank.kinship import CausalPath, CommonCauses, Impact
from bloodbank.outbox import Outbox, OutboxTotals
from bloodbank.progress import Progress
from bloodbank.stores.base import Graph, Step, Truncation
from bloodbank.transports.base import DeadLetter

MOST_BODY_CHARACTERS = 16_000
"""How much of a dead letter's body is shown."""


def require_bounds(settings: Settings, max_depth: int, limit: int) -> None:
    """Raise InvalidQuery for a question that is larger than the settings allow."""
    if max_depth > settings.lineage_depth_limit:
        raise InvalidQuery(f"max_depth must be at most {settings.lineage_depth_limit}.")
    if limit > settings.lineage_node_limit:
        raise InvalidQuery(f"limit must be at most {settings.lineage_node_limit}.")


def bounds_of(
    settings: Settings, max_depth: int | None, limit: int | None, *, default_depth: int, default_limit: int
) -> tuple[int, int]:
    """Return the bounds of a question: those asked for, else the defaults, or less where the settings allow less.

    Raises InvalidQuery as `require_bounds`.
    """
    depth = min(default_depth, settings.lineage_depth_limit) if max_depth is None else max_depth
    nodes = min(default_limit, settings.lineage_node_limit) if limit is None else limit
    require_bounds(settings, depth, nodes)
    return depth, nodes


def lineage_body(graph: Graph) -> bytes:
    """Return the JSON of a graph; see `LineageOut`."""
    return orjson.dumps(
        {
            "focus": graph.focus,
            "direction": graph.direction.value,
            "nodes": [_node(step) for step in graph.steps],
            "edges": _edges(graph.edges),
            "roots": graph.roots,
            "missing": graph.missing,
            "cycle": graph.cycle,
            "truncated": _truncated(graph.truncated),
        }
    )


def path_answer(path: CausalPath) -> dict[str, Any]:
    """Return the path between two events; see `PathOut`."""
    return {
        "from": path.start,
        "to": path.end,
        "found": path.found,
        "direction": path.direction.value if path.direction else None,
        "path": [_node(step) for step in path.steps],
        "edges": _edges(path.edges),
        "missing": path.missing,
        "truncated": _truncated(path.truncated),
    }


def common_answer(common: CommonCauses) -> dict[str, Any]:
    """Return the lowest common causes of some events; see `CommonOut`."""
    return {
        "ids": common.event_ids,
        "causes": [_node(step) for step in common.steps],
        "complete": common.complete,
        "missing": common.missing,
        "truncated": _truncated(common.truncated),
    }


def impact_answer(impact: Impact) -> dict[str, Any]:
    """Return what an event led to, counted; see `ImpactOut`."""
    return {
        "event_id": impact.event_id,
        "descendants": impact.descendants,
        "by_type": impact.by_type,
        "by_source": impact.by_source,
        "by_status": {"ok": impact.ok, "failed": impact.failed, "unknown": impact.unknown},
        "first": impact.first,
        "last": impact.last,
        "truncated": _truncated(impact.truncated),
    }


def schema_list(registry: EventRegistry) -> dict[str, Any]:
    """Return the event types that have a payload model; see `SchemaList`."""
    items: list[dict[str, str]] = []
    for event_type in registry:
        model = registry.model_for(event_type)
        if model is not None:
            first_line = cleandoc(model.__doc__ or "").partition("\n")[0]
            items.append({"event_type": event_type, "title": model.__name__, "description": first_line})
    return {"items": items, "next": None}


async def outbox_page(
    outbox: Outbox | None, *, set_aside: bool | None, after: int, limit: int
) -> tuple[dict[str, Any], int | None]:
    """Return a page of the outbox without its `next`, see `OutboxPage`; and the number to go on after, None at the end.

    outbox: None where there is none; the page says so. after: a number, only later entries are listed.
    """
    if outbox is None:
        nothing = OutboxTotals(0, 0, 0, 0, 0, 0, None)
        return {"on": False, "totals": nothing, "items": []}, None
    totals = await outbox.totals()
    entries = await outbox.entries(set_aside=set_aside, after=after, limit=limit + 1)
    items = [
        {
            "event_id": entry.event_id,
            "event_type": entry.event_type,
            "accepted_at": entry.accepted_at,
            "size_bytes": entry.size_bytes,
            "attempts": entry.attempts,
            "set_aside": entry.reason is not None,
            "reason": entry.reason,
        }
        for entry in entries[:limit]
    ]
    following = entries[limit - 1].number if len(entries) > limit else None
    return {"on": True, "totals": totals, "items": items}, following


async def retry_in_outbox(outbox: Outbox | None, event_id: UUID | None) -> dict[str, int]:
    """Let an event that was set aside wait again, None: all of them; see `OutboxRetried`. Raises EventNotFound."""
    count = 0 if outbox is None else await outbox.retry(None if event_id is None else [event_id])
    if event_id is not None and not count:
        raise _not_set_aside(event_id)
    return {"retried": count}


async def drop_from_outbox(outbox: Outbox | None, event_id: UUID) -> dict[str, Any]:
    """Delete an event that was set aside; see `OutboxDropped`. Raises EventNotFound."""
    if outbox is None or not await outbox.drop(event_id):
        raise _not_set_aside(event_id)
    return {"event_id": event_id, "dropped": True}


def letter_answer(letter: DeadLetter, *, with_body: bool = False) -> dict[str, Any]:
    """Return a dead letter; see `DeadLetterItem`, with the body `DeadLetterFull`."""
    failure = letter.failure
    told: dict[str, Any] = {
        "number": letter.number,
        "group": letter.group or None,
        "event_id": letter.message.event_id,
        "event_type": letter.message.routing_key,
        "error": failure.error,
        "reason": failure.reason,
        "traceback": failure.traceback,
        "consumer": failure.consumer,
        "attempts": letter.attempts,
        "first_at": letter.first_at,
        "dead_at": letter.dead_at,
    }
    if with_body:
        # A character takes four bytes at most.
        body = letter.message.body
        text = body[: 4 * MOST_BODY_CHARACTERS].decode("utf-8", "replace")
        is_cut = len(text) > MOST_BODY_CHARACTERS or len(body) > 4 * MOST_BODY_CHARACTERS
        told |= {"body": text[:MOST_BODY_CHARACTERS], "body_cut": is_cut, "body_bytes": len(body)}
    return told


def letter_page_answer(page: LetterPage) -> dict[str, Any]:
    """Return a page of dead letters without its `next`; see `DeadLetterPage`."""
    return {"items": [letter_answer(letter) for letter in page.items]}


def group_page_answer(page: GroupPage) -> dict[str, Any]:
    """Return groups of dead letters without the `next`; see `DeadLetterGroups`."""
    items = [
        {
            "key": group.key,
            "consumer": group.consumer,
            "group": group.group or None,
            "error": group.error,
            "count": group.count,
            "first_at": group.first_at,
            "last_at": group.last_at,
            "sample": letter_answer(group.sample),
        }
        for group in page.items
    ]
    return {"items": items}


def job_answer(
    progress: Progress, *, job_id: UUID | None, kind: str, finished: bool, error: BloodbankError | None
) -> dict[str, Any]:
    """Return how far a job is; see `JobOut`."""
    rest = (progress.total or 0) - progress.done - progress.skipped
    return {
        "job": job_id,
        "kind": kind,
        "total": progress.total,
        "done": progress.done,
        "skipped": progress.skipped,
        "failed": rest if error is not None else 0,
        "finished": finished,
        "error": None if error is None else {"code": error.code, "detail": str(error)},
    }


def _not_set_aside(event_id: UUID) -> EventNotFound:
    return EventNotFound(
        f"No event {event_id} is set aside in the outbox. What waits there is sent by itself, and is never deleted."
    )


def _edges(edges: Iterable[tuple[UUID, UUID]]) -> list[dict[str, UUID]]:
    return [{"parent": parent, "child": child} for parent, child in edges]


def _truncated(truncated: Truncation) -> dict[str, Any]:
    return {"depth": truncated.depth, "limit": truncated.limit, "frontier": truncated.frontier}


def _node(step: Step) -> dict[str, Any]:
    node, link = step.node, step.node.link
    return {
        "id": node.event_id,
        "depth": step.depth,
        "event_type": link.event_type if link else None,
        "timestamp": link.timestamp if link else None,
        "source": link.source if link else None,
        "status": ("failed" if is_failure(link.event_type) else "ok") if link else None,
        "known": node.known,
        "parents_total": len(node.parents),
        "children_total": node.children_total,
    }
