"""Which numeric form of a model is served, and what is said of each."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from luthier import datasets
from luthier.errors import Cancelled
from luthier.task import Codec, Evaluation, Task
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.v1 import model_pb2
from luthier.worker import variants
from luthier.worker.job import Job

WIDTH = 8


class Digits(Codec):
    """Texts of digits are rows of numbers."""

    def encode(self, instances: Any) -> dict[str, np.ndarray]:
        return {"row": np.array([[int(digit) for digit in instance.text] for instance in instances], np.float32)}

    def decode(self, outputs: Any, instances: Any) -> list[Message]:
        return [pb.Prediction(label=str(row.argmax())) for row in outputs["scores"]]


class Largest(Task):
    """Where the largest digit stands."""

    id = "largest"
    primary_metric = "accuracy"
    service = pb.DESCRIPTOR.services_by_name["TextClassificationService"]

    def trainer(self) -> Any:
        raise NotImplementedError

    def open(self, directory: Path) -> Codec:
        assert (directory / "labels" / "names.json").read_text(encoding="utf-8") == "[]"
        return Digits()

    def instances(self, examples: pa.Table) -> list[Message]:
        return [pb.Instance(text=text) for text in examples["text"].to_pylist()]

    def score(self, examples: pa.Table, predictions: Any) -> Evaluation:
        right = [
            label == prediction.label
            for label, prediction in zip(examples["label"].to_pylist(), predictions, strict=True)
        ]
        return Evaluation(num_examples=len(right), metrics={"accuracy": sum(right) / len(right)})


class Error(Largest):
    """The same, lower being better."""

    primary_metric = "error"
    lower_is_better = True

    def score(self, examples: pa.Table, predictions: Any) -> Evaluation:
        accuracy = super().score(examples, predictions).metrics["accuracy"]
        return Evaluation(metrics={"error": 1 - accuracy})


def rows(count: int, seed: int) -> pa.Table:
    draw = random.Random(seed)
    texts = ["".join(draw.sample("0123456789", WIDTH)) for _ in range(count)]
    return pa.table({"text": texts, "label": [str(text.index(max(text))) for text in texts]})


def write_bundle(directory: Path, weights: np.ndarray | None) -> Path:
    """A bundle whose scores are its input, or its input by weights."""
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, ["batch", WIDTH])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", WIDTH])
    if weights is None:
        node, constants = helper.make_node("Neg", ["row"], ["scores"]), []
    else:
        node = helper.make_node("MatMul", ["row", "weights"], ["scores"])
        constants = [numpy_helper.from_array(weights.astype(np.float32), "weights")]
    graph = helper.make_graph([node], "largest", [row], [scores], constants)
    (directory / "labels").mkdir(parents=True)
    (directory / "labels" / "names.json").write_text("[]", encoding="utf-8")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, directory / "model.onnx")
    return directory


class Fixture:
    def __init__(self, tmp_path: Path, weights: np.ndarray | None, task: Task) -> None:
        self.task = task
        self.examples = rows(40, seed=2)
        self.data = tmp_path / "data"
        self.data.mkdir(parents=True)
        pq.write_table(rows(100, seed=1), self.data / "train.parquet")
        self.stages: list[str] = []
        work = tmp_path / "work"
        self.job = cast(
            Job,
            SimpleNamespace(
                directory=work,
                progress=lambda stage, step, total: self.stages.append(stage),
                claim=SimpleNamespace(operation="op"),
            ),
        )
        bundle = write_bundle(work / "bundle", weights)
        predictions = variants.evaluate.predict(task, bundle, task.instances(self.examples))
        metric = variants.evaluate.score_rows(task, self.examples, predictions)
        self.float32 = variants.Form("float32", bundle, predictions, metric)

    def choose(self, **fields: Any) -> tuple[variants.Form, list[model_pb2.Variant]]:
        request = model_pb2.FineTuneRequest(seed=3, **fields)
        return variants.choose(self.job, self.task, request, self.data, self.examples, self.float32)


ASKED = {"quantization": model_pb2.Quantization()}


@pytest.fixture(autouse=True)
def paces(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Milliseconds that a prediction of a form takes, by its folder; others are timed."""
    found = {"int8": 1.0, "bundle": 1.0}
    timed = variants.latencies

    def latencies(task: Task, bundles: Any, instances: Any) -> list[float]:
        return [found.get(bundle.name, ms) for bundle, ms in zip(bundles, timed(task, bundles, instances), strict=True)]

    monkeypatch.setattr(variants, "latencies", latencies)
    return found


def near_ties() -> np.ndarray:
    """Columns that differ by less than 7 bits can tell: the float form is right, int8 guesses."""
    return np.eye(WIDTH) + 1000


def test_float_alone_is_measured_too(tmp_path: Path, paces: dict[str, float]) -> None:
    paces.clear()
    fixture = Fixture(tmp_path, np.eye(WIDTH), Largest())
    served, (variant,) = fixture.choose()
    assert served is fixture.float32
    assert (variant.name, variant.served, variant.metric, variant.note) == ("float32", True, 1.0, "")
    assert variant.size_bytes == (served.directory / "model.onnx").stat().st_size
    assert 0 < variant.latency_ms < 100


@pytest.mark.parametrize("task", [Largest(), Error()])
def test_int8_is_served_where_it_predicts_as_well(tmp_path: Path, task: Task) -> None:
    fixture = Fixture(tmp_path, np.eye(WIDTH), task)
    served, (float32, int8) = fixture.choose(**ASKED)
    assert (served.name, float32.served, int8.served) == ("int8", False, True)
    assert int8.metric == float32.metric == (0 if task.lower_is_better else 1)
    assert int8.note == "dynamic"
    assert int8.size_bytes == (served.directory / "model.onnx").stat().st_size
    operators = {node.op_type for node in onnx.load(served.directory / "model.onnx").graph.node}
    assert "MatMulInteger" in operators
    assert [prediction.label for prediction in served.predictions] == fixture.examples["label"].to_pylist()


@pytest.mark.parametrize("task", [Largest(), Error()])
def test_int8_that_predicts_worse_is_not_served_and_says_why(tmp_path: Path, task: Task) -> None:
    fixture = Fixture(tmp_path, near_ties(), task)
    served, (float32, int8) = fixture.choose(**ASKED)
    assert served is fixture.float32
    assert (float32.served, int8.served) == (True, False)
    loss = abs(float32.metric - int8.metric)
    assert loss > 0.5
    assert int8.note == f"dynamic; not served: it loses {loss:.4f} of {task.primary_metric}, where 0.01 is allowed"
    # Who allows as much is served it.
    fixture = Fixture(tmp_path / "again", near_ties(), task)
    served, (float32, int8) = fixture.choose(quantization=model_pb2.Quantization(tolerance=1))
    assert (served.name, int8.served, int8.note) == ("int8", True, "dynamic")


@pytest.mark.parametrize(
    ("float32_ms", "int8_ms", "refusal"),
    [
        (10.0, 5.0, ""),
        (10.0, 10.9, ""),
        (10.0, 11.5, "; not served: a prediction takes 11.50 ms, and 10.00 ms in float32"),
        # A moment more or less is that of the machine.
        (0.05, 0.12, ""),
    ],
)
def test_int8_that_takes_longer_is_not_served(
    tmp_path: Path, paces: dict[str, float], float32_ms: float, int8_ms: float, refusal: str
) -> None:
    paces |= {"bundle": float32_ms, "int8": int8_ms}
    served, (float32, int8) = Fixture(tmp_path, np.eye(WIDTH), Largest()).choose(**ASKED)
    assert served.name == ("float32" if refusal else "int8")
    assert (float32.latency_ms, int8.latency_ms) == (float32_ms, int8_ms)
    assert int8.note == f"dynamic{refusal}"


def test_a_metric_that_is_no_number_is_no_reason_to_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = Fixture(tmp_path, np.eye(WIDTH), Largest())
    monkeypatch.setattr(variants.evaluate, "score_rows", lambda *_: float("nan"))
    served, (_, int8) = fixture.choose(**ASKED)
    assert served is fixture.float32
    assert "it loses nan of accuracy" in int8.note


def test_where_nothing_can_be_quantised_float_is_served(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path, None, Largest())
    served, (float32, int8) = fixture.choose(**ASKED)
    assert served is fixture.float32
    assert float32.served
    assert (int8.size_bytes, int8.served) == (0, False)
    assert int8.note.startswith("not applicable: its graph multiplies by no constant matrix")


def test_a_quantiser_that_fails_costs_no_fine_tune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise ValueError("/home/someone/graph.onnx")

    fixture = Fixture(tmp_path, np.eye(WIDTH), Largest())
    monkeypatch.setattr(variants, "quantise", fail)
    served, (_, int8) = fixture.choose(**ASKED)
    assert served is fixture.float32
    assert int8.note == "not applicable: onnxruntime failed on the graph (ValueError); the log says more"


def test_a_cancellation_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(*_: object) -> str:
        raise Cancelled("the operation was cancelled")

    fixture = Fixture(tmp_path, np.eye(WIDTH), Largest())
    monkeypatch.setattr(variants, "quantise", cancel)
    with pytest.raises(Cancelled):
        fixture.choose(**ASKED)


def test_calibration_is_drawn_by_the_seed_and_encoded_by_the_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = Fixture(tmp_path, np.eye(WIDTH), Largest())
    monkeypatch.setattr(variants, "CALIBRATION_EXAMPLES", 20)

    def drawn(seed: int) -> list[str]:
        train = datasets.load(fixture.data, ["train"])["train"]
        found = variants.calibration_batches(fixture.task, fixture.float32.directory, train, seed, fixture.job.progress)
        return ["".join(str(int(digit)) for digit in row) for batch in found for row in batch["row"]]

    assert len(drawn(0)) == 20
    assert set(drawn(0)) < set(rows(100, seed=1)["text"].to_pylist())
    assert drawn(0) == drawn(0) != drawn(1)
    assert "calibrating int8" in fixture.stages
