"""Dead letters and replay behind a server, over its HTTP API."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from bloodbank.cli.bus import Json
from bloodbank.cli.dlq_access import Action, Wanted
from bloodbank.cli.remote import KINDS, PAGE, RemoteBus
from bloodbank.cli.text import note
from bloodbank.errors import TransportUnavailable
from bloodbank.progress import Progress, Report

POLL_SECONDS = 0.25
"""How often a job is asked how far it is."""
LETTER = frozenset({"number", "event_id", "reason"})
JOB = frozenset({"job", "total", "done", "skipped", "failed", "finished", "error"})


class RemoteDeadLetters(RemoteBus):
    """See `DeadLetterAccess`. Use it inside `async with`."""

    async def letters(self, *, group: str | None, key: str | None, cursor: str | None, limit: int) -> Json:
        """See `DeadLetterAccess.letters`."""
        parameters = {"group": group, "key": key, "cursor": cursor, "limit": limit}
        return await self._ask_patiently(
            "GET", "/dlq", PAGE, params={k: v for k, v in parameters.items() if v is not None}
        )

    async def letter_groups(self, *, cursor: str | None) -> Json:
        """See `DeadLetterAccess.letter_groups`."""
        return await self._ask_patiently(
            "GET", "/dlq/groups", PAGE, params={} if cursor is None else {"cursor": cursor}
        )

    async def letter(self, number: int) -> Json:
        """See `DeadLetterAccess.letter`."""
        return await self._ask_patiently("GET", f"/dlq/{number}", LETTER)

    async def settle(self, action: Action, number: int) -> None:
        """See `DeadLetterAccess.settle`."""
        if action == "retry":
            await self._ask_patiently("POST", f"/dlq/{number}/retry", frozenset({"retried"}))
        else:
            await self._ask_patiently("DELETE", f"/dlq/{number}", frozenset({"number", "discarded"}))

    async def settle_group(self, action: Action, key: str, report: Report) -> Progress:
        """See `DeadLetterAccess.settle_group`."""
        path = f"/dlq/groups/{quote(key, safe='')}"
        method, path = ("POST", f"{path}/retry") if action == "retry" else ("DELETE", path)
        return await self._end_of(await self._ask_patiently(method, path, JOB), report)

    async def replay(self, wanted: Wanted, report: Report, *, dry_run: bool) -> Progress:
        """See `DeadLetterAccess.replay`."""
        body = {
            "type": wanted.pattern,
            "since": wanted.since,
            "until": wanted.until,
            "event_id": wanted.event_id,
            "descendants": wanted.descendants,
            "to": wanted.to,
            "to_all": wanted.to is None and not dry_run,
            "dry_run": dry_run,
        }
        headers = {"Content-Type": "application/json"}
        return await self._end_of(
            await self._ask("POST", "/replay", JOB, content=orjson.dumps(body), headers=headers), report
        )

    async def _ask_patiently(self, method: str, path: str, fields: frozenset[str], **arguments: Any) -> Json:
        """Ask what may take as long as all dead letters take to be read."""
        seconds = self._settings.dead_letter_timeout_seconds + 5
        timeout = httpx.Timeout(seconds, connect=self._settings.connect_timeout_seconds)
        return await self._ask(method, path, fields, timeout=timeout, **arguments)

    async def _end_of(self, job: Json, report: Report) -> Progress:
        """Wait for the end of a job. Raises the error that ended it early."""
        try:
            while True:
                progress = Progress(job["total"], job["done"], job["skipped"])
                report(progress)
                if job["finished"]:
                    break
                await asyncio.sleep(POLL_SECONDS)
                job = await self._ask("GET", f"/jobs/{job['job']}", JOB)
        except asyncio.CancelledError:
            note("The server goes on with it.")
            raise
        if job["error"] is not None:
            kind = KINDS.get(job["error"]["code"], TransportUnavailable)
            raise kind(f"{job['error']['detail']} {job['done']:,} of {job['total'] or 0:,} were done.")
        return progress
