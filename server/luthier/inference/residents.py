"""The versions in memory: what each took, and which go where memory is short."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from luthier.errors import LuthierError, ResourceExhausted
from luthier.inference import memory
from luthier.inference.served import Served
from luthier.task import MODEL_FILE
from luthier.v1.model_pb2 import ModelVersion

log = structlog.get_logger()

Key = tuple[str, int]
"""A model and the number of a version."""

OPENING = 2.5
"""Memory that opening a graph takes for a moment, in sizes of its file: the bytes, the arrays made of them, and those
rearranged for the processor. 1.5 to 2.4 were measured (onnxruntime 1.32), by how much of it is one table."""
BESIDE = 4
"""Memory that a codec takes, in sizes of its files; a guess, until the version was loaded once."""
UNALIASED = 4
"""Versions without an alias that stay, where memory has no budget, after somebody asked for them by number."""
WAIT_S = 10.0
"""How long calls in flight may hold on to a version whose memory somebody waits for."""


@dataclass(frozen=True)
class Loaded:
    """A version in memory, as others are told of it."""

    name: str
    memory_bytes: int
    """What its load took."""


@dataclass
class Resident:
    """A version in memory."""

    served: Served
    memory_bytes: int
    """What loading it took and it keeps; what calls take on top is not counted."""
    asked: bool
    """Whether somebody asked for the version itself, not for an alias of it."""
    used: float
    """When it was found last, by the monotonic clock."""


class Residents:
    """Versions by model and number. All but `get` and `loaded` is for whoever holds the pool's lock."""

    def __init__(self, open: Callable[[ModelVersion], Served], budget_bytes: int) -> None:
        """`budget_bytes` is for all that the process holds; 0: no limit. Raises FailedPrecondition where the system
        does not tell what that is."""
        self._open = open
        self._budget = budget_bytes
        self._base = memory.resident_bytes() if budget_bytes else 0
        self._residents: dict[Key, Resident] = {}
        self._took: dict[Key, int] = {}

    def __iter__(self) -> Iterator[Key]:
        """The keys, those first that were used longest ago."""
        return iter(sorted(self._residents, key=lambda key: self._residents[key].used))

    def get(self, key: Key) -> Resident | None:
        """A version, if it is in memory. May be called at any time."""
        return self._residents.get(key)

    def loaded(self) -> list[Loaded]:
        """What is in memory, in the order of names. May be called at any time."""
        found = [Loaded(one.served.name, one.memory_bytes) for one in list(self._residents.values())]
        return sorted(found, key=lambda one: one.name)

    def fits(self, version: ModelVersion, key: Key) -> bool:
        """Whether it can be loaded beside all that is there, with what its load may take for a moment."""
        return not self._budget or not self._is_over(self._needed(version, key))

    def make_room(self, version: ModelVersion, key: Key, keep: Container[Key] = ()) -> bool:
        """Drops what was used longest ago until a version fits, or it would be alone.

        False where it does not fit unless those of `keep` go too, or calls in flight hold what was dropped. Raises
        ResourceExhausted where its graph alone is too large for the budget.
        """
        if self._budget and self._base + (least := _graph_bytes(version)) > self._budget:
            raise ResourceExhausted(
                f"{version.name} takes {_mb(least)} MB at least and the server {_mb(self._base)} MB by itself, "
                f"more than its serve_memory_mb of {_mb(self._budget)}"
            )
        while not self.fits(version, key):
            victim = next((one for one in self if one not in keep), None)
            if victim is None:
                # What a load takes for a moment is a cautious guess. Alone in the process, it is tried.
                return not self._residents
            if not self.drop(victim, "memory", WAIT_S):
                return False
        return True

    def load(self, version: ModelVersion, key: Key, *, asked: bool) -> Resident:
        """Loads a version, for which others may have to go.

        Raises ResourceExhausted where there is no room for it, and what `Opener.open` raises.
        """
        if not self.make_room(version, key):
            raise ResourceExhausted(f"calls in flight hold the memory that {version.name} needs", retry_s=1.0)
        before = memory.anonymous_bytes()
        self._add(key, self._open(version), asked=asked)
        memory.trim()
        self._measured(key, memory.anonymous_bytes() - before)
        if not self.keep_within(key):
            took = self._took[key]
            self.drop(key, "memory", WAIT_S)
            raise ResourceExhausted(
                f"{version.name} took {_mb(took)} MB, with which the server is over its serve_memory_mb of "
                f"{_mb(self._budget)}"
            )
        return self._residents[key]

    def load_together(self, versions: Mapping[Key, ModelVersion]) -> dict[Key, LuthierError]:
        """Loads versions side by side, and returns why some could not be: half of the work leaves the interpreter free.

        What they took together is divided by the sizes of their files.
        """
        failed: dict[Key, LuthierError] = {}

        def attempt(key: Key) -> None:
            try:
                self._add(key, self._open(versions[key]), asked=False)
            except LuthierError as error:
                failed[key] = error

        before = memory.anonymous_bytes()
        with ThreadPoolExecutor(max_workers=4) as loaders:
            list(loaders.map(attempt, versions))
        memory.trim()
        took = memory.anonymous_bytes() - before
        sizes = {key: sum(file.size_bytes for file in versions[key].files) for key in versions.keys() - failed.keys()}
        for key, size in sizes.items():
            self._measured(key, took * size // max(sum(sizes.values()), 1))
        return failed

    def drop(self, key: Key, why: str, wait_s: float = 0.0) -> bool:
        """Forgets a version. Its memory is given back when the last call that uses it has ended.

        Returns whether that was so within `wait_s` seconds.
        """
        name, predictor = self._residents[key].served.name, weakref.ref(self._residents.pop(key).served.predictor)
        log.info("version unloaded", version=name, why=why)
        given_back = memory.trim_after(predictor)
        given_back.join(wait_s)
        return not given_back.is_alive()

    def keep_within(self, *keep: Key) -> bool:
        """Drops others until the process holds no more than its budget; returns whether it does then."""
        while self._budget and self._is_over():
            victim = next((one for one in self if one not in keep), None)
            if victim is None or not self.drop(victim, "memory", WAIT_S):
                return False
        return True

    def keep_only(self, aliased: Collection[Key], known: Container[Key]) -> None:
        """Drops what no name leads to any more: neither an alias nor, of those still known, somebody who asked for the
        version itself. Where there is no budget, of the latter only the last UNALIASED stay."""
        spare = [key for key in self if key not in aliased]
        asked = [key for key in spare if key in known and self._residents[key].asked]
        kept = asked if self._budget else asked[-UNALIASED:]
        for key in spare:
            if key not in kept:
                self.drop(key, "no alias")

    def _add(self, key: Key, served: Served, *, asked: bool) -> None:
        self._residents[key] = Resident(served, 0, asked, time.monotonic())

    def _measured(self, key: Key, took: int) -> None:
        self._residents[key].memory_bytes = self._took[key] = max(took, 0)
        log.info("version loaded", version=self._residents[key].served.name, memory_mb=_mb(self._took[key]))

    def _needed(self, version: ModelVersion, key: Key) -> int:
        """Memory that loading a version may take for a moment."""
        graph = _graph_bytes(version)
        # A folder in a bundle is for later fine-tunes.
        others = sum(file.size_bytes for file in version.files if file.path != MODEL_FILE and "/" not in file.path)
        return int(max(OPENING * graph + BESIDE * others, self._took.get(key, 0) + (OPENING - 1) * graph))

    def _is_over(self, more: int = 0) -> bool:
        if memory.resident_bytes() + more <= self._budget:
            return False
        memory.trim()
        return memory.resident_bytes() + more > self._budget


def _graph_bytes(version: ModelVersion) -> int:
    return sum(file.size_bytes for file in version.files if file.path == MODEL_FILE)


def _mb(size: int) -> int:
    return round(size / 2**20)
