"""Tensors of the REST form of the Open Inference Protocol: as JSON, or as bytes behind it; always bytes towards gRPC.

The bytes are Triton's binary tensor data extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, prod
from typing import Any

import numpy as np

from luthier.errors import InvalidArgument
from luthier.web.failures import Failure

BYTES = "BYTES"

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}

_KINDS: Mapping[str, set[Any]] = {"b": {bool}, "f": {int, float}}
"""What JSON has for the elements of each kind of type; for others integers."""


def to_bytes(name: str, datatype: str, shape: Sequence[int], data: Any) -> bytes:
    """The elements of a JSON array, flat or in rows, as the wire has them; raises Failure that names the tensor."""
    where = f"inputs.{name}.data"
    elements = _flat(data, where)
    if len(elements) != prod(shape):
        raise _wrong(where, f"has {len(elements)} elements, its shape {[*shape]} has {prod(shape)}")
    kinds: set[Any] = {type(element) for element in elements}
    if datatype == BYTES:
        if kinds - {str}:
            raise _wrong(where, "has elements that are no strings, which BYTES are in JSON")
        encoded = [element.encode() for element in elements]
        return b"".join(part for one in encoded for part in (len(one).to_bytes(4, "little"), one))
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise _wrong(f"inputs.{name}.datatype", f"is none of {', '.join([*_DTYPES, BYTES])}")
    allowed = _KINDS.get(dtype.kind, {int})
    if kinds - allowed:
        wrong = ", ".join(sorted(kind.__name__ for kind in kinds - allowed))
        raise _wrong(where, f"has elements that are no {datatype}: {wrong}")
    try:
        with np.errstate(over="ignore"):
            return np.array(elements, dtype).tobytes()
    except OverflowError:
        raise _wrong(where, f"has elements that {datatype} has no room for") from None


def to_json(name: str, datatype: str, raw: bytes) -> list[Any]:
    """The elements of an output for JSON, row after row; raises Failure where JSON cannot say them."""
    if datatype == BYTES:
        try:
            return [element.decode() for element in _split(raw)]
        except UnicodeDecodeError:
            raise _wrong(f"outputs.{name}", "has bytes that are no text; ask for it with binary_data") from None
    elements: list[Any] = [*np.frombuffer(raw, _DTYPES[datatype]).tolist()]
    if datatype.startswith("FP") and not all(map(isfinite, elements)):
        raise _wrong(f"outputs.{name}", "has infinite numbers, which JSON does not know; ask for it with binary_data")
    return elements


def _split(raw: bytes) -> list[bytes]:
    """Elements of BYTES, each after its length in four bytes."""
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        found.append(raw[start:at])
    return found


def _flat(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(where, "is no array")
    while data and isinstance(data[0], list):
        if not all(isinstance(row, list) for row in data):
            raise _wrong(where, "has rows and elements side by side")
        data = [element for row in data for element in row]
    elements: list[Any] = data
    return elements


def _wrong(field: str, why: str) -> Failure:
    return Failure.of(InvalidArgument({field: why}))
