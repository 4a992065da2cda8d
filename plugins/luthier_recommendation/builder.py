"""Putting ONNX graphs together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]

OPSET = 18
"""The first with `ScatterElements` as it is used here and `ReduceMax` over an input of axes."""
IR_VERSION = 10
"""Read by onnxruntime 1.18 and later."""


class Graph:
    """A graph under construction. Values are known by their names, which its methods make and return."""

    def __init__(self) -> None:
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def input(self, name: str, dtype: npt.DTypeLike, *shape: int | str) -> str:
        """Declares an input; sizes that are not fixed have names."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def constant(self, array: Any) -> str:
        """Keeps an array, or a number."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, *numbers: int) -> str:
        """Keeps a row of int64, as shapes, axes and counts are given."""
        return self.constant(np.array(numbers, dtype=np.int64))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Computes a value."""
        return self.nodes(operator, *inputs, outputs=1, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Computes several values."""
        names = [f"{operator}_{len(self._nodes)}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names

    def flat(self, value: str) -> str:
        """The same numbers in one dimension."""
        return self.node("Reshape", value, self.integers(-1))

    def model(self, outputs: Mapping[str, tuple[str, npt.DTypeLike]], *shape: int | str) -> onnx.ModelProto:
        """The finished model: names of its outputs, all of one shape, with their values and types."""
        for name, (value, _) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        declared = [_value(name, dtype, shape) for name, (_, dtype) in outputs.items()]
        graph = helper.make_graph(self._nodes, "recommend", self._inputs, declared, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def _value(name: str, dtype: npt.DTypeLike, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
