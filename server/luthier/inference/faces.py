"""What a served model looks like from tensors: its graph's own, or the fields of instances and predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from luthier.errors import InvalidArgument
from luthier.inference.lanes import ANYBODY, Caller
from luthier.inference.predictor import Predictor
from luthier.inference.tensors import BYTES, Tensor
from luthier.task import Task

Arrays = Mapping[str, np.ndarray]
Predict = Callable[[Sequence[Message], Caller], Sequence[Message]]
Seen = Callable[[Sequence[Message], Sequence[Message]], None]
"""Is told the messages behind tensors: instances and predictions."""
Compute = Callable[[Arrays, Sequence[str], Caller], Arrays]


class Face(Protocol):
    """A function from named arrays to named arrays. The first axis of each has one row for each example."""

    platform: str

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    def infer(
        self, arrays: Arrays, wanted: Sequence[str], caller: Caller = ANYBODY, seen: Seen | None = None
    ) -> Arrays:
        """The wanted outputs; raises InvalidArgument where the inputs cannot be computed."""


class GraphFace:
    """The tensors of the ONNX graph, without the codec."""

    platform = "onnx_onnxv1"

    def __init__(self, predictor: Predictor, compute: Compute) -> None:
        self._compute = compute
        self.inputs: Mapping[str, Tensor] = by_name(predictor.inputs)
        self.outputs: Mapping[str, Tensor] = by_name(predictor.outputs)

    def infer(
        self, arrays: Arrays, wanted: Sequence[str], caller: Caller = ANYBODY, seen: Seen | None = None
    ) -> Arrays:
        """Runs the graph."""
        return self._compute(arrays, wanted, caller)


class InstancesFace:
    """The codec's side: a tensor for each field of the instance message and each plain field of the prediction.

    A single field is a tensor [rows, 1], a repeated one [rows, any length]. Strings and bytes are BYTES. An input that
    is left out leaves its field unset. The output `prediction` has all of it as JSON, for what is no plain field.
    """

    WHOLE = Tensor("prediction", BYTES, (-1, 1))

    def __init__(self, task: Task, predict: Predict) -> None:
        self.platform = f"luthier_{task.id}"
        method = task.methods[0]
        self.instance = method.instance
        self._predict = predict
        self.inputs: Mapping[str, Tensor] = by_name(
            t for f in method.instance.DESCRIPTOR.fields if (t := _tensor(f, optional=True))
        )
        plain = [f for f in method.prediction.DESCRIPTOR.fields if not f.is_repeated and f.name != self.WHOLE.name]
        self.outputs: Mapping[str, Tensor] = by_name([*(t for f in plain if (t := _tensor(f))), self.WHOLE])

    def infer(
        self, arrays: Arrays, wanted: Sequence[str], caller: Caller = ANYBODY, seen: Seen | None = None
    ) -> Arrays:
        """Predicts by way of the codec."""
        instances = self._instances(arrays)
        predictions = self._predict(instances, caller)
        if seen is not None:
            seen(instances, predictions)
        return {name: _column(predictions, self.outputs[name]) for name in wanted}

    def _instances(self, arrays: Arrays) -> list[Message]:
        fields = self.instance.DESCRIPTOR.fields_by_name
        if not arrays:
            raise InvalidArgument({"inputs": f"there are none; give some of {', '.join(self.inputs)}"})
        instances = [self.instance() for _ in next(iter(arrays.values()))]
        violations = {}
        for name, array in arrays.items():
            text = fields[name].type == FieldDescriptor.TYPE_STRING
            for row, (instance, values) in enumerate(zip(instances, array.tolist(), strict=True)):
                try:
                    # Half of an array's types refuse what a field takes, so fields get Python's own.
                    plain = [value.decode() for value in values] if text else values
                    if fields[name].is_repeated:
                        getattr(instance, name).extend(plain)
                    else:
                        setattr(instance, name, plain[0])
                except UnicodeDecodeError:
                    violations[f"inputs.{name}[{row}]"] = "is not UTF-8"
        if violations:
            raise InvalidArgument(violations)
        return instances


def by_name(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """Tensors by their names, in order."""
    return {tensor.name: tensor for tensor in tensors}


_DATATYPES = {
    FieldDescriptor.CPPTYPE_BOOL: "BOOL",
    FieldDescriptor.CPPTYPE_DOUBLE: "FP64",
    FieldDescriptor.CPPTYPE_ENUM: "INT32",
    FieldDescriptor.CPPTYPE_FLOAT: "FP32",
    FieldDescriptor.CPPTYPE_INT32: "INT32",
    FieldDescriptor.CPPTYPE_INT64: "INT64",
    FieldDescriptor.CPPTYPE_STRING: BYTES,
    FieldDescriptor.CPPTYPE_UINT32: "UINT32",
    FieldDescriptor.CPPTYPE_UINT64: "UINT64",
}


def _tensor(field: Any, optional: bool = False) -> Tensor | None:
    """The tensor for a field; None for one that holds messages."""
    datatype = _DATATYPES.get(field.cpp_type)
    return Tensor(field.name, datatype, (-1, -1 if field.is_repeated else 1), optional) if datatype else None


def _column(predictions: Sequence[Message], output: Tensor) -> np.ndarray:
    """One output of all predictions, [rows, 1]."""
    if output is InstancesFace.WHOLE:
        values: list[Any] = [MessageToJson(p, preserving_proto_field_name=True, indent=None) for p in predictions]
    else:
        values = [getattr(prediction, output.name) for prediction in predictions]
    column = np.empty((len(values), 1), output.dtype)
    column[:, 0] = values
    return column
