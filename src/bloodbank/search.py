"""What a search in the log looks for: the beginning of an id, a source, a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import orjson

from bloodbank.envelope import EventEnvelope
from bloodbank.errors import InvalidQuery
from bloodbank.transports.base import LogEntry

SHORTEST_PREFIX = 4
SHORTEST_TEXT = 2
LONGEST_TEXT = 255
"""In characters, of a text and of a source."""

_PREFIX = re.compile(rf"[0-9a-f]{{{SHORTEST_PREFIX},32}}")
_MAY_BE_ESCAPED = re.compile(r'["\\/\x00-\x1f]')
"""What JSON can write in a short form. All else stands as it is, unless a body has a `\\u` in it."""


@dataclass(frozen=True, slots=True)
class Search:
    """What to look for; an event fits when it fits all that is given. Case does not matter.

    id_prefix: first 4 to 32 hexadecimal digits of the id; dashes are ignored.
    source: the whole name of the host or the application.
    text: part of any text in the event: of the payload, its source, its agent context, its type or its ids; 2 to 255
    characters. Names of fields and numbers are no text.

    Raises InvalidQuery.
    """

    id_prefix: str = ""
    source: str = ""
    text: str = ""

    def __post_init__(self) -> None:
        """Bring all of it into the form in which it is compared."""
        prefix = self.id_prefix.lower().replace("-", "")
        if self.id_prefix and not _PREFIX.fullmatch(prefix):
            raise InvalidQuery(
                f"{self.id_prefix[:80]!r} is no beginning of an event id. Give its first {SHORTEST_PREFIX} to 32 "
                "hexadecimal digits."
            )
        if self.text and not SHORTEST_TEXT <= len(self.text) <= LONGEST_TEXT:
            raise InvalidQuery(f"text must have {SHORTEST_TEXT} to {LONGEST_TEXT} characters.")
        if len(self.source) > LONGEST_TEXT:
            raise InvalidQuery(f"source must have at most {LONGEST_TEXT} characters.")
        object.__setattr__(self, "id_prefix", prefix)
        object.__setattr__(self, "source", self.source.casefold())
        object.__setattr__(self, "text", self.text.casefold())

    def __bool__(self) -> bool:
        """Whether it looks for anything."""
        return bool(self.id_prefix or self.source or self.text)

    def may_fit(self, entry: LogEntry) -> bool:
        """Say of a message as it is in the log whether its event can fit: all but the source is decided here."""
        message = entry.message
        if not message.event_id.hex.startswith(self.id_prefix):
            return False
        wanted = [text for text in (self.source, self.text) if text]
        if not wanted:
            return True
        body = _Body(message.body)
        if not all(map(body.may_hold, wanted)):
            return False
        return not self.text or body.holds(self.text)

    def fits(self, envelope: EventEnvelope[Any]) -> bool:
        """Say of the envelope of a message that `may_fit` whether it fits."""
        names = (envelope.source.host, envelope.source.app)
        return not self.source or self.source in [name.casefold() for name in names if name]


class _Body:
    """JSON in which texts are looked for. Most bodies hold none of them, and need not be parsed to see that."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._has_escapes = b"\\u" in body
        self._folded = "" if self._has_escapes else body.decode("utf-8", "replace").casefold()

    def may_hold(self, text: str) -> bool:
        """False: certainly no text of the body holds this one. text: folded."""
        return self._has_escapes or bool(_MAY_BE_ESCAPED.search(text)) or text in self._folded

    def holds(self, text: str) -> bool:
        """Say whether a text of the body holds this one. text: folded."""
        return any(text in value.casefold() for value in _texts(self._body))


def _texts(body: bytes) -> Iterator[str]:
    """Yield all texts of a JSON document but the names of its fields; none of what is no JSON."""
    try:
        waiting: list[object] = [orjson.loads(body)]
    except orjson.JSONDecodeError:
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting.extend(cast("dict[str, object]", value).values())
        elif isinstance(value, list):
            waiting.extend(cast("list[object]", value))
