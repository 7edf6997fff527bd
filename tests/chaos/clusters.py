"""Three nodes of RabbitMQ and six of Redis, which are killed and cut off one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.chaos.faults import CLUSTER_LANES, Fault, Kind
from tests.chaos.stage import Stage
from tests.servers.process import Server
from tests.servers.rabbit_cluster import RabbitCluster
from tests.servers.redis_cluster import RedisCluster

LOG_QUEUE = "bloodbank.log"


class ClusterStage(Stage):
    """See `Stage`. Everybody knows all nodes; each publisher has a data folder of its own."""

    lanes = CLUSTER_LANES

    def __init__(self, folder: Path, *, seed: int, rate: float) -> None:
        super().__init__(folder, seed=seed, rate=rate)
        self.rabbit = RabbitCluster()
        self.redis = RedisCluster()

    @property
    def rabbit_url(self) -> str:
        return self.rabbit.url

    @property
    def redis_url(self) -> str:
        return self.redis.url

    @property
    def servers(self) -> Sequence[Server]:
        return [*self.rabbit.nodes, *self.redis.nodes]

    async def _open_bus(self) -> None:
        for cluster in (self.rabbit, self.redis):
            self._stack.push_async_callback(asyncio.to_thread, cluster.close)
        await asyncio.gather(*[asyncio.to_thread(cluster.start) for cluster in (self.rabbit, self.redis)])

    def _injections(self) -> dict[Kind, Callable[[Fault], Awaitable[None]]]:
        return super()._injections() | {
            Kind.LEADER_KILLED: self._kill_leader,
            Kind.NODE_CUT_OFF: self._cut_off,
            Kind.MASTER_KILLED: self._kill_master,
        }

    async def _kill_leader(self, fault: Fault) -> None:
        leader = (await asyncio.to_thread(self.rabbit.members, LOG_QUEUE)).leader
        node = self.rabbit.nodes[leader or 0]
        await asyncio.to_thread(node.kill)
        await asyncio.sleep(fault.seconds)
        # Returns when all three see each other again.
        await asyncio.to_thread(self.rabbit.start)

    async def _cut_off(self, fault: Fault) -> None:
        index = int(fault.chance * len(self.rabbit.nodes))
        await asyncio.to_thread(self.rabbit.partition, index)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await asyncio.to_thread(self.rabbit.rejoin, index)

    async def _kill_master(self, fault: Fault) -> None:
        masters = await asyncio.to_thread(lambda: [node for node in self.redis.nodes if node.is_master])
        await asyncio.to_thread(masters[int(fault.chance * len(masters))].kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.redis.start)
