"""An int8 form of an ONNX graph, by onnxruntime's quantiser. No training framework is imported.

Weights get 8 bits and one scale for each output channel. They keep to 7 of the bits: processors without VNNI
instructions add products in pairs in 16 bits, which saturate with all 8, so that a model would answer differently on
another machine than on the one that proved it.

A graph of mostly convolutions becomes static: activations are quantised by ranges that calibration finds. Elsewhere,
in transformers above all, whose activations have outliers, the ranges are measured as each request comes in.
"""

from __future__ import annotations

import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from luthier.task import MODEL_FILE

if TYPE_CHECKING:
    import onnx

Batch = Mapping[str, np.ndarray]

CONVOLUTIONS = ("Conv", "ConvTranspose")
PRODUCTS = ("MatMul", "Gemm")
BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "HardSwish", "MaxPool", "Mul", "Relu", "Resize")
"""What stays in int8 between two static operators with weights."""
SMALLEST_TABLE = 4096
"""Elements of a table of embeddings that is worth quantising."""


class NotQuantisable(Exception):
    """Nothing in the graph would become int8."""


def quantise(source: Path, target: Path, calibration: Iterable[Batch]) -> str:
    """Writes the int8 form of a graph, and returns in a few words how it was made.

    `calibration` yields inputs like those to come; it is read where the form is static. Raises NotQuantisable.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _quiet():
        model = _simplified(source, Path(folder) / MODEL_FILE)
        weighted = _weighted(model.graph)
        convolutions = sum(node.op_type in CONVOLUTIONS for node in weighted)
        if convolutions > len(weighted) - convolutions:
            method = _static(model, target, _inner(model.graph, weighted), calibration)
        else:
            tables = _quantise_tables(model.graph)
            if not weighted and not tables:
                raise NotQuantisable("its graph multiplies by no constant matrix and has no table of embeddings")
            method = _dynamic(model, target, [node.name for node in weighted])
    return method


def _simplified(source: Path, target: Path) -> onnx.ModelProto:
    """The graph with constants computed and normalisation folded into convolutions, in standard operators still."""
    # Of the extra `train`, as is the quantiser's own need of it; workers that only read data do without.
    import onnx

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    model = onnx.load(target)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"  # The quantiser tells nodes by their names.
    return model


def _weighted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Convolutions and products whose second input is constant, and no mere vector."""
    matrices = {initializer.name for initializer in graph.initializer if len(initializer.dims) > 1}
    kinds = CONVOLUTIONS + PRODUCTS
    return [node for node in graph.node if node.op_type in kinds and node.input[1] in matrices]


def _inner(graph: onnx.GraphProto, weighted: list[onnx.NodeProto]) -> list[str]:
    """Names of the nodes that become static int8: weighted ones, and what lies between them.

    The last weighted nodes stay float, as is usual: they are few, and a step of 8 bits would be a step in scores and in
    boxes. So does all before the first and after the last, such as normalisation of pixels and decoding of boxes.
    """
    after: set[str] = set()  # Tensors that a weighted node is behind.
    between = []
    kinds = {node.name for node in weighted}
    for node in graph.node:
        if node.name in kinds or not after.isdisjoint(node.input):
            after.update(node.output)
            if node.name in kinds or node.op_type in BETWEEN:
                between.append(node)
    before: set[str] = set()  # Tensors that lead to a weighted node.
    leading = set()
    for node in reversed(graph.node):
        if not before.isdisjoint(node.output):
            leading.add(node.name)
        if node.name in kinds or node.name in leading:
            before.update(node.input)
    if names := [node.name for node in between if node.name in leading]:
        return names
    raise NotQuantisable("its convolutions are its last layers, which stay float")


def _static(model: onnx.ModelProto, target: Path, nodes: list[str], calibration: Iterable[Batch]) -> str:
    """Quantises weights and activations, the latter by their smallest and largest values in calibration."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        batches = iter(calibration)
        examples = 0

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            if batch is None:
                return None
            self.examples += len(next(iter(batch.values())))
            return dict(batch)

    reader = Reader()
    quantization.quantize_static(
        model,
        target,
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=[*CONVOLUTIONS, *PRODUCTS, *BETWEEN],
        nodes_to_quantize=nodes,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    return f"static, calibrated on {reader.examples} examples of train"


def _dynamic(model: onnx.ModelProto, target: Path, products: list[str]) -> str:
    """Quantises the weights of products; their other side is quantised as it comes, by the range of each call."""
    from onnxruntime import quantization

    others = [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.name not in products]
    _merge_products(model.graph)
    quantization.quantize_dynamic(
        model,
        target,
        op_types_to_quantize=list(PRODUCTS),
        nodes_to_exclude=others,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )
    return "dynamic"


def _merge_products(graph: onnx.GraphProto) -> None:
    """Makes one product with bias of those that share their input, such as an attention's query, key and value.

    The input is then quantised once and the kernel called once.
    """
    from onnx import helper, numpy_helper

    constants = {initializer.name: initializer for initializer in graph.initializer}
    users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)

    groups = defaultdict(list)
    for node in graph.node:
        if node.op_type != "MatMul" or len(getattr(constants.get(node.input[1]), "dims", ())) != 2:
            continue
        followers = users[node.output[0]]
        if len(followers) == 1 and followers[0].op_type == "Add":
            bias = next((constants[name] for name in followers[0].input if name in constants), None)
            weights = constants[node.input[1]]
            if bias is not None and list(bias.dims) == [weights.dims[1]]:
                groups[node.input[0]].append((node, followers[0], weights, bias))

    for shared, members in groups.items():
        if len(members) < 2:
            continue
        products, additions, weights, biases = zip(*members, strict=True)
        name = f"{products[0].name}_merged"
        arrays = {
            "weights": np.concatenate([numpy_helper.to_array(array) for array in weights], axis=1),
            "bias": np.concatenate([numpy_helper.to_array(array) for array in biases]),
            "widths": np.array([array.dims[0] for array in biases], dtype=np.int64),
        }
        graph.initializer.extend(numpy_helper.from_array(array, f"{name}_{key}") for key, array in arrays.items())
        merged = [
            helper.make_node("MatMul", [shared, f"{name}_weights"], [f"{name}_product"], name),
            helper.make_node("Add", [f"{name}_product", f"{name}_bias"], [f"{name}_sum"], f"{name}_add"),
            helper.make_node(
                "Split",
                [f"{name}_sum", f"{name}_widths"],
                [node.output[0] for node in additions],
                f"{name}_split",
                axis=-1,
            ),
        ]
        position = list(graph.node).index(products[0])
        for node in (*products, *additions):
            graph.node.remove(node)
        for node in reversed(merged):
            graph.node.insert(position, node)
    _drop_unused(graph)


def _quantise_tables(graph: onnx.GraphProto) -> int:
    """Quantises tables that rows are looked up in, one scale for each column; returns how many there were.

    onnxruntime's quantiser would give a whole table one scale, which costs embeddings four times the error.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants = {initializer.name: initializer for initializer in graph.initializer}
    found = 0
    for node in list(graph.node):
        table = constants.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or table.data_type != TensorProto.FLOAT or len(table.dims) != 2:
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        values = numpy_helper.to_array(table)
        if axis != 0 or values.size < SMALLEST_TABLE or not np.isfinite(values).all():
            continue
        scales = np.maximum(np.abs(values).max(axis=0) / 127, np.finfo(np.float32).tiny)
        name = f"{node.name}_table"
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.round(values / scales).astype(np.int8), name),
                numpy_helper.from_array(scales, f"{name}_scales"),
            ]
        )
        rows = f"{name}_rows"
        position = list(graph.node).index(node)
        restored = helper.make_node(
            "DequantizeLinear", [rows, f"{name}_scales"], [node.output[0]], f"{name}_restored", axis=-1
        )
        graph.node.insert(position + 1, restored)
        node.input[0], node.output[0] = name, rows
        found += 1
    _drop_unused(graph)
    return found


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = set(_read(graph))
    for initializer in [initializer for initializer in graph.initializer if initializer.name not in used]:
        graph.initializer.remove(initializer)


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of the tensors that a graph, or one within it such as a loop's, reads."""
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the quantiser, which logs by the root logger, from advising a step that was done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
