"""Three private RabbitMQ nodes that form a cluster on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.servers.process import Server, wait_until
from tests.servers.rabbit import PortMapper, RabbitServer

NODES = 3
HEAL_SECONDS = 150.0
COOKIE = "BLOODBANKCLUSTEROFTESTS"
SETTINGS = """\
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
{peers}
"""


class Members(NamedTuple):
    """Where a replicated queue is, as indexes of nodes; leader is None while there is none."""

    leader: int | None
    members: frozenset[int]
    online: frozenset[int]


class ClusterNode(RabbitServer):
    """One node; killed, frozen and restarted like any other server."""

    name = "rabbitmq-node"

    def __init__(self, mapper: PortMapper) -> None:
        super().__init__(mapper=mapper)
        # Nodes with one cookie may speak to each other.
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(COOKIE)
        cookie.chmod(0o400)

    def power_cut(self) -> None:
        """End at once (SIGKILL) and have nothing written before: see `RabbitServer.kill` for what that can cost."""
        Server.kill(self)


class RabbitCluster:
    """Nodes 0, 1 and 2. A minority pauses itself: it drops its clients until it sees the others again.

    url: of all nodes.
    """

    def __init__(self) -> None:
        self._mapper = PortMapper()
        self.nodes = [ClusterNode(self._mapper) for _ in range(NODES)]
        peers = "\n".join(
            f"cluster_formation.classic_config.nodes.{number} = {node.node}"
            for number, node in enumerate(self.nodes, start=1)
        )
        for node in self.nodes:
            with (node.folder / "rabbitmq.conf").open("a") as settings:
                settings.write(SETTINGS.format(peers=peers))

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"amqp://guest:guest@{hosts}/"

    def start(self) -> None:
        """Start what does not run, and return when all nodes are in the cluster."""
        with ThreadPoolExecutor(NODES) as pool:
            for started in [pool.submit(node.start) for node in self.nodes]:
                started.result()
        wait_until(
            lambda: all(self._sees_all(node) for node in self.nodes), seconds=HEAL_SECONDS, what="forming a cluster"
        )

    def close(self) -> None:
        """End all nodes and remove their data. Idempotent."""
        for node in self.nodes:
            node.close()
        self._mapper.close()

    def heal(self) -> None:
        """Undo everything: frozen nodes go on, dead ones start, partitions end; returns when all see each other."""
        for node in self.nodes:
            if node.running:
                node.thaw()
        self.start()

    def write_registers(self) -> None:
        """Have every node write down which queues it has, so that a power cut does not make it forget one."""
        for node in self.nodes:
            if node.running:
                node.ctl("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")

    def partition(self, index: int) -> None:
        """Cut a node off from the others, who stay together. Clients still reach it, until it pauses itself.

        The node is given wrong cookies for the others, and hangs up: no handshake works any more, whoever begins it.
        """
        others = ", ".join(f"'{node.node}'" for node in self.nodes if node is not self.nodes[index])
        self.nodes[index].ctl(
            "eval",
            f"[begin erlang:set_cookie(N, 'cut off'), erlang:disconnect_node(N) end || N <- [{others}]].",
        )

    def rejoin(self, index: int) -> None:
        """End a partition; returns when the node runs in the cluster again."""
        others = ", ".join(f"'{node.node}'" for node in self.nodes if node is not self.nodes[index])
        self.nodes[index].ctl("eval", f"[erlang:set_cookie(N, '{COOKIE}') || N <- [{others}]].")
        self.start()
        wait_until(
            lambda: all(node.answers() for node in self.nodes), seconds=HEAL_SECONDS, what="the end of a partition"
        )

    def members(self, queue: str) -> Members:
        """Return where a quorum queue or stream is; nowhere while it is not listed. Takes a second or two."""
        columns = ("name", "leader", "members", "online")
        listed = self._any().ctl("list_queues", *columns, "--formatter", "json", "--silent")
        row = next((row for row in json.loads(listed) if row["name"] == queue), None)
        if row is None:
            return Members(None, frozenset(), frozenset())
        names = [node.node for node in self.nodes]
        leader = names.index(row["leader"]) if row["leader"] in names else None
        return Members(leader, self._indexes(row["members"]), self._indexes(row["online"]))

    def _indexes(self, names: str | Sequence[str]) -> frozenset[int]:
        wanted = re.findall(r"bloodbank\d+@localhost", str(names))
        return frozenset(index for index, node in enumerate(self.nodes) if node.node in wanted)

    def _any(self) -> ClusterNode:
        found: list[ClusterNode] = []

        def is_there() -> bool:
            found.extend(node for node in self.nodes if node.running and node.answers())
            return bool(found)

        wait_until(is_there, seconds=HEAL_SECONDS, what="a node that answers")
        return found[0]

    def _sees_all(self, node: ClusterNode) -> bool:
        try:
            running = node.ctl("eval", "rabbit_nodes:all_running().")
        except RuntimeError:
            return False
        return len(self._indexes(running)) == NODES
