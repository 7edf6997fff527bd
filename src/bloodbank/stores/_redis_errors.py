"""What the exceptions of the Redis driver mean, in words that say what to do."""

from __future__ import annotations

from collections.abc import Mapping

from redis.exceptions import (
    AskError,
    ClusterDownError,
    ClusterError,
    MovedError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)

from bloodbank.errors import BloodbankError, StoreFormatError, StoreUnavailable

DRIVER_ERRORS = (RedisError, RedisClusterException, OSError)

_UNREACHABLE = "cannot be reached: {detail}. Start it, or correct REDIS_URL or REDIS_HOST and REDIS_PORT"
_CREDENTIALS = "refuses the credentials. Correct REDIS_PASSWORD, or the user and password in REDIS_URL"
_FORBIDDEN = "does not let this user run what the index needs: {detail}. Allow it to read, write and run scripts"
_FULL = "is out of memory. Give it more (maxmemory), or shorten CORRELATION_TTL_DAYS"
_BUSY = "cannot answer now: {detail}. It will when that is over"
_READ_ONLY = "is a replica, which takes no writes. Point REDIS_URL at the primary"
_CLUSTER = "is part of a Redis Cluster: {detail}. Begin REDIS_URL with redis+cluster://"
_REFUSED = "did not do what was asked: {detail}"

MEANINGS: Mapping[str, str] = {
    name: meaning
    for meaning, names in {
        _UNREACHABLE: ("OSError", "ConnectionError", "TimeoutError"),
        _CREDENTIALS: (
            "AuthenticationError",
            "AuthenticationWrongNumberOfArgsError",
            "AuthorizationError",
            "ExternalAuthProviderError",
        ),
        _FORBIDDEN: ("NoPermissionError",),
        _FULL: ("OutOfMemoryError",),
        _BUSY: ("BusyLoadingError", "MasterDownError", "MaxConnectionsError", "TryAgainError"),
        _READ_ONLY: ("ReadOnlyError",),
        _CLUSTER: (
            "AskError",
            "ClusterCrossSlotError",
            "ClusterDownError",
            "ClusterError",
            "CrossSlotTransactionError",
            "InvalidPipelineStack",
            "MovedError",
            "RedisClusterException",
            "SlotNotCoveredError",
        ),
        _REFUSED: (
            "DataError",
            "ExecAbortError",
            "InvalidResponse",
            "LockError",
            "LockNotOwnedError",
            "ModuleError",
            "NoScriptError",
            "NoSuchFieldsetError",
            "PubSubError",
            "RedisError",
            "ResponseError",
            "WatchError",
        ),
    }.items()
    for name in names
}
"""What each class of the driver's exceptions means, by name, since not every version of it has them all."""


def store_error(error: Exception, address: str) -> BloodbankError:
    """Return our error for one of the driver's. `address`: without credentials."""
    detail = str(error)[:200].rstrip(".") or "no answer in time"
    if detail.startswith("WRONGTYPE"):
        return StoreFormatError(
            f"Redis at {address} keeps something else under the keys of the index. Nothing was changed. Set "
            "BLOODBANK_REDIS_PREFIX to a name that nothing else uses."
        )
    meaning = next(MEANINGS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in MEANINGS)
    return StoreUnavailable(
        f"Redis at {address} {meaning.format(detail=detail)}. Published events are safe in the log."
    )


_NO_CLUSTER = "is no Redis Cluster. Begin REDIS_URL with redis://, or with redis+sentinel:// for Sentinels"
_CHANGING = "cannot answer now: {detail}. It will when a failover, or the moving of slots, is over"
_CHANGES = (AskError, ClusterDownError, ClusterError, MovedError, SlotNotCoveredError, TryAgainError)
_ELSEWHERE = "non local key"
"""What a script says that met a key which was moved to another node already."""


def cluster_error(error: Exception, address: str) -> BloodbankError:
    """Return our error for one of the driver's that came from a cluster. `address`: without credentials."""
    detail = str(error)[:200].rstrip(".")
    if "Cluster mode is not enabled" in detail:
        meaning = _NO_CLUSTER
    elif isinstance(error, _CHANGES) or _ELSEWHERE in detail:
        meaning = _CHANGING
    elif isinstance(error, RedisClusterException):
        meaning = _UNREACHABLE
    else:
        return store_error(error, address)
    return StoreUnavailable(
        f"Redis at {address} {meaning.format(detail=detail or type(error).__name__)}. Published events are safe in "
        "the log."
    )
