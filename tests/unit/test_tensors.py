"""Tensors of the Open Inference Protocol to arrays and back."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import InvalidArgument
from luthier.inference import tensors
from luthier.inference.tensors import Tensor
from luthier.oip.v2 import open_inference_pb2 as pb

ALL = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64", "BYTES")
VALUES = {"BOOL": [True, False, True], "BYTES": [b"", "träne".encode(), b"\0\xff"], "FP32": [0.5, -1.25, 3e8]}


def read(request: pb.ModelInferRequest, *inputs: Tensor) -> dict[str, np.ndarray]:
    """The arrays of a request to a model with such inputs."""
    return tensors.read(tensors.Request(request, request.raw_input_contents), {one.name: one for one in inputs})


def values(datatype: str) -> list[object]:
    return VALUES.get(datatype, [0, 1, 127])


def echoed(datatype: str, raw: bool) -> pb.ModelInferRequest:
    """A request that holds what a response held."""
    array = np.array([[value] for value in values(datatype)], object if datatype == "BYTES" else None)
    response = pb.ModelInferResponse()
    dtype = array.dtype if datatype == "BYTES" else tensors._DATATYPES[datatype].dtype
    tensors.write(response, Tensor("x", datatype, (-1, 1)), array.astype(dtype), raw)
    request = pb.ModelInferRequest(raw_input_contents=response.raw_output_contents)
    request.inputs.add().MergeFromString(response.outputs[0].SerializeToString())
    return request


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("datatype", ALL)
def test_what_is_written_is_read(datatype: str, raw: bool) -> None:
    request = echoed(datatype, raw)
    assert bool(request.raw_input_contents) == raw
    found = read(request, Tensor("x", datatype, (-1, 1)))["x"]
    assert found.shape == (3, 1)
    assert found.ravel().tolist() == values(datatype)


def test_half_floats_are_raw_alone() -> None:
    response = pb.ModelInferResponse()
    tensors.write(response, Tensor("x", "FP16", (-1,)), np.array([0.5, 2], np.float16), raw=False)
    assert response.raw_output_contents == [b"\x00\x38\x00\x40"]
    request = pb.ModelInferRequest(raw_input_contents=response.raw_output_contents)
    request.inputs.add(name="x", datatype="FP16", shape=[2])
    assert read(request, Tensor("x", "FP16", (-1,)))["x"].tolist() == [0.5, 2]
    del request.raw_input_contents[:]
    with pytest.raises(InvalidArgument, match="FP16, which has no typed contents; send it raw"):
        read(request, Tensor("x", "FP16", (-1,)))


def test_raw_elements_are_not_copied() -> None:
    request = pb.ModelInferRequest(raw_input_contents=[bytes(12)])
    request.inputs.add(name="x", datatype="FP32", shape=[3])
    found = read(request, Tensor("x", "FP32", (-1,)))["x"]
    assert not found.flags.owndata


def test_everything_that_is_wrong_is_told_at_once() -> None:
    request = pb.ModelInferRequest()
    request.inputs.add(name="wide", datatype="FP32", shape=[2, 4]).contents.fp32_contents.extend([0] * 8)
    request.inputs.add(name="long", datatype="INT64", shape=[2, 3]).contents.int64_contents.extend([0] * 6)
    request.inputs.add(name="short", datatype="FP32", shape=[2, 3]).contents.fp32_contents.extend([0] * 5)
    request.inputs.add(name="strange", datatype="FP32", shape=[2])
    request.inputs.add(name="shared", datatype="FP32", shape=[2]).parameters["shared_memory_region"].string_param = "a"
    request.inputs.add(name="small", datatype="UINT8", shape=[1]).contents.uint_contents.append(300)
    inputs = [
        Tensor("wide", "FP32", (-1, 3)),
        Tensor("long", "FP32", (-1, 3)),
        Tensor("short", "FP32", (-1, 3)),
        Tensor("shared", "FP32", (-1,)),
        Tensor("small", "UINT8", (-1,)),
        Tensor("absent", "BOOL", (-1,)),
        Tensor("not_needed", "BOOL", (-1,), optional=True),
    ]
    with pytest.raises(InvalidArgument) as refused:
        read(request, *inputs)
    assert refused.value.violations == {
        "inputs.absent": "is missing",
        "inputs.wide": "has the shape [2, 4], not [-1, 3]",
        "inputs.long": "is of INT64, not FP32",
        "inputs.short": "has 5 elements in fp32_contents, its shape [2, 3] has 6",
        "inputs.strange": "is not known; the model takes wide, long, short, shared, small, absent, not_needed",
        "inputs.shared": "has the parameter shared_memory_region; shared memory is not taken",
        "inputs.small": "has elements that are no uint8",
    }


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "why"),
    [
        ("FP32", [2], b"1234567", "has 7 bytes, FP32 of the shape [2] 8"),
        ("BYTES", [2], b"\1\0\0\0a", "is to have 2 elements, each after its length in four bytes; it has other bytes"),
        ("BYTES", [1], b"\5\0\0\0a", "is to have 1 elements, each after its length in four bytes; it has other bytes"),
        ("BYTES", [1], b"\1\0\0\0ab", "is to have 1 elements, each after its length in four bytes; it has other bytes"),
        ("BYTES", [1], b"\1\0", "is to have 1 elements, each after its length in four bytes; it has other bytes"),
        ("FP32", [-1], b"", "has the shape [-1], not [-1]"),
    ],
)
def test_raw_bytes_of_another_length_are_refused(datatype: str, shape: list[int], raw: bytes, why: str) -> None:
    request = pb.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    with pytest.raises(InvalidArgument) as refused:
        read(request, Tensor("x", datatype, (-1,)))
    assert refused.value.violations == {"inputs.x": why}


def test_rows_and_raw_contents_have_to_agree() -> None:
    request = pb.ModelInferRequest()
    request.inputs.add(name="a", datatype="BOOL", shape=[1]).contents.bool_contents.append(True)
    request.inputs.add(name="b", datatype="BOOL", shape=[2]).contents.bool_contents.extend([True, True])
    inputs = [Tensor("a", "BOOL", (-1,)), Tensor("b", "BOOL", (-1,))]
    with pytest.raises(InvalidArgument, match="inputs: their first axes differ"):
        read(request, *inputs)
    request.raw_input_contents.append(b"\1")
    with pytest.raises(InvalidArgument, match="raw_input_contents: 1 for 2 inputs; give them for all or for none"):
        read(request, *inputs)


def test_large_requests_are_taken_apart_without_a_copy() -> None:
    first, second = bytes(range(256)) * 200, b"x" * 40_000
    request = pb.ModelInferRequest(model_name="m", id="7", raw_input_contents=[first, b"", second])
    request.inputs.add(name="a", datatype="UINT8", shape=[1])
    # As another writer may order them: contents before and between what belongs to other fields, one field twice.
    parts = [
        pb.ModelInferRequest(raw_input_contents=[first]),
        pb.ModelInferRequest(model_name="other", id="7"),
        pb.ModelInferRequest(raw_input_contents=[b"", second]),
        pb.ModelInferRequest(model_name="m", inputs=request.inputs),
    ]
    for data in (request.SerializeToString(), b"".join(part.SerializeToString() for part in parts)):
        parsed = tensors.Request.parse(data)
        assert [bytes(raw) for raw in parsed.raw] == [first, b"", second]
        assert all(isinstance(raw, memoryview) and raw.obj is data for raw in parsed.raw)
        assert not parsed.message.raw_input_contents
        assert (parsed.message.model_name, parsed.message.id, parsed.message.inputs) == ("m", "7", request.inputs)


@given(data=st.binary(max_size=60), place=st.integers(0, 3), cut=st.integers(0, 50_000))
def test_any_bytes_are_parsed_as_protobuf_does(data: bytes, place: int, cut: int) -> None:
    parts = [pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(40_000)]).SerializeToString(), data]
    mixed = b"".join(parts[::-1] if place % 2 else parts)
    mixed = mixed[: max(tensors._LARGE_BYTES, len(mixed) - cut)] if place > 1 else mixed
    try:
        plain = pb.ModelInferRequest.FromString(mixed)
    except DecodeError:
        with pytest.raises(DecodeError):
            tensors.Request.parse(mixed)
        return
    parsed = tensors.Request.parse(mixed)
    assert [bytes(raw) for raw in parsed.raw] == list(plain.raw_input_contents)
    del parsed.message.raw_input_contents[:]
    del plain.raw_input_contents[:]
    assert parsed.message == plain
