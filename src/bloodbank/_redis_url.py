"""Addresses of several Redis servers in one URL: Sentinels that know a master, and nodes of a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

_URL = re.compile(
    r"(?P<driver>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<user>[^@/?#]*)@)?(?P<hosts>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?")
_MASTER = re.compile(r"[A-Za-z0-9._-]+")

_PORTS = {"sentinel": 26379, "cluster": 6379}
_ESCAPES = "write the characters @ # / ? : of a password as %40 %23 %2F %3F %3A"


class Servers(StrEnum):
    """What the hosts of a URL are."""

    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class RedisServers:
    """A URL with `+sentinel` or `+cluster`, in parts.

    hosts: the Sentinels, or some nodes of the cluster, each with its port.
    user: what stands before the @, escaped as in the URL: credentials of Redis itself, not of the Sentinels.
    master: the name that the Sentinels know, "" for a cluster. database: always 0 for a cluster.
    sentinel_username, sentinel_password: for the Sentinels themselves, from options of these names.
    query: the other options, escaped.
    """

    kind: Servers
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    user: str = field(repr=False)
    master: str
    database: int
    query: str = field(repr=False)
    sentinel_username: str | None
    sentinel_password: str | None = field(repr=False)

    def url_of(self, host: str, port: int) -> str:
        """Return the URL of one server as the driver takes it, with the credentials and options of Redis."""
        name = f"[{host}]" if ":" in host else host
        user = f"{self.user}@" if self.user else ""
        query = f"?{self.query}" if self.query else ""
        return f"redis{'s' if self.tls else ''}://{user}{name}:{port}/{self.database}{query}"


def redis_servers(url: str) -> RedisServers | None:
    """Return the parts of a URL with `+sentinel` or `+cluster`; None for any other URL.

    Raises ValueError with what is wrong, in words that go on behind the name of the setting; nothing of the URL is
    repeated.
    """
    if not re.match(r"rediss?\+", url):
        return None
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(
            "must begin with redis://, redis+sentinel:// or redis+cluster://, or the same with rediss for TLS, and "
            f"name hosts; {_ESCAPES}"
        )
    kind = Servers(found["kind"])
    hosts = tuple(_host(one, _PORTS[kind]) for one in found["hosts"].split(","))
    path = (found["path"] or "").strip("/")
    master, database = _sentinel_path(path) if kind is Servers.SENTINEL else ("", _cluster_path(path))
    options = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    sentinel_username = options.pop("sentinel_username", None)
    sentinel_password = options.pop("sentinel_password", None)
    if kind is Servers.CLUSTER and (sentinel_username is not None or sentinel_password is not None):
        raise ValueError("must have no sentinel_username or sentinel_password: a cluster has no Sentinels")
    return RedisServers(
        kind,
        found["driver"] == "rediss",
        hosts,
        found["user"] or "",
        master,
        database,
        urlencode(options),
        sentinel_username,
        sentinel_password,
    )


def redacted(url: str) -> str:
    """Return such a URL without its credentials and options, fit for a log line."""
    found = _URL.fullmatch(url)
    if found is None or "@" in f"{found['hosts']}{found['path'] or ''}":
        return "(not a URL)"
    return f"{found['driver']}+{found['kind']}://{found['hosts']}{found['path'] or ''}"


def _host(text: str, default_port: int) -> tuple[str, int]:
    if "@" in text:
        raise ValueError(f"must name user and password once, before the first host; {_ESCAPES}")
    found = _HOST.fullmatch(text)
    if found is None:
        raise ValueError("must name hosts separated by commas, each as name:port; IPv6 hosts stand in []")
    port = int(found["port"] or default_port)
    if not 1 <= port <= 65535:
        raise ValueError("must have ports from 1 to 65535")
    return found["six"] or found["host"], port


def _sentinel_path(path: str) -> tuple[str, int]:
    master, _, database = path.partition("/")
    if not _MASTER.fullmatch(unquote(master)):
        raise ValueError(
            "must name, behind the Sentinels, the master that they watch: redis+sentinel://host:26379/mymaster"
        )
    if database and not database.isdecimal():
        raise ValueError("must end in the name of the master, or in that and the number of a database: /mymaster/0")
    return unquote(master), int(database or 0)


def _cluster_path(path: str) -> int:
    if path not in ("", "0"):
        raise ValueError("must not name a database: a Redis Cluster has only number 0")
    return 0


def require_redis_url(url: str) -> None:
    """Raise ValueError for what is no URL of one Redis; it says what is wrong, and repeats nothing of the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("must be a URL whose port is a number from 1 to 65535; IPv6 hosts stand in []") from None
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError("must be a URL that begins with redis:// or rediss:// and names a host")
    if port == 0 or parts.fragment or "@" in parts.path:
        raise ValueError(f"must be a URL; {_ESCAPES}")
    database = parts.path.strip("/")
    if database and not database.isdecimal():
        raise ValueError("must end in the number of a database, such as /0, or in the port")
