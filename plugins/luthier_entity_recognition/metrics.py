"""Scores of found entities by the strict rule of seqeval: one counts where its borders and its label are right.

Spans on the same text are compared instead of tags, which comes to the same (Nakayama 2018, seqeval,
`mode="strict", scheme=IOB2`) and leaves out how either side cuts the text into words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain

from luthier import curves
from luthier.task import ClassScores, ConfusionMatrix, Evaluation
from luthier_entity_recognition.examples import Entity

NONE = "(none)"
"""What stands in the confusion matrix for no entity with these borders."""


def score(
    truth: Sequence[Collection[Entity]],
    predicted: Sequence[Collection[Entity]],
    scores: Sequence[Collection[float]] | None = None,
) -> Evaluation:
    """Compares the entities of each text; what would divide by zero is 0.

    `precision`, `recall` and `f1` count all entities alike, `f1_macro` is the plain mean over the labels that occur on
    either side. Support is the true entities of a label. With the scores of the predicted ones come curves: precision
    over recall, as far as recall goes with what was found, and reliability.
    """
    true, found, right = Counter[str](), Counter[str](), Counter[str]()
    confusions: Counter[tuple[str, str]] = Counter()
    for one, other in zip(truth, predicted, strict=True):
        true.update(label for *_, label in one)
        found.update(label for *_, label in other)
        right.update(label for *_, label in {*one} & {*other})
        ours, theirs = ({(start, end): label for start, end, label in side} for side in (one, other))
        confusions.update((ours.get(place, NONE), theirs.get(place, NONE)) for place in ours | theirs)
    labels = sorted(true | found)
    evaluation = Evaluation(
        num_examples=len(truth),
        metrics=_ratios(true.total(), found.total(), right.total()),
        per_class=[
            ClassScores(label=label, support=true[label], metrics=_ratios(true[label], found[label], right[label]))
            for label in labels
        ],
        confusion_matrix=ConfusionMatrix(
            labels=[*labels, NONE], counts=[confusions[t, p] for t in (*labels, NONE) for p in (*labels, NONE)]
        ),
    )
    evaluation.metrics["f1_macro"] = sum(one.metrics["f1"] for one in evaluation.per_class) / max(1, len(labels))
    if scores is not None:
        hits = [entity in {*one} for one, other in zip(truth, predicted, strict=True) for entity in other]
        confidences = list(chain.from_iterable(scores))
        evaluation.curves.append(
            curves.precision_recall(hits, confidences, label="all entities", positives=true.total())
        )
        evaluation.curves.extend(curves.reliability(confidences, hits))
    return evaluation


def grade(truth: Collection[Entity], predicted: Collection[Entity]) -> float:
    """F1 of one text's entities; 1 where there are none on either side."""
    return _ratios(len(truth), len(predicted), len({*truth} & {*predicted}))["f1"] if truth or predicted else 1.0


def _ratios(true: int, found: int, right: int) -> dict[str, float]:
    return {
        "precision": right / found if found else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (true + found) if true + found else 0.0,
    }
