"""A private Redis."""

from __future__ import annotations

import socket

from tests.servers.process import OwnedProcess, Server, find_program

INSTALL = "apt-get install redis-server (or: brew install redis)"


class RedisServer(Server):
    """Redis on 127.0.0.1 with an append-only file, so that a kill loses nothing that was answered.

    options: further settings as redis.conf has them, such as {"maxmemory": "50mb"}.
    """

    name = "redis"

    def __init__(self, **options: str) -> None:
        self._program = find_program("redis-server", install=INSTALL)
        self._options = {"appendonly": "yes", "appendfsync": "always", "save": "", "maxclients": "200"} | options
        super().__init__()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _launch(self) -> OwnedProcess:
        options = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self.folder)} | self._options
        command = [self._program]
        for name, value in options.items():
            command += [f"--{name}", value]
        return OwnedProcess(command, env=None, cwd=self.folder, log=self.log)
