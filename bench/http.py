"""The HTTP API, confirmed by RabbitMQ, against an ordinary FastAPI + aio-pika handler; one uvicorn worker each."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from bench import _events
from bench._bus import QUORUM, Broker, broker
from bench._harness import Options, Row, Sample, main, paired
from tests.servers.api import ApiServer
from tests.servers.redis import RedisServer

CONNECTIONS = 64
BATCH = 100
PROMPT, EVENTS = "/events/llm/prompt", "/events/batch"
HANDLER, OURS, TRACKED = "FastAPI + aio-pika handler", "POST /events/llm/prompt", "with tracking on Redis"
BATCHES = f"POST /events/batch of {BATCH}"
ROOT = Path(__file__).parents[1]


class Uvicorn(ApiServer):
    """One worker of uvicorn with an application, writing no line a request."""

    def __init__(self, application: str, **settings: str) -> None:
        super().__init__(**settings)
        port = str(self.port)
        self._command = ("-m", "uvicorn", application, "--port", port, "--no-access-log", "--log-level", "warning")


async def measure(options: Options) -> list[Row]:
    """Start the broker, Redis and three servers; each run sends `count` events."""
    redis = RedisServer(appendfsync="everysec")
    async with broker() as bus, _running(redis):
        await bus.declare(QUORUM)
        to = {"RABBIT_URL": bus.url, "EXCHANGE_NAME": QUORUM.exchange, "PYTHONPATH": str(ROOT)}
        ours = Uvicorn("event_producers.http:app", BLOODBANK_CORRELATION_TRACKING="false", **to)
        tracked = Uvicorn("event_producers.http:app", REDIS_URL=redis.url, **to)
        handler = Uvicorn("bench.peers.handler:app", **to)
        async with _running(ours), _running(tracked), _running(handler):
            values = _events.payload()
            prompt = json.dumps(values).encode()
            batch = json.dumps([{"event_type": _events.EVENT_TYPE, "payload": values}] * BATCH).encode()
            runs = {
                OURS: partial(_sample, bus, ours, PROMPT, prompt, 1, options.count),
                TRACKED: partial(_sample, bus, tracked, PROMPT, prompt, 1, options.count),
                BATCHES: partial(_sample, bus, ours, EVENTS, batch, BATCH, options.count),
                HANDLER: partial(_sample, bus, handler, PROMPT, prompt, 1, options.count),
            }
            for run in runs.values():
                await run()
            rounds = await paired(runs, options.rounds)
        unit, where = "events/s", f"{CONNECTIONS} connections, quorum"
        batches = f"{BATCHES}, {min(CONNECTIONS, options.count // BATCH)} connections, quorum"
        return [
            Row("RabbitMQ", bus.version, "version"),
            rounds.row(f"{OURS}, {where}", OURS, "rate", unit, versus=HANDLER, target="ratio >= 2"),
            rounds.row(f"{OURS}, {TRACKED}, {where}", TRACKED, "rate", unit, versus=HANDLER),
            rounds.row(batches, BATCHES, "rate", unit, versus=HANDLER, target="ratio >= 5"),
            rounds.row(f"{HANDLER}, {where}", HANDLER, "rate", unit),
            *(rounds.row(f"{name}, p50", name, "p50", "ms") for name in runs),
            *(rounds.row(f"{name}, p99", name, "p99", "ms") for name in runs),
        ]


async def _sample(bus: Broker, server: ApiServer, path: str, body: bytes, events: int, count: int) -> Sample:
    """Send `count` events, `events` a request; the queue must hold them all then."""
    requests = count // events
    result = await _load(server.port, path, body, min(CONNECTIONS, requests), requests)
    stored = await bus.drain(QUORUM)
    if stored != requests * events:
        raise RuntimeError(f"{requests * events} events were accepted, and the queue had {stored}.")
    return {"rate": requests * events / result["seconds"], "p50": result["p50_ms"], "p99": result["p99_ms"]}


async def _load(port: int, path: str, body: bytes, connections: int, requests: int) -> dict[str, Any]:
    arguments = ("-m", "bench._load", "127.0.0.1", str(port), path, str(connections), str(requests))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(body)
    if process.returncode:
        raise RuntimeError(f"The load generator ended with {process.returncode}; what it says stands above.")
    return json.loads(output)


@asynccontextmanager
async def _running(server: ApiServer | RedisServer) -> AsyncIterator[None]:
    try:
        await anyio.to_thread.run_sync(server.start)
        yield
    finally:
        await anyio.to_thread.run_sync(server.close)


if __name__ == "__main__":
    main(measure, count=1500, packages=("fastapi", "starlette", "uvicorn", "aio-pika", "pydantic"))
