"""The store in a Redis Cluster that loses masters, moves slots, or is half there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import anyio
import pytest
from redis import Redis
from redis.crc import key_slot

from bloodbank.config import Settings
from bloodbank.errors import ConfigurationError, StoreFormatError, StoreUnavailable
from bloodbank.ids import new_event_id
from bloodbank.stores._redis_shards import SHARDS, SLOTS, number_of, shards
from bloodbank.stores.base import ClaimState, Direction, Link
from bloodbank.stores.clock import redis_time
from bloodbank.stores.redis import RedisStore
from bloodbank.stores.redis_cluster import FORMAT, RedisClusterStore
from bloodbank.wiring import describe
from tests.servers.redis import RedisServer
from tests.servers.redis_cluster import MASTERS, ClusterNode, RedisCluster

pytestmark = [pytest.mark.redis, pytest.mark.timeout(600)]

NOW = datetime.now(UTC)
DEADLINE_SECONDS = 120.0
PATIENT = {"connect_timeout_seconds": 30.0, "query_timeout_seconds": 60.0, "redis_replica_seconds": 30.0}
"""A busy machine is no reason to take a node for dead."""
QUICK = {"connect_timeout_seconds": 5.0, "query_timeout_seconds": 6.0, "redis_replica_seconds": 3.0}
"""For those who try again: a node that is dead or frozen costs this."""
SLOTS_PER_SHARD = SLOTS // SHARDS


def settings(cluster: RedisCluster, prefix: str, **overrides: object) -> Settings:
    return Settings(_env_file=None, redis_url=cluster.url, redis_prefix=prefix, **PATIENT | overrides)  # pyright: ignore


def link(event_id: UUID, *parents: UUID) -> Link:
    return Link(event_id, parents, "llm.prompt", NOW, "agent", NOW, b"0123456789abcdef")


def new_ids(count: int) -> list[UUID]:
    return [new_event_id() for _ in range(count)]


@pytest.fixture
def prefix() -> str:
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
async def store(redis_cluster: RedisCluster, prefix: str) -> AsyncIterator[RedisClusterStore]:
    async with RedisClusterStore(settings(redis_cluster, prefix)) as opened:
        yield opened


@pytest.fixture
async def quick_store(redis_cluster: RedisCluster, prefix: str) -> AsyncIterator[RedisClusterStore]:
    """On the same index as `store`, for those who try again."""
    async with RedisClusterStore(settings(redis_cluster, prefix, **QUICK)) as opened:
        yield opened


async def recorded_at_last(store: RedisClusterStore, *links: Link) -> None:
    """Record, again and again while the store is unavailable."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                await store.record(links)
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


async def in_thread(call: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(call)


def shard_keys(prefix: str, event_id: UUID) -> bytes:
    return shards(prefix)[number_of(event_id.bytes)].keys.prefix


def ids_of_one_shard(prefix: str, count: int, *, like: UUID) -> list[UUID]:
    found: list[UUID] = []
    while len(found) < count:
        found += [one for one in new_ids(200) if shard_keys(prefix, one) == shard_keys(prefix, like)]
    return found[:count]


async def all_keys(cluster: RedisCluster, prefix: str) -> dict[bytes, ClusterNode]:
    def scan() -> dict[bytes, ClusterNode]:
        found: dict[bytes, ClusterNode] = {}
        for node in cluster.nodes:
            if node.is_master:
                with Redis(port=node.port) as client:
                    found |= dict.fromkeys(client.scan_iter(match=f"{prefix}:*", count=10_000), node)
        return found

    return await anyio.to_thread.run_sync(scan)


class Writer:
    """Records a tree, event by event, and remembers what `record` returned for."""

    def __init__(self, store: RedisClusterStore) -> None:
        self._store = store
        self.root = new_event_id()
        self.recorded: list[UUID] = []
        self.failures = 0

    async def write(self, is_over: Callable[[], bool]) -> None:
        """Record until it is over, and some more that must all be recorded."""
        rest = 50
        async with asyncio.timeout(2 * DEADLINE_SECONDS):
            while rest:
                child = new_event_id()
                try:
                    await self._store.record([link(child, self.root)])
                except StoreUnavailable:
                    self.failures += 1
                    await asyncio.sleep(0.02)
                    continue
                self.recorded.append(child)
                rest -= 1 if is_over() else 0

    async def lost(self, reader: RedisClusterStore) -> set[UUID]:
        """Return what is missing: the event itself, or its edge."""
        limit = 10 * (len(self.recorded) + self.failures)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                try:
                    graph = await reader.walk(self.root, Direction.DESCENDANTS, max_depth=1, limit=limit)
                except StoreUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    break
        known = {step.node.event_id for step in graph.steps if step.node.known}
        return set(self.recorded) - known


async def test_nothing_that_was_recorded_is_lost_when_a_master_is_killed(
    redis_cluster: RedisCluster, store: RedisClusterStore, quick_store: RedisClusterStore, prefix: str
) -> None:
    writer = Writer(quick_store)
    master = await anyio.to_thread.run_sync(redis_cluster.master_of, shard_keys(prefix, writer.root) + b"format")
    replica = await anyio.to_thread.run_sync(redis_cluster.replica_of, master)
    followed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.write(followed.is_set))
        while len(writer.recorded) < 100:
            await asyncio.sleep(0.01)
        await in_thread(redis_cluster.be_quick)
        await in_thread(master.kill)

        async def is_followed() -> bool:
            return await anyio.to_thread.run_sync(lambda: replica.is_master and redis_cluster.is_serving())

        await until(is_followed)
        # No other may follow, above all not the one that was killed and lacks what came since.
        await in_thread(redis_cluster.be_patient)
        followed.set()
    assert await writer.lost(store) == set()
    await in_thread(redis_cluster.start)
    assert await writer.lost(store) == set()


async def test_nothing_that_was_recorded_is_lost_when_a_frozen_master_comes_back(
    redis_cluster: RedisCluster, store: RedisClusterStore, quick_store: RedisClusterStore, prefix: str
) -> None:
    writer = Writer(quick_store)
    master = await anyio.to_thread.run_sync(redis_cluster.master_of, shard_keys(prefix, writer.root) + b"format")
    replica = await anyio.to_thread.run_sync(redis_cluster.replica_of, master)
    followed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.write(followed.is_set))
        while len(writer.recorded) < 100:
            await asyncio.sleep(0.01)
        await in_thread(redis_cluster.be_quick)
        await in_thread(master.freeze)

        async def is_followed() -> bool:
            return await anyio.to_thread.run_sync(lambda: replica.is_master)

        await until(is_followed)
        await in_thread(redis_cluster.be_patient)
        count = len(writer.recorded)
        while len(writer.recorded) < count + 20:
            await asyncio.sleep(0.01)
        await in_thread(master.thaw)
        followed.set()
    await in_thread(redis_cluster.start)
    assert await writer.lost(store) == set()


async def test_a_planned_change_of_masters_is_followed_without_an_error(
    redis_cluster: RedisCluster, store: RedisClusterStore
) -> None:
    parent, *children = new_ids(301)
    await store.record([link(child, parent) for child in children[:100]])
    for master in [node for node in redis_cluster.nodes if node.is_master]:
        await anyio.to_thread.run_sync(redis_cluster.hand_over, master)
    await in_thread(redis_cluster.start)
    await in_thread(redis_cluster.be_patient)
    # The store still believes what was true before.
    await store.record([link(child, parent) for child in children[100:]])
    assert (await store.nodes([parent]))[parent].children_total == 300


async def test_a_cluster_that_was_down_at_open_is_found_when_it_returns(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    store = RedisClusterStore(settings(redis_cluster, prefix))
    await in_thread(redis_cluster.stop)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await store.__aenter__()
    await in_thread(redis_cluster.start)
    async with store:
        await store.check()


async def test_scripts_that_the_nodes_forgot_are_loaded_again(
    redis_cluster: RedisCluster, store: RedisClusterStore
) -> None:
    parent, *children = new_ids(200)
    for some in (children[:100], children[100:]):
        for node in redis_cluster.nodes:
            await anyio.to_thread.run_sync(node.ask, "SCRIPT", "FLUSH")
        await store.record([link(child, parent) for child in some])
    assert (await store.nodes([parent]))[parent].children_total == 199


async def test_what_no_replica_has_is_not_recorded_also_the_second_time(
    redis_cluster: RedisCluster, store: RedisClusterStore, prefix: str
) -> None:
    event = new_event_id()
    impatient = settings(redis_cluster, prefix, redis_replica_seconds=0.1)
    master = await anyio.to_thread.run_sync(redis_cluster.master_of, shard_keys(prefix, event) + b"format")
    replica = await anyio.to_thread.run_sync(redis_cluster.replica_of, master)
    await in_thread(replica.freeze)
    async with RedisClusterStore(impatient) as other:
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="BLOODBANK_REDIS_REPLICAS"):
                await other.record([link(event)])
    unsafe = settings(redis_cluster, prefix, redis_replicas=0)
    async with RedisClusterStore(unsafe) as other:
        await other.record([link(event)])
    await in_thread(replica.thaw)
    await recorded_at_last(store, link(event))


async def test_a_master_without_its_replica_takes_events_once_the_cluster_gave_the_replica_up(
    redis_cluster: RedisCluster, store: RedisClusterStore, quick_store: RedisClusterStore, prefix: str
) -> None:
    event, later = new_ids(2)
    later = ids_of_one_shard(prefix, 1, like=event)[0]
    master = await anyio.to_thread.run_sync(redis_cluster.master_of, shard_keys(prefix, event) + b"format")
    replica = await anyio.to_thread.run_sync(redis_cluster.replica_of, master)
    await in_thread(redis_cluster.be_quick)
    await in_thread(replica.kill)
    await recorded_at_last(quick_store, link(event))
    await in_thread(redis_cluster.be_patient)
    # A node that was not told yet may be asked next.
    await recorded_at_last(quick_store, link(later))
    assert not replica.running
    await in_thread(redis_cluster.start)
    assert set(await store.nodes([event, later])) == {event, later}


async def test_an_event_whose_edges_alone_were_recorded_is_not_recorded_and_becomes_whole_the_next_time(
    redis_cluster: RedisCluster, store: RedisClusterStore, prefix: str
) -> None:
    # Nobody can read the shard of the event meanwhile, so that recording stops behind the edges.
    child = new_event_id()
    parents = [one for one in new_ids(50) if shard_keys(prefix, one) != shard_keys(prefix, child)]
    key = shard_keys(prefix, child) + b"format"
    master = await anyio.to_thread.run_sync(redis_cluster.master_of, key)
    with Redis(port=master.port) as client:
        await anyio.to_thread.run_sync(client.set, key, b"9")
        with pytest.raises(StoreFormatError, match="format 9"):
            await store.record([link(child, *parents)])
        await anyio.to_thread.run_sync(client.delete, key)
    [claimed] = await store.claim([(child, b"")], owner=b"one", lease_seconds=60)
    assert claimed.state is ClaimState.GRANTED
    found = await store.nodes([child, *parents])
    assert set(found) == set(parents)
    await store.record([link(child, *parents)])
    found = await store.nodes([child, *parents])
    assert found[child].link == link(child, *parents)
    assert {found[parent].children_total for parent in parents} == {1}


async def test_of_two_recordings_with_other_parents_at_the_same_moment_one_leaves_edges(
    store: RedisClusterStore, redis_cluster: RedisCluster, prefix: str
) -> None:
    async with RedisClusterStore(settings(redis_cluster, prefix)) as other:
        for _ in range(30):
            child, common, *parents = new_ids(6)
            await asyncio.gather(
                store.record([link(child, common, *parents[:2])]), other.record([link(child, common, *parents[2:])])
            )
            found = await store.nodes([child, common, *parents])
            assert set(found) == {child, *found[child].parents}
            assert {found[parent].children_total for parent in found[child].parents} == {1}


async def test_an_edge_stays_one_edge_when_it_is_recorded_again_in_another_generation(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    few, many, few_parent, many_parent = *[new_ids(count) for count in (2, 9)], *new_ids(2)
    links = [link(child, few_parent) for child in few] + [link(child, many_parent) for child in many]
    # A generation is open for eight seconds, and stays for 32 more.
    short = settings(redis_cluster, prefix, correlation_ttl_days=32 / 86_400)
    async with RedisClusterStore(short) as store:
        await store.record(links)

        async def generations() -> int:
            # One event more opens the next generation of a shard when the time of the last one is over.
            await store.record([link(one) for one in ids_of_one_shard(prefix, 1, like=few_parent)])
            keys = await all_keys(redis_cluster, prefix)
            start = shard_keys(prefix, few_parent)
            return len({key.split(b":")[2] for key in keys if key.startswith(start) and key.count(b":") > 2})

        async def is_another_one_open() -> bool:
            return await generations() > 1

        await until(is_another_one_open)
        await store.record(links)
        found = await store.nodes([few_parent, many_parent])
        assert (found[few_parent].children_total, found[many_parent].children_total) == (2, 9)


async def test_an_event_and_its_edges_expire_together(redis_cluster: RedisCluster, prefix: str) -> None:
    parent, *children = new_ids(200)
    many_parents = new_ids(9)
    long = [link(child, *many_parents) for child in children]
    async with RedisClusterStore(settings(redis_cluster, prefix, correlation_ttl_days=4)) as store:
        await store.record([link(parent), *long])
    lives: Counter[int] = Counter()
    kinds: set[bytes] = set()
    for key, node in (await all_keys(redis_cluster, prefix)).items():
        with Redis(port=node.port) as client:
            lives[await anyio.to_thread.run_sync(client.pexpiretime, key)] += 1
        kinds |= {key.split(b":")[3]} if key.count(b":") > 2 else set()
    assert kinds == {b"e", b"c", b"k", b"v", b"n"}, "events, children, many of them, a long value and the names"
    # One moment, or two where a quarter of the time to live ended meanwhile.
    assert len(lives) <= 2, lives
    seconds = min(lives) / 1000 - datetime.now(UTC).timestamp()
    assert 4 * 86_400 - 600 < seconds <= 5 * 86_400


async def test_the_keys_of_a_shard_lie_in_one_slot_and_the_shards_on_all_masters(
    redis_cluster: RedisCluster, store: RedisClusterStore, prefix: str
) -> None:
    events = new_ids(1500)
    await store.record([link(event, *events[:2]) for event in events[2:]])
    keys = await all_keys(redis_cluster, prefix)
    slots: dict[bytes, set[int]] = {}
    for key in keys:
        slots.setdefault(key.partition(b"}")[0], set()).add(key_slot(key))
    assert len(slots) == SHARDS
    assert {len(several) for several in slots.values()} == {1}
    assert sorted(min(several) // SLOTS_PER_SHARD for several in slots.values()) == list(range(SHARDS))
    shards_on = Counter(node.port for key, node in keys.items() if key.endswith(b"}:format"))
    assert sum(shards_on.values()) == SHARDS
    masters = [node for node in redis_cluster.nodes if node.is_master]
    assert len(masters) == MASTERS
    for master in masters:
        # Tests before this one may have moved a slot, so a share follows from the slots that a master serves now:
        # of each part of them that it has whole, the shard; of a part that it has some of, perhaps. About a third.
        served = await anyio.to_thread.run_sync(redis_cluster.slots_of, master)
        parts = Counter(slot // SLOTS_PER_SHARD for slots in served for slot in slots)
        whole = sum(count == SLOTS_PER_SHARD for count in parts.values())
        assert 15 < whole <= shards_on[master.port] <= len(parts) < 28, (served, shards_on)


async def test_calls_while_a_slot_is_moved_fail_or_are_whole_and_nothing_is_missing_afterwards(
    redis_cluster: RedisCluster, store: RedisClusterStore, prefix: str
) -> None:
    root = new_event_id()
    before = ids_of_one_shard(prefix, 100, like=root)
    during = ids_of_one_shard(prefix, 40, like=root)
    await store.record([link(root), *(link(one, root) for one in before)])
    shard = shards(prefix)[number_of(root.bytes)]
    source = await anyio.to_thread.run_sync(redis_cluster.master_of, shard.keys.format)
    target = next(node for node in redis_cluster.nodes if node.is_master and node is not source)
    names = {node.port: node.ask("CLUSTER", "MYID") for node in (source, target)}
    target.ask("CLUSTER", "SETSLOT", shard.slot, "IMPORTING", names[source.port])
    source.ask("CLUSTER", "SETSLOT", shard.slot, "MIGRATING", names[target.port])
    failures = 0
    recorded: list[UUID] = []
    with Redis(port=source.port) as client:
        keys = [key for key in await all_keys(redis_cluster, prefix) if key_slot(key) == shard.slot]
        # The table of generations goes first, then the buckets: the worst order for whoever looks only at the table.
        keys.sort(key=lambda key: not key.endswith((b"generations", b"format")))
        for key, event in zip(keys, [*during, *[None] * len(keys)], strict=False):
            if event is not None:
                try:
                    await store.record([link(event, root)])
                except StoreUnavailable:
                    failures += 1
                else:
                    recorded.append(event)
            client.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 60_000)
        # What was written meanwhile, and what other indexes have in the slot.
        tag = shard.keys.prefix.partition(b":")[2]
        for key in list(client.scan_iter(match=b"*:" + tag + b"*", count=10_000)):
            client.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 60_000)
        assert client.execute_command("CLUSTER COUNTKEYSINSLOT", shard.slot) == 0
    for node in [target, source, *(one for one in redis_cluster.nodes if one.is_master)]:
        node.ask("CLUSTER", "SETSLOT", shard.slot, "NODE", names[target.port])
    assert failures
    found = await store.nodes([root, *before, *recorded])
    assert {event for event, node in found.items() if node.known} == {root, *before, *recorded}
    await recorded_at_last(store, *(link(event, root) for event in during))
    graph = await store.walk(root, Direction.DESCENDANTS, max_depth=1, limit=1000)
    assert set(graph.ids) == {root, *before, *during}
    assert (await store.nodes([root]))[root].children_total == len(before) + len(during)


async def test_calls_that_ran_out_of_time_leave_no_answer_for_others(
    redis_cluster: RedisCluster, store: RedisClusterStore
) -> None:
    events = new_ids(100)
    await store.record([link(event) for event in events])
    nodes = [node for node in redis_cluster.nodes if node.is_master]
    for node in nodes:
        await in_thread(node.freeze)
    calls = [asyncio.create_task(store.nodes([event])) for event in events[:40]]
    done, _ = await asyncio.wait(calls, timeout=0.2)
    assert not done
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    for node in nodes:
        await in_thread(node.thaw)
    await recorded_at_last(store)

    async def is_answered() -> bool:
        try:
            await store.check()
        except StoreUnavailable:
            return False
        return True

    await until(is_answered)
    for event in events:
        assert set(await store.nodes([event])) == {event}


async def test_looking_at_the_cluster_breaks_no_call_that_is_under_way(
    redis_cluster: RedisCluster, prefix: str
) -> None:
    event, *others = new_ids(50)
    silent = await anyio.to_thread.run_sync(redis_cluster.master_of, shard_keys(prefix, event) + b"format")
    serving = [one for one in others if await _master(redis_cluster, prefix, one) is not silent]
    alone = await anyio.to_thread.run_sync(redis_cluster.replica_of, await _master(redis_cluster, prefix, serving[0]))
    async with RedisClusterStore(settings(redis_cluster, prefix, redis_replica_seconds=0.1)) as store:
        await recorded_at_last(store, link(event))
        for node in (silent, alone):
            await in_thread(node.freeze)
        call = asyncio.create_task(store.nodes([event]))
        await asyncio.wait([call], timeout=0.2)
        for _ in range(3):
            # Who lacks a replica looks whether the cluster has given it up.
            with pytest.raises(StoreUnavailable, match="BLOODBANK_REDIS_REPLICAS"):
                await store.record([link(serving[0])])
        await in_thread(silent.thaw)
        assert set(await call) == {event}


async def _master(cluster: RedisCluster, prefix: str, event_id: UUID) -> ClusterNode:
    return await anyio.to_thread.run_sync(cluster.master_of, shard_keys(prefix, event_id) + b"format")


async def test_another_format_is_refused_before_anything_is_written(
    redis_cluster: RedisCluster, store: RedisClusterStore, prefix: str
) -> None:
    event = new_event_id()
    key = shard_keys(prefix, event) + b"format"
    master = await anyio.to_thread.run_sync(redis_cluster.master_of, key)
    with Redis(port=master.port) as client:
        client.set(key, b"2/16", ex=600)
        for call in (
            store.check(),
            store.record([link(event)]),
            store.nodes([event]),
            store.claim([(event, b"")], owner=b"one", lease_seconds=1),
            store.purge(before=NOW),
            RedisClusterStore(settings(redis_cluster, prefix)).__aenter__(),
        ):
            with pytest.raises(StoreFormatError, match=f"format 2/16, .*reads {FORMAT.decode()}"):
                await call
        assert list(await all_keys(redis_cluster, prefix)) == [key]
        client.delete(key)


async def test_one_server_is_no_cluster_and_a_node_is_no_server_of_its_own(
    redis_cluster: RedisCluster, redis_server: RedisServer, prefix: str
) -> None:
    url = f"redis+cluster://127.0.0.1:{redis_server.port}"
    alone = Settings(_env_file=None, redis_url=url, **PATIENT)  # pyright: ignore
    with pytest.raises(StoreUnavailable, match="is no Redis Cluster"):
        await RedisClusterStore(alone).__aenter__()
    url = redis_cluster.nodes[0].url
    node = Settings(_env_file=None, redis_url=url, redis_prefix=prefix, **PATIENT)  # pyright: ignore
    with pytest.raises(StoreUnavailable, match=r"redis\+cluster://"):
        await _used_as_one_server(node)


async def _used_as_one_server(node: Settings) -> None:
    async with RedisStore(node) as store:
        await store.record([link(new_event_id())])
        await store.nodes(new_ids(1))


def test_a_store_for_a_cluster_needs_the_address_of_one() -> None:
    for url in (None, "redis://one", "redis+sentinel://one/master"):
        with pytest.raises(ConfigurationError, match="No Redis Cluster is set"):
            RedisClusterStore(Settings(_env_file=None, redis_url=url))  # pyright: ignore
    with pytest.raises(ConfigurationError, match="REDIS_URL: "):
        RedisClusterStore(Settings(_env_file=None, redis_url="redis+cluster://one?no_such_option=1"))  # pyright: ignore
    with pytest.raises(ConfigurationError, match="RedisClusterStore"):
        RedisStore(Settings(_env_file=None, redis_url="redis+cluster://one"))  # pyright: ignore


async def test_the_clock_and_the_name_are_told(redis_cluster: RedisCluster) -> None:
    assert abs((await redis_time(redis_cluster.url, 60.0) - datetime.now(UTC)).total_seconds()) < DEADLINE_SECONDS
    given = Settings(_env_file=None, redis_url=redis_cluster.url.replace("://", "://:s3cret@"))  # pyright: ignore
    assert describe(given, tracking=True)["store"] == f"Redis Cluster at {redis_cluster.url}"
