"""Interactions: reading, splitting, checking, merging; and the metrics of lists."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from luthier.errors import InvalidArgument, InvalidData
from luthier.task import DataFile, Split
from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
from luthier_recommendation import Recommendation, metrics
from luthier_recommendation.interactions import Interactions
from luthier_recommendation.search import best_of
from taken_items import simulated, table, titles

TASK = Recommendation()


@pytest.fixture(scope="module")
def parts() -> dict[str, pa.Table]:
    parts = TASK.split(simulated(), Split(method="per-user", seed=1))
    return parts | {"titles": titles(120)}


# Metrics


def test_metrics_of_one_user_by_hand() -> None:
    ranked = ["a", "x", "b", "y", "z"]
    relevant = {"a", "b", "c"}
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert metrics.ndcg(ranked, relevant) == pytest.approx((1 + 1 / 2) / ideal)
    assert metrics.average_precision(ranked, relevant) == pytest.approx((1 / 1 + 2 / 3) / 3)


def test_ideal_is_cut_at_ten() -> None:
    ranked = [str(i) for i in range(10)]
    assert metrics.ndcg(ranked, {str(i) for i in range(40)}) == pytest.approx(1)
    assert metrics.average_precision(ranked, {str(i) for i in range(40)}) == pytest.approx(1)


def test_score_averages_over_users() -> None:
    examples = table([("u", "a", 1, 0), ("v", "b", 1, 0), ("u", "b", 1, 0), ("u", "a", 1, 0)])
    predictions = [pb.Prediction(items=[pb.ScoredItem(item="x"), pb.ScoredItem(item="a")]), pb.Prediction()]
    assert [instance.user for instance in TASK.instances(examples)] == ["u", "v"]
    evaluation = TASK.score(examples, predictions)
    assert evaluation.num_examples == 2
    ndcg = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    assert dict(evaluation.metrics) == pytest.approx(
        {
            "ndcg_at_10": ndcg / 2,
            "precision_at_10": 0.1 / 2,
            "recall_at_10": 0.5 / 2,
            "map_at_10": (1 / 2) / 2 / 2,
            "coverage": 2 / 3,
        }
    )


def test_best_of_prefers_the_lower_index() -> None:
    scores = np.array([[1.0, 3.0, 1.0, 3.0, -np.inf], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert best_of(scores, 3).tolist() == [[1, 3, 0], [0, 1, 2]]


# Data


def test_reads_titles_with_the_mapping_of_interactions(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    path.write_text('movieId,title,genres\n31,"Heat, (1995)",Action\n7,,None\n', encoding="utf-8")
    columns = {"user": "userId", "item": "movieId"}
    read = TASK.read(DataFile(path=path, name="movies.csv", format="csv", role="titles", columns=columns))
    assert read.to_pydict() == {"item": ["31", "7"], "title": ["Heat, (1995)", ""]}


def test_titles_need_a_column_of_titles(tmp_path: Path) -> None:
    path = tmp_path / "movies.csv"
    path.write_text("item,name\n31,Heat\n", encoding="utf-8")
    with pytest.raises(InvalidData, match="title"):
        TASK.read(DataFile(path=path, name="movies.csv", format="csv", role="titles"))


def test_per_user_split_depends_on_content_and_seed_alone() -> None:
    examples = simulated()
    split = Split(method="per-user", fractions=[0.25], seed=3)
    parts = TASK.split(examples, split)
    shuffled = examples.take(np.random.default_rng(0).permutation(len(examples)))
    again = TASK.split(shuffled, split)
    pairs = {name: sorted(zip(t["user"].to_pylist(), t["item"].to_pylist(), strict=True)) for name, t in parts.items()}
    assert pairs["test"] == sorted(
        zip(again["test"]["user"].to_pylist(), again["test"]["item"].to_pylist(), strict=True)
    )
    assert not pairs["validation"]
    assert len(pairs["train"]) + len(pairs["test"]) == len(examples)
    for user in ("u0", "u1", "u2"):
        size = examples["user"].to_pylist().count(user)
        assert parts["test"]["user"].to_pylist().count(user) == math.ceil(size * 0.25 - 0.5)
    other = TASK.split(examples, Split(method="per-user", fractions=[0.25], seed=4))
    assert not other["test"].equals(parts["test"])


def test_per_user_split_with_validation_and_single_items() -> None:
    rows = [("u", f"i{i}", 1.0, 0.0) for i in range(10)] + [("lonely", "i0", 1.0, 0.0)]
    parts = TASK.split(table(rows), Split(method="per-user", fractions=[0.1, 0.3]))
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [7, 1, 3]
    assert "lonely" in parts["train"]["user"].to_pylist()


@pytest.mark.parametrize("method", ["hash", "per-user"])
def test_repeated_pairs_stay_together(method: str) -> None:
    rows = [(f"u{u}", f"i{i}", float(w), float(w)) for u in range(20) for i in range(8) for w in (1, 2)]
    parts = TASK.split(table(rows), Split(method=method, seed=5))
    pairs = [set(zip(t["user"].to_pylist(), t["item"].to_pylist(), strict=True)) for t in parts.values()]
    assert not pairs[0] & pairs[2]
    assert pairs[2]


@pytest.mark.parametrize("fractions", [[0.0], [1.0], [0.5, 0.5], [-0.1, 0.2], [0.1, 0.1, 0.1], [math.nan]])
def test_bad_fractions_are_refused(fractions: list[float]) -> None:
    with pytest.raises(InvalidArgument, match=r"split\.fractions"):
        TASK.split(simulated(), Split(method="per-user", fractions=fractions))


def test_validation_of_good_data_is_silent(parts: dict[str, pa.Table]) -> None:
    assert list(TASK.validate(parts)) == []


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([], ""),
        ([("u", "a", 0.0, 0.0), ("v", "b", 1.0, 0.0)], "weight"),
        ([("u", "a", math.nan, 0.0), ("v", "b", 1.0, 0.0)], "weight"),
        ([("u", "a", 1.0, 0.0), ("u", "b", 1.0, 0.0)], "user"),
        ([("u", "a", 1.0, 0.0), ("v", "a", 1.0, 0.0)], "item"),
        ([(" ", "a", 1.0, 0.0), ("v", "b", 1.0, 0.0)], "user"),
    ],
)
def test_what_cannot_be_learnt_from_is_fatal(rows: list[tuple[str, str, float, float]], field: str) -> None:
    found = [problem for fatal, problem in TASK.validate({"train": table(rows)}) if fatal]
    assert [problem.field for problem in found] == [field]


def test_strangers_and_repeats_are_warned_of() -> None:
    train = table([("u", "a", 1.0, 0.0), ("u", "a", 2.0, 0.0), ("v", "b", 1.0, 0.0)])
    test = table([("w", "a", 1.0, 0.0), ("u", "c", 1.0, 0.0), ("u", "b", 1.0, 0.0)])
    found = list(TASK.validate({"train": train, "test": test}))
    assert not any(fatal for fatal, _ in found)
    assert [(problem.field, problem.count) for _, problem in found] == [("item", 1), ("user", 1), ("item", 1)]


def test_description() -> None:
    train = table([("u", "a", 1.0, 0.0), ("u", "b", 2.0, 0.0), ("v", "b", 1.0, 0.0), ("v", "b", 1.0, 0.0)])
    described = TASK.describe({"train": train, "titles": pa.table({"item": ["b"], "title": ["Bee"]})})
    assert (described["users"], described["items"], described["interactions"]) == (2, 2, 3)
    assert described["density"] == pytest.approx(3 / 4)
    assert described["interactions_per_user"]["p50"] == 2
    assert described["top_items"][0] == {"item": "b", "title": "Bee", "users": 2}


def test_interactions_merge_and_order() -> None:
    train = table([("v", "b", 1.0, 0.0), ("u", "a", 2.0, 0.0), ("u", "b", 3.0, 0.0), ("u", "b", 4.0, 0.0)])
    validation = table([("v", "a", 5.0, 0.0), ("u", "b", 1.0, 0.0), ("v", "c", 1.0, 0.0)])
    both = {"train": train, "validation": validation}
    weighted = Interactions.of(both, use_weights=True, seed=0)
    assert (weighted.users, weighted.items) == (["u", "v"], ["a", "b", "c"])
    assert weighted.all.toarray().tolist() == [[2, 8, 0], [5, 1, 1]]
    assert weighted.held.toarray().tolist() == [[0, 0, 0], [5, 0, 1]]
    assert weighted.rest.toarray().tolist() == [[2, 8, 0], [0, 1, 0]]
    assert Interactions.of(both, use_weights=False, seed=0).all.toarray().tolist() == [[1, 1, 0], [1, 1, 1]]


def test_a_fifth_is_held_out_where_there_is_no_validation_part(parts: dict[str, pa.Table]) -> None:
    interactions = Interactions.of(parts, use_weights=False, seed=1)
    sizes, held = np.diff(interactions.all.indptr), np.diff(interactions.held.indptr)
    assert held.tolist() == np.ceil(sizes * 0.2 - 0.5).tolist()
    assert interactions.rest.nnz + interactions.held.nnz == interactions.all.nnz
