"""The models that this process serves, kept in step with the aliases in the database."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from luthier import names
from luthier.errors import FailedPrecondition, LuthierError, NotFound, ResourceExhausted, StoreUnavailable
from luthier.inference import memory
from luthier.inference.lanes import Cores
from luthier.inference.opening import Opener
from luthier.inference.residents import WAIT_S, Key, Loaded, Resident, Residents
from luthier.inference.served import Served
from luthier.names import ModelReference
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.rollouts import Policy, Split
from luthier.store import Store
from luthier.telemetry.meters import Meters
from luthier.v1.model_pb2 import ModelVersion

log = structlog.get_logger()

LOOK_S = 1.0
"""Seconds between looks at what the process holds: calls take memory too."""


@dataclass(frozen=True)
class _Snapshot:
    """What can be asked for at one moment. Readers take the whole of it by one reference, without a lock."""

    revision: int
    aliases: Mapping[tuple[str, str], Key | LuthierError]
    versions: Mapping[Key, ModelVersion]
    policies: Mapping[tuple[str, str], Policy] = field(default_factory=dict)

    def key(self, wanted: ModelReference) -> Key:
        """The version that a name means; raises NotFound, or why an alias has none that can be served."""
        if wanted.number:
            if (wanted.model, wanted.number) not in self.versions:
                raise NotFound(names.model_version(wanted.model, wanted.number), _hint(self, wanted.model))
            return wanted.model, wanted.number
        found = self.aliases.get((wanted.model, wanted.alias))
        if found is None:
            raise NotFound(f"models/{wanted.model}/aliases/{wanted.alias}", _hint(self, wanted.model))
        if isinstance(found, LuthierError):
            raise found.with_traceback(None)
        return found


class ModelPool:
    """Finds the model that a prediction names, and loads it where it is not in memory.

    A version is loaded before an alias moves to it. Where memory has a budget, that holds for aliases whose models are
    in memory; others are loaded when they are first asked for.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        plugins: Plugins,
        meters: Meters,
        cores: Cores,
        *,
        device: str,
        most_waiting: int,
        memory_mb: int = 0,
        policies: Callable[[], Mapping[tuple[str, str], Policy]] = dict,
    ) -> None:
        """`memory_mb` is for all that the process holds; 0: no limit. `policies` reads those of the database.

        Raises FailedPrecondition where no model could compute on the device, or memory is short without any.
        """
        self._registry = registry
        self._policies = policies
        self._threads = cores.threads
        self._budget = memory_mb * 2**20
        serve = partial(Served, cores=cores, most_waiting=most_waiting)
        opener = Opener(store, plugins, meters, device, cores.count, serve)
        self._residents = Residents(opener.open, self._budget)
        self._snapshot = _Snapshot(0, {}, {})
        self._loading = threading.Lock()
        self._unloaded: frozenset[Key] = frozenset()
        """Versions that an operator took out of memory."""
        self._failed: dict[Key, tuple[float, LuthierError]] = {}
        """Why a version could not be loaded, and until when that is believed."""
        self._closed = threading.Event()
        if self._budget:
            if self._budget <= (held := memory.resident_bytes()):
                raise FailedPrecondition(
                    f"serve_memory_mb is {memory_mb}, and the server holds {held // 2**20} MB without any model"
                )
            threading.Thread(target=self._watch, name="memory-budget", daemon=True).start()

    def get(self, name: str) -> Served:
        """The model for `beer`, `beer@alias` or `beer/3`. Waits where it has first to be loaded.

        Raises NotFound, or why it cannot be served.
        """
        return self.route(name)[0]

    def route(self, name: str) -> tuple[Served, Policy | None]:
        """The same, with what is special about the calls of the alias that the name means."""
        wanted = names.parse_model(name)
        key = self._find(wanted)
        found = self._residents.get(key)
        if found is None:
            self._check(key)
            # A call that waits leaves its turn to those whose models are in memory.
            with self._threads.aside(), self._loading:
                # Asked again: an alias may have moved meanwhile.
                found = self._load(self._snapshot.key(wanted), asked=bool(wanted.number))
        found.used = time.monotonic()
        policy = None if wanted.number else self._snapshot.policies.get((wanted.model, wanted.alias))
        return found.served, policy

    def splits(self) -> list[Split]:
        """The rollouts under way."""
        return [policy.split for policy in self._snapshot.policies.values() if policy.split]

    def load(self, name: str) -> Served:
        """Loads what a name as in `get` means now, also where it was unloaded or could not be loaded before.

        Raises NotFound, or why it cannot be served.
        """
        wanted = names.parse_model(name)
        self._find(wanted)
        with self._threads.aside(), self._loading:
            key = self._snapshot.key(wanted)
            self._unloaded -= {key}
            self._failed.pop(key, None)
            return self._load(key, asked=bool(wanted.number)).served

    def unload(self, name: str) -> None:
        """Takes what a name as in `get` means now out of this process's memory, until `load`, or until an alias is
        pointed at it anew. Calls for it raise FailedPrecondition meanwhile.

        Returns when its memory has been given back, or after WAIT_S seconds where calls in flight still use it. Raises
        NotFound.
        """
        wanted = names.parse_model(name)
        self._find(wanted)
        with self._threads.aside(), self._loading:
            key = self._snapshot.key(wanted)
            self._unloaded |= {key}
            if self._residents.get(key):
                self._residents.drop(key, "asked", WAIT_S)

    def loaded(self) -> list[Loaded]:
        """The versions in memory, in the order of their names."""
        return self._residents.loaded()

    def served(self) -> list[Served]:
        """The versions in memory, ready to predict, in the order of their names."""
        found = (self._residents.get(key) for key in sorted(self._residents))
        return [resident.served for resident in found if resident]

    def index(self) -> dict[Key, str]:
        """Every version, with why this process does not answer for it; empty where it does, if by loading it first."""
        found = {}
        for key in sorted(self._snapshot.versions):
            try:
                if self._residents.get(key) is None:
                    self._check(key)
            except LuthierError as error:
                found[key] = error.message
            else:
                found[key] = ""
        return found

    def refresh(self) -> None:
        """Loads what aliases newly point at, then moves them all at once. Called when the database says that models
        changed. A version that cannot be loaded leaves its alias where it was, and is logged.

        Raises StoreUnavailable, after all that could be done, where another try may load one.
        """
        with self._loading:
            revision, pointers, versions = self._registry.served()
            policies = self._policies()
            former = self._snapshot.aliases
            targets: dict[tuple[str, str], Key] = {alias: (alias[0], number) for alias, number in pointers.items()}
            moved = {target for alias, target in targets.items() if former.get(alias) != target}
            self._unloaded = (self._unloaded & versions.keys()) - moved
            self._failed.clear()
            beside = _beside(policies.values()) & versions.keys()
            failed = self._load_ahead(targets, beside, versions)
            for key, error in failed.items():
                log.error("version cannot be served", version=versions[key].name, why=error.message)
                _bare(error)
            aliases: dict[tuple[str, str], Key | LuthierError] = {}
            for alias, target in targets.items():
                before = former.get(alias)
                # What cannot be loaded leaves its alias where it was.
                stays = before if isinstance(before, tuple) else failed.get(target, target)
                aliases[alias] = stays if target in failed else target
            settled = {alias: _settled(policy, failed) for alias, policy in policies.items()}
            self._snapshot = _Snapshot(revision, aliases, versions, settled)
            self._tidy()
            if away := [error for error in failed.values() if isinstance(error, StoreUnavailable)]:
                raise away[0]

    def close(self) -> None:
        """Ends the watch over the budget."""
        self._closed.set()

    def _find(self, wanted: ModelReference) -> Key:
        try:
            return self._snapshot.key(wanted)
        except NotFound:
            # Whoever has just been told of a version may ask for it before the next look at the database.
            if self._registry.models_revision() == self._snapshot.revision:
                raise
            self.refresh()
            return self._snapshot.key(wanted)

    def _check(self, key: Key) -> None:
        """Raises why a version is not to be loaded, where that is known."""
        if key in self._unloaded:
            raise FailedPrecondition(
                f"{names.model_version(*key)} was unloaded from this server; RepositoryModelLoad loads it again, "
                "and so does pointing an alias at it"
            )
        until, known = self._failed.get(key, (-math.inf, None))
        if known and time.monotonic() < until:
            raise known.with_traceback(None)

    def _load(self, key: Key, *, asked: bool) -> Resident:
        """A version that is in memory then. Of those who wait for the same, the first loads it."""
        if found := self._residents.get(key):
            return found
        self._check(key)
        version = self._snapshot.versions.get(key)
        if version is None:
            raise NotFound(names.model_version(*key))
        try:
            found = self._residents.load(version, key, asked=asked)
        except LuthierError as error:
            log.error("version cannot be served", version=version.name, why=error.message)
            passes = isinstance(error, StoreUnavailable) or (isinstance(error, ResourceExhausted) and error.retry_s > 0)
            self._failed[key] = (time.monotonic() + 1.0 if passes else math.inf, error)
            raise _bare(error)  # noqa: B904 - the chain is what must not be kept
        self._tidy()
        return found

    def _load_ahead(
        self, targets: Mapping[tuple[str, str], Key], beside: set[Key], versions: Mapping[Key, ModelVersion]
    ) -> dict[Key, LuthierError]:
        """Loads what aliases point at and what rollouts put beside: all of it, or with a budget what takes the place of
        a model in memory, and of the rest the newest, as long as nothing has to go for them. Returns what could not be
        loaded, and why."""
        wanted = beside.union(targets.values())
        missing = {key for key in wanted if self._residents.get(key) is None} - self._unloaded
        if not self._budget:
            return self._residents.load_together({key: versions[key] for key in missing})
        replaced: dict[Key, set[Key]] = {}
        for alias, target in targets.items():
            former = self._snapshot.aliases.get(alias)
            if isinstance(former, tuple) and self._residents.get(former):
                replaced.setdefault(target, set()).add(former)
        failed: dict[Key, LuthierError] = {}
        make_room = self._residents.make_room
        for key in sorted(missing, key=lambda key: versions[key].create_time.ToNanoseconds(), reverse=True):
            version = versions[key]
            try:
                # Where both have no room at once the alias moves first, and the next call waits for the load.
                follows = replaced.get(key)
                has_room = make_room(version, key, follows) if follows else self._residents.fits(version, key)
                if has_room:
                    self._residents.load(version, key, asked=False)
            except LuthierError as error:
                failed[key] = error
        return failed

    def _tidy(self) -> None:
        aliased = {key for key in self._snapshot.aliases.values() if isinstance(key, tuple)}
        self._residents.keep_only(aliased | _beside(self._snapshot.policies.values()), self._snapshot.versions)

    def _watch(self) -> None:
        """Keeps to the budget between loads: calls take memory too, some of which a session keeps."""
        told = False
        while not self._closed.wait(LOOK_S):
            with self._loading:
                is_within = self._residents.keep_within(*list(self._residents)[-1:])
            if not is_within and not told:
                log.warning("over the memory budget", memory_mb=memory.resident_bytes() // 2**20)
            told = not is_within


def _beside(policies: Iterable[Policy]) -> set[Key]:
    """The versions that rollouts need beside those that aliases name."""
    splits = [policy.split for policy in policies if policy.split]
    candidates = {split.candidate for split in splits if split.candidate}
    return candidates.union(*(split.shadows for split in splits))


def _settled(policy: Policy, failed: Mapping[Key, LuthierError]) -> Policy:
    """The policy without the versions that could not be loaded."""
    split = policy.split
    if split is None or not ({split.candidate, *split.shadows} & failed.keys()):
        return policy
    shadows = tuple(key for key in split.shadows if key not in failed)
    why = failed.get(split.candidate) if split.candidate else None
    if why is None:
        return replace(policy, split=replace(split, shadows=shadows))
    # A store that is away for a moment says nothing about the version.
    broken = None if isinstance(why, StoreUnavailable) else why
    return replace(policy, split=replace(split, share=0.0, shadows=shadows, broken=broken))


def _bare(error: LuthierError) -> LuthierError:
    """An error that is kept, without the frames and so the models that its traceback would keep alive."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _hint(snapshot: _Snapshot, model: str) -> str:
    numbers = sorted(number for name, number in snapshot.versions if name == model)
    if not numbers:
        return "there is no such model"
    aliases = sorted(alias for name, alias in snapshot.aliases if name == model)
    return f"the model has the versions {', '.join(map(str, numbers))} and the aliases {', '.join(aliases) or '(none)'}"
