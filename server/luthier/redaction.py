"""Secrets that this process knows, kept out of what it says: log lines, and errors that callers see."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

STARS = "***"
_LEAST = 8
"""Characters of a secret that can be looked for. A shorter one would blank out words."""
_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY", re.IGNORECASE)
"""What the names of environment variables that hold a secret have in them."""
_OF_URL = re.compile(r"(?<=://)([^\s:/@]*):([^\s/@]+)@")
_OF_CALLERS = re.compile(r"(?<=\bBearer )[A-Za-z0-9._~+/=-]{16,}|\beyJ[\w-]+\.[\w-]+\.[\w-]*", re.IGNORECASE)
"""Tokens that callers show, among them JWT."""


class Redaction:
    """Replaces secrets in texts: those of the environment by their values, others by their form."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # What begins like a path is where a secret is, and is not it.
        named = (value for name, value in environment.items() if _NAMES.search(name) and value[:1] != "/")
        self._secrets = set(named) | {secret for value in environment.values() for secret in _in_urls(value)}
        self._known = self._compiled()

    def learn(self, setting: str) -> None:
        """Adds the password in a URL, if there is one."""
        self._secrets |= set(_in_urls(setting))
        self._known = self._compiled()

    def _compiled(self) -> re.Pattern[str] | None:
        longest_first = sorted((secret for secret in self._secrets if len(secret) >= _LEAST), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        if self._known is not None:
            text = self._known.sub(STARS, text)
        if "://" in text:
            text = _OF_URL.sub(rf"\1:{STARS}@", text)
        return _OF_CALLERS.sub(STARS, text)


def _in_urls(text: str) -> list[str]:
    """Passwords, as they stand and as they are meant."""
    found = [match[2] for match in _OF_URL.finditer(text)]
    return [*found, *map(unquote, found)]


redact = Redaction(os.environ)
"""Of this process's environment as it was when it began."""
