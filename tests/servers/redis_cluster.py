"""A private Redis Cluster: three masters with a replica each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError

from tests.servers.process import START_SECONDS, free_port, wait_until
from tests.servers.redis import RedisServer

MASTERS = 3
SLOTS = 16384
PATIENT_MILLISECONDS = 120_000
"""After so long without an answer a node is taken for dead, where it is merely slow and nothing is to fail over."""
QUICK_MILLISECONDS = 2000
"""The same where a node is to be given up."""
ANSWER_SECONDS = 20.0
"""Longest wait for the answer of a node that is not frozen."""


class ClusterNode(RedisServer):
    """One node; another one starts when this is killed, with the same port and folder."""

    name = "redis-node"

    def __init__(self, timeout_milliseconds: int) -> None:
        self.bus_port = free_port()
        super().__init__(
            **{
                "cluster-enabled": "yes",
                "cluster-port": str(self.bus_port),
                "cluster-node-timeout": str(timeout_milliseconds),
                "cluster-replica-validity-factor": "0",
                # Who is killed loses nothing that was written, and nobody waits for a busy disk.
                "appendfsync": "no",
                "repl-diskless-sync-delay": "0",
            }
        )

    def ask(self, *command: str | int) -> str:
        """Return the answer to a command as text. Raises RedisError."""
        with Redis(port=self.port, socket_timeout=ANSWER_SECONDS, decode_responses=True) as client:
            return str(client.execute_command(*command))

    def set_timeout(self, milliseconds: int) -> None:
        """Have it take others for dead after so long; a node that is frozen or dead learns it when it starts again."""
        self._options["cluster-node-timeout"] = str(milliseconds)
        if self.running and not self._frozen:
            self.ask("CONFIG", "SET", "cluster-node-timeout", milliseconds)

    def info(self, section: str) -> dict[str, str]:
        """Return what `CLUSTER INFO` or `INFO section` says; nothing while it does not answer."""
        try:
            with Redis(port=self.port, socket_timeout=5) as client:
                command = ("CLUSTER INFO",) if section == "cluster" else ("INFO", section)
                found = client.execute_command(*command)
        except (RedisError, OSError):
            return {}
        return {str(name): str(value) for name, value in found.items()}

    @property
    def is_master(self) -> bool:
        return self.info("replication").get("role") == "master"


class RedisCluster:
    """Six nodes on 127.0.0.1, which can be stopped, killed and frozen one by one.

    timeout_milliseconds: without an answer for so long a node is taken for dead, and its replica follows it.
    """

    name = "redis-cluster"

    def __init__(self, *, timeout_milliseconds: int = QUICK_MILLISECONDS) -> None:
        self.nodes = [ClusterNode(timeout_milliseconds) for _ in range(2 * MASTERS)]
        self._is_formed = False

    @property
    def url(self) -> str:
        """Address of two of the nodes; the others are found."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes[:2])}"

    @property
    def running(self) -> bool:
        return any(node.running for node in self.nodes)

    def start(self) -> None:
        """Start the nodes that do not run; return when all slots are served and every master has its replica."""
        for node in self.nodes:
            node.start()
        if not self._is_formed:
            self._form()
            self._is_formed = True
        self._wait(self.is_whole, "cluster with all its replicas")

    def be_quick(self) -> None:
        """From now on give up nodes that do not answer."""
        for node in self.nodes:
            node.set_timeout(QUICK_MILLISECONDS)

    def be_patient(self) -> None:
        """From now on nothing fails over, except by `hand_over`."""
        for node in self.nodes:
            node.set_timeout(PATIENT_MILLISECONDS)

    def stop(self) -> None:
        """Stop all nodes as an operator would."""
        for node in self.nodes:
            node.stop()

    def thaw(self) -> None:
        """Let all nodes that were frozen go on."""
        for node in self.nodes:
            if node.running:
                node.thaw()

    def close(self) -> None:
        """End all nodes and remove their data. Idempotent."""
        for node in self.nodes:
            node.close()

    def master_of(self, key: bytes) -> ClusterNode:
        """Return the node that serves a key now."""
        found: list[int] = []

        def is_known() -> bool:
            slot = key_slot(key)
            for node in self.nodes:
                found.extend(master for first, last, master, *_ in self._ranges(node) if first <= slot <= last)
            return bool(found)

        self._wait(is_known, "a node that knows who serves a key")
        return next(node for node in self.nodes if node.port == found[0])

    def slots_of(self, master: ClusterNode) -> list[range]:
        """Return the ranges of slots that a node serves now, as it tells them itself."""
        found = self._ranges(master)
        return [range(first, last + 1) for first, last, serving, *_ in found if serving == master.port]

    def replica_of(self, master: ClusterNode) -> ClusterNode:
        """Return the node that copies a master."""
        found: list[ClusterNode] = []

        def is_known() -> bool:
            port = str(master.port)
            found.extend(node for node in self.nodes if node.info("replication").get("master_port") == port)
            return bool(found)

        self._wait(is_known, "a node that copies a master")
        return found[0]

    def hand_over(self, master: ClusterNode) -> None:
        """Let the replica of a master follow it, as an operator would; return when it has."""
        replica = self.replica_of(master)
        deadline = time.monotonic() + START_SECONDS
        self.be_quick()  # nobody votes again for a while that depends on it
        while not replica.is_master:
            # One attempt is given up after five seconds, for example when the last failover was not long ago.
            # It is refused while the master seems to be away, and when it was done just now.
            with contextlib.suppress(TimeoutError, ResponseError):
                replica.ask("CLUSTER", "FAILOVER")
                wait_until(lambda: replica.is_master, seconds=6, what="manual failover")
            if time.monotonic() > deadline:
                raise TimeoutError(f"manual failover: not within {START_SECONDS:.0f} s")

    def is_serving(self) -> bool:
        """Whether all nodes that run agree that every slot is served."""
        states = [node.info("cluster").get("cluster_state") for node in self.nodes if node.running]
        return set(states) == {"ok"}

    def is_whole(self) -> bool:
        """Whether all nodes run, all slots are served, and every master has its replica."""
        if not all(node.running for node in self.nodes) or not self.is_serving():
            return False
        known = {node.info("cluster").get("cluster_known_nodes") for node in self.nodes}
        roles = [node.info("replication") for node in self.nodes]
        copies = [role for role in roles if role.get("role") == "slave" and role.get("master_link_status") == "up"]
        masters = [
            role for role in roles if role.get("role") == "master" and "'state': 'online'" in role.get("slave0", "")
        ]
        return known == {str(len(self.nodes))} and len(copies) == MASTERS and len(masters) == MASTERS and self._agree()

    def _agree(self) -> bool:
        """Whether all nodes tell clients the same masters and, for every slot, a replica that they have heard from."""
        views = [self._ranges(node) for node in self.nodes]
        if not views[0] or any(view != views[0] for view in views):
            return False
        return all(len(replicas) == 1 for _, _, _, *replicas in views[0])

    def _ranges(self, node: ClusterNode) -> list[tuple[int, ...]]:
        """Return ranges of slots as a node tells them: first and last slot, then the ports of master and replicas."""
        try:
            with Redis(port=node.port, socket_timeout=5) as client:
                ranges = client.execute_command("CLUSTER SLOTS")
        except (RedisError, OSError):
            return []
        return sorted((first, last, *(one[1] for one in nodes)) for first, last, *nodes in ranges)

    def _form(self) -> None:
        masters, replicas = self.nodes[:MASTERS], self.nodes[MASTERS:]
        share = -(-SLOTS // MASTERS)
        for number, node in enumerate(masters):
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, SLOTS) - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        self._wait(
            lambda: all(node.info("cluster").get("cluster_known_nodes") == str(len(self.nodes)) for node in self.nodes),
            "nodes that know each other",
        )
        for master, replica in zip(masters, replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, seconds=START_SECONDS, what=what)
