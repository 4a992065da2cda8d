"""A version that is ready to predict, with its place in the queue for the cores."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from itertools import chain

import numpy as np
import structlog
from google.protobuf.message import Message

from luthier.errors import InvalidArgument
from luthier.inference.faces import Arrays, GraphFace, InstancesFace
from luthier.inference.lanes import ANYBODY, Caller, Cores, Lane
from luthier.inference.predictor import CANNOT_COMPUTE, Predictor
from luthier.task import Task
from luthier.v1.model_pb2 import ModelVersion

log = structlog.get_logger()


class Served:
    """Predictions of one version, each in its turn."""

    def __init__(
        self, version: ModelVersion, task: Task, predictor: Predictor, cores: Cores, most_waiting: int
    ) -> None:
        self.name = version.name
        self.task = task
        self.predictor = predictor
        self.graph = GraphFace(predictor, self.compute)
        self.instances = InstancesFace(task, self.predict)
        # One that was published before anybody measured is computed one call at a time.
        row_s = next((variant.latency_ms / 1000 for variant in version.variants if variant.served), 0.0)
        most_rows = version.serving.most_rows or 1
        lane = partial(Lane, cores, version.name, row_s=row_s, most_rows=most_rows, most_waiting=most_waiting)
        self._predictions: Lane[Sequence[Message], list[Message]] = lane(self._predict)
        self._runs: Lane[tuple[Arrays, Sequence[str]], Arrays] = lane(self._compute)

    def predict(self, instances: Sequence[Message], caller: Caller = ANYBODY) -> list[Message]:
        """One prediction for each instance. Raises what `Lane.run` and `Predictor.predict` raise."""
        return self._predictions.run(instances, len(instances), caller)

    def compute(self, inputs: Arrays, outputs: Sequence[str], caller: Caller = ANYBODY) -> Arrays:
        """The graph's outputs that are named. Raises what `Lane.run` and `Predictor.compute` raise."""

        def key() -> Hashable:
            """Equal for those that differ in nothing but their rows, which alone can be put together."""
            return tuple(outputs), tuple((name, array.shape[1:]) for name, array in sorted(inputs.items()))

        return self._runs.run((inputs, outputs), len(next(iter(inputs.values()))), caller, key)

    def _predict(self, calls: Sequence[Sequence[Message]]) -> list[list[Message]]:
        if len(calls) == 1:
            return [self.predictor.predict(calls[0])]
        predictions = iter(self.predictor.predict(list(chain.from_iterable(calls))))
        return [[next(predictions) for _ in instances] for instances in calls]

    def _compute(self, calls: Sequence[tuple[Arrays, Sequence[str]]]) -> list[Arrays]:
        try:
            return self._compute_together(calls)
        except CANNOT_COMPUTE as error:
            # These tensors are the caller's own, not a codec's.
            log.warning("tensors refused", version=self.name, why=str(error))
            raise InvalidArgument(
                {"inputs": "the graph cannot compute them; their shapes or values do not fit"}
            ) from error

    def _compute_together(self, calls: Sequence[tuple[Arrays, Sequence[str]]]) -> list[Arrays]:
        inputs, outputs = calls[0]
        if len(calls) == 1:
            return [self.predictor.compute(inputs, outputs)]
        merged = {name: np.concatenate([arrays[name] for arrays, _ in calls]) for name in inputs}
        found = self.predictor.compute(merged, outputs)
        ends = np.cumsum([len(next(iter(arrays.values()))) for arrays, _ in calls])[:-1]
        parts = {name: np.split(array, ends) for name, array in found.items()}
        return [{name: parts[name][i] for name in outputs} for i in range(len(calls))]
