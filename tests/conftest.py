"""Fixtures that all tests share: the event loop, blocking calls on it, and real servers."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from tests.servers.process import Server, ServerMissing
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_sentinel import RedisSentinels

ALLOW_SKIP = "BLOODBANK_TEST_ALLOW_SKIP"

AnyServer = TypeVar("AnyServer", bound=Server | RedisCluster | RedisSentinels)
AnyCluster = TypeVar("AnyCluster", RedisCluster, RedisSentinels)

EXAMPLES = int(os.environ.get("BLOODBANK_TEST_EXAMPLES", "10"))
"""How often a property is tried: few times while one works, more often in `make test`."""

# No time limit an example, since a busy machine is no defect.
settings.register_profile(
    "bloodbank", max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("bloodbank")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def _blockbuster() -> BlockBuster:
    blockbuster = BlockBuster("bloodbank")
    # Its tracer takes this lock within whatever line it measures. The wait is for another tracer, not for ours.
    blockbuster.functions["threading.Lock.acquire"].can_block_in("coverage/collector.py", "lock_data")
    return blockbuster


@pytest.fixture(autouse=True)
def blocking_calls(request: pytest.FixtureRequest, _blockbuster: BlockBuster) -> Iterator[None]:
    """In unit, API, command and conformance tests a blocking call of ours on the event loop raises BlockingError."""
    has_a_loop = inspect.iscoroutinefunction(getattr(request.node, "obj", None))
    if not has_a_loop or not {"unit", "api", "cli", "conformance"} & set(request.path.parts):
        yield
        return
    _blockbuster.activate()
    try:
        yield
    finally:
        _blockbuster.deactivate()


@pytest.fixture(scope="session")
def _rabbit_session() -> Iterator[RabbitServer]:
    yield from _session(RabbitServer)


@pytest.fixture(scope="session")
def _redis_session() -> Iterator[RedisServer]:
    yield from _session(RedisServer)


@pytest.fixture(scope="session")
def _redis_cluster_session() -> Iterator[RedisCluster]:
    yield from _session(RedisCluster)


@pytest.fixture(scope="session")
def _redis_sentinels_session() -> Iterator[RedisSentinels]:
    yield from _session(RedisSentinels)


@pytest.fixture
def rabbit_server(_rabbit_session: RabbitServer) -> RabbitServer:
    """A running RabbitMQ, shared by the session; use names of your own in it."""
    return _awake(_rabbit_session)


@pytest.fixture
def redis_server(_redis_session: RedisServer) -> RedisServer:
    """A running Redis, shared by the session; use a key prefix of your own in it."""
    return _awake(_redis_session)


@pytest.fixture
def redis_cluster(_redis_cluster_session: RedisCluster) -> RedisCluster:
    """A running Redis Cluster with a replica of each master, shared by the session; use a key prefix of your own.

    Nothing fails over before `be_quick`: on a busy machine a node may be silent for seconds.
    """
    return _patient(_redis_cluster_session)


@pytest.fixture
def redis_sentinels(_redis_sentinels_session: RedisSentinels) -> RedisSentinels:
    """A running Redis with a replica, watched by Sentinels, shared by the session; use a key prefix of your own.

    Nothing fails over before `be_quick`: on a busy machine a server may be silent for seconds.
    """
    return _patient(_redis_sentinels_session)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if ALLOW_SKIP in str(report.longrepr)]
    if skipped:
        reasons = sorted({str(report.longrepr[2]) for report in skipped})
        terminalreporter.section("tests that did not run", red=True)
        terminalreporter.line(f"{len(skipped)} tests need what is not there: {'; '.join(reasons)}")


def _session(make: Callable[[], AnyServer]) -> Iterator[AnyServer]:
    try:
        server = make()
    except ServerMissing as error:
        if os.environ.get(ALLOW_SKIP) == "1":
            pytest.skip(f"{error} ({ALLOW_SKIP}=1)")
        pytest.fail(f"{error}. Or set {ALLOW_SKIP}=1 to skip these tests.", pytrace=False)
    try:
        yield server
    finally:
        server.close()


def _awake(server: AnyServer) -> AnyServer:
    """Thaw or start the server if the test before left it otherwise."""
    if server.running:
        server.thaw()
    server.start()
    return server


def _patient(cluster: AnyCluster) -> AnyCluster:
    """Mend what the test before did, and have nothing fail over that is merely slow."""
    if cluster.running:
        cluster.thaw()
        if not cluster.is_whole():
            cluster.be_quick()
    cluster.start()
    cluster.be_patient()
    return cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a run of several processes, keep together what shares servers that are slow to start."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "redis_cluster" in fixtures or "redis cluster" in item.name:
            item.add_marker(pytest.mark.xdist_group("redis cluster"))
        elif shared := [name for name in ("redis_sentinels", "cluster") if name in fixtures]:
            item.add_marker(pytest.mark.xdist_group(shared[0]))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector need not look through it in every test."""
    gc.collect()
    gc.freeze()
