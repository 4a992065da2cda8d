"""What a graph may hold to be loaded: the operators that onnxruntime itself has, and weights within its own file.

Bundles are checked by their hashes before; this holds for those too whose hashes fit. A graph's bytes are read by the
wire format (https://protobuf.dev/programming-guides/encoding) of onnx.proto
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), weights skipped: the serving process does without the package
onnx.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from luthier.errors import DataLoss

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Of operators. The last are onnxruntime's own."""
DECLARED = ("ai.onnx.", "com.microsoft.", "com.ms.internal.", "org.pytorch.")
"""How further domains begin that onnxruntime's own tools declare in each graph they write, and use no operator of."""
NEVER = frozenset({"EPContext"})
"""Operators that hand a file or a blob to a driver, whatever is in it."""
_DEEPEST = 32
"""Graphs within graphs, as branches and loops have them."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTION = 7, 8, 25
_OPSET_DOMAIN = 1
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_SPARSE_VALUES, _SPARSE_INDICES = 1, 2
_FUNCTION_NODE, _FUNCTION_OPSET, _FUNCTION_DOMAIN = 7, 9, 10

_Span = tuple[int, int]
"""Where the bytes of a message begin and end."""


def check(path: Path) -> None:
    """Raises DataLoss where a graph would have more than itself loaded or run."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise DataLoss(f"{path.name} of the bundle is empty", file=path.name)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                _model(data, path.name)
            except (IndexError, UnicodeDecodeError) as error:
                raise DataLoss(f"{path.name} of the bundle is no graph", file=path.name) from error


def _model(data: mmap.mmap, name: str) -> None:
    for number, value in _fields(data, (0, len(data))):
        if not isinstance(value, tuple):
            continue
        if number == _MODEL_GRAPH:
            _graph(data, value, name, 0)
        elif number == _MODEL_OPSET:
            _opset(data, value, name)
        elif number == _MODEL_FUNCTION:
            _function(data, value, name)


def _opset(data: mmap.mmap, span: _Span, name: str) -> None:
    for number, value in _fields(data, span):
        if number == _OPSET_DOMAIN and isinstance(value, tuple):
            domain = _text(data, value)
            if not domain.startswith(DECLARED):
                _check_domain(domain, name)


def _function(data: mmap.mmap, span: _Span, name: str) -> None:
    # A function is made of nodes, whatever the domain it was given itself; onnxruntime puts them in its place.
    for number, value in _fields(data, span):
        if isinstance(value, tuple) and number == _FUNCTION_NODE:
            _node(data, value, name, 0)
        elif isinstance(value, tuple) and number == _FUNCTION_OPSET:
            _opset(data, value, name)
        elif isinstance(value, tuple) and number == _FUNCTION_DOMAIN:
            _check_domain(_text(data, value), name)


def _graph(data: mmap.mmap, span: _Span, name: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise DataLoss(f"{name} has graphs within graphs, too deep to be loaded", file=name)
    for number, value in _fields(data, span):
        if not isinstance(value, tuple):
            continue
        if number == _GRAPH_NODE:
            _node(data, value, name, depth)
        elif number == _GRAPH_INITIALIZER:
            _tensor(data, value, name)
        elif number == _GRAPH_SPARSE:
            _sparse(data, value, name)


def _node(data: mmap.mmap, span: _Span, name: str, depth: int) -> None:
    operator = domain = ""
    for number, value in _fields(data, span):
        if not isinstance(value, tuple):
            continue
        if number == _NODE_OPERATOR:
            operator = _text(data, value)
        elif number == _NODE_DOMAIN:
            domain = _text(data, value)
        elif number == _NODE_ATTRIBUTE:
            _attribute(data, value, name, depth)
    _check_domain(domain, name)
    if operator in NEVER:
        raise DataLoss(f"{name} has the operator {operator}, which is never loaded", file=name)


def _attribute(data: mmap.mmap, span: _Span, name: str, depth: int) -> None:
    for number, value in _fields(data, span):
        if not isinstance(value, tuple):
            continue
        if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _tensor(data, value, name)
        elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
            _graph(data, value, name, depth + 1)
        elif number in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
            _sparse(data, value, name)


def _sparse(data: mmap.mmap, span: _Span, name: str) -> None:
    for number, value in _fields(data, span):
        if number in (_SPARSE_VALUES, _SPARSE_INDICES) and isinstance(value, tuple):
            _tensor(data, value, name)


def _tensor(data: mmap.mmap, span: _Span, name: str) -> None:
    for number, value in _fields(data, span):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value):
            raise DataLoss(f"{name} has weights in other files, which are never loaded", file=name)


def _check_domain(domain: str, name: str) -> None:
    if domain not in DOMAINS:
        raise DataLoss(f"{name} has operators of {domain!r}, which is none of onnxruntime's own domains", file=name)


def _fields(data: mmap.mmap, span: _Span) -> Iterator[tuple[int, int | _Span]]:
    """The fields of a message: their numbers, with the number of a varint and the place of all else."""
    at, end = span
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _LENGTH:
            length, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise IndexError("no wire type")
        if at + length > end:
            raise IndexError("cut short")
        yield tag >> 3, (at, at + length)
        at += length
    if at > end:
        raise IndexError("cut short")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise IndexError("no number")


def _text(data: mmap.mmap, span: _Span) -> str:
    return data[span[0] : span[1]].decode()
