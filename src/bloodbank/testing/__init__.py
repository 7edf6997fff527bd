"""For tests of programs that use Bloodbank: a bus in memory, and what can be said of what was published on it.

With pytest there is nothing to import: the plugin that comes along has the fixture `bus`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bloodbank.testing.assertions import assert_caused_by, assert_published
    from bloodbank.testing.blocking import BlockingBus
    from bloodbank.testing.bus import InMemoryBus

__all__ = ["BlockingBus", "InMemoryBus", "assert_caused_by", "assert_published"]

# Imported when they are asked for (PEP 562): pytest loads the plugin beside this in every run, also of other projects.
_HOME = {
    "BlockingBus": "blocking",
    "InMemoryBus": "bus",
    "assert_caused_by": "assertions",
    "assert_published": "assertions",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'bloodbank.testing' has no attribute {name!r}")
    value = getattr(import_module(f"bloodbank.testing.{_HOME[name]}"), name)
    globals()[name] = value
    return value
