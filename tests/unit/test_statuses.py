"""What a call ends with has to fit into its metadata: seen from a client, not from a count."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from luthier.errors import FailedPrecondition, InvalidArgument, NotFound
from luthier.services.statuses import fitting
from luthier.v1 import model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc
from support import Server, status_of


def test_a_short_status_stays_as_it_is() -> None:
    for error in (NotFound("models/beer", "there is no such model"), InvalidArgument({"name": "it is empty"})):
        assert fitting(error.status()) == error.status()


@pytest.mark.parametrize("text", ["a" * 100_000, "%" * 100_000, "麦" * 100_000, "\0" * 5000])
def test_a_long_one_is_cut(text: str) -> None:
    for error in (InvalidArgument({"name": text, "other": "short"}), FailedPrecondition(text)):
        fitted = fitting(error.status())
        assert fitted.code == error.code
        assert fitted.message.endswith("…")
        assert fitted.ByteSize() < 4200
        info = error_details_pb2.ErrorInfo()
        assert fitted.details[0].Unpack(info)
        assert info.reason == error.reason


def test_of_many_violations_the_first_are_told() -> None:
    fitted = fitting(InvalidArgument({f"instances[{i}].image": "there is no image" for i in range(1024)}).status())
    bad = error_details_pb2.BadRequest()
    assert fitted.details[1].Unpack(bad)
    assert [violation.field for violation in bad.field_violations[:2]] == ["instances[0].image", "instances[1].image"]
    assert 20 < len(bad.field_violations) < 1024
    assert bad.field_violations[-1].description == f"and {1024 - len(bad.field_violations) + 1} more"


@pytest.mark.parametrize("name", ["a" * 100_000, "麦" * 30_000, "\0" * 9000])
def test_a_caller_sees_why_a_long_name_is_none(server: Server, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.stub(model_pb2_grpc.ModelServiceStub).GetModel(model_pb2.GetModelRequest(name=name))
    status: status_pb2.Status = status_of(caught.value)
    assert status.code == code_pb2.INVALID_ARGUMENT
    assert status.message.startswith("name: ")


def test_a_caller_sees_why_a_thousand_names_are_none(server: Server) -> None:
    request = prediction_pb2.PredictRequest(model="麦" * 30_000)
    with pytest.raises(grpc.RpcError) as caught:
        server.stub(prediction_pb2_grpc.PredictionServiceStub).Predict(request)
    assert status_of(caught.value).code == code_pb2.INVALID_ARGUMENT
