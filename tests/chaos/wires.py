"""The wires between the processes of a run: proxies in a process of their own, so that nobody else's work delays them.

`python -m tests.chaos.wires NAME=PORT …` forwards a port of its own for each; it takes orders on its standard input and
ends with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from tests.servers.proxy import TcpProxy

ROOT = Path(__file__).resolve().parents[2]
ANSWER_SECONDS = 20.0


class Wires:
    """The process, as its owner sees it.

    targets: ports by name. ports: by name; connect there instead.
    """

    def __init__(self, targets: Mapping[str, int]) -> None:
        self._targets = targets
        self.ports: dict[str, int] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.wires",
            *[f"{name}={port}" for name, port in self._targets.items()],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        )
        self.ports = await self._answer()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), ANSWER_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def order(self, name: str, what: str, **arguments: Any) -> None:
        """Have a method of a proxy called: cut, refuse, accept, stall, resume."""
        assert self._process is not None
        assert self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write(orjson.dumps([name, what, arguments]) + b"\n")
            await self._answer()

    async def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(ANSWER_SECONDS):
            return orjson.loads(await self._process.stdout.readline())


async def _serve(targets: Mapping[str, int]) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with AsyncExitStack() as stack:
        proxies = {name: await stack.enter_async_context(TcpProxy(port)) for name, port in targets.items()}
        _say({name: proxy.port for name, proxy in proxies.items()})
        while line := await reader.readline():
            name, what, arguments = orjson.loads(line)
            pending = getattr(proxies[name], what)(**arguments)
            if pending is not None:
                await pending
            _say("done")


def _say(answer: object) -> None:
    os.write(1, orjson.dumps(answer) + b"\n")


if __name__ == "__main__":
    asyncio.run(_serve({name: int(port) for name, _, port in (word.partition("=") for word in sys.argv[1:])}))
