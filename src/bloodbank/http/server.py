"""The server process: the application under uvicorn."""

from __future__ import annotations

import copy
import logging
import math
import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from bloodbank import wiring
from bloodbank.config import Settings
from bloodbank.errors import ConfigurationError, Unavailable
from bloodbank.http.access import is_loopback
from bloodbank.http.app import create_app
from bloodbank.http.protocol import BoundedHead

LOOPBACK = "127.0.0.1"
IDLE_SECONDS = 30

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve the HTTP API until the process is told to end (SIGINT, SIGTERM).

    Then `/readyz` says so at once, requests are taken for the stop delay (SIGTERM alone), those under way are finished
    within the stop timeout, and what has no confirm by then stays in the outbox.

    Without API keys it listens on loopback only, whatever HTTP_HOST says, unless anonymous access is allowed.

    Raises ConfigurationError when the address cannot be listened on, Unavailable when the bus cannot be opened;
    the log has the reason by then.
    """
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=BoundedHead,
        log_config=_log_config(settings),
        log_level=settings.log_level.lower(),
        lifespan="on",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.stop_timeout_seconds),
        server_header=False,
    )
    host = listening_host(settings)
    with _listen(host, settings.http_port) as listener:
        _announce(settings, host, listener.getsockname()[1])
        server = _Server(config, app, stop_delay_seconds=settings.stop_delay_seconds)
        server.run(sockets=[listener])
    if not server.started:
        raise Unavailable("The server did not start; its log says why.")


class _Server(uvicorn.Server):
    """uvicorn's server, which says that it stops before it does."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, *, stop_delay_seconds: float) -> None:
        super().__init__(config)
        self._app = app
        self._stop_delay_seconds = stop_delay_seconds
        self._stops_at: float | None = None
        self._is_delay_logged = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first SIGTERM ends the server after the delay, any other one at once."""
        is_first = not self._app.state.is_stopping
        self._app.state.is_stopping = True
        if is_first and sig == signal.SIGTERM and self._stop_delay_seconds:
            self._stops_at = time.monotonic() + self._stop_delay_seconds
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether the delay has begun or is over."""
        if self._stops_at is not None and not self._is_delay_logged:
            # Not where the signal is taken, which may be in the middle of another line.
            self._is_delay_logged = True
            logger.info(
                "SIGTERM came. Requests are accepted for another %g s, while /readyz says that the server stops; "
                "a second signal ends that.",
                self._stop_delay_seconds,
            )
        if self._stops_at is not None and time.monotonic() >= self._stops_at:
            self._stops_at = None
            super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)


def listening_host(settings: Settings) -> str:
    """Return the address to listen on: HTTP_HOST, or loopback where nothing would ask who calls."""
    is_guarded = bool(settings.api_keys) or settings.allow_anonymous
    return settings.http_host if is_guarded or is_loopback(settings.http_host) else LOOPBACK


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise ConfigurationError(
            f"HTTP_HOST and HTTP_PORT: cannot listen on {host} port {port}: {reason}. Choose another "
            "address, or end the program that uses it."
        ) from error
    listener.setblocking(False)
    # Accepted connections inherit it. asyncio sets it by itself only where the listener was made from a host and a
    # port; without it an answer waits 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _announce(settings: Settings, host: str, port: int) -> None:
    backends = wiring.describe(settings, tracking=settings.correlation_tracking)
    logger.info(
        "Bloodbank listens on %s port %d. Bus: %s. Correlation store: %s.",
        host,
        port,
        backends["transport"],
        backends["store"],
    )
    logger.info("The explorer, the page to look at the bus: %s", _page(host, port))
    if host != settings.http_host:
        logger.warning(
            "HTTP_HOST is %s, but no API keys are set: listening on loopback only. Set BLOODBANK_API_KEYS.",
            settings.http_host,
        )
    elif not settings.api_keys and not settings.allow_anonymous:
        logger.info("No API keys are set: only clients on this machine are answered.")


def _page(host: str, port: int) -> str:
    """Return the address of the explorer for a browser on this machine."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104, compared with, not bound to
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _log_config(settings: Settings) -> dict[str, Any]:
    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["bloodbank"] = {"handlers": ["default"], "level": settings.log_level, "propagate": False}
    return config
