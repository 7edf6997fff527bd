"""The nodes of a Redis Cluster: which serves what, and calls that go to several of them at once.

Nodes, slots and connections are the driver's. Its pipeline is not used: it closes the connections of all nodes when
one fails, goes on reading after its caller was cancelled, and gives a command and the ASKING before it to different
connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    SlotNotCoveredError,
)
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import TimeoutError as DriverTimeoutError

from bloodbank._redis_url import RedisServers
from bloodbank.errors import BloodbankError, NotOpen, StoreUnavailable
from bloodbank.stores._redis_errors import DRIVER_ERRORS, cluster_error
from bloodbank.stores._redis_reading import Command
from bloodbank.stores._redis_scripts import Script
from bloodbank.stores._redis_sentinel import connection_options, driver_options

logger = logging.getLogger(__name__)

CALLS_AT_ONCE = 16
"""Most calls under way at the same time, each with one connection to a node; others wait within their time."""
MOST_CONNECTIONS = CALLS_AT_ONCE + 4
"""Connections to one node: some more, for looking at the cluster."""
MOST_ROUNDS = 6
"""How often a call is sent on to other nodes before it fails."""
SECONDS_WITHOUT_REPLICAS = 10.0
"""How long it is believed that a master has no replica before the cluster is looked at again."""

_LOST = (DriverConnectionError, DriverTimeoutError, OSError)
"""A connection broke or could not be made: the node may be dead, or have restarted meanwhile."""
_OUTDATED = (*_LOST, BusyLoadingError, ClusterDownError, ReadOnlyError, SlotNotCoveredError)
"""Errors after which the cluster is looked at again."""


class Call(NamedTuple):
    """A command for the node that serves a slot. script: what it runs, where it begins with EVALSHA."""

    slot: int
    command: Command
    script: Script | None = None


@dataclass(slots=True)
class _Sent:
    """What was sent to one node. places: of the calls, in order. acknowledged: by so many replicas, if too few."""

    node: ClusterNode
    places: list[int]
    answers: list[Any]
    acknowledged: int | None = None


class Nodes:
    """Sends calls to the nodes of a cluster.

    Each call is bounded by `query_timeout_seconds`, looking at the cluster by `connect_timeout_seconds`. One that
    lost its connection is sent once more after the cluster was looked at: all that is sent here may come twice.

    Raises TypeError, ValueError for options that nobody knows.
    """

    def __init__(
        self,
        servers: RedisServers,
        address: str,
        *,
        connect_timeout_seconds: float,
        query_timeout_seconds: float,
        replicas: int,
        replica_seconds: float,
    ) -> None:
        self._servers = servers
        self._address = address
        self._connect_timeout = connect_timeout_seconds
        self._query_timeout = query_timeout_seconds
        self._replicas = replicas
        self._replica_milliseconds = max(1, round(replica_seconds * 1000))
        self._options = self._driver_options()
        self._client: RedisCluster | None = None
        self._turns = asyncio.Semaphore(CALLS_AT_ONCE)
        self._is_outdated = True
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = 0.0
        self._suspect: str | None = None
        self._new_client()  # to know that its options are valid

    @property
    def is_open(self) -> bool:
        """Whether calls may be tried."""
        return self._client is not None

    async def open(self) -> None:
        """Look at the cluster. Raises StoreUnavailable."""
        if self._client is None:
            self._client = self._new_client()
            self._is_outdated = True
        try:
            await self._look()
        except DRIVER_ERRORS as error:
            raise cluster_error(error, self._address) from error

    async def close(self) -> None:
        """Close all connections; idempotent."""
        client, self._client = self._client, None
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        if client is not None:
            await _close(client)

    async def run(self, calls: Sequence[Call], *, durable: bool = False) -> list[Any]:
        """Return the answers in the order of the calls; those to different nodes are under way at the same time.

        durable: what is written must also have reached replicas, as many as the settings ask for and the cluster has.

        Raises StoreUnavailable, StoreFormatError, NotOpen; some of it may be done then.
        """
        if not calls:
            return []
        self._require_open()
        try:
            async with asyncio.timeout(self._query_timeout), self._turns:
                return await self._answers(calls, durable=durable)
        except BloodbankError:
            # Unavailable is an OSError; it has its sentence already.
            raise
        except DRIVER_ERRORS as error:
            raise cluster_error(error, self._address) from error

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to commands whose first argument is a key. Raises as `run`."""
        slot_of = self._require_open().keyslot
        return await self.run([Call(slot_of(cast("bytes", command[1])), command) for command in commands])

    def masters(self) -> list[str]:
        """Return the names of the masters. Raises NotOpen."""
        return list(self._masters())

    async def ask_master(self, name: str, command: Command) -> Any:
        """Return the answer of one of them; StoreUnavailable where it is a master no longer. Raises as `run`."""
        slot = self._masters().get(name)
        if slot is None:
            raise StoreUnavailable(f"The Redis Cluster at {self._address} changed its masters meanwhile. Try again.")
        [answer] = await self.run([Call(slot, command)])
        return answer

    async def _answers(self, calls: Sequence[Call], *, durable: bool) -> list[Any]:
        answers: list[Any] = [None] * len(calls)
        todo: Sequence[int] = range(len(calls))
        scripts: set[Script] = set()
        was_lost = False
        for _ in range(MOST_ROUNDS):
            await self._look(durable=durable)
            sent = await self._round(calls, todo, scripts, durable=durable)
            again: list[int] = []
            lost: Exception | None = None
            for one in sent:
                for place, answer in zip(one.places, one.answers, strict=True):
                    answers[place] = answer
                    if not isinstance(answer, Exception):
                        continue
                    again.append(place)
                    lost = await self._learn(one.node, answer, calls[place], scripts) or lost
            if lost is not None and was_lost:
                raise lost
            was_lost = was_lost or lost is not None
            await self._require_replicas(calls, sent)
            if not again:
                return answers
            todo = again
        raise answers[todo[0]]

    async def _learn(self, node: ClusterNode, error: Exception, call: Call, scripts: set[Script]) -> Exception | None:
        """Take from an error how to go on; return it when going on is possible only once.

        Raises the error itself when sending the call again would not help.
        """
        if isinstance(error, NoScriptError) and call.script is not None:
            scripts.add(call.script)
            return None
        if isinstance(error, MovedError):
            await self._require_open().nodes_manager.move_slot(error)
            # Others may have moved as well; the next call looks.
            self._is_outdated = True
            return None
        if isinstance(error, _OUTDATED):
            self._is_outdated, self._suspect = True, node.name
        if isinstance(error, _LOST):
            await node.disconnect_free_connections()
            return error
        raise error

    async def _round(
        self, calls: Sequence[Call], places: Sequence[int], scripts: set[Script], *, durable: bool
    ) -> list[_Sent]:
        """Send calls, each to the node that serves its slot, and wait for all answers."""
        by_node: dict[str, _Sent] = {}
        for place in places:
            node = self._node_of(calls[place].slot)
            by_node.setdefault(node.name, _Sent(node, [], [])).places.append(place)
        sent = list(by_node.values())
        if len(sent) == 1:
            await self._send(sent[0], calls, scripts, durable=durable)
            return sent
        async with asyncio.TaskGroup() as group:
            for one in sent:
                group.create_task(self._send(one, calls, scripts, durable=durable))
        return sent

    async def _send(self, sent: _Sent, calls: Sequence[Call], scripts: set[Script], *, durable: bool) -> None:
        own = [calls[place] for place in sent.places]
        wanted = [one for one in scripts if any(call.script is one for call in own)]
        loads: list[Command] = [("SCRIPT", "LOAD", script.text) for script in wanted]
        replicas = min([self._replicas, *(len(self._nodes_of(call.slot)) - 1 for call in own)]) if durable else 0
        waits: list[Command] = [("WAIT", replicas, self._replica_milliseconds)] if replicas > 0 else []
        commands = [PipelineCommand(0, *one) for one in (*loads, *(call.command for call in own), *waits)]
        try:
            await sent.node.execute_pipeline(commands)
        except asyncio.CancelledError:
            # Whoever waited for it ran out of time.
            self._is_outdated, self._suspect = True, sent.node.name
            raise
        except DRIVER_ERRORS as error:
            sent.answers = [error] * len(own)
            return
        results: list[Any] = [cast("Any", command).result for command in commands[len(loads) :]]
        sent.answers = results[: len(own)]
        if waits and isinstance(results[-1], int) and results[-1] < replicas:
            sent.acknowledged = results[-1]

    async def _require_replicas(self, calls: Sequence[Call], sent: Sequence[_Sent]) -> None:
        """Raise StoreUnavailable where fewer replicas have what was written than should, and than there are.

        The other nodes are asked: a master that was given up may still answer, and what it takes is lost.
        """
        short = [one for one in sent if one.acknowledged is not None]
        if not short:
            return
        for one in short:
            self._is_outdated, self._suspect = True, one.node.name
        await self._look()
        for one in short:
            acknowledged = one.acknowledged or 0
            for place in one.places:
                master, *replicas = self._nodes_of(calls[place].slot)
                if master.name != one.node.name or len(replicas) > acknowledged:
                    raise StoreUnavailable(
                        f"A master of the Redis Cluster at {self._address} recorded it, but {acknowledged} replicas "
                        f"had it in time and {self._replicas} should (BLOODBANK_REDIS_REPLICAS). Published events are "
                        "safe in the log."
                    )

    async def _look(self, *, durable: bool = False) -> None:
        """Look at the cluster if something has changed; calls at the same time look together.

        durable: also when a master had no replica when it was looked at last, which may be long ago.
        """
        age = asyncio.get_running_loop().time() - self._looked_at
        if durable and self._replicas and age > SECONDS_WITHOUT_REPLICAS and self._lacks_replicas():
            self._is_outdated = True
        if not self._is_outdated:
            return
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_at_it())
            self._looking.add_done_callback(self._looked)
        # It goes on when this caller runs out of time, so that the next one finds it done.
        await asyncio.shield(self._looking)

    async def _look_at_it(self) -> None:
        client, suspect = self._require_open(), self._suspect
        self._is_outdated = False
        try:
            async with asyncio.timeout(self._connect_timeout):
                known = client.nodes_manager.startup_nodes
                first = await _first_to_answer([node for node in known.values() if node.name != suspect])
                # The driver asks one after the other, and a frozen one would keep it from the others.
                if first is not None:
                    client.nodes_manager.startup_nodes = {first.name: first}
                    # Most of them go on serving calls, which may be under way.
                    serving = client.nodes_manager.nodes_cache
                    unused = [node for node in known.values() if node is not serving.get(node.name)]
                    await _disconnect([node for node in unused if node is not first])
                await client.nodes_manager.initialize(last_failed_node_name=suspect)
        except BaseException:
            self._is_outdated = True
            if self._client is client:
                # Those that were found may all have other addresses by now: begin again with those of the URL.
                self._client = self._new_client()
            await _close(client)
            raise
        self._suspect = None
        self._looked_at = asyncio.get_running_loop().time()

    def _looked(self, task: asyncio.Task[None]) -> None:
        if self._looking is task:
            self._looking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("The Redis Cluster could not be looked at: %s", error)

    def _lacks_replicas(self) -> bool:
        slots = self._require_open().nodes_manager.slots_cache
        return any(len(nodes) <= self._replicas for nodes in {id(nodes): nodes for nodes in slots.values()}.values())

    def _masters(self) -> dict[str, int]:
        """Return the masters by their names, each with one of the slots that it serves."""
        slots = self._require_open().nodes_manager.slots_cache
        return {nodes[0].name: slot for slot, nodes in slots.items()}

    def _node_of(self, slot: int) -> ClusterNode:
        return self._nodes_of(slot)[0]

    def _nodes_of(self, slot: int) -> list[ClusterNode]:
        """Return the master that serves a slot and its replicas. Raises SlotNotCoveredError."""
        nodes = self._require_open().nodes_manager.slots_cache.get(slot)
        if not nodes:
            self._is_outdated = True
            raise SlotNotCoveredError(f"no node serves slot {slot}")
        return nodes

    def _require_open(self) -> RedisCluster:
        if self._client is None:
            raise NotOpen("The Redis store is not open. Use it within `async with store:`.")
        return self._client

    def _new_client(self) -> RedisCluster:
        """Return a client that is not connected. Raises TypeError, ValueError for options that nobody knows."""
        nodes = [ClusterNode(host, port) for host, port in self._servers.hosts]
        return RedisCluster(startup_nodes=nodes, **self._options)

    def _driver_options(self) -> dict[str, Any]:
        of_url = driver_options(self._servers)
        ours = connection_options(self._connect_timeout) | {
            "max_connections": MOST_CONNECTIONS,
            # What is served is served, while other slots are not.
            "require_full_coverage": False,
            "ssl": self._servers.tls,
        }
        return {
            name: value for name, value in of_url.items() if name not in ("host", "port", "connection_class")
        } | ours


async def _first_to_answer(nodes: Sequence[ClusterNode]) -> ClusterNode | None:
    """Ask all at the same time; return the first that answers, None when none does."""
    asking = {asyncio.create_task(node.execute_command("PING")): node for node in nodes}
    waiting = set(asking)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None:
                    return asking[task]
        return None
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def _close(client: RedisCluster) -> None:
    # `client.aclose()` does nothing for a client that did not connect by itself.
    manager = client.nodes_manager
    await _disconnect([*manager.nodes_cache.values(), *manager.startup_nodes.values()])


async def _disconnect(nodes: Sequence[ClusterNode]) -> None:
    for error in await asyncio.gather(*(node.disconnect() for node in nodes), return_exceptions=True):
        if isinstance(error, Exception):
            logger.debug("A connection to Redis did not close in order.", exc_info=error)
