"""The ONNX graphs: scores of all items, what is ruled out, the best k.

Both graphs take these inputs, with one row for each instance:

    k               int64    [batch, 1]           items wanted; the outputs have as many columns as the largest of them
    adjusted        int64    [batch, m]           items whose scores are changed; an item may be repeated
    adjustments     float32  [batch, m]           what is added to their scores: minus infinity excludes, 0 fills a row
    mask            float32  [batch, 1 or items]  added to all scores: 0, or minus infinity where an allow list excludes

and give `items` int64 and `scores` float32, [batch, min(max k, items)], best first and the lower index first among
equals. Excluded items may stand at the end of a row with a score of minus infinity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

OPSET = 18
"""The first with `ScatterElements` as it is used here and `ReduceMax` over an input of axes."""
IR_VERSION = 10
"""Read by onnxruntime 1.18 and later."""


def dense(matrix: Array, *, scaled: bool = False) -> onnx.ModelProto:
    """Scores are `query @ matrix`: `query` float32 [batch, d], `matrix` [d, items].

    With `scaled`, they are multiplied by one more input, `scale` float32 [batch, 1 or items].
    """
    inputs = [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["batch", matrix.shape[0]])]
    nodes = [helper.make_node("MatMul", ["query", "matrix"], ["scores_of_items"])]
    if scaled:
        inputs.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["batch", "scale_width"]))
        nodes = [
            helper.make_node("MatMul", ["query", "matrix"], ["products"]),
            helper.make_node("Mul", ["products", "scale"], ["scores_of_items"]),
        ]
    constants = {"matrix": np.ascontiguousarray(matrix, dtype=np.float32)}
    return _best(inputs, nodes, constants, num_items=matrix.shape[1])


def neighbours(ids: Array, weights: Array) -> onnx.ModelProto:
    """Scores are sums of the weights with which the history's items point to their neighbours.

    `ids` [items, n] holds each item's neighbours, filled up with the number of items, `weights` [items, n] how near
    they are. The inputs are `history` int64 [batch, h], filled up with the number of items, and `history_weights`
    float32 [batch, h]. Items that nothing points to are excluded.
    """
    num_items, width = ids.shape
    constants = {
        "neighbours": ids.astype(np.int32),
        "nearness": weights.astype(np.float32),
        "num_items": np.int64(num_items),
        "row_length": np.int64(num_items + 1),
        "width": np.array([1, width]),
        "flat": np.array([-1]),
        "column": np.array([1]),
        "zero": np.float32(0),
        "nothing": np.float32(-np.inf),
        "begin": np.array([0]),
        "end": np.array([num_items]),
        "first": np.int64(0),
        "one": np.int64(1),
    }
    inputs = [
        helper.make_tensor_value_info("history", TensorProto.INT64, ["batch", "h"]),
        helper.make_tensor_value_info("history_weights", TensorProto.FLOAT, ["batch", "h"]),
    ]
    node = helper.make_node
    nodes = [
        # Only the filled places go on, as one list of (instance, item, weight): histories differ widely in length.
        node("Less", ["history", "num_items"], ["is_filled"]),
        node("Reshape", ["is_filled", "flat"], ["is_filled_flat"]),
        node("Reshape", ["history", "flat"], ["history_flat"]),
        node("Reshape", ["history_weights", "flat"], ["history_weights_flat"]),
        node("Compress", ["history_flat", "is_filled_flat"], ["items_taken"]),
        node("Compress", ["history_weights_flat", "is_filled_flat"], ["weights_taken"]),
        node("Shape", ["history"], ["batch_size"], start=0, end=1),
        node("Squeeze", ["batch_size"], ["batch_scalar"]),
        node("Range", ["first", "batch_scalar", "one"], ["rows"]),
        node("Unsqueeze", ["rows", "column"], ["rows_column"]),
        node("Shape", ["history"], ["history_shape"]),
        node("Expand", ["rows_column", "history_shape"], ["rows_expanded"]),
        node("Reshape", ["rows_expanded", "flat"], ["rows_flat"]),
        node("Compress", ["rows_flat", "is_filled_flat"], ["rows_taken"]),
        # Each adds its neighbours' weights to its instance's stretch of one long row of scores.
        node("Gather", ["neighbours", "items_taken"], ["targets_int32"]),
        node("Cast", ["targets_int32"], ["targets"], to=TensorProto.INT64),
        node("Mul", ["rows_taken", "row_length"], ["starts"]),
        node("Unsqueeze", ["starts", "column"], ["starts_column"]),
        node("Add", ["targets", "starts_column"], ["positions"]),
        node("Reshape", ["positions", "flat"], ["positions_flat"]),
        node("Gather", ["nearness", "items_taken"], ["near"]),
        node("Unsqueeze", ["weights_taken", "column"], ["weights_column"]),
        node("Mul", ["near", "weights_column"], ["shares"]),
        node("Reshape", ["shares", "flat"], ["shares_flat"]),
        node("Mul", ["batch_size", "row_length"], ["length"]),
        node("Expand", ["zero", "length"], ["empty"]),
        node("ScatterElements", ["empty", "positions_flat", "shares_flat"], ["sums_flat"], axis=0, reduction="add"),
        node("Concat", ["batch_size", "row_shape"], ["sums_shape"], axis=0),
        node("Reshape", ["sums_flat", "sums_shape"], ["sums_filled"]),
        node("Slice", ["sums_filled", "begin", "end", "column"], ["sums"]),
        node("Greater", ["sums", "zero"], ["is_near"]),
        node("Where", ["is_near", "sums", "nothing"], ["scores_of_items"]),
    ]
    constants["row_shape"] = np.array([num_items + 1])
    return _best(inputs, nodes, constants, num_items=num_items)


def _best(
    inputs: list[onnx.ValueInfoProto], nodes: list[onnx.NodeProto], constants: dict[str, Any], *, num_items: int
) -> onnx.ModelProto:
    """Completes a graph that computes `scores_of_items` float32 [batch, items]."""
    value, node = helper.make_tensor_value_info, helper.make_node
    inputs = [
        *inputs,
        value("k", TensorProto.INT64, ["batch", 1]),
        value("adjusted", TensorProto.INT64, ["batch", "m"]),
        value("adjustments", TensorProto.FLOAT, ["batch", "m"]),
        value("mask", TensorProto.FLOAT, ["batch", "mask_width"]),
    ]
    nodes = [
        *nodes,
        node(
            "ScatterElements",
            ["scores_of_items", "adjusted", "adjustments"],
            ["adjusted_scores"],
            axis=1,
            reduction="add",
        ),
        node("Add", ["adjusted_scores", "mask"], ["allowed_scores"]),
        node("ReduceMax", ["k"], ["largest_k"], keepdims=0),
        node("Min", ["largest_k", "most"], ["k_scalar"]),
        node("Reshape", ["k_scalar", "k_shape"], ["k_vector"]),
        node("TopK", ["allowed_scores", "k_vector"], ["scores", "items"], axis=1),
    ]
    outputs = [
        value("items", TensorProto.INT64, ["batch", "largest_k"]),
        value("scores", TensorProto.FLOAT, ["batch", "largest_k"]),
    ]
    constants = {**constants, "most": np.int64(num_items), "k_shape": np.array([1])}
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "recommend", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model
