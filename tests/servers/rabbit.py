"""A private RabbitMQ node with its own Erlang port mapper."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from pamqp import base, commands, frame, header

from tests.servers.process import OwnedProcess, Server, find_program, free_port

COMMAND_SECONDS = 180.0
"""Longest time for a command of an operator."""
INSTALL = "apt-get install rabbitmq-server (or: brew install rabbitmq)"
# The programs themselves come first: the wrapper in /usr/sbin changes user and reads the service's settings.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin")
SETTINGS = """\
listeners.tcp.default = 127.0.0.1:{port}
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = warning
log.file = false
"""


class PortMapper:
    """An Erlang port mapper of one's own, by which the nodes of one cluster find each other."""

    def __init__(self) -> None:
        self.port = free_port()
        self._program = find_program("epmd", install=INSTALL)
        self._starting = threading.Lock()
        self._process: OwnedProcess | None = None

    def start(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Start unless it runs; its log goes into the folder. Nodes may call this from several threads."""
        with self._starting:
            if self._process is None:
                self._process = OwnedProcess(
                    [self._program, "-address", "127.0.0.1", "-port", str(self.port)],
                    env=environment,
                    cwd=folder,
                    log=folder / "epmd.log",
                )

    def close(self) -> None:
        """End it. Idempotent."""
        if self._process is not None:
            self._process.end(signal.SIGKILL, seconds=5)
            self._process = None


class RabbitServer(Server):
    """RabbitMQ on 127.0.0.1 with user guest.

    settings: further lines of rabbitmq.conf, such as "max_message_size = 1000".
    mapper: shared by the nodes of a cluster; whoever hands it in closes it.
    """

    name = "rabbitmq"

    def __init__(self, settings: str = "", *, mapper: PortMapper | None = None) -> None:
        self._server = find_program("rabbitmq-server", folders=FOLDERS, install=INSTALL)
        super().__init__()
        self._mapper = mapper or PortMapper()
        self._owns_mapper = mapper is None
        self._dist_port = free_port()
        self.node = f"bloodbank{self.port}@localhost"
        (self.folder / "rabbitmq.conf").write_text(SETTINGS.format(port=self.port) + settings + "\n")
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return what it printed. Takes a second or two."""
        return self.run("rabbitmqctl", *arguments)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of RabbitMQ's tools on this node, such as rabbitmq-queues, and return what it printed."""
        done = subprocess.run(
            [find_program(program, folders=FOLDERS, install=INSTALL), "-n", self.node, *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def answers(self) -> bool:
        """Say whether a client can open a connection to the virtual host."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return _handshake(connection)
        except OSError:
            return False

    def kill(self) -> None:
        """End at once (SIGKILL), but not so soon that RabbitMQ forgets its queues.

        Version 3.10 writes its register of streams and quorum queues half a second after one was declared.
        Killed before, it never finds the queue again. So this has the register written first; messages are
        left as they are.
        """
        if self.running and not self._frozen:
            self.ctl("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")
        super().kill()

    def close(self) -> None:
        super().close()
        if self._owns_mapper:
            self._mapper.close()

    def _launch(self) -> OwnedProcess:
        environment = self._environment()
        self._mapper.start(self.folder, environment)
        return OwnedProcess([self._server], env=environment, cwd=self.folder, log=self.log)

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        return inherited | {
            # The cookie lies in HOME.
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._mapper.port),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_PID_FILE": str(folder / "server.pid"),
            # Two schedulers that sleep when idle: kind to the machine that runs the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }


def _handshake(connection: socket.socket) -> bool:
    connection.sendall(header.ProtocolHeader().marshal())
    if not isinstance(_receive(connection), commands.Connection.Start):
        return False
    _send(connection, commands.Connection.StartOk(mechanism="PLAIN", response="\0guest\0guest"))
    tune = _receive(connection)
    if not isinstance(tune, commands.Connection.Tune):
        return False
    # What the broker offers: more than its own frame_max it refuses.
    _send(connection, commands.Connection.TuneOk(channel_max=16, frame_max=tune.frame_max, heartbeat=0))
    _send(connection, commands.Connection.Open(virtual_host="/"))
    opened = isinstance(_receive(connection), commands.Connection.OpenOk)
    _send(connection, commands.Connection.Close(reply_code=200, reply_text="ready", class_id=0, method_id=0))
    return opened


def _send(connection: socket.socket, command: base.Frame) -> None:
    connection.sendall(frame.marshal(command, 0))


def _receive(connection: socket.socket) -> object:
    data = connection.recv(7, socket.MSG_WAITALL)
    if len(data) < 7:
        raise ConnectionError("the server closed the connection")
    length = int.from_bytes(data[3:7], "big")
    data += connection.recv(length + 1, socket.MSG_WAITALL)
    return frame.unmarshal(data)[2]
