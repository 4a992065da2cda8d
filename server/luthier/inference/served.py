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
from luthier.telemetry.meters import VersionMeter
from luthier.v1.model_pb2 import ModelVersion

log = structlog.get_logger()


class Served:
    """Predictions of one version, each in its turn."""

    def __init__(
        self,
        version: ModelVersion,
        task: Task,
        predictor: Predictor,
        meter: VersionMeter,
        *,
        cores: Cores,
        most_waiting: int,
    ) -> None:
        self.name = version.name
        self.task = task
        self.predictor = predictor
        # One that was published before anybody measured is computed one call at a time.
        row_s = next((variant.latency_ms / 1000 for variant in version.variants if variant.served), 0.0)
        self.most_rows = version.serving.most_rows or 1
        """Up to how many instances calls are computed together."""
        self.meter = meter
        lane = partial(
            Lane,
            cores,
            version.name,
            row_s=row_s,
            meter=meter,
            most_waiting=most_waiting,
        )
        # A length that is not the rows' may depend on what else is in the batch. A codec cuts off what is too much, who
        # asks for the graph's tensors would see it.
        is_fixed = all(n >= 0 for output in predictor.outputs for n in output.shape[1:])
        # Nothing below refers back to this: a version's memory is free with its last call, not with the collector's
        # next round.
        predictions: Lane[Sequence[Message], list[Message]] = lane(
            partial(_predict, predictor), most_rows=self.most_rows
        )
        runs: Lane[tuple[Arrays, Sequence[str]], Arrays] = lane(
            partial(_compute, predictor, version.name), most_rows=self.most_rows if is_fixed else 1
        )
        self._predict = partial(_predict_in, predictions)
        self._compute = partial(_compute_in, runs)
        self.graph = GraphFace(predictor, self._compute)
        self.instances = InstancesFace(task, self._predict)

    def predict(self, instances: Sequence[Message], caller: Caller = ANYBODY) -> list[Message]:
        """One prediction for each instance. Raises what `Lane.run` and `Predictor.predict` raise."""
        return self._predict(instances, caller)

    def compute(self, inputs: Arrays, outputs: Sequence[str], caller: Caller = ANYBODY) -> Arrays:
        """The graph's outputs that are named. Raises what `Lane.run` and `Predictor.compute` raise."""
        return self._compute(inputs, outputs, caller)


def _predict_in(
    lane: Lane[Sequence[Message], list[Message]], instances: Sequence[Message], caller: Caller
) -> list[Message]:
    return lane.run(instances, len(instances), caller)


def _compute_in(
    lane: Lane[tuple[Arrays, Sequence[str]], Arrays], inputs: Arrays, outputs: Sequence[str], caller: Caller
) -> Arrays:
    def key() -> Hashable:
        """Equal for those that differ in nothing but their rows, which alone can be put together."""
        return tuple(outputs), tuple((name, array.shape[1:]) for name, array in sorted(inputs.items()))

    return lane.run((inputs, outputs), len(next(iter(inputs.values()))), caller, key)


def _predict(predictor: Predictor, calls: Sequence[Sequence[Message]], laps: list[float]) -> list[list[Message]]:
    if len(calls) == 1:
        return [predictor.predict(calls[0], laps)]
    predictions = iter(predictor.predict(list(chain.from_iterable(calls)), laps))
    return [[next(predictions) for _ in instances] for instances in calls]


def _compute(
    predictor: Predictor, name: str, calls: Sequence[tuple[Arrays, Sequence[str]]], laps: list[float]
) -> list[Arrays]:
    try:
        return _compute_together(predictor, calls, laps)
    except CANNOT_COMPUTE as error:
        # These tensors are the caller's own, not a codec's.
        log.warning("tensors refused", version=name, why=str(error))
        raise InvalidArgument({"inputs": "the graph cannot compute them; their shapes or values do not fit"}) from error


def _compute_together(
    predictor: Predictor, calls: Sequence[tuple[Arrays, Sequence[str]]], laps: list[float]
) -> list[Arrays]:
    inputs, outputs = calls[0]
    if len(calls) == 1:
        return [predictor.compute(inputs, outputs, laps)]
    merged = {name: np.concatenate([arrays[name] for arrays, _ in calls]) for name in inputs}
    found = predictor.compute(merged, outputs, laps)
    ends = np.cumsum([len(next(iter(arrays.values()))) for arrays, _ in calls])[:-1]
    parts = {name: np.split(array, ends) for name, array in found.items()}
    return [{name: parts[name][i] for name in outputs} for i in range(len(calls))]
