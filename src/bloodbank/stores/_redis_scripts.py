"""The scripts that run in Redis: files of `lua/`, some of which begin with parts that they share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Self


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the SHA-1 that Redis knows it by."""

    text: str
    sha: str

    @classmethod
    def load(cls, *names: str) -> Self:
        """Read files of `lua/`, one after the other, as one script."""
        folder = resources.files("bloodbank.stores").joinpath("lua")
        text = "\n".join(folder.joinpath(name).read_text("utf-8") for name in names)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


READ = Script.load("read.lua")
CLAIM = Script.load("claim.lua")
RELEASE = Script.load("release.lua")
RECORD = Script.load("one_server.lua", "generations.lua", "names.lua", "children.lua", "record.lua")
FORGET = Script.load("remove_child.lua", "forget.lua")

RECORD_EDGES = Script.load("shard.lua", "generations.lua", "children.lua", "record_edges.lua")
RECORD_EVENTS = Script.load("shard.lua", "generations.lua", "names.lua", "record_events.lua")
FORGET_EDGES = Script.load("remove_child.lua", "forget_edges.lua")
