"""Event hooks for httpx: a request made while an event is handled names it as parent of what it publishes.

    httpx.AsyncClient(event_hooks={"request": [pass_on_parents]})
    httpx.Client(event_hooks={"request": [pass_on_parents_sync]})

Source: https://www.python-httpx.org/advanced/event-hooks/
"""

from __future__ import annotations

import httpx

from bloodbank.causation import parents_header


async def pass_on_parents(request: httpx.Request) -> None:
    """Add `X-Bloodbank-Parents` to a request of an AsyncClient, unless it has the header already."""
    pass_on_parents_sync(request)


def pass_on_parents_sync(request: httpx.Request) -> None:
    """Add `X-Bloodbank-Parents` to a request of a Client, unless it has the header already."""
    for name, value in parents_header().items():
        request.headers.setdefault(name, value)
