"""Runs the Python blocks of one Markdown file, in order and in one namespace, as the asyncio REPL would.

`python -m tests.docs.runner FILE`, in a folder of one's own. A traceback names the line of the Markdown file.
Blocks that need RabbitMQ see RABBIT_URL; it comes from TEST_RABBIT_URL. A `text` block noted as output is
compared with what the Python block before it printed.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import linecache
import os
import sys
import types
from pathlib import Path

from tests.docs.markdown import Block, blocks

RABBIT = "needs rabbit"
OUTPUT = "output"


async def run(path: Path) -> int:
    """Run the blocks; return how many were executed. Raises what a block raises unexpectedly."""
    # A module that can be found by its name: dataclasses, pydantic and pickles look there. A page's programs are what
    # is run, so that what stands under `if __name__ == "__main__":` runs too.
    module = types.ModuleType("__main__")
    sys.modules[module.__name__] = module
    count = 0
    printed = ""
    for block in blocks(path):
        if block.note == OUTPUT and printed != block.text:
            raise AssertionError(f"{block.place}: the page shows another output than\n{printed}")
        if block.language != "python" or block.reason_not_to_run or block.file:
            continue
        os.environ.pop("RABBIT_URL", None)
        if block.note == RABBIT:
            os.environ["RABBIT_URL"] = os.environ["TEST_RABBIT_URL"]
        with contextlib.redirect_stdout(io.StringIO()) as output:
            await _execute(block, module)
        printed = output.getvalue()
        count += 1
    return count


async def _execute(block: Block, module: types.ModuleType) -> None:
    # Empty lines in front make line numbers those of the Markdown file.
    source = "\n" * (block.line - 1) + block.text
    linecache.cache[block.place] = (len(source), None, source.splitlines(keepends=True), block.place)
    code = compile(source, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    function = types.FunctionType(code, vars(module))
    try:
        if code.co_flags & inspect.CO_COROUTINE:
            await function()
        else:
            # In a thread there is no running loop, so that a script may call asyncio.run.
            await asyncio.to_thread(function)
    except Exception as error:
        if type(error).__name__ != block.expected_error:
            raise
        print(f"{block.place}: {type(error).__name__}: {error}")
    else:
        if block.expected_error:
            raise AssertionError(f"{block.place}: the block should raise {block.expected_error}")


if __name__ == "__main__":
    print(asyncio.run(run(Path(sys.argv[1]))), "blocks executed")
