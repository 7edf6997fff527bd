"""Places in lists, as text that callers hand back as it is."""

from __future__ import annotations

import base64
import binascii

from bloodbank.errors import InvalidQuery

LONGEST_CURSOR = 32
LARGEST_POSITION = 2**53


def cursor_of(position: int) -> str:
    """Return the cursor that stands for a position in a list."""
    return base64.urlsafe_b64encode(b"%d" % position).rstrip(b"=").decode()


def position_of(cursor: str, *, lowest: int = 0) -> int:
    """Return the position, `lowest` or above, that a cursor stands for. Raises InvalidQuery."""
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position = int(text) if text.removeprefix(b"-").isdigit() else lowest - 1
    except (UnicodeEncodeError, binascii.Error):
        position = lowest - 1
    if not lowest <= position <= LARGEST_POSITION:
        raise InvalidQuery("The cursor is broken. Use the `next` of a page as it is, or leave it out to begin anew.")
    return position
