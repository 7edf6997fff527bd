"""A server that hangs up while it is being reached, as a broker on its way up or a proxy before it does."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bloodbank.config import Settings
from bloodbank.errors import TransportUnavailable
from bloodbank.transports.rabbit import RabbitTransport
from tests.integration.rabbit_bus import eventually, message


class _HangUp(threading.Thread):
    """Takes connections and closes them at once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.attempts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.close()
            self.attempts += 1

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()


@contextmanager
def _busy_loop() -> Iterator[None]:
    """Keep the event loop busy, so that the hang-up is there before the driver looks for the first frame."""
    loop = asyncio.get_running_loop()
    going_on = True

    def work() -> None:
        time.sleep(0.005)
        if going_on:
            loop.call_soon(work)

    work()
    try:
        yield
    finally:
        going_on = False


async def test_a_server_that_hangs_up_at_once_is_tried_again_and_again() -> None:
    server = _HangUp()
    server.start()
    try:
        settings = Settings(_env_file=None, rabbit_url=f"amqp://127.0.0.1:{server.port}/")
        async with RabbitTransport(settings) as transport:
            with _busy_loop():
                await eventually(lambda: server.attempts >= 5)
            with pytest.raises(TransportUnavailable, match="Cannot reach RabbitMQ"):
                await transport.publish(message(), timeout_seconds=1)
    finally:
        server.stop()
