"""Lines that tasks draw beside their scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from luthier import curves


def average(label: str) -> float:
    return float(label.rpartition(" ")[2])


def test_the_average_precision_is_that_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    # Two digits, so that many scores are equal.
    scores = draw.random(3000).round(2)
    hits = draw.random(3000) < scores
    curve = curves.precision_recall(hits, scores, label="cat")
    assert curve.label.startswith("cat · AP ")
    assert average(curve.label) == pytest.approx(average_precision_score(hits, scores), abs=5e-4)
    assert len(curve.x) == len(curve.y) <= curves.MOST_POINTS
    assert list(curve.x) == sorted(curve.x)
    assert curve.x[-1] == 1


def test_precision_and_recall_by_hand() -> None:
    curve = curves.precision_recall([True, False, True, False], [0.9, 0.8, 0.7, 0.6], label="cat", positives=4)
    assert list(curve.x) == [0.25, 0.5]
    assert list(curve.y) == [1.0, pytest.approx(2 / 3)]
    assert curve.label == f"cat · AP {(1 + 2 / 3) / 4:.3f}"


def test_what_was_never_found_has_no_points() -> None:
    curve = curves.precision_recall([], [], label="cat", positives=3)
    assert (list(curve.x), curve.label) == ([], "cat · AP 0.000")


def test_a_long_line_is_thinned_to_its_corners() -> None:
    hits = np.tile([True, False], 5000)
    curve = curves.precision_recall(hits, np.linspace(1, 0, 10000), label="cat")
    assert len(curve.x) == curves.MOST_POINTS
    # Right before each mistake, precision is n / (2n - 1).
    assert curve.y[-1] == pytest.approx(5000 / 9999)


def test_reliability_by_hand() -> None:
    line, ideal = curves.reliability([0.91, 0.99, 0.95, 1.0, 0.25], [True, True, False, True, True])
    assert list(line.x) == [pytest.approx(0.25), pytest.approx((0.91 + 0.99 + 0.95 + 1.0) / 4)]
    assert list(line.y) == [1.0, 0.75]
    assert average(line.label) == pytest.approx((0.75 + 4 * (0.9625 - 0.75)) / 5, abs=5e-4)
    assert ideal.reference
    assert (list(ideal.x), list(ideal.y)) == ([0, 1], [0, 1])


def test_a_classifier_has_a_line_for_all_and_for_each_class_worst_first() -> None:
    truth = ["a", "a", "b", "c"]
    scores = [{"a": 0.9, "b": 0.1}, {"b": 0.6, "a": 0.4}, {"b": 0.8, "a": 0.1}, {"b": 0.5, "a": 0.45}]
    lines = curves.classifier(truth, scores)
    assert [line.title for line in lines] == ["Precision and recall"] * 4 + ["Reliability"] * 2
    # `c` was never among the best; of `a` the second comes behind one mistake.
    assert [line.label for line in lines[1:4]] == ["c · AP 0.000", f"a · AP {(1 + 2 / 3) / 2:.3f}", "b · AP 1.000"]
    assert max(lines[0].x) == 0.75


def test_of_many_classes_the_worst_are_drawn() -> None:
    truth = [f"class {i}" for i in range(40)]
    scores = [{label: 0.9 if i >= 20 else 0.2, "class 39": 0.5} for i, label in enumerate(truth[:-1])]
    lines = curves.classifier(truth, [*scores, {"class 39": 0.9}])
    drawn = [line for line in lines if line.title == "Precision and recall"]
    assert len(drawn) == 1 + curves.MOST_CLASSES
