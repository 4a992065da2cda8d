"""The report of an evaluation, made from what a task says."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import Message
from PIL import Image

from luthier import images
from luthier.errors import Cancelled, NotFound
from luthier.store import Store
from luthier.task import Picture, Task
from luthier.tasks.recommendation.v1 import recommendation_pb2
from luthier.tasks.text_classification.v1 import text_classification_pb2 as pb
from luthier.v1.evaluation_pb2 import ClassScores, ConfusionMatrix, Curve, Evaluation
from luthier.v1.model_pb2 import ModelVersion
from luthier.v1.operation_pb2 import Metrics, OperationEvent, OperationMetadata, Progress
from luthier.worker import charts, plain, report
from luthier.worker.charts import Series
from luthier.worker.job import Job
from luthier_recommendation import Recommendation
from luthier_text_classification import TextClassification

EVIL = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"
SVG = b'<svg><script>alert(3)</script><image href="x"/></svg>'


class Drawn(TextClassification):
    """Text classification with a picture for each text."""

    picture: Picture | None = None

    def render(self, instance: Message, prediction: Message) -> Picture | None:
        return self.picture


def predicted(label: str, score: float) -> pb.Prediction:
    return pb.Prediction(label=label, score=score, top=[pb.ClassScore(label=label, score=score)])


def scored(labels: list[str], guesses: list[tuple[str, float]], task: Task | None = None) -> tuple[Evaluation, str]:
    """The evaluation of guesses, and its page."""
    task = task or TextClassification()
    examples = pa.table({"text": [f"text {i} {EVIL}" for i in range(len(labels))], "label": labels})
    predictions = [predicted(*guess) for guess in guesses]
    evaluation = task.score(examples, predictions)
    worst, best = report._shown(task, examples, predictions)
    return evaluation, page(task, evaluation, worst=worst, best=best)


def page(task: Task, evaluation: Evaluation, **parts: Any) -> str:
    version = ModelVersion(name="models/beer/versions/3", base="bases/tiny", dataset_version="datasets/beer/versions/1")
    version.config.Pack(pb.Config(epochs=7))
    version.variants.add(name="int8", metric=0.5, served=True, note=EVIL)
    evaluation.model_version, evaluation.dataset_version, evaluation.split = (
        version.name,
        version.dataset_version,
        "test",
    )
    return report.Draft(**{"task": task, "training": [], "worst": [], "best": []} | parts).html(version, evaluation)


def tags(text: str) -> set[str]:
    return set(re.findall(r"<([a-zA-Z]+)", text))


def test_whatever_is_shown_is_escaped_and_nothing_is_loaded() -> None:
    task = Drawn()
    task.picture = Picture(SVG, "image/svg+xml")
    labels = [EVIL, "b", "b", EVIL]
    evaluation, text = scored(labels, [(EVIL, 0.9), (EVIL, 0.8), ("b", 0.7), ("b", 0.6)], task)
    evaluation.curves.append(Curve(title=EVIL, x_label=EVIL, y_label=EVIL, label=EVIL, x=[0, 1], y=[0, 1]))
    text += page(task, evaluation, training=[charts.chart(EVIL, EVIL, EVIL, [Series(EVIL, [0, 1], [0, 1])])])
    assert not tags(text) & {"script", "link", "iframe", "object", "image", "use", "a"}
    assert html.escape(EVIL, quote=False) in text.replace("&#39;", "'").replace("&#34;", '"')
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    sources = re.findall(r"<img src=\"(.+?)\"", text)
    assert sources == [f"data:image/svg+xml;base64,{base64.b64encode(SVG).decode()}"] * 4
    assert not re.findall(r"<[^>]*\son\w+=", re.sub(r"\"[^\"]*\"", "", text))


def test_the_scores_are_those_of_the_evaluation() -> None:
    evaluation, text = scored(["a", "a", "b", "c"], [("a", 0.9), ("b", 0.8), ("b", 0.7), ("c", 0.6)])
    shown = re.findall(r"<span>(\w+)</span><data value=\"(.+?)\">(.+?)</data>", text)
    assert {name: float(value) for name, value, _ in shown} == dict(evaluation.metrics)
    assert shown[0] == ("accuracy", "0.75", "0.7500")
    assert "beer/3 on beer/1, test" in text
    assert re.search(r"<dt>epochs</dt><dd>7</dd>", text)


def test_classes_come_worst_first_and_confusions_in_a_matrix() -> None:
    _, text = scored(["a", "a", "b", "c"], [("a", 0.9), ("b", 0.8), ("b", 0.7), ("c", 0.6)])
    classes, matrix = text.split("<h2>Classes</h2>")[1].split("<h2>Confusion matrix</h2>")
    assert re.findall(r"<tr><td class=\"text\">(\w)</td>", classes) == ["a", "b", "c"]
    cells = re.findall(r"<td class=\"(\w+)[ \w]*\" style=\"--share: ([\d.]+)\" title=\"(\w) → (\w): (\d)\">", matrix)
    assert len(cells) == 9
    assert ("right", "0.500", "a", "a", "1") in cells
    assert ("wrong", "0.500", "a", "b", "1") in cells
    assert ("none", "0.000", "b", "a", "0") in cells


def test_many_classes_have_their_confusions_listed() -> None:
    labels = [f"class {i}" for i in range(40) for _ in range(5)]
    guesses = [("class 0" if i % 5 == 0 and i < 150 else label, 0.9) for i, label in enumerate(labels)]
    guesses[9] = ("class 0", 0.9)
    _, text = scored(labels, guesses)
    assert "Confusion matrix" not in text
    rows = re.findall(r"<tr><td class=\"text\">(.+?)</td><td class=\"text\">(.+?)</td><td>(\d+)</td>", text)
    assert len(rows) == report.CONFUSIONS
    assert rows[0] == ("class 1", "class 0", "2")


def test_the_surest_mistakes_are_the_worst_and_nothing_is_shown_twice() -> None:
    task = TextClassification()
    confidences = [i / 20 for i in range(20)]
    examples = pa.table({"text": [str(i) for i in range(20)], "label": ["a"] * 20})
    predictions = [predicted("a" if i % 2 else "b", confidence) for i, confidence in enumerate(confidences)]
    worst, best = report._shown(task, examples, predictions)
    assert [shown.truth["text"] for shown in worst] == ["18", "16", "14", "12", "10", "8", "6", "4"]
    assert [shown.truth["text"] for shown in best] == ["19", "17", "15", "13"]
    assert worst[0].number == 19
    assert worst[0].grade == pytest.approx(-0.9)
    few_worst, few_best = report._shown(task, examples.slice(0, 3), predictions[:3])
    assert [shown.truth["text"] for shown in [*few_worst, *few_best]] == ["2", "1", "0"]


def test_users_are_graded_by_their_own_ndcg() -> None:
    task = Recommendation()
    examples = pa.table(
        {"user": ["u", "v", "u"], "item": ["i", "j", "k"], "weight": [1.0, None, 2.0], "time": pa.nulls(3, pa.int64())}
    )
    assert task.rows(examples) == [[0, 2], [1]]
    predictions = [
        recommendation_pb2.Prediction(items=[recommendation_pb2.ScoredItem(item=item)]) for item in ("x", "j")
    ]
    assert list(task.grades(examples, predictions)) == [0.0, 1.0]
    worst, best = report._shown(task, examples, predictions)
    assert [(shown.truth["user"], shown.truth["item"]) for shown in (*worst, *best)] == [("u", "[i, k]"), ("v", "j")]
    assert best[0].prediction["items"] == "item: j"


def test_of_many_predictions_some_are_graded_and_where_lower_is_better_the_sign_turns() -> None:
    class Error(TextClassification):
        lower_is_better = True
        grades = Task.grades

        def score(self, examples: pa.Table, predictions: Sequence[Message]) -> Evaluation:
            return Evaluation(metrics={"accuracy": len(examples)})

    examples, predictions = pa.table({"text": ["x"] * 500, "label": ["a"] * 500}), [predicted("a", 0.9)] * 500
    grades = Error().grades(examples, predictions)
    graded = [i for i, grade in enumerate(grades) if not math.isnan(grade)]
    assert len(graded) == 400
    assert {grades[i] for i in graded} == {-1.0}
    again = Error().grades(examples, predictions)
    assert [i for i, grade in enumerate(again) if not math.isnan(grade)] == graded


def test_large_pictures_shrink() -> None:
    noise = images.encode_png(np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8))
    uri = report._uri(Picture(noise, "image/png"))
    head, _, body = uri.partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as small:
        assert small.size == (512, 341)
    little = images.encode_png(np.zeros((4, 4, 3), np.uint8))
    assert report._uri(Picture(little, "image/png")) == f"data:image/png;base64,{base64.b64encode(little).decode()}"
    assert report._uri(Picture(SVG + b" " * 2**17, "image/svg+xml")) == ""
    assert report._uri(None) == ""


def test_a_page_of_a_thousand_classes_with_pictures_stays_small() -> None:
    task = Drawn()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    task.picture = Picture(images.encode_png(noise), "image/png")
    labels = [f"class {i}" for i in range(1000)]
    _, text = scored(labels, [(label, 0.9) for label in labels], task)
    assert text.count("<img") == report.BEST + report.WORST
    assert len(text) < 2**21


def test_classes_are_ranked_by_what_the_primary_metric_is_the_mean_of() -> None:
    class Segmentation(TextClassification):
        primary_metric = "miou"

    evaluation = Evaluation(
        per_class=[
            ClassScores(label="a", metrics={"iou": 0.5, "recall": 0.1}),
            ClassScores(label="b", metrics={"iou": math.nan, "recall": 0.1}),
            ClassScores(label="c", metrics={"iou": 0.25, "recall": 0.9}),
        ],
        confusion_matrix=ConfusionMatrix(labels=["a", "b"], counts=[0, 0, 12_345_678, 3]),
    )
    text = page(Segmentation(), evaluation)
    assert re.findall(r"<tr><td class=\"text\">(\w)</td>", text.split("Classes</h2>")[1]) == ["c", "a", "b"]
    assert "<td>\N{EN DASH}</td>" in text
    assert ">12M</td>" in text


def told(*happened: OperationEvent) -> Any:
    return SimpleNamespace(events=lambda operation, after: list(happened))


def at(step: int, **values: float) -> OperationEvent:
    return OperationEvent(metrics=Metrics(step=step, values={k.replace("__", "/"): v for k, v in values.items()}))


def test_training_curves_are_those_of_the_last_attempt() -> None:
    running = OperationEvent(state=OperationMetadata.STATE_RUNNING)
    drawn = report._training(
        told(
            running,
            at(1, loss=9.0, validation__map=0.9),
            running,
            OperationEvent(progress=Progress(stage="training")),
            at(1, loss=2.0, rate=0.1),
            at(10, validation__loss=1.5, validation__map=0.25, validation__perplexity=40.0),
            at(20, loss=1.0, validation__loss=1.25, validation__map=0.5, validation__perplexity=20.0),
        ),
        "x",
    )
    lines = {chart.title: [(line.label, len(line.points)) for line in chart.lines] for chart in drawn}
    assert lines == {
        "Loss": [("loss", 2), ("validation/loss", 2)],
        "Validation": [("validation/map", 2)],
        "perplexity": [("validation/perplexity", 2)],
    }


def test_a_deleted_operation_leaves_no_training_curves() -> None:
    def events(operation: str, after: int) -> list[OperationEvent]:
        raise NotFound(f"operations/{operation}")

    assert report._training(cast(Any, SimpleNamespace(events=events)), "x") == []


def job(home: Path, cancelled: bool = False) -> Job:
    def progress(stage: str, step: int, total: int) -> None:
        if cancelled:
            raise Cancelled("the operation was cancelled")

    tools = SimpleNamespace(operations=told(), store=Store(home))
    return cast(Job, SimpleNamespace(progress=progress, tools=tools, claim=SimpleNamespace(operation="x")))


def test_an_evaluation_outlives_its_report(tmp_path: Path) -> None:
    class Broken(TextClassification):
        def render(self, instance: Message, prediction: Message) -> Picture | None:
            raise ZeroDivisionError

    examples = pa.table({"text": ["x"], "label": ["a"]})
    assert report.prepare(job(tmp_path), Broken(), "x", examples, [predicted("a", 1)]) is None
    report.keep(job(tmp_path), None, ModelVersion(), Evaluation(name="evaluations/x"))
    with pytest.raises(Cancelled):
        report.prepare(job(tmp_path, cancelled=True), Broken(), "x", examples, [predicted("a", 1)])
    assert list((tmp_path / "reports").iterdir()) == []


def test_a_report_is_kept_under_the_evaluations_id(tmp_path: Path) -> None:
    task = TextClassification()
    examples, predictions = pa.table({"text": ["x"], "label": ["a"]}), [predicted("b", 1)]
    draft = report.prepare(job(tmp_path), task, "x", examples, predictions)
    evaluation = task.score(examples, predictions)
    evaluation.name, evaluation.model_version = "evaluations/e1", "models/beer/versions/3"
    report.keep(job(tmp_path), draft, ModelVersion(), evaluation)
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["e1.html"]
    assert Store(tmp_path).report("e1").read_text(encoding="utf-8").startswith("<!doctype html>")


# Charts and texts.


def test_a_chart_holds_its_points_between_round_ticks() -> None:
    chart = charts.chart("t", "step", "", [Series("a", [0, 300, 1248], [0.21, 4.3, math.nan]), Series("b", [], [])])
    assert chart
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3", "4", "5"]
    assert [tick.label for tick in chart.x_ticks] == ["0", "100", "200", "300"]
    ((line),) = chart.lines
    assert line.points == [
        (charts.LEFT, pytest.approx(228.5, abs=0.5)),
        (charts.WIDTH - charts.RIGHT, pytest.approx(43.6, abs=0.5)),
    ]


def test_shares_have_axes_from_0_to_1() -> None:
    chart = charts.chart("t", "recall", "precision", [Series("a", [0.4, 0.5], [0.9, 0.8])], unit=True)
    assert chart
    for ticks in (chart.x_ticks, chart.y_ticks):
        assert [tick.label for tick in ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert (chart.x_ticks[0].at, chart.x_ticks[-1].at) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
    assert (chart.y_ticks[0].at, chart.y_ticks[-1].at) == (charts.HEIGHT - charts.BOTTOM, charts.TOP)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [1e-9, 2e-9], [-3.0, 1e12], [0.0]])
def test_any_range_can_be_drawn(values: list[float]) -> None:
    chart = charts.chart("t", "step", "", [Series("a", list(range(len(values))), values)])
    assert chart
    assert len({tick.label for tick in chart.y_ticks}) == len(chart.y_ticks) > 1
    for x, y in chart.lines[0].points:
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM


def test_a_chart_of_nothing_is_none() -> None:
    assert charts.chart("t", "", "", [Series("a", [1], [math.inf])]) is None


def test_texts_are_short_and_bytes_are_counted() -> None:
    table = pa.table(
        {
            "image": pa.array([b"123"], pa.binary()),
            "text": ["é" * 1000],
            "boxes": [[{"x": 1.23456, "label": "cat", "mask": b"12"}] * 8],
            "empty": pa.array([None], pa.string()),
        }
    )
    shown = plain.columns(table)
    assert shown.keys() == {"text", "boxes", "empty"}
    assert shown["text"] == "é" * 599 + "…"
    assert shown["boxes"].splitlines() == ["x: 1.235, label: cat, mask: 2 bytes"] * 6 + ["… 2 more"]
    assert shown["empty"] == "None"
    assert plain.texts(predicted("a", 0.123456789)) == {
        "label": "a",
        "score": "0.1235",
        "top": "label: a, score: 0.1235",
    }


@pytest.mark.parametrize(
    ("value", "text"), [(0.93805, "0.9381"), (250.0, "250.0"), (123456.0, "123,456"), (math.nan, "\N{EN DASH}")]
)
def test_numbers(value: float, text: str) -> None:
    assert plain.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(999, "999"), (1000, "1.0k"), (99_949, "100k"), (12_345_678, "12M")])
def test_counts(value: int, text: str) -> None:
    assert plain.count(value) == text
