"""Pages of a listing: opaque tokens that hold the key of the last row."""

from __future__ import annotations

import base64
import json
from typing import Any

from luthier.errors import InvalidArgument

DEFAULT = 100
LARGEST = 1000


def size_of(page_size: int) -> int:
    """The number of rows to give; raises InvalidArgument where it is negative."""
    if page_size < 0:
        raise InvalidArgument({"page_size": f"{page_size} is negative"})
    return min(page_size or DEFAULT, LARGEST)


def key_of(page_token: str) -> list[Any] | None:
    """The key in a token, None for the first page; raises InvalidArgument for a token that was not given out."""
    if not page_token:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(page_token.encode()))
    except ValueError:
        key = None
    if not isinstance(key, list):
        raise InvalidArgument({"page_token": "it does not come from an earlier answer"})
    return key


def token_of(*key: Any) -> str:
    """The token for what follows the row with this key."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()
