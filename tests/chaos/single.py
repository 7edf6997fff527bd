"""One broker and one Redis, with wires that can be broken and a disk that can be filled."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from tests.chaos.disk import SmallDisk
from tests.chaos.faults import Fault, Kind
from tests.chaos.stage import Stage
from tests.chaos.wires import Wires
from tests.servers.process import Server
from tests.servers.rabbit import RabbitServer
from tests.servers.redis import RedisServer

SMALL_DISK_MEGABYTES, SMALL_OUTBOX_BYTES = 24, 6_000_000
"""An outbox that may take its whole disk could not be emptied again: SQLite needs room to delete."""
BROKER_WIRES, REDIS_WIRE = ("shared", "small", "server"), "redis"


class SingleStage(Stage):
    """See `Stage`. Publishers and server reach the broker by wires, and two publishers reach Redis by one."""

    def __init__(self, folder: Path, *, seed: int, rate: float) -> None:
        super().__init__(folder, seed=seed, rate=rate)
        self.disk = SmallDisk(folder / "small-disk", megabytes=SMALL_DISK_MEGABYTES)
        self.rabbit = RabbitServer()
        self.redis = RedisServer()
        targets = dict.fromkeys(BROKER_WIRES, self.rabbit.port)
        self.wires = Wires(targets | {REDIS_WIRE: self.redis.port})

    @property
    def rabbit_url(self) -> str:
        return self.rabbit.url

    @property
    def redis_url(self) -> str:
        return self.redis.url

    @property
    def servers(self) -> Sequence[Server]:
        return self.rabbit, self.redis

    async def _open_bus(self) -> None:
        self._stack.enter_context(self.disk)
        for server in self.servers:
            self._stack.push_async_callback(asyncio.to_thread, server.close)
        await asyncio.gather(*[asyncio.to_thread(server.start) for server in self.servers])
        await self._stack.enter_async_context(self.wires)

    def _settings_of(self, name: str) -> dict[str, str]:
        ports = self.wires.ports
        settings = super()._settings_of(name)
        wire = {"sdk-c": "small", "server": "server"}.get(name, "shared")
        settings["RABBIT_URL"] = f"amqp://guest:guest@127.0.0.1:{ports[wire]}/"
        if wire == "shared":
            settings["REDIS_URL"] = f"redis://127.0.0.1:{ports[REDIS_WIRE]}/0"
            settings["BLOODBANK_DATA_DIR"] = str(self.folder / "shared")
        elif wire == "small":
            settings["BLOODBANK_DATA_DIR"] = str(self.disk.folder)
            settings["BLOODBANK_OUTBOX_LIMIT_BYTES"] = str(SMALL_OUTBOX_BYTES)
        return settings

    def _injections(self) -> dict[Kind, Callable[[Fault], Awaitable[None]]]:
        return super()._injections() | {
            Kind.BROKER_KILLED: self._kill_broker,
            Kind.BROKER_FROZEN: self._freeze_broker,
            Kind.BROKER_FULL: self._fill_broker,
            Kind.WIRES_CUT: self._cut_wires,
            Kind.WIRES_HALF_OPEN: self._stall_wires,
            Kind.DISK_FULL: self._fill_disk,
            Kind.REDIS_KILLED: self._kill_redis,
            Kind.REDIS_FROZEN: self._freeze_redis,
            Kind.REDIS_HALF_OPEN: self._stall_redis,
            Kind.REDIS_EMPTIED: self._empty_redis,
        }

    async def _kill_broker(self, fault: Fault) -> None:
        await asyncio.to_thread(self.rabbit.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.rabbit.start)

    async def _freeze_broker(self, fault: Fault) -> None:
        self.rabbit.freeze()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self.rabbit.thaw()

    async def _fill_broker(self, fault: Fault) -> None:
        mark = "vm_memory_high_watermark"
        await asyncio.to_thread(self.rabbit.ctl, f"set_{mark}", "absolute", "1")
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await asyncio.to_thread(self.rabbit.ctl, f"set_{mark}", "0.4")

    async def _cut_wires(self, fault: Fault) -> None:
        deadline = time.monotonic() + fault.seconds
        while time.monotonic() < deadline:
            for wire in self._some_wires(fault):
                await self.wires.order(wire, "cut")
            await asyncio.sleep(0.1 + fault.chance / 2)

    async def _stall_wires(self, fault: Fault) -> None:
        wires = self._some_wires(fault)
        for wire in wires:
            await self.wires.order(wire, "stall", replies_only=fault.chance < 0.6)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            for wire in wires:
                # Either the network comes back, or the connections turn out to be gone.
                if int(fault.chance * 1000) % 2:
                    await self.wires.order(wire, "cut")
                await self.wires.order(wire, "resume")

    async def _fill_disk(self, fault: Fault) -> None:
        order = partial(self.wires.order, "small")
        await order("refuse")
        await order("cut")
        await asyncio.sleep(fault.seconds / 4)
        await asyncio.to_thread(self.disk.fill)
        try:
            await asyncio.sleep(fault.seconds)
            if fault.chance < 0.5:
                await order("accept")
                await asyncio.sleep(fault.seconds / 4)
        finally:
            await asyncio.to_thread(self.disk.empty)
            await order("accept")

    async def _kill_redis(self, fault: Fault) -> None:
        await asyncio.to_thread(self.redis.kill)
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.redis.start)

    async def _freeze_redis(self, fault: Fault) -> None:
        self.redis.freeze()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self.redis.thaw()

    async def _stall_redis(self, fault: Fault) -> None:
        await self.wires.order(REDIS_WIRE, "stall", replies_only=fault.chance < 0.5)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            await self.wires.order(REDIS_WIRE, "cut")
            await self.wires.order(REDIS_WIRE, "resume")

    async def _empty_redis(self, fault: Fault) -> None:
        await asyncio.to_thread(self.redis.kill)
        for path in self.redis.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix == ".rdb":
                path.unlink()
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(self.redis.start)
        await asyncio.to_thread(self.reindex)

    def _some_wires(self, fault: Fault) -> list[str]:
        """Return all wires to the broker, or every one but one."""
        left_out = int(fault.chance * 2 * len(BROKER_WIRES))
        return [wire for place, wire in enumerate(BROKER_WIRES) if place != left_out]
