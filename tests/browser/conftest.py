"""Servers of the explorer, and what must be there before a browser looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import AXE, BUILT
from tests.servers.api import ApiServer
from tests.servers.process import started

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One browser at a time, also in a run of several processes."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture(scope="session", autouse=True)
def built() -> None:
    """The explorer is built, and axe is there."""
    missing = [str(path) for path in (BUILT, AXE) if not path.exists()]
    if missing:
        pytest.fail(f"The explorer is not built: {', '.join(missing)}. Run `make ui`.", pytrace=False)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A server on an embedded bus that nobody has used."""
    with started(ApiServer()) as with_own_data:
        yield with_own_data
