"""Scores of a segmenter over all pixels of a part: intersection over union, accuracy, the confusion matrix.

Definitions as in Long, Shelhamer and Darrell, "Fully convolutional networks for semantic segmentation" (2015), on the
images' own sizes, all images of a part taken together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier import images
from luthier.task import ClassScores, ConfusionMatrix, Evaluation
from luthier_semantic_segmentation import label_maps

if TYPE_CHECKING:
    import pyarrow as pa


def score(examples: pa.Table, predictions: Sequence[Any]) -> Evaluation:
    """Compares predictions with masks, one image at a time.

    `miou` and `mean_accuracy` are plain means over the classes, by their names: of `miou` those that occur in the
    masks or the predictions, of `mean_accuracy` those that occur in the masks. Pixels of values without a class are
    left out, and so are classes that occur on neither side.
    """
    labels = _labels(examples, predictions)
    index_of = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for row, prediction in zip(_rows(examples), predictions, strict=True):
        truth = np.full(256, -1, dtype=np.int64)
        truth[row["values"]] = [index_of[label] for label in row["labels"]]
        translate = np.array([index_of[area.label] for area in prediction.classes], dtype=np.int64)
        true = truth[images.decode_values(row["mask"])]
        known = true >= 0
        pairs = true[known] * len(labels) + translate[label_maps.of_prediction(prediction)][known]
        counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    return _evaluation(labels, counts, len(predictions))


def intersection_over_union(counts: np.ndarray) -> np.ndarray:
    """Of a confusion matrix [truth, predicted], for each class; NaN where it occurs on neither side."""
    hits = np.diagonal(counts)
    return _ratio(hits, counts.sum(axis=0) + counts.sum(axis=1) - hits)


def _evaluation(labels: list[str], counts: np.ndarray, num_examples: int) -> Evaluation:
    hits, support = np.diagonal(counts), counts.sum(axis=1)
    iou, recall = intersection_over_union(counts), _ratio(hits, support)
    precision = _ratio(hits, counts.sum(axis=0))
    return Evaluation(
        num_examples=num_examples,
        metrics={
            "miou": _mean(iou),
            "pixel_accuracy": float(hits.sum() / max(1, counts.sum())),
            "mean_accuracy": _mean(recall),
        },
        per_class=[
            ClassScores(label=label, support=pixels, metrics={"iou": i, "precision": p, "recall": r})
            for label, pixels, i, p, r in zip(
                labels,
                support.tolist(),
                iou.tolist(),
                *(np.nan_to_num(v).tolist() for v in (precision, recall)),
                strict=True,
            )
            if i >= 0
        ],
        confusion_matrix=ConfusionMatrix(labels=labels, counts=counts.ravel().tolist()),
    )


def _labels(examples: pa.Table, predictions: Sequence[Any]) -> list[str]:
    """Names of all classes: the model's in its order, then those that it does not know."""
    of_model = dict.fromkeys(area.label for prediction in predictions for area in prediction.classes)
    of_masks = {label for labels in examples["labels"].to_pylist() for label in labels}
    return [*of_model, *sorted(of_masks - of_model.keys())]


def _rows(examples: pa.Table) -> Any:
    """The examples one by one, without their images."""
    for batch in examples.select(["mask", "values", "labels"]).to_batches(max_chunksize=1):
        yield from batch.to_pylist()


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return ratio


def _mean(values: np.ndarray) -> float:
    """Over those that are numbers; 0 where none is."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
