"""The explorer: the page that is built from `ui/`, and the files that it loads.

The page holds no data. It asks the same routes as everybody, with a key where the server wants one, so it is open
itself. Every address of the explorer answers the same page, which looks at the address.

What a browser may do with it is told by a Content Security Policy (https://www.w3.org/TR/CSP3/): load and ask this
server, and nothing else.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

BUILT = Path(__file__).parent / "static"
"""Where `make ui` puts the page. It is looked at anew for each request, so that building needs no restart."""
UNBUILT = Path(__file__).parent / "unbuilt.html"

PAGES = ("/", "/find", "/state")
EVENT_PAGE = "/e/"
ASSETS = "/assets/"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MEDIA_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
YEAR_SECONDS = 31_536_000

# A name and a hash, as the build gives them; nothing that could lead out of the folder.
_ASSET = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def is_explorer(path: str) -> bool:
    """Say whether a path is one of the explorer's, where everybody may look: there is no data in what it answers."""
    return path in PAGES or path.startswith((EVENT_PAGE, ASSETS))


async def _page(_request: Request) -> Response:
    """Answer the page or, where it was not built, one that says how to build it."""
    content = await _read(BUILT / "index.html")
    if content is None:
        content = await to_thread.run_sync(UNBUILT.read_bytes)
    return Response(content, headers=HEADERS | {"Cache-Control": "no-cache"}, media_type="text/html")


async def _asset(request: Request) -> Response:
    """Answer a file of the page. Its name has a hash of what is in it, so it may be kept for ever."""
    name: str = request.path_params["name"]
    media_type = MEDIA_TYPES.get(Path(name).suffix)
    content = await _read(BUILT / "assets" / name) if media_type and _ASSET.fullmatch(name) else None
    if content is None:
        raise HTTPException(404)
    lasting = {"Cache-Control": f"public, max-age={YEAR_SECONDS}, immutable"}
    return Response(content, headers=HEADERS | lasting, media_type=media_type)


async def _read(path: Path) -> bytes | None:
    """Return what a file holds, or None where there is no such file."""
    try:
        return await to_thread.run_sync(path.read_bytes)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        # No file can have a name of that length.
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


ROUTES = (
    *(Route(path, _page, methods=["GET"]) for path in PAGES),
    Route(f"{EVENT_PAGE}{{event_id}}", _page, methods=["GET"]),
    Route(f"{ASSETS}{{name}}", _asset, methods=["GET"]),
)
"""For people, not part of the API: they do not stand in its description."""
