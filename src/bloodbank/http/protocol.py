"""HTTP on the wire: uvicorn's protocol with a limit that it lacks."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD_BYTES = 65_536
"""A head that is not complete after so much is refused; one that comes all at once may be a little larger. So are
the fields behind a body that came in chunks."""
STREAM_PATH = "/events/stream"


class BoundedHead(HttpToolsProtocol):
    """Refuses a request whose head never ends: it would fill the memory before anybody has asked for a key.

    The same goes for what stands behind a body in chunks, which uvicorn keeps with the head.
    """

    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > LARGEST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def shutdown(self) -> None:
        """Begin to end. Who does not read his event stream does not hold up the server."""
        super().shutdown()
        if self.flow.write_paused and self.scope["path"].endswith(STREAM_PATH):
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """Count what comes next."""
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count what comes next: the body has its own limit."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Count what comes next."""
        self._head_bytes = 0
        super().on_message_complete()
