"""The body of a request: raw bytes within a limit, then JSON within a depth."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from itertools import chain
from typing import Any, cast

from fastapi import Request
from pydantic_core import from_json
from starlette.types import Receive

from bloodbank.errors import InvalidEvent
from bloodbank.http.head import header
from bloodbank.http.refusals import BodyTimeout, BodyTooLarge, InvalidJson, JsonTooDeep, RequestRefused
from bloodbank.http.refusals import UnsupportedMediaType as Unsupported

BODY_TIMEOUT_SECONDS = 60.0


def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType unless the body is declared as JSON and not compressed."""
    scope = request.scope
    media_type = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (media_type.startswith("application/") and media_type[-5:] == "+json")
    if not is_json:
        raise Unsupported("Send the body as JSON, with the header 'Content-Type: application/json'.")
    encoding = header(scope, b"content-encoding")
    if encoding is not None and encoding.lower() != "identity":
        raise Unsupported("Compressed bodies are not read. Send the body without Content-Encoding.")


async def read_body(request: Request, *, limit_bytes: int) -> bytes:
    """Return the raw body. What is over the limit is refused as soon as that is known, and not kept.

    Raises BodyTooLarge, BodyTimeout, and RequestRefused when the client leaves before the end.
    """
    declared = header(request.scope, b"content-length") or ""
    if declared.isdecimal() and int(declared[:20]) > limit_bytes:
        raise _too_large(limit_bytes)
    steps = _receive(request.receive, limit_bytes).__await__()
    try:
        waits_for = next(steps)
    except StopIteration as at_once:
        # Most bodies are there with the head. A timeout that never runs out would cost more than reading them.
        body: bytes = at_once.value
        return body
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            return await _Begun(steps, waits_for)
    except TimeoutError as error:
        raise BodyTimeout(f"The body did not arrive within {BODY_TIMEOUT_SECONDS:g} s. Send it again.") from error


class _Begun(Generator[Any, None, bytes]):
    """Awaits a coroutine whose first step has been taken: `waits_for` is what it then gave the event loop."""

    def __init__(self, steps: Generator[Any, None, bytes], waits_for: object) -> None:
        self._steps = steps
        self._ahead = iter((waits_for,))

    def __await__(self) -> Generator[Any, None, bytes]:
        return self

    def send(self, value: None) -> object:
        for waits_for in self._ahead:
            return waits_for
        return self._steps.send(value)

    def throw(self, *error: Any) -> object:
        return self._steps.throw(*error)


async def _receive(receive: Receive, limit_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestRefused("The client left before the body was complete; nothing was published.")
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > limit_bytes:
            raise _too_large(limit_bytes)
        is_last = not message.get("more_body", False)
        if is_last and not body:
            return chunk
        body += chunk
        if is_last:
            return bytes(body)


def parse_json(body: bytes, *, depth_limit: int) -> object:
    """Return what the bytes say. Raises InvalidJson, JsonTooDeep."""
    too_deep = f"The body nests deeper than {depth_limit} levels. Flatten it. Nothing was published."
    try:
        # Not orjson, which reads an integer beyond 64 bits as the nearest float.
        parsed: object = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if "recursion limit" in str(error):
            raise JsonTooDeep(too_deep) from error
        reason = "it is empty" if not body else str(error)
        raise InvalidJson(f"The body is no JSON: {reason}. Nothing was published.") from error
    # So few brackets cannot nest too deep; this spares small events the walk.
    if body.count(b"{") + body.count(b"[") > depth_limit and _is_deeper(parsed, depth_limit):
        raise JsonTooDeep(too_deep)
    return parsed


def require_object(parsed: object) -> dict[str, object]:
    """Return a JSON object. Raises InvalidEvent for any other value."""
    if not isinstance(parsed, dict):
        raise InvalidEvent(
            "The body must be a JSON object. Nothing was published.", [("", "Input should be an object")]
        )
    return cast("dict[str, object]", parsed)


async def read_object(request: Request, *, limit_bytes: int, depth_limit: int) -> dict[str, object]:
    """Return the JSON object that a request brings. Raises as the functions above."""
    require_json(request)
    return require_object(parse_json(await read_body(request, limit_bytes=limit_bytes), depth_limit=depth_limit))


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than {limit_bytes} bytes. Send less, or a reference to where the content lies. "
        "Nothing was published."
    )


def _is_deeper(parsed: object, limit: int) -> bool:
    level: Iterable[object] = [parsed]
    for _ in range(limit + 1):
        containers: list[object] = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = chain.from_iterable(map(_members, containers))
    return True


def _members(container: object) -> Iterable[object]:
    if isinstance(container, dict):
        return cast("dict[str, object]", container).values()
    return cast("list[object]", container)
