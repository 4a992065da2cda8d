"""Scores of a classifier, by the usual definitions of scikit-learn."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from luthier import curves
from luthier.task import ClassScores, ConfusionMatrix, Evaluation
from luthier.tasks.text_classification.v1.text_classification_pb2 import Prediction


def score(truth: Sequence[str], predictions: Sequence[Prediction]) -> Evaluation:
    """Compares labels. Classes are those that occur on either side; what would divide by zero is 0.

    `*_macro` is the plain mean over these classes, `f1_weighted` the mean weighted by each class's examples.
    """
    import numpy as np
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    predicted = [prediction.label for prediction in predictions]
    labels = sorted({*truth, *predicted})
    by_class = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    macro = precision_recall_fscore_support(truth, predicted, labels=labels, average="macro", zero_division=0)
    weighted = precision_recall_fscore_support(truth, predicted, labels=labels, average="weighted", zero_division=0)
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(counts, ([place[label] for label in truth], [place[label] for label in predicted]), 1)
    return Evaluation(
        num_examples=len(truth),
        metrics={
            "accuracy": accuracy_score(truth, predicted),
            "precision_macro": macro[0],
            "recall_macro": macro[1],
            "f1_macro": macro[2],
            "f1_weighted": weighted[2],
        },
        per_class=[
            ClassScores(label=label, support=int(support), metrics={"precision": precision, "recall": recall, "f1": f1})
            for label, precision, recall, f1, support in zip(labels, *by_class, strict=True)
        ],
        confusion_matrix=ConfusionMatrix(labels=labels, counts=counts.ravel().tolist()),
        curves=curves.classifier(truth, [_scores(prediction) for prediction in predictions]),
    )


def score_several(truth: Sequence[Collection[str]], predictions: Sequence[Prediction]) -> Evaluation:
    """Compares sets of labels. Classes are those that occur on either side; what would divide by zero is 0.

    `accuracy` is the share of texts whose labels are all right and complete; `*_micro` counts every pair of text and
    label alike, `*_macro` is the plain mean over the classes, `f1_weighted` the mean weighted by their examples.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    predicted = [{entry.label for entry in prediction.labels} for prediction in predictions]
    labels = sorted(set().union(*truth, *predicted))
    # A class that nothing has: with one column alone scikit-learn would take it for two classes.
    classes = [*labels, ""]
    binarizer = MultiLabelBinarizer(classes=classes).fit([classes])
    true, given = binarizer.transform(truth), binarizer.transform(predicted)
    columns = list(range(len(labels)))
    by_class = precision_recall_fscore_support(true, given, labels=columns, zero_division=0)
    averages = {
        average: precision_recall_fscore_support(true, given, labels=columns, average=average, zero_division=0)
        for average in ("micro", "macro", "weighted")
    }
    return Evaluation(
        num_examples=len(truth),
        metrics={
            "accuracy": accuracy_score(true, given),
            "precision_micro": averages["micro"][0],
            "recall_micro": averages["micro"][1],
            "f1_micro": averages["micro"][2],
            "precision_macro": averages["macro"][0],
            "recall_macro": averages["macro"][1],
            "f1_macro": averages["macro"][2],
            "f1_weighted": averages["weighted"][2],
        },
        per_class=[
            ClassScores(label=label, support=int(support), metrics={"precision": precision, "recall": recall, "f1": f1})
            for label, precision, recall, f1, support in zip(labels, *by_class, strict=True)
        ],
        curves=curves.multi_label(truth, [_scores(prediction) for prediction in predictions]),
    )


def _scores(prediction: Prediction) -> dict[str, float]:
    """Probabilities by class, as far as the prediction has them."""
    entries = (*prediction.top, *prediction.labels)
    return {prediction.label: prediction.score} | {entry.label: entry.score for entry in entries}
