"""int8 through one real server: asked for, proved, published, served, evaluated."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import onnx
import pytest
from google.rpc import error_details_pb2
from typer.testing import CliRunner

import tiny_bert
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.text_classification.v1 import text_classification_pb2 as text
from luthier.tasks.text_classification.v1 import text_classification_pb2_grpc as text_grpc
from luthier.v1 import evaluation_pb2, evaluation_pb2_grpc, model_pb2, model_pb2_grpc
from luthier_client.cli.app import app
from support import Server, create_dataset, fine_tune, interactions, serving, status_of

TELLING = {"praise": ["crisp", "bright", "lovely"], "blame": ["flat", "sour", "stale"]}
FILLING = ["a", "beer", "from", "the", "north", "with", "malt", "and", "hops"]
CONFIG = text.Config(epochs=4, batch_size=16, learning_rate=0.005, head_learning_rate=0.02, max_length=32)


def reviews(path: Path, count: int, seed: int) -> Path:
    draw = random.Random(seed)
    lines = ["text,label"]
    for i in range(count):
        label = list(TELLING)[i % 2]
        words = [*draw.choices(FILLING, k=draw.randint(3, 12)), draw.choice(TELLING[label])]
        draw.shuffle(words)
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def brewery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose operator brought a tiny encoder, with a data set of reviews."""
    folder = tmp_path_factory.mktemp("brewery")
    base = tiny_bert.write(folder / "base", [*FILLING, *(word for words in TELLING.values() for word in words)])
    home = folder / "home"
    home.mkdir()
    sizes = [f"{json.dumps(path.name)} = {{ size_bytes = {path.stat().st_size} }}" for path in base.iterdir()]
    (home / "bases.toml").write_text(
        "\n".join(
            [
                "[tiny]",
                'title = "A tiny encoder"',
                'tasks = ["text-classification"]',
                'library = "transformers"',
                'architecture = "BertModel"',
                "num_parameters = 20000",
                'input = "text, 64 tokens"',
                'license = "Apache-2.0"',
                f"sources = [{json.dumps(f'file:{base}')}]",
                "[tiny.files]",
                *sizes,
            ]
        ),
        encoding="utf-8",
    )
    with serving(home) as server:
        files = {"train": reviews(folder / "train.csv", 160, 0), "test": reviews(folder / "test.csv", 60, 1)}
        create_dataset(server, "reviews", "text-classification", files)
        yield server


@pytest.fixture(scope="module")
def critic(brewery: Server) -> model_pb2.ModelVersion:
    """A classifier that was tuned with int8 asked for."""
    return fine_tune(
        brewery,
        "critic",
        "text-classification",
        "reviews",
        CONFIG,
        base="bases/tiny",
        quantization=model_pb2.Quantization(tolerance=0.05),
    )


def test_both_forms_are_on_the_version_and_int8_is_served(brewery: Server, critic: model_pb2.ModelVersion) -> None:
    float32, int8 = critic.variants
    assert (float32.name, float32.served) == ("float32", False)
    assert (int8.name, int8.served, int8.note) == ("int8", True, "dynamic")
    assert float32.metric == critic.parity.served
    assert int8.metric == critic.metrics["accuracy"] > 0.9
    assert float32.latency_ms > 0
    assert int8.latency_ms > 0
    files = {file.path: file.size_bytes for file in critic.files}
    assert files["model.onnx"] == int8.size_bytes < float32.size_bytes
    assert [path for path in files if path.endswith(".onnx")] == ["model.onnx"]

    bundle = brewery.home / "bundles" / critic.digest
    assert "MatMulInteger" in {node.op_type for node in onnx.load(bundle / "model.onnx").graph.node}
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert [variant["name"] for variant in manifest["measurements"]["variants"]] == ["float32", "int8"]


def test_int8_answers_under_the_alias(brewery: Server, critic: model_pb2.ModelVersion) -> None:
    stub = brewery.stub(text_grpc.TextClassificationServiceStub)
    texts = ["a lovely beer from the north", "stale malt and hops"]
    request = text.ClassifyRequest(model="critic@production", instances=[text.Instance(text=words) for words in texts])
    response = stub.Classify(request)
    assert response.model_version == critic.name
    assert [prediction.label for prediction in response.predictions] == ["praise", "blame"]


def test_what_is_evaluated_is_the_int8_form(brewery: Server, critic: model_pb2.ModelVersion) -> None:
    stub = brewery.stub(evaluation_pb2_grpc.EvaluationServiceStub)
    (published,) = stub.ListEvaluations(evaluation_pb2.ListEvaluationsRequest(model="models/critic")).evaluations
    assert published.metrics == critic.metrics
    operation = stub.Evaluate(evaluation_pb2.EvaluateRequest(model="models/critic", dataset="datasets/reviews"))
    evaluation = brewery.result(operation, evaluation_pb2.Evaluation)
    assert evaluation.metrics == critic.metrics
    assert evaluation.confusion_matrix == published.confusion_matrix


def test_a_later_version_goes_on_from_it_with_a_class_added(
    brewery: Server, critic: model_pb2.ModelVersion, tmp_path: Path
) -> None:
    for name, count, seed in (("train", 160, 2), ("test", 60, 3)):
        path = reviews(tmp_path / f"{name}.csv", count, seed)
        path.write_text(path.read_text() + "".join(f"a smoky beer number {i},smoke\n" for i in range(count // 2)))
    files = {name: tmp_path / f"{name}.csv" for name in ("train", "test")}
    create_dataset(brewery, "smoked", "text-classification", files)
    config = text.Config(epochs=1, batch_size=16, learning_rate=0.001, head_learning_rate=0.02, max_length=32)
    production = "models/critic/aliases/production"
    later = fine_tune(brewery, "taster", "text-classification", "smoked", config, base=production)
    assert later.base == critic.name
    assert later.metrics["accuracy"] > 0.9
    request = text.ClassifyRequest(model="taster", instances=[text.Instance(text="a stale beer", top_k=9)])
    (prediction,) = brewery.stub(text_grpc.TextClassificationServiceStub).Classify(request).predictions
    assert prediction.label == "blame"
    assert {entry.label for entry in prediction.top} == {"praise", "blame", "smoke"}


def test_people_see_the_variants(brewery: Server, critic: model_pb2.ModelVersion) -> None:
    environment = {"LUTHIER_ADDRESS": brewery.address, "COLUMNS": "160"}
    result = CliRunner().invoke(app, ["models", "show", "critic"], env=environment)
    assert result.exit_code == 0
    rows = {
        line.split()[0]: line.split() for line in result.output.splitlines() if line.startswith(("float32", "int8"))
    }
    assert rows["float32"][-1] == "no"
    assert rows["int8"][-2:] == ["yes", "dynamic"]


def test_a_task_that_never_heard_of_int8_gets_it_by_the_command_line(brewery: Server, tmp_path: Path) -> None:
    create_dataset(brewery, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
    command = ["tune", "shop", "--task", "recommendation", "--dataset", "shop", "--set", "algorithm=ease"]
    environment = {"LUTHIER_ADDRESS": brewery.address}
    result = CliRunner().invoke(app, [*command, "--int8-tolerance", "0.5", "--json"], env=environment)
    assert result.exit_code == 0, result.output
    tuned = json.loads(result.stdout)
    assert [(v["name"], v.get("served", False)) for v in tuned["variants"]] == [("float32", False), ("int8", True)]
    assert tuned["variants"][1]["metric"] == pytest.approx(tuned["metrics"]["ndcg_at_10"])


def test_without_it_float_is_measured_alone(brewery: Server, tmp_path: Path) -> None:
    create_dataset(brewery, "corner", "recommendation", {"_": interactions(tmp_path / "corner.csv", users=60)})
    config = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)
    (variant,) = fine_tune(brewery, "corner", "recommendation", "corner", config).variants
    assert (variant.name, variant.served, variant.note) == ("float32", True, "")
    assert variant.size_bytes > 0


def test_a_tolerance_out_of_range_is_named(brewery: Server) -> None:
    request = model_pb2.FineTuneRequest(
        model_id="critic",
        task="text-classification",
        dataset="datasets/reviews",
        base="bases/tiny",
        quantization=model_pb2.Quantization(tolerance=2),
    )
    with pytest.raises(grpc.RpcError) as caught:
        brewery.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)
    bad = error_details_pb2.BadRequest()
    assert status_of(caught.value).details[1].Unpack(bad)
    assert [violation.field for violation in bad.field_violations] == ["quantization.tolerance"]
