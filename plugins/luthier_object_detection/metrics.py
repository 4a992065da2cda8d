"""Scores of a detector as COCO defines them, by pycocotools.

https://cocodataset.org/#detection-eval. A metric that nothing was there to measure on is -1, as there:
`map_small` where no object is smaller than 32 x 32 pixels, for instance.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.curves import precision_recall
from luthier.task import ClassScores, Evaluation

AREAS = ("all", "small", "medium", "large")
"""Of objects: all, below 32², between, and above 96² pixels."""
MOST_CURVES = 10
"""Classes whose precision is drawn over recall, those with the most objects."""
NONE = -1.0
SCORE_THRESHOLD = 0.4
"""Of a model that was not validated, or found nothing then."""
THRESHOLDS = (0.1, 0.9)
"""The lowest and the highest that a model gets."""

Object = Mapping[str, Any]
"""`label`, `x_min`, `y_min`, `x_max`, `y_max` in pixels and `crowd`, as in the column `objects`."""


@dataclass(frozen=True)
class Results:
    """What pycocotools found."""

    labels: list[str]
    precision: np.ndarray
    """[IoU thresholds 0.5 to 0.95, recalls 0 to 1, classes, areas]; -1 where a class has no object."""
    recall: np.ndarray
    """[IoU thresholds, classes, areas], of at most 100 detections an image."""
    hits: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """By class: which detections match an object with an IoU of 0.5, and their scores. Those of crowds are left out."""

    def mean_precision(self, *, iou: int | None = None, area: str = "all", label: str | None = None) -> float:
        """Average precision: at a threshold, by its index, or over all; of a class, or over those there are."""
        return _mean(self._chosen(self.precision, iou, area, label))

    def mean_recall(self, *, iou: int | None = None, label: str | None = None) -> float:
        """The same of the highest recall."""
        return _mean(self._chosen(self.recall, iou, "all", label))

    def _chosen(self, values: np.ndarray, iou: int | None, area: str, label: str | None) -> np.ndarray:
        thresholds = slice(None) if iou is None else slice(iou, iou + 1)
        classes = slice(None) if label is None else [self.labels.index(label)]
        return values[thresholds, ..., classes, AREAS.index(area)]


def score(truth: Sequence[Sequence[Object]], predictions: Sequence[Any]) -> Evaluation:
    """Compares the objects of each image with its prediction.

    `map` is the mean over classes and over IoU thresholds from 0.5 to 0.95, `map_50` and `map_75` that at one
    threshold, `map_small`, `map_medium` and `map_large` that of objects of a size; `recall` is the highest recall,
    averaged alike. Classes are those that have an object. Where no image has any object, all are -1.
    """
    results = measure(truth, predictions)
    counts = Counter(entry["label"] for objects in truth for entry in objects if not entry["crowd"])
    return Evaluation(
        num_examples=len(truth),
        metrics={
            "map": results.mean_precision(),
            "map_50": results.mean_precision(iou=0),
            "map_75": results.mean_precision(iou=5),
            **{f"map_{area}": results.mean_precision(area=area) for area in AREAS[1:]},
            "recall": results.mean_recall(),
        },
        per_class=[
            ClassScores(
                label=label,
                support=count,
                metrics={
                    "ap": results.mean_precision(label=label),
                    "ap_50": results.mean_precision(iou=0, label=label),
                    "recall": results.mean_recall(label=label),
                },
            )
            for label, count in sorted(counts.items())
        ],
        curves=[
            precision_recall(
                *results.hits[label], label=label, positives=count, title="Precision and recall at IoU 0.5"
            )
            for label, count in counts.most_common(MOST_CURVES)
        ],
    )


def grades(truth: Sequence[Sequence[Object]], predictions: Sequence[Any]) -> list[float]:
    """How good each prediction is, from 0 to 1: `map` of the image alone.

    Of an image without objects it is 1 less the highest score of a detection, of which there should be none.
    """
    return [
        measure([objects], [prediction]).mean_precision()
        if any(not entry["crowd"] for entry in objects)
        else 1 - max((detection.score for detection in prediction.detections), default=0.0)
        for objects, prediction in zip(truth, predictions, strict=True)
    ]


def best_threshold(results: Results, num_objects: int) -> float:
    """The score from which on detections have the highest F1 against all objects, to three digits.

    A detection is right where it matches an object with an IoU of 0.5. The threshold is within THRESHOLDS, and
    SCORE_THRESHOLD where nothing was right.
    """
    hits = np.concatenate([hits for hits, _ in results.hits.values()] or [np.zeros(0, dtype=bool)])
    scores = np.concatenate([scores for _, scores in results.hits.values()] or [np.zeros(0)])
    if not hits.any():
        return SCORE_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(hits[order]) / (np.arange(1, len(order) + 1) + num_objects)
    best = int(f1.argmax())
    # Between two scores, so that no rounding decides on which side one of them is.
    lower = scores[order[best + 1]] if best + 1 < len(order) else 0.0
    return float(np.clip(np.round((scores[order[best]] + lower) / 2, 3), *THRESHOLDS))


def measure(truth: Sequence[Sequence[Object]], predictions: Sequence[Any]) -> Results:
    """Runs COCO's evaluation. An image may have any number of objects and detections, none among them."""
    from pycocotools.cocoeval import COCOeval

    labels = sorted(
        {entry["label"] for objects in truth for entry in objects}
        | {detection.label for prediction in predictions for detection in prediction.detections}
    )
    numbers = {label: number for number, label in enumerate(labels)}
    expected = [
        _annotation(image, numbers[o["label"]], o["x_min"], o["y_min"], o["x_max"], o["y_max"], iscrowd=int(o["crowd"]))
        for image, objects in enumerate(truth)
        for o in objects
    ]
    found = [
        _annotation(image, numbers[d.label], d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max, score=d.score)
        for image, prediction in enumerate(predictions)
        for d in prediction.detections
    ]
    # It prints what it does.
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_index(len(truth), labels, expected), _index(len(truth), labels, found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    most = len(evaluation.params.maxDets) - 1
    return Results(
        labels,
        evaluation.eval["precision"][..., most],
        evaluation.eval["recall"][..., most],
        _hits(evaluation, labels),
    )


def _hits(evaluation: Any, labels: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """As `Results.hits`."""
    hits: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {label: ([], []) for label in labels}
    everything = evaluation.params.areaRng[0]
    for image in evaluation.evalImgs:
        if image is None or image["aRng"] != everything:
            continue
        counted = ~image["dtIgnore"][0].astype(bool)
        matched, scores = hits[labels[image["category_id"]]]
        matched.append(image["dtMatches"][0][counted] > 0)
        scores.append(np.asarray(image["dtScores"], dtype=np.float64)[counted])
    return {
        label: (np.concatenate([np.zeros(0, dtype=bool), *matched]), np.concatenate([np.zeros(0), *scores]))
        for label, (matched, scores) in hits.items()
    }


def _annotation(
    image: int, category: int, x_min: float, y_min: float, x_max: float, y_max: float, **rest: float
) -> dict[str, Any]:
    width, height = x_max - x_min, y_max - y_min
    box = [x_min, y_min, width, height]
    return {"image_id": image, "category_id": category, "bbox": box, "area": width * height, "iscrowd": 0, **rest}


def _index(num_images: int, labels: Sequence[str], annotations: list[dict[str, Any]]) -> Any:
    """Annotations as pycocotools takes them, numbered from 1: 0 means to it that there is no match."""
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {
        "images": [{"id": image} for image in range(num_images)],
        "categories": [{"id": number} for number in range(len(labels))],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)],
    }
    index.createIndex()
    return index


def _mean(values: np.ndarray) -> float:
    """The mean of the values that there are."""
    known = values[values > NONE]
    return float(known.mean()) if known.size else NONE
