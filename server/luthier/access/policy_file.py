"""The operator's policy file: who, by name, may do what at most, and use how much."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import structlog

from luthier.access.principal import PATTERN, Limits, Principal, Role, Scope

log = structlog.get_logger()

_LIMITS = {field.name for field in fields(Limits)}


class BadPolicy(Exception):
    """What is wrong with a policy file, a line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class Entry:
    """What is said of the principals whose names fit a pattern."""

    name: str
    role: Role | None
    models: Scope
    datasets: Scope
    limits: Limits


class PolicyFile:
    """The entries of a file, read again when it changes. Those before stay where it cannot be read."""

    def __init__(self, path: Path | None) -> None:
        """Raises BadPolicy. None: nobody is bounded by a file."""
        self._path = path
        self._stamp: Any = None
        self._last: Any = None
        self._entries: Sequence[Entry] = ()
        self.generation = 0
        """Counts the contents there were."""
        if path is not None:
            self._stamp = self._last = _stamp_of(path) if path.exists() else None
            self._load(path)

    def look(self) -> None:
        """Reads the file again where it has changed since, and is no longer being written; what is wrong is logged."""
        if self._path is None:
            return
        try:
            stamp = _stamp_of(self._path)
        except OSError:
            stamp = None
        # Half of a file would let some do more than the whole.
        settled, self._last = stamp == self._last, stamp
        if stamp == self._stamp or not settled:
            return
        self._stamp = stamp
        try:
            self._load(self._path)
        except BadPolicy as error:
            log.error("policy unreadable", path=str(self._path), why=str(error), kept=len(self._entries))
        else:
            log.info("policy read", path=str(self._path), entries=len(self._entries))

    def bound(self, principal: Principal) -> Principal:
        """A principal as the first entry that fits its name allows; as it is where none does.

        A role is the lower of the credential's and the entry's, where both name one; what is in scope is so by both.
        """
        for entry in self._entries:
            if fnmatchcase(principal.name, entry.name):
                role = principal.role
                if entry.role is not None:
                    role = min(role, entry.role) if role else entry.role
                return replace(
                    principal,
                    role=role,
                    models=principal.models.within(entry.models),
                    datasets=principal.datasets.within(entry.datasets),
                    limits=entry.limits,
                )
        return principal

    def _load(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BadPolicy([f"it cannot be read: {error.strerror}"]) from error
        except UnicodeDecodeError as error:
            raise BadPolicy(["it is not UTF-8"]) from error
        self._entries = parse(text)
        self.generation += 1


def parse(text: str) -> Sequence[Entry]:
    """The entries of a policy; raises BadPolicy with all that is wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadPolicy([f"it is no TOML: {error}"]) from error
    problems = [
        f"{key}: there is nothing of this name; entries are [[principals]]" for key in document.keys() - {"principals"}
    ]
    found = document.get("principals", [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadPolicy([*problems, "principals: entries are written as [[principals]]"])
    entries = [_entry(one, f"principals[{index}]", problems) for index, one in enumerate(found)]
    if problems:
        raise BadPolicy(problems)
    return entries


def _entry(one: Mapping[str, Any], where: str, problems: list[str]) -> Entry:
    def wrong(key: str, why: str) -> None:
        problems.append(f"{where}.{key}: {why}")

    for key in sorted(one.keys() - {"name", "role", "models", "datasets", "quotas"}):
        wrong(key, "an entry has name, role, models, datasets and quotas")
    name = one.get("name")
    if not isinstance(name, str) or not name:
        wrong("name", "a principal's name, or a pattern such as `jwt:*`")
    role = None
    if "role" in one:
        try:
            role = Role.of(str(one["role"]))
        except ValueError as error:
            wrong("role", str(error))
    scopes = {}
    for key in ("models", "datasets"):
        patterns = one.get(key, ["*"])
        if not isinstance(patterns, list) or not all(isinstance(p, str) and PATTERN.fullmatch(p) for p in patterns):
            wrong(key, 'a list of ids or patterns, such as ["shop-*"]')
            patterns = []
        scopes[key] = Scope(patterns)
    return Entry(str(name), role, scopes["models"], scopes["datasets"], _limits(one.get("quotas", {}), where, problems))


def _limits(given: Any, where: str, problems: list[str]) -> Limits:
    if not isinstance(given, dict):
        problems.append(f"{where}.quotas: a table of {', '.join(sorted(_LIMITS))}")
        return Limits()
    for key, value in given.items():
        if key not in _LIMITS:
            problems.append(f"{where}.quotas.{key}: there are {', '.join(sorted(_LIMITS))}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"{where}.quotas.{key}: a whole number from 1 on; leave it out for no limit")
    return Limits(**{key: value for key, value in given.items() if key in _LIMITS})


def _stamp_of(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
