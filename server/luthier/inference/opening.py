"""From a version's record to a model that predicts: fetched, checked, opened and warmed up."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from luthier import bundle, names
from luthier.errors import FailedPrecondition, LuthierError
from luthier.inference.predictor import Predictor, providers
from luthier.inference.served import Served
from luthier.logs import unexpected
from luthier.plugins import Plugins
from luthier.store import Store
from luthier.task import Task
from luthier.telemetry.meters import Meters, VersionMeter
from luthier.v1.model_pb2 import ModelVersion

log = structlog.get_logger()


class Opener:
    """Opens versions. Called from several threads at once."""

    def __init__(
        self,
        store: Store,
        plugins: Plugins,
        meters: Meters,
        device: str,
        most_threads: int,
        serve: Callable[[ModelVersion, Task, Predictor, VersionMeter], Served],
    ) -> None:
        """A version's calls are computed on as many threads as were settled at its publication, at most `most_threads`.

        Raises FailedPrecondition where no model could compute on the device.
        """
        providers(device)
        self._store = store
        self._plugins = plugins
        self._meters = meters
        self._device = device
        self._most_threads = most_threads
        self._serve = serve

    def open(self, version: ModelVersion) -> Served:
        """Raises DataLoss, FailedPrecondition or StoreUnavailable, with what a caller of the version is to read."""
        if version.task not in self._plugins.loaded:
            raise FailedPrecondition(f"{version.name} is of the task {version.task}, whose plugin is not installed")
        task = self._plugins.task(version.task)
        directory = self._store.bring(self._store.bundle(version.digest))
        bundle.verify(directory, version.digest)
        try:
            meter = self._meters.version(*names.parse("models/{model}/versions/{number}", version.name))
            threads = min(version.serving.threads or 1, self._most_threads)
            predictor = Predictor(task, directory, threads=threads, device=self._device, meter=meter)
        except LuthierError:
            raise
        except Exception as error:  # A plugin's or onnxruntime's: one version that cannot be opened stops no other.
            status = unexpected(error, f"opening {version.name}")
            raise FailedPrecondition(f"{version.name} cannot be opened: {status.message}") from error
        try:
            predictor.warm_up()
        except Exception as error:  # A graph may ask more of its inputs than to be ones. It serves as well, unwarmed.
            log.info("version not warmed up", version=version.name, why=type(error).__name__)
        return self._serve(version, task, predictor, meter)
