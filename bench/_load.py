"""A load generator, run as a process of its own: `python -m bench._load HOST PORT PATH CONNECTIONS REQUESTS < body`.

Each connection sends its next request when it has the answer to the last. Prints {"seconds", "p50_ms", "p99_ms"};
an answer other than 200 or 201 ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from statistics import median, quantiles

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
LONGEST_SECONDS = 60.0


class Connection(asyncio.Protocol):
    """Sends the same request until the turns, which all connections share, are over."""

    def __init__(self, request: bytes, turns: Iterator[int], seconds: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._turns, self._seconds = request, turns, seconds
        self._unread = b""
        self._begun = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport; `send` begins."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self) -> None:
        """Send a request, or end when there are no turns left."""
        assert self._transport is not None
        if next(self._turns, None) is None:
            self._transport.close()
            self.done.set_result(None)
            return
        self._begun = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Read an answer with a Content-Length; go on when it is whole."""
        self._unread += data
        head, found, body = self._unread.partition(HEAD_END)
        if not found:
            return
        head = head.lower()
        length = int(head.partition(LENGTH)[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        if head[9:12] not in (b"200", b"201") or b'"problem"' in body:
            self._fail(ConnectionError(f"{head!r} {body!r}"))
            return
        self._seconds.append(time.perf_counter() - self._begun)
        self._unread = b""
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        """End, with an error when the server closed before the turns were over."""
        self._fail(error or ConnectionError("The server closed the connection."))

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


async def load(host: str, port: int, request: bytes, connections: int, requests: int) -> dict[str, float]:
    """Open all connections, then begin; return seconds for all, and the latency's p50 and p99 in milliseconds."""
    loop = asyncio.get_running_loop()
    turns, seconds = iter(range(requests)), list[float]()
    opened = [
        (await loop.create_connection(lambda: Connection(request, turns, seconds), host, port))[1]
        for _ in range(connections)
    ]
    begun = time.perf_counter()
    for connection in opened:
        connection.send()
    async with asyncio.timeout(LONGEST_SECONDS):
        await asyncio.gather(*(connection.done for connection in opened))
    total = time.perf_counter() - begun
    return {"seconds": total, "p50_ms": median(seconds) * 1000, "p99_ms": quantiles(seconds, n=100)[98] * 1000}


def post(host: str, path: str, body: bytes) -> bytes:
    """Return the bytes of a POST request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + HEAD_END + body


if __name__ == "__main__":
    host, port, path, connections, requests = sys.argv[1:]
    request = post(host, path, sys.stdin.buffer.read())
    print(json.dumps(asyncio.run(load(host, int(port), request, int(connections), int(requests)))))
