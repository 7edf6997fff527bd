"""The body of a request: raw bytes within a limit, then JSON within a depth."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import chain
from typing import cast

from fastapi import Request
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from bloodbank.errors import InvalidEvent
from bloodbank.http.refusals import BodyTimeout, BodyTooLarge, InvalidJson, JsonTooDeep, RequestRefused
from bloodbank.http.refusals import UnsupportedMediaType as Unsupported

BODY_TIMEOUT_SECONDS = 60.0


def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType unless the body is declared as JSON and not compressed."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (media_type.startswith("application/") and media_type[-5:] == "+json")
    if not is_json:
        raise Unsupported("Send the body as JSON, with the header 'Content-Type: application/json'.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Unsupported("Compressed bodies are not read. Send the body without Content-Encoding.")


async def read_body(request: Request, *, limit_bytes: int) -> bytes:
    """Return the raw body. What is over the limit is refused as soon as that is known, and not kept.

    Raises BodyTooLarge, BodyTimeout, and RequestRefused when the client leaves before the end.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
    except TimeoutError as error:
        raise BodyTimeout(f"The body did not arrive within {BODY_TIMEOUT_SECONDS:g} s. Send it again.") from error
    except ClientDisconnect as error:
        raise RequestRefused("The client left before the body was complete; nothing was published.") from error
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
