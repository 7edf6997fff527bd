"""A private Redis Cluster: three masters with a replica each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from redis import Redis
from redis.exceptions import RedisError

from tests.servers.process import START_SECONDS, free_port, wait_until
from tests.servers.redis import RedisServer

MASTERS = 3
SLOTS = 16384
NODE_TIMEOUT_MILLISECONDS = 1500
"""After so long without an answer a node is taken for dead, and its replica follows it."""


class ClusterNode(RedisServer):
    """One node; another one starts when this is killed, with the same port and folder."""

    name = "redis-node"

    def __init__(self) -> None:
        self.bus_port = free_port()
        super().__init__(
            **{
                "cluster-enabled": "yes",
                "cluster-port": str(self.bus_port),
                "cluster-node-timeout": str(NODE_TIMEOUT_MILLISECONDS),
                "cluster-replica-validity-factor": "0",
                "appendfsync": "everysec",
                "repl-diskless-sync-delay": "0",
            }
        )

    def ask(self, *command: str | int) -> str:
        """Return the answer to a command as text. Raises RedisError."""
        with Redis(port=self.port, socket_timeout=5, decode_responses=True) as client:
            return str(client.execute_command(*command))

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
    """Six nodes on 127.0.0.1, which can be stopped, killed and frozen one by one."""

    name = "redis-cluster"

    def __init__(self) -> None:
        self.nodes = [ClusterNode() for _ in range(2 * MASTERS)]
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
        [asked, *_] = [node for node in self.nodes if node.info("cluster").get("cluster_state") == "ok"]
        with Redis(port=asked.port) as client:
            slot = int(client.execute_command("CLUSTER KEYSLOT", key))  # type: ignore[arg-type]
            ranges = client.execute_command("CLUSTER SLOTS")
        [port] = {master[1] for first, last, master, *_ in ranges if first <= slot <= last}
        return next(node for node in self.nodes if node.port == port)

    def replica_of(self, master: ClusterNode) -> ClusterNode:
        """Return the node that copies a master."""
        return next(node for node in self.nodes if node.info("replication").get("master_port") == str(master.port))

    def hand_over(self, master: ClusterNode) -> None:
        """Let the replica of a master follow it, as an operator would; return when it has."""
        replica = self.replica_of(master)
        deadline = time.monotonic() + START_SECONDS
        while not replica.is_master:
            # One attempt is given up after five seconds, for example when the last failover was not long ago.
            replica.ask("CLUSTER", "FAILOVER")
            with contextlib.suppress(TimeoutError):
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
        if not all(self._lists_replicas(node) for node in self.nodes):
            return False
        return known == {str(len(self.nodes))} and len(copies) == MASTERS and len(masters) == MASTERS

    def _lists_replicas(self, node: ClusterNode) -> bool:
        """Whether a node tells clients of a replica for every slot; it does not while it has not heard from it."""
        try:
            with Redis(port=node.port, socket_timeout=5) as client:
                ranges = client.execute_command("CLUSTER SLOTS")
        except (RedisError, OSError):
            return False
        return all(len(replicas) == 1 for _, _, _, *replicas in ranges)

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
