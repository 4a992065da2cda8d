"""Scores of a classifier, by the usual definitions of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.task import ClassScores, ConfusionMatrix, Evaluation


def score(truth: Sequence[str], predicted: Sequence[str]) -> Evaluation:
    """Compares labels. Classes are those that occur on either side; what would divide by zero is 0.

    `*_macro` is the plain mean over these classes, `f1_weighted` the mean weighted by each class's examples.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    labels = sorted({*truth, *predicted})
    by_class = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    macro = precision_recall_fscore_support(truth, predicted, labels=labels, average="macro", zero_division=0)
    weighted = precision_recall_fscore_support(truth, predicted, labels=labels, average="weighted", zero_division=0)
    counts = confusion_matrix(truth, predicted, labels=labels)
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
            ClassScores(label=label, support=support, metrics={"precision": precision, "recall": recall, "f1": f1})
            for label, precision, recall, f1, support in zip(labels, *by_class, strict=True)
        ],
        confusion_matrix=ConfusionMatrix(labels=labels, counts=counts.ravel().tolist()),
    )
