"""The models that this process serves, kept in step with the aliases in the database."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from luthier import bundle, names
from luthier.errors import FailedPrecondition, LuthierError, NotFound, StoreUnavailable
from luthier.inference.predictor import Predictor, providers
from luthier.logs import unexpected
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.store import Store
from luthier.task import Task
from luthier.telemetry.meters import Meters, VersionMeter
from luthier.v1.model_pb2 import ModelVersion

log = structlog.get_logger()

UNALIASED = 4
"""Versions without an alias that stay loaded after somebody asked for them by number; the least used goes first."""


@dataclass(frozen=True)
class Served:
    """A version that is ready to predict."""

    name: str
    task: Task
    predictor: Predictor
    meter: VersionMeter


@dataclass(frozen=True)
class _Snapshot:
    """What can be asked for at one moment. Readers take the whole of it by one reference, without a lock."""

    revision: int
    aliases: Mapping[tuple[str, str], Served | LuthierError]
    versions: Mapping[tuple[str, int], ModelVersion]


class ModelPool:
    """Finds the model that a prediction names. A version is loaded before an alias moves to it, never after."""

    def __init__(self, registry: Registry, store: Store, plugins: Plugins, meters: Meters, device: str = "cpu") -> None:
        """Raises FailedPrecondition where no model could compute on the device."""
        providers(device)
        self._device = device
        self._registry = registry
        self._store = store
        self._plugins = plugins
        self._meters = meters
        self._snapshot = _Snapshot(0, {}, {})
        self._loading = threading.Lock()
        self._extra: OrderedDict[str, Served] = OrderedDict()

    def get(self, name: str) -> Served:
        """The model for `beer`, `beer@alias` or `beer/3`; raises NotFound, or why it cannot be served."""
        try:
            return self._find(name)
        except NotFound:
            # Whoever has just been told of a version may ask for it before the next look at the database.
            if self._registry.models_revision() == self._snapshot.revision:
                raise
            self.refresh()
            return self._find(name)

    def loaded(self) -> int:
        """How many versions are in memory."""
        served = [one.name for one in self._snapshot.aliases.values() if isinstance(one, Served)]
        return len({*served, *self._extra})

    def _find(self, name: str) -> Served:
        model, alias, number = names.parse_model(name)
        snapshot = self._snapshot
        if number:
            return self._by_number(snapshot, model, number)
        found = snapshot.aliases.get((model, alias))
        if found is None:
            raise NotFound(f"models/{model}/aliases/{alias}", _hint(snapshot, model))
        if isinstance(found, LuthierError):
            raise found
        return found

    def refresh(self) -> None:
        """Loads what aliases newly point at, then moves them all at once. Called when the database says that models
        changed. A version that cannot be loaded leaves its alias where it was, and is logged.

        Raises StoreUnavailable, after all that could be done, where another try may load one.
        """
        with self._loading:
            revision, pointers, versions = self._registry.served()
            loaded: dict[str, Served | LuthierError] = {**self._extra}
            loaded |= {s.name: s for s in self._snapshot.aliases.values() if isinstance(s, Served)}
            wanted = {(model, number) for (model, _), number in pointers.items()}
            missing = [key for key in wanted if names.model_version(*key) not in loaded]
            # Side by side: hashing their bytes, half of the work, leaves the interpreter free.
            with ThreadPoolExecutor(max_workers=4) as loaders:
                fresh = loaders.map(self._try_load, [versions[key] for key in missing])
                loaded |= zip((names.model_version(*key) for key in missing), fresh, strict=True)
            aliases: dict[tuple[str, str], Served | LuthierError] = {}
            for (model, alias), number in pointers.items():
                found = loaded[names.model_version(model, number)]
                # What cannot be loaded leaves its alias where it was.
                stays = isinstance(found, LuthierError)
                aliases[model, alias] = self._snapshot.aliases.get((model, alias), found) if stays else found
            self._snapshot = _Snapshot(revision, aliases, versions)
            away = [error for error in loaded.values() if isinstance(error, StoreUnavailable)]
            for name in [n for n in self._extra if names.parse(_VERSION, n)[0] not in {m for m, _ in versions}]:
                del self._extra[name]
            if away:
                raise away[0]

    def _by_number(self, snapshot: _Snapshot, model: str, number: int) -> Served:
        name = names.model_version(model, number)
        if (model, number) not in snapshot.versions:
            raise NotFound(name, _hint(snapshot, model))
        for served in snapshot.aliases.values():
            if isinstance(served, Served) and served.name == name:
                return served
        with self._loading:
            if name not in self._extra:
                self._extra[name] = self._load(snapshot.versions[model, number])
                if len(self._extra) > UNALIASED:
                    self._extra.popitem(last=False)
            self._extra.move_to_end(name)
            return self._extra[name]

    def _try_load(self, version: ModelVersion) -> Served | LuthierError:
        try:
            return self._load(version)
        except LuthierError as error:
            log.error("version cannot be served", version=version.name, why=error.message)
            return error

    def _load(self, version: ModelVersion) -> Served:
        if version.task not in self._plugins.loaded:
            raise FailedPrecondition(f"{version.name} is of the task {version.task}, whose plugin is not installed")
        task = self._plugins.task(version.task)
        directory = self._store.bring(self._store.bundle(version.digest))
        bundle.verify(directory, version.digest)
        try:
            meter = self._meters.version(*names.parse(_VERSION, version.name))
            predictor = Predictor(task, directory, device=self._device, meter=meter)
        except LuthierError:
            raise
        except Exception as error:  # A plugin's or onnxruntime's: one version that cannot be opened stops no other.
            status = unexpected(error, f"opening {version.name}")
            raise FailedPrecondition(f"{version.name} cannot be opened: {status.message}") from error
        served = Served(version.name, task, predictor, meter)
        log.info("version loaded", version=version.name)
        return served


_VERSION = "models/{model}/versions/{number}"


def _hint(snapshot: _Snapshot, model: str) -> str:
    numbers = sorted(number for name, number in snapshot.versions if name == model)
    if not numbers:
        return "there is no such model"
    aliases = sorted(alias for name, alias in snapshot.aliases if name == model)
    return f"the model has the versions {', '.join(map(str, numbers))} and the aliases {', '.join(aliases) or '(none)'}"
