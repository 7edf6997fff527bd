"""What the tests take for a blocking call of ours on the event loop, and what not."""

from __future__ import annotations

from functools import partial
from threading import Lock
from types import SimpleNamespace
from typing import cast

import pytest
from blockbuster import BlockingError
from coverage.collector import Collector

from bloodbank.causation import bound


async def test_a_lock_that_we_wait_for_on_the_loop_is_found() -> None:
    lock = Lock()
    with lock, pytest.raises(BlockingError, match="acquire"):
        bound(partial(lock.acquire, timeout=0.01))()


async def test_the_lock_that_coverage_takes_within_our_lines_is_not_ours() -> None:
    lock = Lock()
    # Its wait ends here, since nobody lets go of the lock.
    collector = SimpleNamespace(data_lock=SimpleNamespace(acquire=partial(lock.acquire, timeout=0.01)))
    with lock:
        bound(Collector.lock_data)(cast("Collector", collector))
