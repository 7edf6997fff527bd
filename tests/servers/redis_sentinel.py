"""A private Redis with a replica, and three Sentinels that watch over them."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from tests.servers.process import START_SECONDS, OwnedProcess, find_program, wait_until
from tests.servers.redis import INSTALL, RedisServer

MASTER_NAME = "bloodbank"
SENTINELS = 3
ANSWER_SECONDS = 20.0
"""Longest wait for the answer of one that is not frozen."""
PATIENT_MILLISECONDS = 120_000
"""After so long without an answer a server is taken for dead, where it is merely slow and nothing is to fail over."""
QUICK_MILLISECONDS = 2000
"""The same where a server is to be given up."""
FAILOVER_MILLISECONDS = 10_000
"""After so long a failover that does not get on is given up; after twice as long the next one may begin."""


class Sentinel(RedisServer):
    """One Sentinel. master: what it watches from the beginning."""

    name = "redis-sentinel"

    def __init__(self, master: RedisServer) -> None:
        super().__init__()
        self._configuration = self.folder / "sentinel.conf"
        self._configuration.write_text(
            f"port {self.port}\n"
            "bind 127.0.0.1\n"
            f"dir {self.folder}\n"
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {master.port} 2\n"
            f"sentinel down-after-milliseconds {MASTER_NAME} {QUICK_MILLISECONDS}\n"
            f"sentinel failover-timeout {MASTER_NAME} {FAILOVER_MILLISECONDS}\n"
        )

    def masters(self) -> dict[str, Any]:
        """Return what it knows of the masters; nothing while it does not answer."""
        try:
            with Redis(port=self.port, socket_timeout=5) as client:
                return client.sentinel_masters()  # type: ignore[return-value]
        except (RedisError, OSError):
            return {}

    def set_patience(self, milliseconds: int) -> None:
        """Have it take servers for dead after so long; it keeps that on disk. Nothing happens while it is away."""
        if self.running and not self._frozen:
            with Redis(port=self.port, socket_timeout=ANSWER_SECONDS) as client:
                client.sentinel_set(MASTER_NAME, "down-after-milliseconds", milliseconds)

    def _launch(self) -> OwnedProcess:
        program = find_program("redis-server", install=INSTALL)
        command = [program, str(self._configuration), "--sentinel"]
        return OwnedProcess(command, env=None, cwd=self.folder, log=self.log)


class RedisSentinels:
    """A master, its replica and the Sentinels, which can be stopped, killed and frozen one by one.

    After a failover the two have changed places: ask `master`.
    """

    name = "redis-sentinels"

    def __init__(self) -> None:
        # Who is killed loses nothing that was written, and nobody waits for a busy disk.
        first = RedisServer(appendfsync="no", **{"repl-diskless-sync-delay": "0"})
        second = RedisServer(appendfsync="no", replicaof=f"127.0.0.1 {first.port}", **{"repl-diskless-sync-delay": "0"})
        self.servers = [first, second]
        self.sentinels = [Sentinel(first) for _ in range(SENTINELS)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{MASTER_NAME}"

    @property
    def running(self) -> bool:
        return any(server.running for server in (*self.servers, *self.sentinels))

    @property
    def master(self) -> RedisServer:
        """The server that most Sentinels take for the master."""
        found: list[RedisServer] = []

        def is_known() -> bool:
            ports = [sentinel.masters().get(MASTER_NAME, {}).get("port") for sentinel in self.sentinels]
            found.extend(server for server in self.servers if ports.count(server.port) * 2 > SENTINELS)
            return bool(found)

        wait_until(is_known, seconds=START_SECONDS, what="Sentinels that agree on a master")
        return found[0]

    @property
    def replica(self) -> RedisServer:
        """The other one."""
        master = self.master
        return next(server for server in self.servers if server is not master)

    def start(self) -> None:
        """Start what does not run; return when the master has its replica and the Sentinels know all of it."""
        for server in (*self.servers, *self.sentinels):
            server.start()
        wait_until(self.is_whole, seconds=START_SECONDS, what="Sentinels that know a master with its replica")

    def thaw(self) -> None:
        """Let all that were frozen go on."""
        for server in (*self.servers, *self.sentinels):
            if server.running:
                server.thaw()

    def be_quick(self) -> None:
        """From now on give up servers that do not answer."""
        for sentinel in self.sentinels:
            sentinel.set_patience(QUICK_MILLISECONDS)

    def be_patient(self) -> None:
        """From now on nothing fails over."""
        for sentinel in self.sentinels:
            sentinel.set_patience(PATIENT_MILLISECONDS)

    def stop(self) -> None:
        """Stop all of them."""
        for server in (*self.sentinels, *self.servers):
            server.stop()

    def close(self) -> None:
        """End all of them and remove their data. Idempotent."""
        for server in (*self.sentinels, *self.servers):
            server.close()

    def is_whole(self) -> bool:
        """Whether every Sentinel sees one living master with a living replica, and all the other Sentinels."""
        states = [sentinel.masters().get(MASTER_NAME, {}) for sentinel in self.sentinels]
        if len({state.get("port") for state in states}) != 1:
            return False
        return (
            all(
                state["flags"] == "master"
                and state["num-slaves"] >= 1
                and state["num-other-sentinels"] == SENTINELS - 1
                for state in states
            )
            and self._has_replica()
        )

    def _has_replica(self) -> bool:
        try:
            with Redis(port=self.master.port, socket_timeout=5) as client:
                replication = client.info("replication")
        except (RedisError, OSError):
            return False
        return replication.get("slave0", {}).get("state") == "online"
