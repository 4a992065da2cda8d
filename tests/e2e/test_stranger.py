"""A third party's plugin, installed beside the server, goes the whole way; the server knows nothing of it."""

from __future__ import annotations

import random
import subprocess
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from luthier.v1 import (
    evaluation_pb2,
    evaluation_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)
from support import ROOT, Server, create_dataset, fine_tune

pytestmark = pytest.mark.skipif(
    not entry_points(group="luthier", name="acme-regression"),
    reason="the wheel of tests/plugins/acme_regression is not installed; `make test` installs it",
)


def test_a_stranger_goes_the_whole_way(server: Server, tmp_path: Path) -> None:
    from acme_regression.v1 import regression_pb2, regression_pb2_grpc

    tasks = server.stub(task_pb2_grpc.TaskServiceStub).ListTasks(task_pb2.ListTasksRequest()).tasks
    assert "tasks/acme-regression" in {task.name for task in tasks}

    draw = random.Random(0)
    rows = ["a,b,y"]
    for _ in range(400):
        a, b = draw.uniform(-1, 1), draw.uniform(-1, 1)
        rows.append(f"{a},{b},{2 * a - b}")
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    create_dataset(server, "rows", "acme-regression", {"_": path}, columns={"features": "a,b", "target": "y"})
    version = fine_tune(server, "line", "acme-regression", "rows", regression_pb2.Config(epochs=150))
    assert version.metrics["rmse"] < 0.2

    stub = server.stub(evaluation_pb2_grpc.EvaluationServiceStub)
    operation = stub.Evaluate(evaluation_pb2.EvaluateRequest(model="models/line", dataset="datasets/rows"))
    assert server.result(operation, evaluation_pb2.Evaluation).metrics == version.metrics

    instance = regression_pb2.Instance(features=[0.5, 0.5])
    typed = server.stub(regression_pb2_grpc.RegressionServiceStub).Estimate(
        regression_pb2.EstimateRequest(model="line", instances=[instance])
    )
    assert typed.predictions[0].value == pytest.approx(0.5, abs=0.3)
    packed = Any()
    packed.Pack(instance)
    generic = server.stub(prediction_pb2_grpc.PredictionServiceStub).Predict(
        prediction_pb2.PredictRequest(model="line", instances=[packed])
    )
    prediction = regression_pb2.Prediction()
    assert generic.predictions[0].Unpack(prediction)
    assert prediction == typed.predictions[0]


def test_the_server_and_the_clients_do_not_name_it() -> None:
    found = subprocess.run(
        ["grep", "-rIl", "--include=*.py", "--include=*.toml", "acme", str(ROOT / "server"), str(ROOT / "clients")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == ""
    # It would have found something.
    assert subprocess.run(["grep", "-rIlq", "luthier", str(ROOT / "server")], check=False).returncode == 0
