# ruff: noqa: N802 -- the proto names the methods
"""Messages of a task that this program has no stubs of, and the requests made of them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf import struct_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor_pb2 import EnumValueDescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from inprocess import serving
from luthier.tasks.image_classification.v1 import image_classification_pb2 as photos
from luthier.v1 import (
    dataset_pb2,
    model_pb2,
    model_pb2_grpc,
    operation_pb2,
    prediction_pb2,
    prediction_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)
from luthier_client import AsyncClient, Client, errors
from luthier_client.documents import document

PACKAGE = "stranger.v1"


def strangers_file() -> FileDescriptorProto:
    """The .proto of a task, as only the server has it."""
    file = FileDescriptorProto(name="stranger/v1/stranger.proto", package=PACKAGE, syntax="proto3")
    flavor = file.enum_type.add(name="Flavor")
    for number, name in enumerate(("FLAVOR_UNSPECIFIED", "FLAVOR_SWEET", "FLAVOR_VERY_SWEET")):
        flavor.value.append(EnumValueDescriptorProto(name=name, number=number))
    types = FieldDescriptorProto
    for message, fields in {
        "Config": {"epochs": types.TYPE_INT32, "rate": types.TYPE_DOUBLE, "flavor": types.TYPE_ENUM},
        "Instance": {"text": types.TYPE_STRING, "count": types.TYPE_INT64},
        "OtherInstance": {"text": types.TYPE_STRING},
        "Prediction": {"label": types.TYPE_STRING, "score": types.TYPE_FLOAT, "seen": types.TYPE_INT64},
    }.items():
        made = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields.items(), 1):
            made.field.add(
                name=name,
                number=number,
                type=kind,
                label=types.LABEL_OPTIONAL,
                type_name=f".{PACKAGE}.Flavor" if kind == types.TYPE_ENUM else None,
            )
    return file


class Stranger(
    task_pb2_grpc.TaskServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    prediction_pb2_grpc.PredictionServiceServicer,
):
    """A server with one task and one model, which keeps what it is asked."""

    def __init__(self) -> None:
        self.pool = DescriptorPool()
        self.pool.AddSerializedFile(strangers_file().SerializeToString())
        self.fine_tunes: list[model_pb2.FineTuneRequest] = []
        self.unavailable = 0

    def register(self, server: grpc.Server) -> None:
        task_pb2_grpc.add_TaskServiceServicer_to_server(self, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, server)
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(self, server)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.ReflectionServicer([PACKAGE], self.pool), server
        )

    def message(self, name: str) -> Any:
        return GetMessageClass(self.pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))()

    def GetTask(self, request: task_pb2.GetTaskRequest, context: grpc.ServicerContext) -> task_pb2.Task:
        return task_pb2.Task(
            name=request.name,
            config_type=f"{PACKAGE}.Config",
            methods=[
                task_pb2.TaskMethod(method="Taste", instance_type=f"{PACKAGE}.Instance"),
                task_pb2.TaskMethod(method="Smell", instance_type=f"{PACKAGE}.OtherInstance"),
            ],
        )

    def GetModel(self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext) -> model_pb2.Model:
        return model_pb2.Model(name=request.name, task="stranger")

    def FineTune(self, request: model_pb2.FineTuneRequest, context: grpc.ServicerContext) -> operations_pb2.Operation:
        self.fine_tunes.append(request)
        if len(self.fine_tunes) <= self.unavailable:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return operations_pb2.Operation(name="operations/1")

    def Predict(
        self, request: prediction_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> prediction_pb2.PredictResponse:
        response = prediction_pb2.PredictResponse(model_version="models/tea/versions/1")
        for packed in request.instances:
            instance = self.message(packed.TypeName().rpartition(".")[2])
            assert packed.Unpack(instance)
            prediction = self.message("Prediction")
            prediction.label, prediction.score = f"{packed.TypeName()}:{instance.text}", 0.9
            prediction.seen = 2**40
            response.predictions.add().Pack(prediction)
        return response

    def StreamPredict(
        self, request: Iterator[prediction_pb2.PredictRequest], context: grpc.ServicerContext
    ) -> Iterator[prediction_pb2.PredictResponse]:
        for one in request:
            yield self.Predict(one, context)


@pytest.fixture
def stranger() -> Stranger:
    return Stranger()


@pytest.fixture
def address(stranger: Stranger) -> Iterator[str]:
    with serving(stranger.register) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def tuned(stranger: Stranger) -> Any:
    config = stranger.message("Config")
    assert stranger.fine_tunes[-1].config.Unpack(config)
    return config


@pytest.mark.parametrize("flavor", ["FLAVOR_SWEET", "sweet", "Sweet", 1])
def test_a_config_is_made_of_its_fields(client: Client, stranger: Stranger, flavor: object) -> None:
    client.fine_tune("tea", task="stranger", dataset="teas", config={"epochs": "3", "rate": 0.5, "flavor": flavor})
    config = tuned(stranger)
    assert (config.epochs, config.rate, config.flavor) == (3, 0.5, 1)
    assert stranger.fine_tunes[-1].dataset == "datasets/teas"


@pytest.mark.parametrize(
    ("config", "field", "why"),
    [
        ({"epoch": 3}, "config.epoch", "there are epochs, rate, flavor"),
        ({"epochs": "three"}, "config", "epochs"),
        ({"flavor": "sour"}, "config", "flavor"),
    ],
)
def test_a_config_that_does_not_hold(client: Client, config: dict[str, object], field: str, why: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=why) as caught:
        client.fine_tune("tea", task="stranger", dataset="teas", config=config)
    assert list(caught.value.violations) == [field]


def test_a_retry_after_unavailable_is_the_same_request(client: Client, stranger: Stranger) -> None:
    stranger.unavailable = 2
    assert client.fine_tune("tea", task="stranger", dataset="teas").name == "operations/1"
    client.fine_tune("tea", task="stranger", dataset="teas")
    first, second, third, other = [request.request_id for request in stranger.fine_tunes]
    assert first
    assert first == second == third != other


def test_predictions_by_fields(client: Client) -> None:
    predictions = client.predict("tea@canary", [{"text": "green", "count": 2}, {"text": "black"}])
    assert [prediction.label for prediction in predictions] == [
        "stranger.v1.Instance:green",
        "stranger.v1.Instance:black",
    ]
    assert predictions.model_version == "models/tea/versions/1"
    assert client.predict("tea", [{"text": "x"}], method="Smell")[0].label == "stranger.v1.OtherInstance:x"


def test_bytes_are_given_as_they_are_or_as_json_has_them(client: Client) -> None:
    name = photos.Instance.DESCRIPTOR.full_name
    for given in (b"\xff\x00photo", base64.b64encode(b"\xff\x00photo").decode()):
        assert client.schema.parse(name, {"image": given}, "instances[0]") == photos.Instance(image=b"\xff\x00photo")


def test_predictions_by_messages(client: Client) -> None:
    instance = client.schema.message_class(f"{PACKAGE}.Instance")(text="white")
    assert client.predict("tea", [instance])[0].label.endswith(":white")
    answers = list(client.stream_predict("tea", [[instance], [instance, instance]]))
    assert [len(answer) for answer in answers] == [1, 2]


def test_an_unknown_method_is_told_the_known_ones(client: Client) -> None:
    with pytest.raises(errors.InvalidArgument, match="Hear") as caught:
        client.predict("tea", [{"text": "x"}], method="Hear")
    assert caught.value.violations == {"method": "Hear is not one of Taste, Smell"}


def test_the_asyncio_client_does_the_same(address: str, stranger: Stranger) -> None:
    async def go() -> list[str]:
        async with AsyncClient(address) as client:
            await client.fine_tune("tea", task="stranger", dataset="teas", config={"flavor": "sweet"})
            by_fields = await client.predict("tea", [{"text": "green"}])
            instance = client.schema.message_class(f"{PACKAGE}.Instance")(text="white")

            async def batches() -> Any:
                yield [instance]
                yield [instance, instance]

            streamed = [answer async for answer in client.stream_predict("tea", batches())]
            return [prediction.label for answer in (by_fields, *streamed) for prediction in answer]

    assert [label.rpartition(":")[2] for label in asyncio.run(go())] == ["green", "white", "white", "white"]
    assert tuned(stranger).flavor == 1


def test_imported_stubs_win(client: Client) -> None:
    assert client.schema.message_class("luthier.v1.Split") is dataset_pb2.Split


def test_documents_hold_what_scripts_need(client: Client) -> None:
    prediction = client.predict("tea", [{"text": "green"}])[0]
    assert document(prediction, client.schema) == {"label": "stranger.v1.Instance:green", "score": 0.9, "seen": 2**40}

    statistics = struct_pb2.Struct()
    statistics.update({"classes": {"a": 1}})
    version = dataset_pb2.DatasetVersion(
        num_examples={"train": 80, "test": 20}, statistics=statistics, create_time=Timestamp(seconds=1)
    )
    made = document(version, client.schema)
    assert made["num_examples"] == {"test": 20, "train": 80}
    assert made["statistics"] == {"classes": {"a": 1.0}}
    assert made["create_time"] == "1970-01-01T00:00:01Z"
    assert made["warnings"] == []
    assert "split" not in made

    event = operation_pb2.OperationEvent(metrics=operation_pb2.Metrics(values={"loss": float("nan"), "f1": 0.1}))
    assert json.loads(json.dumps(document(event, client.schema), allow_nan=False))["metrics"]["values"] == {
        "f1": 0.1,
        "loss": None,
    }


def test_documents_of_versions_whose_task_is_gone(client: Client, stranger: Stranger) -> None:
    config = stranger.message("Config")
    config.epochs = 3
    version = model_pb2.ModelVersion()
    version.config.Pack(config)
    assert document(version, client.schema)["config"]["epochs"] == 3

    version.config.CopyFrom(AnyMessage(type_url="type.googleapis.com/gone.v1.Config", value=b"\x08\x03"))
    assert document(version, client.schema)["config"] == {"@type": "gone.v1.Config"}
