"""Graphs before and after: which operators become int8, and what that costs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from luthier.worker.quantize import NotQuantisable, quantise

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
RANDOM = np.random.default_rng(0)


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    constants: Mapping[str, np.ndarray],
    outputs: Mapping[str, list[Any]],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(0, shape[0] ** -0.5, shape).astype(np.float32)


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feeds))[0])


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def error(source: Path, target: Path, feeds: Mapping[str, np.ndarray]) -> float:
    """Of the int8 form's outputs, relative to the float's."""
    expected = run(source, feeds)
    return float(np.linalg.norm(run(target, feeds) - expected) / np.linalg.norm(expected))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Embeddings, three products with biases that share their input, and a product of activations."""
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["embedded"]),
        *(node("MatMul", ["embedded", f"w{i}"], [f"p{i}"]) for i in range(3)),
        *(node("Add", [f"p{i}", f"b{i}"], [f"y{i}"]) for i in range(3)),
        node("Transpose", ["y1"], ["keys"], perm=[0, 2, 1]),
        node("MatMul", ["y0", "keys"], ["scores"]),
        node("MatMul", ["scores", "y2"], ["attended"]),
        node("ReduceMean", ["attended", "axis"], ["pooled"], keepdims=0),
        node("Gemm", ["pooled", "head", "head_bias"], ["logits"]),
    ]
    constants = {
        "table": normal(1000, 32),
        **{f"w{i}": normal(32, 32) for i in range(3)},
        **{f"b{i}": normal(32) for i in range(3)},
        "axis": np.array([1]),
        "head": normal(32, 5),
        "head_bias": normal(5),
    }
    # A few dimensions are much larger than the others, as in real embeddings.
    constants["table"][:, :2] *= 30
    return write(
        tmp_path / "encoder.onnx", nodes, {"ids": (INT64, ["batch", "sequence"])}, constants, {"logits": ["batch", 5]}
    )


def network(path: Path) -> Path:
    """Pixels to scores by way of convolutions, with normalisation before and arithmetic on boxes behind."""
    node = helper.make_node
    nodes = [
        node("Mul", ["pixels", "contrast"], ["bright"]),
        node("Conv", ["bright", "w0", "b0"], ["c0"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Add", ["c1", "r0"], ["sum"]),
        node("Relu", ["sum"], ["r1"]),
        node("Conv", ["r1", "w2", "b2"], ["c2"]),
        node("Sigmoid", ["c2"], ["sizes"]),
        node("Mul", ["sizes", "stride"], ["boxes"]),
    ]
    constants = {
        "contrast": np.float32(1 / 255) * np.ones((1, 3, 1, 1), np.float32),
        "w0": normal(16, 3, 3, 3),
        "b0": normal(16),
        "w1": normal(16, 16, 3, 3),
        "b1": normal(16),
        "w2": normal(4, 16, 1, 1),
        "b2": normal(4),
        "stride": np.full((1, 4, 1, 1), 800, np.float32),
    }
    return write(path, nodes, {"pixels": (FLOAT, ["batch", 3, 24, 24])}, constants, {"boxes": ["batch", 4, 12, 12]})


def photographs() -> Iterator[dict[str, np.ndarray]]:
    draw = np.random.default_rng(1)
    for _ in range(4):
        yield {"pixels": draw.uniform(0, 255, (8, 3, 24, 24)).astype(np.float32)}


def never() -> Iterator[dict[str, np.ndarray]]:
    raise AssertionError("a dynamic form needs no calibration")
    yield {}


def test_products_and_embeddings_become_int8_dynamically(encoder: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    assert quantise(encoder, target, never()) == "dynamic"
    found = operators(target)
    # One for query, key and value together, one for the head; products of two activations stay float.
    assert (found["MatMulInteger"], found["MatMul"], found["Gemm"], found["DequantizeLinear"]) == (2, 2, 0, 1)
    assert encoder.stat().st_size > 3 * target.stat().st_size
    ids = np.random.default_rng(2).integers(0, 1000, (4, 9))
    assert error(encoder, target, {"ids": ids}) < 0.03


def test_weights_keep_to_seven_bits(encoder: Path, tmp_path: Path) -> None:
    """So that no processor's 16-bit sums saturate."""
    target = tmp_path / "int8.onnx"
    quantise(encoder, target, never())
    graph = onnx.load(target).graph
    constants = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
    weights = [constants[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]
    assert sorted(array.shape for array in weights) == [(32, 5), (32, 96)]
    assert all(array.dtype == np.int8 and 60 <= np.abs(array.astype(int)).max() <= 64 for array in weights)


def test_convolutions_become_int8_by_calibration(tmp_path: Path) -> None:
    source, target = network(tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    assert quantise(source, target, photographs()) == "static, calibrated on 32 examples of train"
    graph = onnx.load(target).graph
    made_by = {output: node for node in graph.node for output in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    quantised = [made_by.get(node.input[1]) is not None for node in convolutions]
    assert quantised == [True, True, False]  # Boxes keep their precision.
    assert readers["bright"].op_type == "QuantizeLinear"
    assert readers["c2"].op_type == "Sigmoid"
    assert "Relu" not in operators(target)  # Contained in the ranges.
    assert error(source, target, next(photographs())) < 0.03


def test_the_same_calibration_gives_the_same_file(tmp_path: Path) -> None:
    source = network(tmp_path / "float.onnx")
    for name in ("a", "b"):
        quantise(source, tmp_path / name, photographs())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def counted(path: Path) -> Path:
    """Nothing but a sum."""
    inputs = {"a": (FLOAT, ["batch", 3]), "b": (FLOAT, ["batch", 3])}
    return write(path, [helper.make_node("Add", ["a", "b"], ["c"])], inputs, {}, {"c": ["batch", 3]})


def vector(path: Path) -> Path:
    """A product with a vector of weights."""
    nodes = [helper.make_node("MatMul", ["a", "w"], ["c"])]
    return write(path, nodes, {"a": (FLOAT, ["batch", 3])}, {"w": normal(3)}, {"c": ["batch"]})


def last_layer(path: Path) -> Path:
    """One convolution, which is the last layer."""
    nodes = [helper.make_node("Conv", ["pixels", "w"], ["c"])]
    return write(
        path, nodes, {"pixels": (FLOAT, ["batch", 3, 8, 8])}, {"w": normal(4, 3, 1, 1)}, {"c": ["batch", 4, 8, 8]}
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [(counted, "constant matrix"), (vector, "constant matrix"), (last_layer, "stay float")],
)
def test_a_graph_with_nothing_to_quantise_says_so(tmp_path: Path, make: Callable[[Path], Path], reason: str) -> None:
    source = make(tmp_path / "float.onnx")
    with pytest.raises(NotQuantisable, match=reason):
        quantise(source, tmp_path / "int8.onnx", never())
    assert [file.name for file in tmp_path.iterdir()] == ["float.onnx"]


def test_the_quantiser_brings_no_torch(encoder: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from luthier.worker.quantize import quantise; "
        f"quantise(Path({str(encoder)!r}), Path({str(tmp_path / 'int8.onnx')!r}), []); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
