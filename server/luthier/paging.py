"""Pages of a listing: opaque tokens that hold the key of the last row."""

from __future__ import annotations

import base64
import json
from typing import Any

from luthier.errors import InvalidArgument

DEFAULT = 100
LARGEST = 1000
_MOST = 2**40
"""Beyond all numbers of rows, and all times in seconds."""


def size_of(page_size: int) -> int:
    """The number of rows to give; raises InvalidArgument where it is negative."""
    if page_size < 0:
        raise InvalidArgument({"page_size": f"{page_size} is negative"})
    return min(page_size or DEFAULT, LARGEST)


def key_of(page_token: str, *kinds: type[int | float | str]) -> list[Any] | None:
    """The key in a token, of parts of these kinds; None for the first page.

    Raises InvalidArgument for a token that was not given out: it is a stranger's word, whatever it looks like.
    """
    if not page_token:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(page_token.encode()))
    # Of nested lists the parser raises RecursionError.
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, list) or [type(part) for part in key] != list(kinds) or not all(map(_is_sane, key)):
        raise InvalidArgument({"page_token": "it does not come from an earlier answer"})
    return key


def _is_sane(part: float | str) -> bool:
    """Whether a database takes it."""
    return part.isprintable() if isinstance(part, str) else 0 <= part < _MOST


def token_of(*key: Any) -> str:
    """The token for what follows the row with this key."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()
