"""Feedback by the score of each task, with labels that leave the inputs out."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from PIL import Image

from luthier import feedback, plugins
from luthier.errors import InvalidArgument
from luthier.journal import Recorded
from luthier.task import Task
from luthier.tasks.entity_recognition.v1 import entity_recognition_pb2 as entities
from luthier.tasks.image_classification.v1 import image_classification_pb2 as images
from luthier.tasks.object_detection.v1 import object_detection_pb2 as objects
from luthier.tasks.recommendation.v1 import recommendation_pb2 as items
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2 as areas
from luthier.tasks.text_classification.v1 import text_classification_pb2 as texts


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return dict(plugins.load().tasks)


def packed(message: Message) -> Any:
    found = Any()
    found.Pack(message)
    return found


def recorded(prediction: Message, labels: Sequence[Message] = (), value: float | None = None, n: int = 0) -> Recorded:
    return Recorded(
        id="id",
        index=n,
        version="models/m/versions/1",
        alias="models/m/aliases/production",
        create_time=0.0,
        instance=None,
        prediction=packed(prediction),
        labels=tuple(map(packed, labels)),
        value=value,
        caller="",
    )


def png(value: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (4, 4), value).save(content, "PNG")
    return content.getvalue()


BOX = objects.Box(x_min=0, y_min=0, x_max=10, y_max=10)
DETECTED = objects.Prediction(
    detections=[objects.Detection(label="cat", score=0.9, box=BOX)], image_width=20, image_height=20
)
FOUND = entities.Prediction(entities=[entities.Entity(label="PER", start=0, end=3, score=0.9)])
SEVERAL = texts.Prediction(label="a", score=0.9, labels=[texts.ClassScore(label=n, score=0.9) for n in "ab"])
SEGMENTED = areas.Prediction(width=4, height=4, classes=[areas.ClassArea(label="sky", pixels=16)], png=png(0))
RANKED = items.Prediction(items=[items.ScoredItem(item=name, score=1) for name in ("x", "y", "z")])


@pytest.mark.parametrize(
    ("task", "prediction", "labels", "value"),
    [
        ("text-classification", texts.Prediction(label="ham"), [texts.Example(label="ham")], 1.0),
        ("text-classification", texts.Prediction(label="ham"), [texts.Example(label="spam")], 0.0),
        ("text-classification", SEVERAL, [texts.Example(label="b"), texts.Example(label="a")], 1.0),
        ("text-classification", SEVERAL, [texts.Example(label="a")], 0.0),
        ("text-classification", texts.Prediction(label="a"), [texts.Example(label="a"), texts.Example()], 0.0),
        ("text-classification", texts.Prediction(label="a"), [texts.Example()] * 2, 1.0),
        ("image-classification", images.Prediction(label="cat"), [images.Example(label="cat")], 1.0),
        ("entity-recognition", FOUND, [entities.Example(entities=[entities.Span(start=0, end=3, label="PER")])], 1.0),
        ("entity-recognition", FOUND, [entities.Example()], 0.0),
        (
            "object-detection",
            DETECTED,
            [objects.Example(objects=[objects.Object(label="cat", x_max=10, y_max=10)])],
            1.0,
        ),
        ("semantic-segmentation", SEGMENTED, [areas.Example(mask=png(5), values=[5], labels=["sky"])], 1.0),
        ("recommendation", RANKED, [items.Example(item="x")], 1.0),
        ("recommendation", RANKED, [items.Example(item="w")], 0.0),
        ("recommendation", RANKED, [items.Example(item="x"), items.Example(item="y")], 1.0),
    ],
)
def test_a_label_is_scored(
    tasks: dict[str, Task], task: str, prediction: Message, labels: list[Message], value: float
) -> None:
    found = feedback.value_of(tasks[task], recorded(prediction), list(map(packed, labels)))
    assert found == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "prediction", "labels"),
    [
        ("text-classification", texts.Prediction(label="ham"), [texts.Instance(text="ham")]),
        ("text-classification", texts.Prediction(label="ham"), []),
        ("image-classification", images.Prediction(label="cat"), [images.Example(label="cat")] * 2),
        ("semantic-segmentation", SEGMENTED, [areas.Example(mask=b"no image", values=[5], labels=["sky"])]),
        ("recommendation", RANKED, [items.Example(user="a", item="x"), items.Example(user="b", item="y")]),
    ],
)
def test_a_label_that_does_not_fit_is_refused(
    tasks: dict[str, Task], task: str, prediction: Message, labels: list[Message]
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        feedback.value_of(tasks[task], recorded(prediction), list(map(packed, labels)))
    assert "labels" in str(refused.value)


def test_a_metric_that_is_no_mean_is_scored_together(tasks: dict[str, Task]) -> None:
    """F1 of all entities, of which one text has more than the others."""
    none = entities.Prediction()
    many = entities.Example(entities=[entities.Span(start=i, end=i + 1, label="PER") for i in range(4)])
    one = entities.Example(entities=[entities.Span(start=0, end=3, label="PER")])
    side = feedback.labelled(tasks["entity-recognition"], [recorded(FOUND, [one], 1.0), recorded(none, [many], 0.0, 1)])
    assert side.score is not None
    assert side.score([0, 1]) == pytest.approx(2 * 1 * 0.2 / 1.2)
    assert side.score([0, 0]) == 1.0
    means = feedback.labelled(tasks["text-classification"], [recorded(texts.Prediction(), (), 1.0)])
    assert means.score is None
