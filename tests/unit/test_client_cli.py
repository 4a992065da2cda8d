"""How the command line reads what people write and shows what they get; the rest is in tests/e2e/test_cli.py."""

from __future__ import annotations

import inspect
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2
from rich.console import Console, RenderableType

import luthier_client
from luthier.v1 import (
    access_pb2,
    base_pb2,
    batch_prediction_pb2,
    dataset_pb2,
    evaluation_pb2,
    model_pb2,
    monitoring_pb2,
    operation_pb2,
    prediction_pb2,
    rollout_pb2,
    task_pb2,
)
from luthier.v1.dataset_pb2 import DataProblem, Split
from luthier.v1.evaluation_pb2 import ClassScores, ConfusionMatrix, Evaluation
from luthier.v1.operation_pb2 import Metrics, OperationEvent, OperationMetadata, Progress
from luthier.v1.task_pb2 import TaskField
from luthier_client import AsyncClient, Client
from luthier_client.cli import datasets, evaluate, output, predict, progress, statistics, tune
from luthier_client.cli.session import WrongUse
from luthier_client.errors import InvalidArgument


def drawn(*renderables: RenderableType) -> str:
    console = Console(file=StringIO(), width=100)
    for renderable in renderables:
        console.print(renderable)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("type", "text", "value"),
    [
        ("int32", "3", "3"),
        ("bool", "True", True),
        ("repeated double", "0.1,0.2", ["0.1", "0.2"]),
        ("repeated bool", "true,false", [True, False]),
        ("acme.v1.Flavor", "sweet", "sweet"),
    ],
)
def test_settings_become_values_of_protobufs_json(type: str, text: str, value: object) -> None:
    assert tune.setting(TaskField(field="x", type=type), text) == value


@pytest.mark.parametrize(
    ("text", "seed", "split"),
    [
        ("", 0, None),
        ("", 3, Split(seed=3)),
        ("hash:0.8,0.1,0.1", 0, Split(method="hash", fractions=[0.8, 0.1, 0.1])),
        ("per-user", 1, Split(method="per-user", seed=1)),
    ],
)
def test_splits(text: str, seed: int, split: Split | None) -> None:
    assert datasets.parse_split(text, seed) == split


def test_a_value_may_hold_an_equals_sign() -> None:
    assert datasets.pairs(["text=a=b"], "--column") == {"text": "a=b"}
    with pytest.raises(WrongUse, match="--column text"):
        datasets.pairs(["text"], "--column")


def test_an_evaluation_shows_the_worst_classes_and_the_top_confusions() -> None:
    labels = [f"c{index:02}" for index in range(30)]
    counts = [0] * 900
    counts[0 * 30 + 1], counts[2 * 30 + 3], counts[5 * 30 + 5] = 4, 9, 100
    evaluation = Evaluation(
        model_version="models/beer/versions/3",
        split="test",
        metrics={"accuracy": 0.93751},
        per_class=[
            ClassScores(label=label, support=1200, metrics={"f1": index / 30, "recall": 1})
            for index, label in enumerate(labels)
        ],
        confusion_matrix=ConfusionMatrix(labels=labels, counts=counts),
    )
    shown = drawn(*evaluate.described(evaluation))
    assert "accuracy   0.9375" in shown
    assert "10 better ones not shown" in shown
    assert re.search(r"c19 +1,200 +0\.6333 +1\n", shown)
    assert "c20 " not in shown
    assert evaluate.confusions(evaluation.confusion_matrix) == [("c02", "c03", 9), ("c00", "c01", 4)]


@pytest.mark.parametrize(
    ("prediction", "rows"),
    [
        ({"label": "good", "score": 0.9, "top": []}, [{"label": "good", "score": 0.9}]),
        ({"label": "good", "top": [{"label": "good"}, {"label": "bad"}]}, [{"label": "good"}, {"label": "bad"}]),
        ({"items": [{"item": "i1"}], "unknown_items": ["x"]}, [{"item": "i1"}]),
        ({"mask": {"counts": []}}, []),
    ],
)
def test_predictions_become_rows(prediction: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    assert predict.table_rows(prediction) == rows


def test_predictions_that_fit_no_rows_are_json() -> None:
    assert drawn(*predict.readable(["a"], [{"mask": {"size": [2, 2]}}])) == '{"mask": {"size": [2, 2]}}\n'


def test_what_a_prediction_says_beside_its_rows() -> None:
    shown = drawn(*predict.readable(["u1"], [{"items": [{"item": "i1", "title": ""}], "unknown_items": ["x", "y"]}]))
    assert shown.splitlines()[0].split() == ["input", "item"]
    assert "u1: unknown items x, y" in shown


def test_statistics_are_in_an_order_that_people_expect() -> None:
    assert statistics.in_order(["q100", "q5", "test", "q50", "train", "label"]) == [
        *("label", "q5", "q50", "q100", "train", "test")
    ]
    found = {"classes": [{"test": 1, "label": "ham", "train": 3.0}] * 12, "text_lengths": {"p90": 9, "p5": 2}}
    assert statistics.values(found) == {"text lengths": {"p5": 2, "p90": 9}}
    shown = drawn(*statistics.tables(found))
    assert "classes (2 more not shown)" in shown
    assert "label   train   test" in shown


def test_numbers_that_are_spread_are_drawn_as_bars() -> None:
    rows = [{"from": 1, "to": 2, "count": 80.0}, {"from": 2, "to": 1001, "count": 1.0}]
    found = {"text_characters": {"p50": 1, "histogram": rows}}
    assert statistics.values(found) == {"text characters": {"p50": 1}}
    lines = [line.split() for line in drawn(*statistics.tables(found)).splitlines() if "█" in line]
    assert lines == [["1", "█" * 40, "80"], ["2", "to", "1,000", "█", "1"]]


def test_live_bars_follow_an_operation() -> None:
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    with progress.LiveBars(console) as bars:
        for event in (
            OperationEvent(state=OperationMetadata.STATE_RUNNING),
            OperationEvent(
                progress=Progress(stage="training", step=1, total=1200, examples_per_s=98.7, remaining_s=61)
            ),
            OperationEvent(metrics=Metrics(values={"loss": 0.25})),
            OperationEvent(message="half-way"),
        ):
            bars.show(event)
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    for part in ("half-way", "✓ waiting", "✓ training", "1/1,200", "loss 0.2500"):
        assert part in shown


def test_pace() -> None:
    assert progress.pace(Progress(examples_per_s=98.76, remaining_s=61.2)) == "98.76/s  0:01:01 left"
    assert progress.pace(Progress()) == ""


def test_markup_in_errors_is_text() -> None:
    console = Console(file=StringIO(), width=100)
    error = InvalidArgument("x", violations={"columns[a]": "no [bold]such[/] column"})
    output.print_error(console, "127.0.0.1:1", error)
    assert isinstance(console.file, StringIO)
    assert "• columns[a]: no [bold]such[/] column" in console.file.getvalue()


def test_many_problems_are_cut() -> None:
    shown = drawn(output.problems([DataProblem(file="a.csv", row=row, message="bad") for row in range(1, 31)]))
    assert "and 10 more" in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.93751, "0.9375"),
        (1234567, "1,234,567"),
        (12.346, "12.35"),
        (0.00002, "2e-05"),
        (float("nan"), "nan"),
        (True, "yes"),
    ],
)
def test_values(value: object, text: str) -> None:
    assert output.text(value) == text


API = (
    access_pb2,
    task_pb2,
    base_pb2,
    dataset_pb2,
    model_pb2,
    evaluation_pb2,
    monitoring_pb2,
    prediction_pb2,
    batch_prediction_pb2,
    operation_pb2,
    rollout_pb2,
)
ROOT = Path(luthier_client.__file__).parent
OF_THE_SDK = {"close", "upload", "resolve_version", "stream_predict", "wait_operation"}
"""What the command line does by other means, or within others of its commands."""


@pytest.mark.parametrize("file", ["client.py", "async_client.py"])
def test_a_client_covers_the_api(file: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8") + (ROOT / "operation.py").read_text(encoding="utf-8")
    services = [service for module in API for service in module.DESCRIPTOR.services_by_name.values()]
    operations = operations_pb2.DESCRIPTOR.services_by_name["Operations"]
    methods = [method.name for service in (*services, operations) for method in service.methods]
    assert len(methods) > 40
    assert [name for name in methods if f".{name}" not in source] == []


def test_both_clients_and_the_command_line_do_the_same() -> None:
    calls, others = (
        {name for name, member in vars(client).items() if inspect.isfunction(member) and name[0] != "_"}
        for client in (Client, AsyncClient)
    )
    assert calls == others
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cli").glob("*.py"))
    assert {name for name in calls - OF_THE_SDK if f"client.{name}(" not in source} == set()
