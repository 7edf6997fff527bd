"""RABBIT_URL: the nodes of a cluster.

    amqp://user:password@rabbit1:5672,rabbit2,rabbit3/vhost?heartbeat=10     several nodes, the rest once
    amqp://user:password@rabbit1/vhost,amqp://user:password@rabbit2/vhost    or whole URLs

Source of a single URL: the AMQP URI specification of RabbitMQ.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit, urlunsplit

SCHEMES = {"amqp": 5672, "amqps": 5671}
"""With the port of each, where a URL names none."""

_NEXT_URL = re.compile(r"\s*,\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)")


def rabbit_nodes(url: str) -> list[str]:
    """Return the URL of each node with its port, in the given order, each once.

    Raises ValueError with a clause that says what is wrong and repeats nothing of the URL.
    """
    found: dict[str, None] = {}
    buses: set[tuple[str, str]] = set()
    for one in _NEXT_URL.split(url.strip()):
        parts = _parts(one)
        buses.add((parts.scheme, parts.path.rstrip("/")))
        credentials, separator, hosts = parts.netloc.rpartition("@")
        for host in hosts.split(","):
            found[urlunsplit(parts._replace(netloc=credentials + separator + _address(host.strip(), parts)))] = None
    if len(buses) > 1:
        raise ValueError("must name one virtual host and one scheme for all nodes, since they are one cluster")
    return list(found)


def redacted_nodes(url: str) -> str:
    """Return RABBIT_URL without credentials and query, all nodes in one URL, fit for a log line."""
    try:
        nodes = [urlsplit(node) for node in rabbit_nodes(url)]
    except ValueError:
        return "(not a URL)"
    hosts = ",".join(dict.fromkeys(node.netloc.rpartition("@")[2] for node in nodes))
    return urlunsplit((nodes[0].scheme, hosts, nodes[0].path, "", ""))


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("must be a URL; IPv6 hosts stand in []") from None
    if parts.scheme not in SCHEMES or not parts.netloc.rpartition("@")[2]:
        raise ValueError(
            f"must be a URL that begins with {' or '.join(f'{name}://' for name in SCHEMES)} and names a host"
        )
    if parts.fragment or "@" in parts.path:
        raise ValueError("must be a URL; write the characters @ # / ? : of a password as %40 %23 %2F %3F %3A")
    return parts


def _address(host: str, parts: SplitResult) -> str:
    """Return host and port of one node."""
    try:
        one = urlsplit(f"//{host}")
        port = one.port
    except ValueError:
        raise ValueError("must be a URL whose ports are numbers from 1 to 65535; IPv6 hosts stand in []") from None
    if not one.hostname or re.search(r"\s", host):
        raise ValueError("must be a URL that names a host between each two commas")
    if port == 0 or host.endswith(":"):
        raise ValueError(
            "must be a URL whose ports are numbers from 1 to 65535; leave the colon away for the usual one"
        )
    name = f"[{one.hostname}]" if ":" in one.hostname else one.hostname
    return f"{name}:{port or SCHEMES[parts.scheme]}"
