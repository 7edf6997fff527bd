"""Fields of a request's head, as the server gives them: names in lower case, values in Latin-1."""

from __future__ import annotations

from starlette.types import Scope


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first field of a name, which is in lower case; None where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def headers(scope: Scope, name: bytes) -> list[str]:
    """Return every field of a name, which is in lower case, in the order sent."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
