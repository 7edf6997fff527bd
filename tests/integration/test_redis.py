"""The Redis store against real servers that go away, hang, forget, or are not ours."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import anyio
import pytest
from redis.asyncio import Redis

from bloodbank.config import Settings
from bloodbank.errors import NotOpen, StoreFormatError, StoreUnavailable
from bloodbank.ids import new_event_id
from bloodbank.stores._redis_calls import LINKS_PER_SCRIPT
from bloodbank.stores._redis_reading import EVENTS_PER_ROUND_TRIP
from bloodbank.stores.base import Direction, Link
from bloodbank.stores.redis import MAX_CONNECTIONS, RedisStore
from tests.servers.redis import RedisServer

pytestmark = pytest.mark.redis

NOW = datetime.now(UTC)


def settings(url: str, prefix: str = "bb", **overrides: object) -> Settings:
    return Settings(_env_file=None, redis_url=url, redis_prefix=prefix, **overrides)  # pyright: ignore


def link(event_id: UUID, parents: Sequence[UUID] = (), *, at: datetime = NOW) -> Link:
    return Link(event_id, tuple(parents), "llm.prompt", at, "agent", at, b"0123456789abcdef")


def new_ids(count: int) -> list[UUID]:
    return [new_event_id() for _ in range(count)]


@pytest.fixture
def prefix() -> str:
    return f"t{uuid4().hex[:12]}"


@pytest.fixture
async def store(redis_server: RedisServer, prefix: str) -> AsyncIterator[RedisStore]:
    async with RedisStore(settings(redis_server.url, prefix)) as opened:
        yield opened


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as opened:
        yield opened


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server of this test alone, not started, that forgets everything when it ends."""
    server = RedisServer(appendonly="no")
    yield server
    server.close()


async def keys_of(client: Redis, prefix: str) -> list[bytes]:
    return [key async for key in client.scan_iter(match=f"{prefix}:*", count=10_000)]


async def test_redis_down_at_open_is_found_when_it_returns(own_server: RedisServer) -> None:
    store = RedisStore(settings(own_server.url))
    with pytest.raises(StoreUnavailable, match=str(own_server.port)):
        await store.__aenter__()
    await anyio.to_thread.run_sync(own_server.start)
    async with store:
        await store.check()


async def test_a_dead_server_fails_at_once(own_server: RedisServer) -> None:
    await anyio.to_thread.run_sync(own_server.start)
    async with RedisStore(settings(own_server.url)) as store:
        await anyio.to_thread.run_sync(own_server.kill)
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="Start it"):
            await store.record([link(new_event_id())])
        assert time.monotonic() - began < 1


async def test_a_server_killed_in_the_middle_is_used_again_by_the_next_call(redis_server: RedisServer) -> None:
    first, second = new_ids(2)
    async with RedisStore(settings(redis_server.url, f"t{uuid4().hex[:12]}")) as store:
        await store.record([link(first)])
        await anyio.to_thread.run_sync(redis_server.kill)
        with pytest.raises(StoreUnavailable):
            await store.record([link(second, [first])])
        await anyio.to_thread.run_sync(redis_server.start)
        await store.record([link(second, [first])])
        assert (await store.walk(second, Direction.ANCESTORS, max_depth=9, limit=9)).ids == (first, second)


async def test_a_restart_between_two_calls_is_not_noticed(redis_server: RedisServer, store: RedisStore) -> None:
    event_id = new_event_id()
    await store.record([link(event_id)])
    await anyio.to_thread.run_sync(redis_server.restart)
    assert (await store.nodes([event_id]))[event_id].link == link(event_id)


async def test_a_server_that_restarted_empty_takes_events_again(own_server: RedisServer) -> None:
    await anyio.to_thread.run_sync(own_server.start)
    before, after = new_ids(2)
    async with RedisStore(settings(own_server.url)) as store:
        await store.record([link(before)])
        await anyio.to_thread.run_sync(own_server.kill)
        await anyio.to_thread.run_sync(own_server.start)
        await store.record([link(after, [before])])
        assert (await store.walk(before, Direction.DESCENDANTS, max_depth=9, limit=9)).missing == (before,)
    async with Redis.from_url(own_server.url) as client:
        assert await client.get("bb:format") == b"2"


async def test_calls_cancelled_on_a_frozen_server_leave_no_answer_for_others(
    redis_server: RedisServer, store: RedisStore
) -> None:
    ids = new_ids(3 * MAX_CONNECTIONS)
    await store.record([link(event_id) for event_id in ids])
    await asyncio.gather(*(store.nodes([event_id]) for event_id in ids))
    redis_server.freeze()
    with anyio.move_on_after(1) as scope:
        await asyncio.gather(*(store.nodes([event_id]) for event_id in ids))
    assert scope.cancelled_caught
    redis_server.thaw()
    for _ in range(3):
        answers = await asyncio.gather(*(store.nodes([event_id]) for event_id in ids))
        assert [list(answer) for answer in answers] == [[event_id] for event_id in ids]


async def test_a_record_cancelled_on_a_frozen_server_may_be_sent_again(
    redis_server: RedisServer, store: RedisStore
) -> None:
    parent, child = new_ids(2)
    await store.check()
    redis_server.freeze()
    with anyio.move_on_after(0.2):
        await store.record([link(child, [parent])])
    redis_server.thaw()
    await store.record([link(child, [parent])])
    assert (await store.nodes([parent]))[parent].children_total == 1


async def test_a_frozen_server_costs_one_query_timeout(redis_server: RedisServer, prefix: str) -> None:
    async with RedisStore(settings(redis_server.url, prefix, query_timeout_seconds=0.3)) as store:
        redis_server.freeze()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await store.nodes([new_event_id()])
        assert time.monotonic() - began < 1.5


async def test_a_server_frozen_at_open_costs_one_connect_timeout(redis_server: RedisServer) -> None:
    store = RedisStore(settings(redis_server.url, connect_timeout_seconds=0.3))
    redis_server.freeze()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.__aenter__()
    assert time.monotonic() - began < 1.5
    redis_server.thaw()
    async with store:
        await store.check()


async def test_more_calls_than_connections_wait_for_their_turn(store: RedisStore) -> None:
    ids = new_ids(10 * MAX_CONNECTIONS)
    await asyncio.gather(*(store.record([link(event_id)]) for event_id in ids))
    assert set(await store.nodes(ids)) == set(ids)


@pytest.mark.parametrize("credentials", ["", ":wr0ng-pass@", "nobody:wr0ng-pass@"])
async def test_wrong_credentials_say_what_to_change_and_not_what_they_were(
    own_server: RedisServer, credentials: str
) -> None:
    await anyio.to_thread.run_sync(own_server.start)
    async with Redis.from_url(own_server.url) as client:
        await client.config_set("requirepass", "r1ght-pass")
    url = own_server.url.replace("redis://", f"redis://{credentials}")
    with pytest.raises(StoreUnavailable, match="REDIS_PASSWORD") as caught:
        await RedisStore(settings(url)).__aenter__()
    assert "wr0ng-pass" not in "".join(traceback.format_exception(caught.value))


async def test_a_password_with_special_characters_opens(own_server: RedisServer) -> None:
    await anyio.to_thread.run_sync(own_server.start)
    password = "p@ss:/w#rd?%41 ü"
    async with Redis.from_url(own_server.url) as client:
        await client.config_set("requirepass", password)
    parts = Settings(  # pyright: ignore
        _env_file=None, redis_url=None, redis_host="127.0.0.1", redis_port=own_server.port, redis_password=password
    )
    async with RedisStore(parts) as store:
        await store.check()


async def test_a_user_without_rights_is_told_which(redis_server: RedisServer, client: Redis, prefix: str) -> None:
    user = f"u{uuid4().hex[:8]}"
    await client.execute_command("ACL", "SETUSER", user, "on", ">s3cret-pass", "~*", "+get", "+ping")
    url = redis_server.url.replace("redis://", f"redis://{user}:s3cret-pass@")
    async with RedisStore(settings(url, prefix)) as store:
        with pytest.raises(StoreUnavailable, match="evalsha"):
            await store.record([link(new_event_id())])


async def test_a_full_server_is_unavailable_and_keeps_no_half_event(own_server: RedisServer) -> None:
    await anyio.to_thread.run_sync(own_server.start)
    async with RedisStore(settings(own_server.url)) as store, Redis.from_url(own_server.url) as client:
        await store.record([link(new_event_id())])
        await client.config_set("maxmemory", "1")
        child, parent = new_ids(2)
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await store.record([link(child, [parent])])
        assert await store.nodes([child, parent]) == {}
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            await store.check()


async def test_a_script_that_the_server_forgot_is_loaded_again(store: RedisStore, client: Redis) -> None:
    before, after = new_ids(2)
    await store.record([link(before)])
    await client.script_flush()
    await store.record([link(after, [before])] + [link(event_id) for event_id in new_ids(2 * LINKS_PER_SCRIPT)])
    assert (await store.nodes([after]))[after].parents == (before,)


async def test_records_share_one_connection(redis_server: RedisServer, client: Redis, prefix: str) -> None:
    before = len(await client.client_list())
    async with RedisStore(settings(redis_server.url, prefix)) as store:
        await asyncio.gather(*(store.record([link(event_id)]) for event_id in new_ids(50)))
        assert len(await client.client_list()) <= before + 2, "one that records, one that opened"


async def test_a_connection_that_the_server_closed_is_opened_again(
    store: RedisStore, client: Redis, redis_server: RedisServer
) -> None:
    ids = new_ids(4)
    for event_id in ids:
        await store.record([link(event_id)])
        own = str(await client.client_id())
        for other in await client.client_list():
            if other["id"] != own:
                await client.execute_command("CLIENT", "KILL", "ID", other["id"])
    assert set(await store.nodes(ids)) == set(ids)


async def test_a_record_that_ran_out_of_time_leaves_no_answer_for_the_next(
    redis_server: RedisServer, prefix: str
) -> None:
    first, *rest = new_ids(LINKS_PER_SCRIPT + 2)
    async with RedisStore(settings(redis_server.url, prefix, query_timeout_seconds=0.3)) as store:
        await store.check()
        redis_server.freeze()
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await store.record([link(first)])
        redis_server.thaw()
        await store.record([link(event_id, [first]) for event_id in rest])
        assert (await store.nodes([first]))[first].children_total == len(rest)


async def test_a_type_and_a_source_may_be_the_same_word(store: RedisStore) -> None:
    ids = new_ids(2)
    links = [link(one)._replace(event_type=name, source=name) for one, name in zip(ids, ("a.b", "c.d"), strict=True)]
    await store.record(links)
    nodes = await store.nodes(ids)
    assert [nodes[one].link for one in ids] == links


@pytest.mark.parametrize("version", ["1", "9"])
async def test_another_format_is_refused_at_open(
    redis_server: RedisServer, client: Redis, prefix: str, version: str
) -> None:
    await client.set(f"{prefix}:format", version, ex=60)
    with pytest.raises(StoreFormatError, match="BLOODBANK_REDIS_PREFIX") as caught:
        await RedisStore(settings(redis_server.url, prefix)).__aenter__()
    assert f"has format {version}, and this version reads 2" in str(caught.value)
    assert f"delete the keys {prefix}:*" in str(caught.value)


async def test_a_format_that_changed_meanwhile_is_refused_before_anything_is_written(
    store: RedisStore, client: Redis, prefix: str
) -> None:
    await client.set(f"{prefix}:format", "9", ex=60)
    with pytest.raises(StoreFormatError):
        await store.record([link(new_event_id(), new_ids(2))])
    with pytest.raises(StoreFormatError):
        await store.purge(before=NOW)
    with pytest.raises(StoreFormatError):
        await store.nodes(new_ids(1))
    assert await keys_of(client, prefix) == [f"{prefix}:format".encode()]


async def test_keys_of_somebody_else_are_left_alone(store: RedisStore, client: Redis, prefix: str) -> None:
    await client.rpush(f"{prefix}:generations", "a list of somebody else")
    with pytest.raises(StoreFormatError, match="something else"):
        await store.nodes([new_event_id()])
    with pytest.raises(StoreFormatError, match="something else"):
        await store.record([link(new_event_id())])
    assert await client.llen(f"{prefix}:generations") == 1


async def test_every_key_expires_with_its_generation(redis_server: RedisServer, client: Redis, prefix: str) -> None:
    parent, *children = new_ids(10)
    many = link(children[0], [parent, *new_ids(9)])
    async with RedisStore(settings(redis_server.url, prefix, correlation_ttl_days=4)) as store:
        await store.record([link(parent), many, *(link(child, [parent]) for child in children[1:])])
    lives = {key: await client.ttl(key) for key in await keys_of(client, prefix)}
    kinds = {key.split(b":")[2] for key in lives if key.count(b":") > 1}
    assert kinds == {b"e", b"c", b"k", b"v", b"n"}, "events, children, many of them, a long value and the names"
    assert all(5 * 86400 - 60 < seconds <= 5 * 86400 for seconds in lives.values()), lives


async def test_events_outlive_their_time_by_a_quarter_at_most(
    redis_server: RedisServer, client: Redis, prefix: str
) -> None:
    ttl_seconds = 1.0
    parent, child = new_ids(2)
    async with RedisStore(settings(redis_server.url, prefix, correlation_ttl_days=ttl_seconds / 86400)) as store:
        began = time.monotonic()
        await store.record([link(child, [parent])])
        with anyio.fail_after(10):
            while set(await store.nodes([parent, child])) == {parent, child}:
                await anyio.sleep(0.01)
        assert ttl_seconds < time.monotonic() - began
        assert await store.nodes([parent, child]) == {}, "both go together"
        with anyio.fail_after(10):
            while await keys_of(client, prefix):
                await anyio.sleep(0.01)


async def test_an_event_of_an_older_generation_stays_as_it_is(
    redis_server: RedisServer, client: Redis, prefix: str
) -> None:
    grandparent, parent, other, child = new_ids(4)
    async with RedisStore(settings(redis_server.url, prefix, correlation_ttl_days=4 / 86400)) as store:
        await store.record([link(parent, [grandparent])])
        with anyio.fail_after(10):
            while len([field for field in await client.hkeys(f"{prefix}:generations") if b"#" not in field]) < 2:
                await store.record([link(new_event_id())])
                await anyio.sleep(0.05)
        await store.record([link(parent, [other]), link(child, [parent, grandparent])])
        assert (await store.nodes([parent]))[parent].parents == (grandparent,)
        graph = await store.walk(grandparent, Direction.DESCENDANTS, max_depth=9, limit=9)
    assert graph.ids == (grandparent, parent, child)
    assert graph.steps[0].node.children_total == 2, "one in each generation"


async def test_a_service_that_keeps_events_for_less_shortens_no_life(
    store: RedisStore, redis_server: RedisServer, client: Redis, prefix: str
) -> None:
    parent, *children = new_ids(3)
    await store.record([link(children[0], [parent])])
    async with RedisStore(settings(redis_server.url, prefix, correlation_ttl_days=0.1 / 86400)) as brief:
        await brief.record([link(children[0], []), link(children[1], [parent])])
        with anyio.fail_after(10):
            while (await store.nodes([parent]))[parent].children_total == 2:
                await anyio.sleep(0.01)
    assert (await store.nodes([children[0]]))[children[0]].parents == (parent,)
    assert await client.ttl(f"{prefix}:format") > 29 * 86400


async def test_a_full_generation_is_followed_by_one_with_more_buckets(
    redis_server: RedisServer, client: Redis, prefix: str
) -> None:
    async with RedisStore(settings(redis_server.url, prefix)) as store:
        first, second = new_ids(2)
        await store.record([link(first)])
        [(name, _)] = [pair for pair in (await client.hgetall(f"{prefix}:generations")).items() if b"#" not in pair[0]]
        await client.hset(f"{prefix}:generations", name + b"#", 1 << 16)
        await store.record([link(second, [first])])
        rows = [row for field, row in (await client.hgetall(f"{prefix}:generations")).items() if b"#" not in field]
        assert sorted(int(row.split()[1]) for row in rows) == [10, 12]
        assert (await store.walk(second, Direction.ANCESTORS, max_depth=9, limit=9)).ids == (first, second)


async def test_a_fan_out_lies_in_a_sorted_set_and_small_families_in_listpacks(
    store: RedisStore, client: Redis, prefix: str
) -> None:
    parent, *children = new_ids(3000)
    await store.record([link(child, [parent], at=NOW) for child in children])
    keys = await keys_of(client, prefix)
    assert [await client.zcard(key) for key in keys if b":k:" in key] == [2999]
    buckets = [key for key in keys if b":e:" in key or b":c:" in key]
    assert {await client.object("encoding", key) for key in buckets} == {b"listpack"}


async def test_types_beyond_what_a_generation_numbers_are_kept_as_text(
    store: RedisStore, redis_server: RedisServer, client: Redis, prefix: str
) -> None:
    ids = new_ids(5000)
    await store.record([link(one)._replace(event_type=f"a.b{n}", source=f"s{n}é") for n, one in enumerate(ids)])
    [names] = [key for key in await keys_of(client, prefix) if key.endswith(b":n")]
    assert await client.hlen(names) == 2 * 4096
    async with RedisStore(settings(redis_server.url, prefix), read_by_levels=True) as by_levels:
        for reader in (store, by_levels):
            nodes = await reader.nodes(ids)
            assert [(nodes[one].link.event_type, nodes[one].link.source) for one in ids if nodes[one].link] == [  # pyright: ignore
                (f"a.b{n}", f"s{n}é") for n in range(5000)
            ]


async def test_one_script_answers_a_deep_walk(store: RedisStore, client: Redis) -> None:
    chain = new_ids(1000)
    await store.record([link(one, chain[n - 1 : n] if n else []) for n, one in enumerate(chain)])
    await client.config_resetstat()
    graph = await store.walk(chain[-1], Direction.ANCESTORS, max_depth=5000, limit=5000)
    assert graph.ids == tuple(chain)
    assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] <= 2, "once more when it was not loaded"


async def test_a_wide_question_is_answered_in_parts(store: RedisStore, client: Redis) -> None:
    root, *children = new_ids(20_001)
    await store.record([link(root), *(link(child, [root]) for child in children)])
    await client.config_resetstat()
    graph = await store.walk(root, Direction.DESCENDANTS, max_depth=9, limit=50_000)
    assert graph.ids == (root, *children)
    assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] >= 20_000 / EVENTS_PER_ROUND_TRIP


async def test_many_events_with_many_children_each_are_read_in_parts(store: RedisStore, client: Redis) -> None:
    root, *parents = new_ids(401)
    leaves = new_ids(2000)
    await store.record([link(root), *(link(parent, [root]) for parent in parents)])
    await store.record([link(leaf, parents[n % 7 : n % 7 + 60]) for n, leaf in enumerate(leaves)])
    await client.config_resetstat()
    graph = await store.walk(root, Direction.DESCENDANTS, max_depth=2, limit=50_000)
    assert set(graph.ids) == {root, *parents, *leaves}
    assert len(graph.edges) == 400 + 60 * 2000
    # 60 lists of 2,000 ids are more than one answer takes, though 400 events are few.
    assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] > 4


async def test_the_first_record_of_an_event_stays_with_its_edges(store: RedisStore) -> None:
    child, first, second = new_ids(3)
    await store.record([link(child, [first]), link(child, [second])])
    await store.record([link(child, [second])])
    nodes = await store.nodes([child, first, second])
    assert nodes[child].parents == (first,)
    assert set(nodes) == {child, first}


async def test_prefixes_do_not_see_each_other(redis_server: RedisServer, store: RedisStore) -> None:
    parent, child = new_ids(2)
    await store.record([link(child, [parent])])
    async with RedisStore(settings(redis_server.url, f"t{uuid4().hex[:12]}")) as other:
        assert await other.nodes([parent, child]) == {}
        assert await other.purge(before=NOW + timedelta(days=1)) == 0
    assert set(await store.nodes([parent, child])) == {parent, child}


async def test_a_wide_graph_takes_several_round_trips_and_is_whole(store: RedisStore) -> None:
    root, *children = new_ids(2 * EVENTS_PER_ROUND_TRIP + 1)
    await store.record([link(root), *(link(child, [root]) for child in children)])
    graph = await store.walk(root, Direction.DESCENDANTS, max_depth=9, limit=10_000)
    assert graph.ids == (root, *children)
    assert len(graph.edges) == len(children)


async def test_a_cut_list_of_children_still_tells_how_many_there_are(store: RedisStore) -> None:
    root, *children = new_ids(21)
    await store.record([link(child, [root]) for child in reversed(children)])
    graph = await store.walk(root, Direction.DESCENDANTS, max_depth=9, limit=5)
    assert graph.ids == (root, *children[:4])
    assert graph.steps[0].node.children_total == 20
    assert graph.truncated.frontier == (root,)


async def test_purge_forgets_exactly_the_older_ones_and_their_edges(store: RedisStore) -> None:
    parent = new_event_id()
    old, new = new_ids(EVENTS_PER_ROUND_TRIP + LINKS_PER_SCRIPT), new_ids(300)
    await store.record([link(event_id, [parent], at=NOW - timedelta(days=2)) for event_id in old])
    await store.record([link(event_id, [parent], at=NOW - timedelta(days=1)) for event_id in new])
    assert await store.purge(before=NOW - timedelta(days=1)) == len(old)
    assert set(await store.nodes([*old, *new])) == set(new)
    assert (await store.nodes([parent]))[parent].children_total == len(new)
    assert await store.purge(before=NOW - timedelta(days=1)) == 0


async def test_a_closed_store_says_so(redis_server: RedisServer) -> None:
    store = RedisStore(settings(redis_server.url))
    with pytest.raises(NotOpen):
        await store.check()
    async with store:
        await store.check()
    await store.__aexit__(None, None, None)
    with pytest.raises(NotOpen):
        await store.check()


async def test_opening_an_open_store_again_keeps_its_connections(store: RedisStore) -> None:
    event_id = new_event_id()
    await store.record([link(event_id)])
    assert await store.__aenter__() is store
    assert set(await store.nodes([event_id])) == {event_id}
