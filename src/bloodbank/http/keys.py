"""API keys and what each may do."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256

from bloodbank.config import Scope


class KeyRing:
    """The keys of the settings, kept as digests. An empty ring is false."""

    def __init__(self, keys: Mapping[str, frozenset[Scope]]) -> None:
        self._entries = [(sha256(key.encode()).digest(), scopes) for key, scopes in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._entries)

    def scopes_of(self, key: bytes) -> frozenset[Scope] | None:
        """Return what a key may do, or None for a wrong one, in a time that does not depend on the key."""
        presented = sha256(key).digest()
        found: frozenset[Scope] | None = None
        for digest, scopes in self._entries:
            if hmac.compare_digest(digest, presented):
                found = scopes
        return found
