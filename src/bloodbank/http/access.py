"""Who may ask: API keys with scopes or, without keys, whoever is on this machine.

| path | keys are set | no keys are set |
| --- | --- | --- |
| /healthz, /livez | everybody | everybody |
| /webhooks/… | everybody: the signature is the key | everybody: the signature is the key |
| /docs, /openapi.json | everybody | this machine |
| the explorer: /, /e/…, /find, /state, /assets/… | everybody | this machine |
| /outbox…, /dlq…, /jobs/…, /replay | scope `admin` | this machine |
| other GET and HEAD | scope `read` | this machine |
| the rest | scope `publish` | this machine |

Without keys, what changes something is refused when a page of another site sent it, as `Sec-Fetch-Site` or `Origin`
tell: a browser sends such a request for anybody, and only keeps the answer to itself. So is the event stream, of which
such a page could take all places. Webhooks are refused then in any case; their senders are no browsers.

"This machine" means a loopback client that asked for a loopback name: a web page that has pointed its own
name to 127.0.0.1 (DNS rebinding) is refused. `admin` includes the other scopes. What is not listed needs a
key, so a new route is closed until somebody opens it.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from bloodbank.config import Scope
from bloodbank.errors import BloodbankError
from bloodbank.http.bus import bus_in
from bloodbank.http.explorer import is_explorer
from bloodbank.http.head import header, headers
from bloodbank.http.keys import KeyRing
from bloodbank.http.problems import problem_response
from bloodbank.http.refusals import CrossSite, KeyRequired, LoopbackOnly, ScopeMissing

ALWAYS_OPEN = frozenset({"/healthz", "/livez"})
DESCRIPTION = frozenset({"/docs", "/openapi.json"})
SIGNED = "/webhooks/"
STREAM = "/events/stream"
ADMINISTERED = ("/outbox", "/dlq", "/jobs/", "/replay")
PLAIN_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CHALLENGE = 'Bearer realm="bloodbank"'

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:\d{0,5})?")


class AccessControl:
    """ASGI middleware that lets a request through or answers it with a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403, or pass the request on."""
        if scope["type"] == "http":
            try:
                _check(scope)
            except BloodbankError as error:
                await problem_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Say whether a name or an address always means this machine."""
    name = host.rstrip(".").lower()
    if name in PLAIN_LOOPBACK or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _check(scope: AsgiScope) -> None:
    """Raise KeyRequired, ScopeMissing, LoopbackOnly, CrossSite, or NotOpen outside the lifespan."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if path in ALWAYS_OPEN:
        return
    if path.startswith(SIGNED):
        _require_same_site(scope, path)
        return
    bus = bus_in(scope)
    if not bus.keys:
        _require_same_site(scope, path)
        if not bus.settings.allow_anonymous:
            _require_loopback(scope)
    elif path not in DESCRIPTION and not is_explorer(path):
        _require_key(scope, bus.keys, _needed(path, scope["method"]))


def _require_same_site(scope: AsgiScope, path: str) -> None:
    """Refuse what does something and was sent by a page of another site; other clients send neither header."""
    if scope["method"] in SAFE_METHODS and path != STREAM:
        return
    site, origins = header(scope, b"sec-fetch-site"), headers(scope, b"origin")
    hosts = [host.strip().lower() for host in headers(scope, b"host")]
    is_ours = all(_authority(origin) in hosts for origin in origins)
    if (site or "none").strip().lower() not in ("none", "same-origin") or not is_ours:
        raise CrossSite(
            "A web page of another site sent this, and it would change something or hold a stream open. Nothing was "
            "done. Send it from a program, or from a page of this server."
        )


def _authority(origin: str) -> str | None:
    """Return what the Host header is when a page of this origin asks its own server; None for what is no origin."""
    scheme, separator, authority = origin.strip().lower().partition("://")
    return authority if separator and scheme in ("http", "https") else None


def _needed(path: str, method: str) -> Scope:
    if path.startswith(ADMINISTERED):
        return Scope.ADMIN
    return Scope.READ if method in ("GET", "HEAD") else Scope.PUBLISH


def _require_key(scope: AsgiScope, keys: KeyRing, needed: Scope) -> None:
    key = _presented_key(scope)
    if key is None:
        raise KeyRequired(
            "This server asks for an API key. Send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.",
            {"WWW-Authenticate": CHALLENGE},
        )
    scopes = keys.scopes_of(key)
    if scopes is None:
        raise KeyRequired(
            "The API key is wrong. Use one of those in BLOODBANK_API_KEYS of the server.",
            {"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'},
        )
    if needed not in scopes and Scope.ADMIN not in scopes:
        raise ScopeMissing(
            f"The API key lacks the scope '{needed}'. Use a key that has it.",
            {"WWW-Authenticate": f'{CHALLENGE}, error="insufficient_scope", scope="{needed}"'},
        )


def _presented_key(scope: AsgiScope) -> bytes | None:
    authorization = header(scope, b"authorization")
    if authorization is None:
        key = header(scope, b"x-api-key") or ""
    else:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
    return key.strip().encode("latin-1") or None


def _require_loopback(scope: AsgiScope) -> None:
    client = scope.get("client")
    if client is None or not is_loopback(client[0]):
        raise LoopbackOnly(
            "No API keys are set, so only clients on the server's own machine are answered. Set "
            "BLOODBANK_API_KEYS, or BLOODBANK_ALLOW_ANONYMOUS=true on a network that is closed already."
        )
    hosts = headers(scope, b"host")
    if not hosts or not all(map(_names_loopback, hosts)):
        raise LoopbackOnly(
            "No API keys are set, so the server answers to loopback names only, such as localhost and 127.0.0.1. "
            "Ask for one of them, or set BLOODBANK_API_KEYS."
        )


def _names_loopback(host: str) -> bool:
    match = _HOST.fullmatch(host)
    return match is not None and is_loopback(match[1])
