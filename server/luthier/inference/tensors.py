"""Tensors of the Open Inference Protocol, as the wire has them, to arrays and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from luthier.errors import InvalidArgument
from luthier.oip.v2 import open_inference_pb2 as pb

BYTES = "BYTES"
_LARGE_BYTES = 32 * 1024
"""Below this a message is copied quicker than it is taken apart."""
_LENGTH_DELIMITED = 2
"""The wire type of strings, bytes and messages."""


@dataclass(frozen=True)
class _Datatype:
    """An element's type: in arrays, in typed contents (none for half floats), and by Triton's number."""

    dtype: np.dtype[Any]
    contents: str
    number: pb.DataType.ValueType


_DATATYPES = {
    "BOOL": _Datatype(np.dtype(bool), "bool_contents", pb.TYPE_BOOL),
    "UINT8": _Datatype(np.dtype("<u1"), "uint_contents", pb.TYPE_UINT8),
    "UINT16": _Datatype(np.dtype("<u2"), "uint_contents", pb.TYPE_UINT16),
    "UINT32": _Datatype(np.dtype("<u4"), "uint_contents", pb.TYPE_UINT32),
    "UINT64": _Datatype(np.dtype("<u8"), "uint64_contents", pb.TYPE_UINT64),
    "INT8": _Datatype(np.dtype("<i1"), "int_contents", pb.TYPE_INT8),
    "INT16": _Datatype(np.dtype("<i2"), "int_contents", pb.TYPE_INT16),
    "INT32": _Datatype(np.dtype("<i4"), "int_contents", pb.TYPE_INT32),
    "INT64": _Datatype(np.dtype("<i8"), "int64_contents", pb.TYPE_INT64),
    "FP16": _Datatype(np.dtype("<f2"), "", pb.TYPE_FP16),
    "FP32": _Datatype(np.dtype("<f4"), "fp32_contents", pb.TYPE_FP32),
    "FP64": _Datatype(np.dtype("<f8"), "fp64_contents", pb.TYPE_FP64),
    BYTES: _Datatype(np.dtype(object), "bytes_contents", pb.TYPE_STRING),
}
_OF_ONNX = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": BYTES,
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model: its name, its datatype by the protocol's name, and its shape.

    The first axis has one row for each example; -1 is any length.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    @classmethod
    def of_graph(cls, argument: Any) -> Tensor:
        """Describes what onnxruntime calls a NodeArg."""
        datatype = _OF_ONNX[argument.type.removeprefix("tensor(").removesuffix(")")]
        return cls(argument.name, datatype, tuple(n if isinstance(n, int) else -1 for n in argument.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its elements in an array."""
        return _DATATYPES[self.datatype].dtype

    @property
    def number(self) -> pb.DataType.ValueType:
        """The datatype in Triton's configuration."""
        return _DATATYPES[self.datatype].number

    def mismatch(self, datatype: str, shape: Sequence[int]) -> str:
        """What is wrong with a tensor that is to be this one; empty where nothing is."""
        if datatype != self.datatype:
            return f"is of {datatype or 'no datatype'}, not {self.datatype}"
        if len(shape) == len(self.shape):
            for n, own in zip(shape, self.shape, strict=True):
                if n != own if own >= 0 else n < 0:
                    break
            else:
                return ""
        return f"has the shape {[*shape]}, not {[*self.shape]}"


class Request(NamedTuple):
    """A request whose raw contents may be views of the bytes that came, which saves two copies of them."""

    message: pb.ModelInferRequest
    raw: Sequence[bytes | memoryview]

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Reads a serialised ModelInferRequest; raises DecodeError.

        protobuf copies what it parses, and once more what is read from it: 0.1 ms for an image of 600 kB, which a small
        network computes in one. So of a large message the fields `raw_input_contents` are found by the wire format
        (https://protobuf.dev/programming-guides/encoding) and the rest is protobuf's.
        """
        if len(data) < _LARGE_BYTES:
            message = pb.ModelInferRequest.FromString(data)
            return cls(message, message.raw_input_contents)
        view, raw, rest = memoryview(data), list[memoryview](), list[memoryview]()
        kept = at = 0
        while at < len(data):
            start = at
            tag, at = _varint(data, at)
            if tag & 7 != _LENGTH_DELIMITED:
                # No field of the message is of another kind; what else may come is protobuf's to judge.
                break
            length, at = _varint(data, at)
            if tag >> 3 == pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER:
                if at + length > len(data):
                    raise DecodeError("truncated message")
                rest.append(view[kept:start])
                raw.append(view[at : at + length])
                kept = at + length
            at += length
        rest.append(view[kept:])
        message = pb.ModelInferRequest.FromString(b"".join(rest))
        return cls(message, [*raw, *message.raw_input_contents])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise DecodeError("truncated message")


def read(request: Request, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The arrays of a request for inputs by name; those of raw contents are views of its bytes. BYTES come as objects.

    Raises InvalidArgument for every input that is missing, unknown or of the wrong type, shape or length.
    """
    raw, sent = request.raw, request.message.inputs
    if raw and len(raw) != len(sent):
        raise InvalidArgument(
            {"raw_input_contents": f"{len(raw)} for {len(sent)} inputs; give them for all or for none"}
        )
    arrays: dict[str, np.ndarray] = {}
    violations: dict[str, str] = {}
    for index, one in enumerate(sent):
        try:
            arrays[one.name] = _array(one, raw[index] if raw else None, inputs)
        except ValueError as error:
            violations[f"inputs.{one.name}"] = str(error)
    if len(arrays) < len(inputs):
        missing = inputs.keys() - arrays.keys() - {one.name for one in sent}
        violations |= {f"inputs.{name}": "is missing" for name in sorted(missing) if not inputs[name].optional}
    if not violations and len({len(array) for array in arrays.values()}) > 1:
        violations["inputs"] = "their first axes differ, which have one row for each example"
    if violations:
        raise InvalidArgument(violations)
    return arrays


def write(response: pb.ModelInferResponse, tensor: Tensor, array: np.ndarray, raw: bool) -> None:
    """Adds an output to a response, as raw or as typed contents."""
    output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
    kind = _DATATYPES[tensor.datatype]
    # Half floats have no contents of their own.
    if raw or not kind.contents:
        response.raw_output_contents.append(_raw(array, kind))
    else:
        getattr(output.contents, kind.contents).extend(_elements(array))


def _array(
    one: pb.ModelInferRequest.InferInputTensor, raw: bytes | memoryview | None, known: Mapping[str, Tensor]
) -> np.ndarray:
    """One input; raises ValueError with what is wrong with it."""
    tensor = known.get(one.name)
    if tensor is None:
        raise ValueError(f"is not known; the model takes {', '.join(known)}")
    if one.parameters:
        raise ValueError(f"has the parameter {min(one.parameters)}; shared memory is not taken")
    shape = tuple(one.shape)
    if mismatch := tensor.mismatch(one.datatype, shape):
        raise ValueError(mismatch)
    kind, count = _DATATYPES[tensor.datatype], prod(shape)
    if raw is None:
        if not kind.contents:
            raise ValueError(f"is of {one.datatype}, which has no typed contents; send it raw")
        values = getattr(one.contents, kind.contents)
        if len(values) != count:
            raise ValueError(f"has {len(values)} elements in {kind.contents}, its shape {[*shape]} has {count}")
        return _of_values(values, kind).reshape(shape)
    if kind.dtype == object:
        return _split(raw, count).reshape(shape)
    if len(raw) != count * kind.dtype.itemsize:
        raise ValueError(f"has {len(raw)} bytes, {one.datatype} of the shape {[*shape]} {count * kind.dtype.itemsize}")
    return np.frombuffer(raw, kind.dtype).reshape(shape)


def _of_values(values: Sequence[Any], kind: _Datatype) -> np.ndarray:
    try:
        # Of a list: from protobuf's own container numbers that are too large would be cut.
        return np.array(list(values), kind.dtype)
    except OverflowError as error:
        raise ValueError(f"has elements that are no {kind.dtype.name}") from error


def _split(raw: bytes | memoryview, count: int) -> np.ndarray:
    """Elements of BYTES, each after its length in four bytes."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) <= count:
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        elements.append(bytes(raw[start:at]))
    if at != len(raw) or len(elements) != count:
        raise ValueError(f"is to have {count} elements, each after its length in four bytes; it has other bytes")
    array = np.empty(count, object)
    array[:] = elements
    return array


def _raw(array: np.ndarray, kind: _Datatype) -> bytes:
    if kind.dtype != object:
        return array.astype(kind.dtype, copy=False).tobytes()
    return b"".join(part for element in _elements(array) for part in (len(element).to_bytes(4, "little"), element))


def _elements(array: np.ndarray) -> list[Any]:
    """The elements as plain values; strings in UTF-8."""
    elements = array.ravel().tolist()
    if array.dtype != object:
        return elements
    return [element.encode() if isinstance(element, str) else element for element in elements]
