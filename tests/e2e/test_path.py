"""The whole path through one real server, with the task that needs no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)
from support import LONG, Server, create_dataset, fine_tune, interactions, serving, status_of, upload

EASE = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)


@pytest.fixture(scope="module")
def shop(server: Server, tmp_path_factory: pytest.TempPathFactory) -> model_pb2.ModelVersion:
    """A published model of the task `recommendation`, called shop."""
    path = interactions(tmp_path_factory.mktemp("data") / "shop.csv")
    split = dataset_pb2.Split(method="per-user", fractions=[0.25], seed=1)
    create_dataset(server, "shop", "recommendation", {"_": path}, split=split)
    return fine_tune(server, "shop", "recommendation", "shop", EASE)


def test_a_data_set_is_divided_and_described(server: Server, shop: model_pb2.ModelVersion) -> None:
    stub = server.stub(dataset_pb2_grpc.DatasetServiceStub)
    dataset = stub.GetDataset(dataset_pb2.GetDatasetRequest(name="datasets/shop"))
    version = dataset.latest_version
    assert version.name == "datasets/shop/versions/1"
    assert sum(version.num_examples.values()) == 80 * 12
    assert version.num_examples["test"] == 80 * 3
    assert version.statistics["users"] == 80


def test_equal_content_is_the_same_version(server: Server, shop: model_pb2.ModelVersion, tmp_path: Path) -> None:
    path = interactions(tmp_path / "under-another-name.csv")
    split = dataset_pb2.Split(method="per-user", fractions=[0.25], seed=1)
    version = create_dataset(server, "shop", "recommendation", {"_": path}, split=split)
    assert version.name == "datasets/shop/versions/1"


def test_a_version_carries_its_proof_and_lineage(shop: model_pb2.ModelVersion) -> None:
    assert shop.name == "models/shop/versions/1"
    assert shop.dataset_version == "datasets/shop/versions/1"
    assert shop.metrics["ndcg_at_10"] > 0.4
    assert shop.parity.served == pytest.approx(shop.parity.source, abs=1e-3)
    assert {"model.onnx"} <= {file.path for file in shop.files}
    assert shop.packages["luthier"]
    config = recommendation.Config()
    assert shop.config.Unpack(config)
    assert config.regularization == 10
    # Defaults are filled in, so that the record says all that the result came from.
    assert config.HasField("use_weights")


def test_the_first_version_answers_under_the_bare_name(server: Server, shop: model_pb2.ModelVersion) -> None:
    stub = server.stub(recommendation_grpc.RecommendationServiceStub)
    for name in ("shop", "shop@production", "shop/1"):
        response = stub.Recommend(
            recommendation.RecommendRequest(model=name, instances=[recommendation.Instance(user="u1", k=5)])
        )
        assert response.model_version == shop.name
        items = [item.item for item in response.predictions[0].items]
        assert len(items) == 5
        # The user's taste is every third item; nearly all that is recommended is of it.
        assert sum(int(item[1:]) % 3 == 1 for item in items) >= 4


def test_typed_and_generic_predictions_agree(server: Server, shop: model_pb2.ModelVersion) -> None:
    instance = recommendation.Instance(history=["i0", "i3"], k=3)
    typed = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(
        recommendation.RecommendRequest(model="shop", instances=[instance])
    )
    packed = Any()
    packed.Pack(instance)
    stub = server.stub(prediction_pb2_grpc.PredictionServiceStub)
    request = prediction_pb2.PredictRequest(model="shop", instances=[packed])
    generic = stub.Predict(request)
    prediction = recommendation.Prediction()
    assert generic.predictions[0].Unpack(prediction)
    assert prediction == typed.predictions[0]
    assert [response.model_version for response in stub.StreamPredict(iter([request] * 3))] == [shop.name] * 3


def test_similar_items(server: Server, shop: model_pb2.ModelVersion) -> None:
    response = server.stub(recommendation_grpc.RecommendationServiceStub).SimilarItems(
        recommendation.SimilarItemsRequest(
            model="shop", instances=[recommendation.SimilarItemsInstance(item="i4", k=4)]
        )
    )
    items = [item.item for item in response.predictions[0].items]
    assert len(items) == 4
    assert "i4" not in items
    assert sum(int(item[1:]) % 3 == 1 for item in items) >= 3


def test_an_evaluation_of_the_served_bundle_equals_the_published_one(
    server: Server, shop: model_pb2.ModelVersion
) -> None:
    stub = server.stub(evaluation_pb2_grpc.EvaluationServiceStub)
    operation = stub.Evaluate(evaluation_pb2.EvaluateRequest(model="models/shop", dataset="datasets/shop"))
    evaluation = server.result(operation, evaluation_pb2.Evaluation)
    assert evaluation.metrics == shop.metrics
    listed = stub.ListEvaluations(evaluation_pb2.ListEvaluationsRequest(model="models/shop")).evaluations
    assert listed[0] == evaluation
    assert stub.GetEvaluation(evaluation_pb2.GetEvaluationRequest(name=evaluation.name)) == evaluation


def test_events_tell_the_whole_story_and_resume(server: Server, shop: model_pb2.ModelVersion) -> None:
    request = model_pb2.FineTuneRequest(model_id="watched", task="recommendation", dataset="datasets/shop")
    request.config.Pack(EASE)
    operation = server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)
    stub = server.stub(operation_pb2_grpc.OperationServiceStub)
    events = list(stub.WatchOperation(operation_pb2.WatchOperationRequest(name=operation.name), timeout=120))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [event.state for event in events if event.HasField("state")]
    metadata = operation_pb2.OperationMetadata
    assert states == [metadata.STATE_PENDING, metadata.STATE_RUNNING, metadata.STATE_SUCCEEDED]
    assert any(event.HasField("progress") for event in events)
    assert events[-1].done.done
    version = model_pb2.ModelVersion()
    assert events[-1].done.response.Unpack(version)
    assert version.name == "models/watched/versions/1"
    later = list(
        stub.WatchOperation(operation_pb2.WatchOperationRequest(name=operation.name, after_sequence=2), timeout=10)
    )
    assert later == events[2:]


def test_the_same_request_id_gives_the_same_operation(server: Server, shop: model_pb2.ModelVersion) -> None:
    stub = server.stub(evaluation_pb2_grpc.EvaluationServiceStub)
    request = evaluation_pb2.EvaluateRequest(model="models/shop", dataset="datasets/shop", request_id="once")
    first, second = stub.Evaluate(request), stub.Evaluate(request)
    assert first.name == second.name
    request.split = "train"
    with pytest.raises(grpc.RpcError) as caught:
        stub.Evaluate(request)
    assert status_of(caught.value).code == code_pb2.ALREADY_EXISTS
    server.wait(first)


def test_a_training_can_be_cancelled(server: Server, shop: model_pb2.ModelVersion) -> None:
    request = model_pb2.FineTuneRequest(model_id="endless", task="recommendation", dataset="datasets/shop")
    request.config.Pack(LONG)
    operation = server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)
    watch = server.stub(operation_pb2_grpc.OperationServiceStub).WatchOperation(
        operation_pb2.WatchOperationRequest(name=operation.name), timeout=60
    )
    for event in watch:
        if event.HasField("progress"):
            break
    from google.longrunning import operations_pb2, operations_pb2_grpc

    server.stub(operations_pb2_grpc.OperationsStub).CancelOperation(
        operations_pb2.CancelOperationRequest(name=operation.name)
    )
    started = time.monotonic()
    done = server.wait(operation, 30)
    assert done.error.code == code_pb2.CANCELLED
    assert time.monotonic() - started < 8
    with pytest.raises(grpc.RpcError) as caught:
        server.stub(model_pb2_grpc.ModelServiceStub).GetModel(model_pb2.GetModelRequest(name="models/endless"))
    assert status_of(caught.value).code == code_pb2.NOT_FOUND


def test_a_download_is_the_bundle(server: Server, shop: model_pb2.ModelVersion) -> None:
    import hashlib

    digests: dict[str, hashlib._Hash] = {}
    sent: dict[str, str] = {}
    stub = server.stub(model_pb2_grpc.ModelServiceStub)
    for part in stub.DownloadVersion(model_pb2.DownloadVersionRequest(name=shop.name)):
        if part.HasField("file"):
            path = part.file.path
            digests[path], sent[path] = hashlib.sha256(), part.file.sha256
        else:
            digests[path].update(part.chunk)
    assert {path: digest.hexdigest() for path, digest in digests.items()} == sent
    assert sent["manifest.json"] == shop.digest


def test_aliases_promote_and_roll_back(server: Server, shop: model_pb2.ModelVersion) -> None:
    popularity = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)
    fine_tune(server, "moving", "recommendation", "shop", EASE)
    second = fine_tune(server, "moving", "recommendation", "shop", popularity)
    assert second.name == "models/moving/versions/2"
    models = server.stub(model_pb2_grpc.ModelServiceStub)
    predictions = server.stub(recommendation_grpc.RecommendationServiceStub)
    request = recommendation.RecommendRequest(model="moving", instances=[recommendation.Instance(user="u1")])
    assert predictions.Recommend(request).model_version == "models/moving/versions/1"
    for number in (2, 1):
        version = f"models/moving/versions/{number}"
        models.SetAlias(model_pb2.SetAliasRequest(name="models/moving/aliases/production", model_version=version))
        deadline = time.monotonic() + 1
        while predictions.Recommend(request).model_version != version:
            assert time.monotonic() < deadline, "the alias did not move within a second"
            time.sleep(0.02)
    with pytest.raises(grpc.RpcError) as caught:
        models.DeleteModelVersion(model_pb2.DeleteModelVersionRequest(name="models/moving/versions/1"))
    assert status_of(caught.value).code == code_pb2.FAILED_PRECONDITION
    models.DeleteModelVersion(model_pb2.DeleteModelVersionRequest(name="models/moving/versions/2"))
    left = models.ListModelVersions(model_pb2.ListModelVersionsRequest(parent="models/moving")).model_versions
    assert [version.name for version in left] == ["models/moving/versions/1"]


def test_reflection_lists_every_service(server: Server) -> None:
    services = set(ProtoReflectionDescriptorDatabase(server.channel).get_services())
    tasks = server.stub(task_pb2_grpc.TaskServiceStub).ListTasks(task_pb2.ListTasksRequest()).tasks
    assert {
        "luthier.v1.TaskService",
        "luthier.v1.BaseService",
        "luthier.v1.DatasetService",
        "luthier.v1.ModelService",
        "luthier.v1.BatchPredictionService",
        "luthier.v1.EvaluationService",
        "luthier.v1.PredictionService",
        "luthier.v1.OperationService",
        "luthier.v1.RolloutService",
        "luthier.v1.MonitoringService",
        "luthier.v1.TokenService",
        "luthier.v1.AuditService",
        "google.longrunning.Operations",
        "grpc.health.v1.Health",
        "inference.GRPCInferenceService",
        "grpc.reflection.v1alpha.ServerReflection",
        *(task.service for task in tasks),
    } == services


def test_health_can_be_asked_and_watched(server: Server) -> None:
    stub = server.stub(health_pb2_grpc.HealthStub)
    for service in ("", "luthier.v1.ModelService", "luthier.tasks.recommendation.v1.RecommendationService"):
        request = health_pb2.HealthCheckRequest(service=service)
        watch = stub.Watch(request, timeout=10)
        assert next(watch).status == stub.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_a_missing_model_is_named(server: Server) -> None:
    stub = server.stub(prediction_pb2_grpc.PredictionServiceStub)
    packed = Any()
    packed.Pack(recommendation.Instance(user="u1"))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(prediction_pb2.PredictRequest(model="nosuch", instances=[packed]))
    status = status_of(caught.value)
    assert status.code == code_pb2.NOT_FOUND
    info, resource = error_details_pb2.ErrorInfo(), error_details_pb2.ResourceInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("NOT_FOUND", "luthier")
    assert status.details[1].Unpack(resource)
    assert resource.resource_name == "models/nosuch/aliases/production"


def test_a_wrong_message_type_is_named(server: Server, shop: model_pb2.ModelVersion) -> None:
    stub = server.stub(prediction_pb2_grpc.PredictionServiceStub)
    wrong, right = Any(), Any()
    wrong.Pack(dataset_pb2.Split(method="hash"))
    right.Pack(recommendation.Instance(user="u1"))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(prediction_pb2.PredictRequest(model="shop", instances=[right, wrong]))
    status = status_of(caught.value)
    assert status.code == code_pb2.INVALID_ARGUMENT
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert [violation.field for violation in bad.field_violations] == ["instances[1]"]
    assert "luthier.v1.Split" in bad.field_violations[0].description


def test_an_expired_deadline_says_so(server: Server, shop: model_pb2.ModelVersion) -> None:
    packed = Any()
    packed.Pack(recommendation.Instance(user="u1"))
    stub = server.stub(prediction_pb2_grpc.PredictionServiceStub)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(prediction_pb2.PredictRequest(model="shop", instances=[packed]), timeout=-1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.details()


def test_every_bad_field_is_named_at_once(server: Server) -> None:
    request = model_pb2.FineTuneRequest(
        model_id="No Good", task="recommendation", dataset="nonsense", base="bases/minilm-l6", seed=-1
    )
    request.config.Pack(recommendation.Config(factors=-3))
    with pytest.raises(grpc.RpcError) as caught:
        server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)
    bad = error_details_pb2.BadRequest()
    assert status_of(caught.value).details[1].Unpack(bad)
    fields = {violation.field for violation in bad.field_violations}
    assert fields == {"model_id", "dataset", "base", "seed", "config.factors"}


def test_bad_rows_are_named_before_anything_is_made(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("user,item,weight\nu1,i1,1\nu2,,1\nu3,i3,heavy\n", encoding="utf-8")
    stub = server.stub(dataset_pb2_grpc.DatasetServiceStub)
    operation = stub.CreateDataset(
        dataset_pb2.CreateDatasetRequest(
            dataset_id="bad", task="recommendation", files=[dataset_pb2.DatasetFile(upload=upload(server, path))]
        )
    )
    done = server.wait(operation)
    assert done.error.code == code_pb2.INVALID_ARGUMENT
    problem = dataset_pb2.DataProblem()
    problems = set()
    for detail in done.error.details:
        if detail.Unpack(problem):
            problems.add((problem.file, problem.row, problem.field))
    assert problems == {("bad.csv", 2, "item"), ("bad.csv", 3, "weight")}
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetDataset(dataset_pb2.GetDatasetRequest(name="datasets/bad"))
    assert status_of(caught.value).code == code_pb2.NOT_FOUND


def test_an_upload_that_breaks_its_promise_is_refused(server: Server) -> None:
    stub = server.stub(dataset_pb2_grpc.DatasetServiceStub)
    header = dataset_pb2.UploadHeader(filename="a.csv", size_bytes=3, sha256="0" * 64)
    messages = [dataset_pb2.UploadFilesRequest(header=header), dataset_pb2.UploadFilesRequest(chunk=b"abc")]
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadFiles(iter(messages))
    assert status_of(caught.value).code == code_pb2.DATA_LOSS
    messages[0].header.filename = "../a.csv"
    with pytest.raises(grpc.RpcError) as caught:
        stub.UploadFiles(iter(messages))
    assert status_of(caught.value).code == code_pb2.INVALID_ARGUMENT
    assert not list((server.home / "uploads").glob("*.partial"))


def test_the_serving_process_has_no_torch(server: Server, shop: model_pb2.ModelVersion) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text(encoding="utf-8")
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    assert "/torch/" not in maps


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two servers on one home and database; only the first runs operations."""
    with serving(tmp_path) as first, serving(tmp_path, "--trainings", "0", "--jobs", "0") as second:
        yield first, second


def test_two_servers_are_one_service(pair: tuple[Server, Server], tmp_path: Path) -> None:
    first, second = pair
    path = interactions(tmp_path / "shop.csv")
    create_dataset(second, "shop", "recommendation", {"_": path})
    request = model_pb2.FineTuneRequest(model_id="shop", task="recommendation", dataset="datasets/shop")
    request.config.Pack(EASE)
    operation = first.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)
    # A watch on the one that does not run it sees all of it.
    watch = second.stub(operation_pb2_grpc.OperationServiceStub).WatchOperation(
        operation_pb2.WatchOperationRequest(name=operation.name), timeout=120
    )
    assert list(watch)[-1].done.done
    fine_tune(first, "shop", "recommendation", "shop", EASE)
    started = time.monotonic()
    first.stub(model_pb2_grpc.ModelServiceStub).SetAlias(
        model_pb2.SetAliasRequest(name="models/shop/aliases/production", model_version="models/shop/versions/2")
    )
    predict = second.stub(recommendation_grpc.RecommendationServiceStub).Recommend
    asked = recommendation.RecommendRequest(model="shop", instances=[recommendation.Instance(user="u1")])
    while predict(asked).model_version != "models/shop/versions/2":
        assert time.monotonic() - started < 1, "the alias did not move on the other server within a second"
        time.sleep(0.02)
