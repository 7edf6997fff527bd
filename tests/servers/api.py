"""A private server of the HTTP API: `uvicorn event_producers.http:app` in a process of its own."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Sequence

from tests.servers.process import OwnedProcess, Server


class ApiServer(Server):
    """The API on 127.0.0.1, on the embedded bus unless the settings name servers.

    settings: environment variables, such as RABBIT_URL="amqp://…". Its folder holds the data.
    command: arguments of Python, default: uvicorn with the documented application. HTTP_PORT says the port.
    """

    name = "api"

    def __init__(self, command: Sequence[str] = (), **settings: str) -> None:
        super().__init__()
        self._command = command or ("-m", "uvicorn", "event_producers.http:app", "--port", str(self.port))
        self._settings = settings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _launch(self) -> OwnedProcess:
        ours = ("BLOODBANK_", "RABBIT_", "REDIS_", "HTTP_", "EXCHANGE_", "CORRELATION_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment = {
            **inherited,
            "HTTP_PORT": str(self.port),
            "BLOODBANK_DATA_DIR": str(self.folder),
            **self._settings,
        }
        # Not in the folder of the checkout, whose .env is the developer's.
        return OwnedProcess([sys.executable, *self._command], env=environment, cwd=self.folder, log=self.log)
