"""Prometheus sees of a server what was done, every call and every instance, in no more series than there should be."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any

from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc, task_pb2, task_pb2_grpc
from scrapes import Scrape, names, scrape, text_of, value
from support import Server, create_dataset, fine_tune, interactions, serving

POPULARITY = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)
RECOMMEND = "/luthier.tasks.recommendation.v1.RecommendationService/Recommend"
SHOP = {"model": "shop", "version": "1"}
STAGES = ("receive", "queue", "encode", "run", "decode")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that shows its metrics, with a model called shop."""
    home = tmp_path_factory.mktemp("seen")
    with serving(home, "--metrics-listen", "127.0.0.1:0") as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(home / "shop.csv")})
        fine_tune(server, "shop", "recommendation", "shop", POPULARITY)
        yield server


def recommend(server: Server, *users: str, model: str = "shop", k: int = 1) -> None:
    instances = [recommendation.Instance(user=user, k=k) for user in users]
    request = recommendation.RecommendRequest(model=model, instances=instances)
    server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(request)


def grown(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return value(after, name, **labels) - value(before, name, **labels)


def test_predictions_are_counted_by_model_version_and_code(seen: Server) -> None:
    before = scrape(seen)
    for _ in range(7):
        recommend(seen, "u1", "u2", "u3")
    recommend(seen, *(f"u{n}" for n in range(40)))
    for _ in range(2):
        with pytest.raises(grpc.RpcError):
            recommend(seen, "u1", k=-1)
    after = scrape(seen)
    assert grown(before, after, "luthier_predictions_total", **SHOP, code="OK") == 8
    assert grown(before, after, "luthier_predictions_total", **SHOP, code="INVALID_ARGUMENT") == 2
    assert grown(before, after, "luthier_prediction_instances_total", **SHOP) == 61
    assert grown(before, after, "luthier_prediction_seconds_count", **SHOP) == 8
    whole = grown(before, after, "luthier_prediction_seconds_sum", **SHOP)
    parts = [grown(before, after, "luthier_prediction_stage_seconds_sum", **SHOP, stage=stage) for stage in STAGES]
    assert sum(parts) == pytest.approx(whole, rel=1e-6)
    assert all(part > 0 for part in parts)
    for stage in STAGES:
        assert grown(before, after, "luthier_prediction_stage_seconds_count", **SHOP, stage=stage) == 8
    assert grown(before, after, "luthier_batch_rows_sum", **SHOP) == 61
    assert grown(before, after, "luthier_batch_rows_bucket", **SHOP, le="2.0") == 0
    assert grown(before, after, "luthier_batch_rows_bucket", **SHOP, le="4.0") == 7
    assert grown(before, after, "luthier_batch_rows_bucket", **SHOP, le="64.0") == 8
    assert value(after, "luthier_predictions_in_flight", **SHOP) == value(after, "luthier_queue_waiting", **SHOP) == 0


def test_calls_are_counted_by_method_and_code(seen: Server) -> None:
    before = scrape(seen)
    recommend(seen, "u1")
    with pytest.raises(grpc.RpcError):
        recommend(seen, "u1", model="none-such")
    tasks = seen.stub(task_pb2_grpc.TaskServiceStub)
    tasks.ListTasks(task_pb2.ListTasksRequest())
    after = scrape(seen)
    assert grown(before, after, "luthier_calls_total", method=RECOMMEND, code="OK") == 1
    assert grown(before, after, "luthier_calls_total", method=RECOMMEND, code="NOT_FOUND") == 1
    assert grown(before, after, "luthier_call_seconds_count", method=RECOMMEND) == 2
    assert grown(before, after, "luthier_calls_total", method="/luthier.v1.TaskService/ListTasks", code="OK") == 1
    assert value(after, "luthier_calls_in_flight", method=RECOMMEND) == 0
    # What callers make up is no label.
    assert "none-such" not in text_of(seen)


def test_each_request_of_a_stream_is_a_prediction(seen: Server) -> None:
    packed = Any()
    packed.Pack(recommendation.Instance(user="u1"))
    before = scrape(seen)
    requests = iter([prediction_pb2.PredictRequest(model="shop", instances=[packed] * 2)] * 5)
    answers = seen.stub(prediction_pb2_grpc.PredictionServiceStub).StreamPredict(requests)
    assert len(list(answers)) == 5
    after = scrape(seen)
    assert grown(before, after, "luthier_predictions_total", **SHOP, code="OK") == 5
    method = "/luthier.v1.PredictionService/StreamPredict"
    assert grown(before, after, "luthier_calls_total", method=method, code="OK") == 1


def test_a_method_that_is_not_there_is_counted_without_its_name(seen: Server) -> None:
    before = scrape(seen)
    for name in ("One", "Two"):
        call = seen.channel.unary_unary(f"/made.up.Service/{name}")
        with pytest.raises(grpc.RpcError):
            call(b"")
    after = scrape(seen)
    assert grown(before, after, "luthier_calls_total", method="unknown", code="UNIMPLEMENTED") == 2
    assert "made.up" not in text_of(seen)


def test_series_go_with_their_version(seen: Server) -> None:
    fine_tune(seen, "short", "recommendation", "shop", POPULARITY)
    recommend(seen, "u1", model="short")
    one = {"model": "short", "version": "1"}
    before = scrape(seen)
    assert value(before, "luthier_predictions_total", **one, code="OK") == 1
    models = seen.stub(model_pb2_grpc.ModelServiceStub)
    models.DeleteModel(model_pb2.DeleteModelRequest(name="models/short"))
    deadline = time.monotonic() + 10
    while 'model="short"' in text_of(seen):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert grown(before, scrape(seen), "luthier_models_loaded") == -1


def test_operations_and_pools_are_as_they_are_at_the_scrape(seen: Server) -> None:
    found = scrape(seen)
    assert value(found, "luthier_database_up") == 1
    assert value(found, "luthier_operations", state="succeeded") >= 2
    assert value(found, "luthier_operations", state="failed") == 0
    assert {value(found, "luthier_pool_threads", pool=pool) for pool in ("control", "streams")} == {8, 256}
    assert value(found, "luthier_pool_waiting", pool="predictions") == 0
    assert value(found, "process_resident_memory_bytes") > 2**20


def test_all_are_of_luthier_or_of_the_process(seen: Server) -> None:
    found = scrape(seen)
    assert len(names(found)) >= 15
    assert {name.partition("_")[0] for name, _ in found} == {"luthier", "process", "python"}


def test_nothing_is_imported_for_metrics_and_traces_that_nobody_wants() -> None:
    code = "import sys; import luthier.app; print({'prometheus_client', 'opentelemetry'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--metrics-listen", "0.0.0.0:9464"], "can be reached from other machines"),
        (["--metrics-listen", "9464"], "is no address with a port"),
        (["--traces-endpoint", "127.0.0.1:4317"], "is no URL of a collector"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "luthier", "--home", str(tmp_path), *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_port_of_metrics_that_is_taken_is_named(seen: Server, tmp_path: Path) -> None:
    address = seen.address
    command = [sys.executable, "-m", "luthier", "--home", str(tmp_path), "--listen", "127.0.0.1:0"]
    ended = subprocess.run(
        [*command, "--metrics-listen", address], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert f"cannot listen on {address}" in ended.stderr
    assert "choose another with --metrics-listen" in ended.stderr
