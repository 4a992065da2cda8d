"""Predictions for a whole part of a data set, by a real server through both clients and the command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from acme_regression.v1 import regression_pb2
from google.protobuf.json_format import MessageToDict
from typer.testing import CliRunner

from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier_client import AsyncClient, Client, errors
from luthier_client.cli.app import app
from support import Server, create_dataset, fine_tune, interactions

EASE = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """With the models `slope`, of the data set `points`, and `reader`, of `visits`."""
    folder = tmp_path_factory.mktemp("batch")
    points = folder / "points.csv"
    points.write_text("\n".join(["x,y", *(f"{n / 100},{n / 50}" for n in range(-100, 100))]), encoding="utf-8")
    columns = {"features": "x", "target": "y"}
    create_dataset(server, "points", "acme-regression", {"_": points}, columns=columns)
    fine_tune(server, "slope", "acme-regression", "points", regression_pb2.Config(epochs=2))
    create_dataset(server, "visits", "recommendation", {"_": interactions(folder / "visits.csv")})
    fine_tune(server, "reader", "recommendation", "visits", EASE)
    with Client(server.address) as client:
        yield client


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fields(prediction: Any) -> dict[str, Any]:
    return MessageToDict(prediction, preserving_proto_field_name=True)


def test_they_equal_single_calls_and_come_with_their_examples(client: Client, tmp_path: Path) -> None:
    made = client.batch_predict("slope", dataset="points").result(60)
    assert (made.model_version, made.dataset_version) == ("models/slope/versions/1", "datasets/points/versions/1")
    path = client.download_predictions(made.name, tmp_path / "predictions.jsonl")
    assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (made.size_bytes, made.sha256)
    found = lines_of(path)
    assert len(found) == made.num_predictions == client.get_dataset("points").latest_version.num_examples["test"]
    for line in found:
        (example,) = line["examples"]
        assert example["target"] == pytest.approx(2 * example["features"][0])
        (single,) = client.predict("slope", [{"features": example["features"]}])
        assert fields(single) == line["prediction"]


def test_a_prediction_for_several_examples_comes_with_them_all(client: Client, tmp_path: Path) -> None:
    made = client.batch_predict("reader@production", dataset="visits/1", split="validation").result(60)
    found = lines_of(client.download_predictions(made.name, tmp_path / "predictions.jsonl"))
    assert (made.split, len(found)) == ("validation", made.num_predictions)
    assert (
        sum(len(line["examples"]) for line in found)
        == (client.get_dataset("visits").latest_version.num_examples["validation"])
    )
    for line in found:
        (user,) = {example["user"] for example in line["examples"]}
        (single,) = client.predict("reader", [{"user": user, "k": len(line["prediction"]["items"])}])
        assert fields(single) == line["prediction"]


def test_the_asyncio_client(client: Client, server: Server, tmp_path: Path) -> None:
    async def run() -> Path:
        async with AsyncClient(server.address) as other:
            made = await (await other.batch_predict("slope", dataset="points", split="train")).result(60)
            return await other.download_predictions(made.name, tmp_path / "predictions.jsonl")

    assert len(lines_of(asyncio.run(run()))) == client.get_dataset("points").latest_version.num_examples["train"]


def test_they_live_as_long_as_their_operation(client: Client, tmp_path: Path) -> None:
    operation = client.batch_predict("slope", dataset="points")
    operation.result(60)
    client.delete_operation(operation.name)
    with pytest.raises(errors.NotFound):
        client.download_predictions(operation.name, tmp_path / "predictions.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_only_what_made_predictions_has_some(client: Client, tmp_path: Path) -> None:
    operation = client.evaluate("slope", dataset="points")
    operation.result(60)
    with pytest.raises(errors.FailedPrecondition, match="no batch prediction"):
        client.download_predictions(operation.name, tmp_path / "predictions.jsonl")


@pytest.mark.parametrize(
    ("model", "dataset", "split", "field"),
    [("slope", "points", "rest", "split"), ("slope", "visits", "test", "dataset"), ("reader", "points", "", "dataset")],
)
def test_what_cannot_be_is_told_at_once(client: Client, model: str, dataset: str, split: str, field: str) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        client.batch_predict(model, dataset=dataset, split=split)
    assert list(refused.value.violations) == [field]


def test_the_command_line_over_a_data_set(client: Client, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    arguments = ["--address", server.address, "predict", "slope", "--dataset", "points", "--output", str(path)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["num_predictions"] == len(lines_of(path))


def test_the_command_line_over_lines(client: Client, server: Server, tmp_path: Path) -> None:
    asked = [{"features": [n / 100]} for n in range(150)]
    source, target = tmp_path / "asked.jsonl", tmp_path / "predictions.jsonl"
    source.write_text("\n\n".join(json.dumps(line) for line in asked), encoding="utf-8")
    predict = ["--address", server.address, "predict", "slope", "--lines"]
    done = CliRunner().invoke(app, [*predict, str(source), "--output", str(target)])
    assert done.exit_code == 0, done.stderr
    expected = [fields(prediction) for prediction in client.predict("slope", asked)]
    assert [line["value"] for line in lines_of(target)] == pytest.approx([line["value"] for line in expected], abs=1e-6)
    piped = CliRunner().invoke(app, [*predict, "-"], input=source.read_text(encoding="utf-8"))
    assert piped.stdout == target.read_text(encoding="utf-8")


def test_a_bad_line_is_named(client: Client, server: Server, tmp_path: Path) -> None:
    predict = ["--address", server.address, "predict", "slope", "--lines", "-", "--output", str(tmp_path / "made")]
    done = CliRunner().invoke(app, predict, input='{"features": [1]}\n{"feature": [1]}\n')
    assert done.exit_code == 2
    assert "standard input, line 2" in done.stderr
    assert "there are features" in done.stderr
    assert list(tmp_path.iterdir()) == []
