"""Limits of a request's head. The body has its own, in body.py."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from bloodbank.http.problems import problem_response
from bloodbank.http.refusals import AddressTooLong, RequestRefused, TooManyHeaders

MOST_HEADERS = 100
LONGEST_PATH_BYTES = 2048
LONGEST_QUERY_BYTES = 4096


class HeadLimits:
    """ASGI middleware that refuses requests with more header fields or a longer address than any client needs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 414 or 431, or pass the request on."""
        if scope["type"] == "http" and (refusal := _refusal(scope)) is not None:
            await problem_response(refusal, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _refusal(scope: Scope) -> RequestRefused | None:
    if len(scope["headers"]) > MOST_HEADERS:
        return TooManyHeaders(f"The request has more than {MOST_HEADERS} header fields. Send fewer.")
    if len(scope["path"].encode()) > LONGEST_PATH_BYTES:
        return AddressTooLong(f"The path is longer than {LONGEST_PATH_BYTES} bytes. Shorten it.")
    if len(scope.get("query_string", b"")) > LONGEST_QUERY_BYTES:
        return AddressTooLong(f"The query is longer than {LONGEST_QUERY_BYTES} bytes. Shorten it.")
    return None
