"""The recommenders: training, search, warm starts, requests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import Message

from luthier import fields
from luthier.errors import InvalidArgument
from luthier.inference.predictor import Predictor
from luthier.task import DataFile, Run, Split
from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
from luthier_recommendation import Recommendation, data, training
from luthier_recommendation.algorithms import Ease, Fit
from luthier_recommendation.interactions import Interactions
from luthier_recommendation.search import ALGORITHMS, FINALISTS, REDRAWS, ndcg_of
from taken_items import simulated, table, titles

TASK = Recommendation()
QUICK = {
    "EASE": {"regularization": 50.0},
    "ALS": {"regularization": 5.0, "factors": 16},
    "BM25": {"neighbors": 50},
    "BPR": {"regularization": 0.01, "factors": 16, "iterations": 60},
    "POPULARITY": {},
}
"""Settings that leave nothing to be searched."""


def run_on(parts: dict[str, pa.Table], directory: Path, **config: object) -> Run:
    message = pb.Config(**config)
    fields.resolve(message)
    return Run(parts=parts, config=message, base=None, seed=7, directory=directory)


@dataclass
class Made:
    """A model, its bundle and the data it comes from."""

    parts: dict[str, pa.Table]
    model: training.Recommender
    bundle: Path
    predictor: Predictor

    def known(self, index: int = 0) -> tuple[str, list[str]]:
        """A user with his items."""
        interactions = self.model.interactions
        return interactions.users[index], [interactions.items[i] for i in interactions.all[index].indices]


def made(directory: Path, parts: dict[str, pa.Table], **config: object) -> Made:
    model = training.fine_tune(run_on(parts, directory, **config))
    bundle = directory / "bundle"
    bundle.mkdir()
    training.export(model, bundle)
    return Made(parts, model, bundle, Predictor(TASK, bundle))


@pytest.fixture(scope="module")
def parts() -> dict[str, pa.Table]:
    parts = TASK.split(simulated(), Split(method="per-user", seed=1))
    return parts | {"titles": titles(120)}


@pytest.fixture(scope="module")
def all_made(parts: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    def make(name: str) -> Made:
        return made(tmp_path_factory.mktemp(name), parts, algorithm=f"ALGORITHM_{name}", **QUICK[name])

    wide = TASK.split(simulated(60, 150), Split(method="per-user", seed=1))
    by_users = made(tmp_path_factory.mktemp("users"), wide, algorithm="ALGORITHM_EASE", **QUICK["EASE"])
    weighted = made(
        tmp_path_factory.mktemp("weighted"), parts, algorithm="ALGORITHM_ALS", use_weights=True, **QUICK["ALS"]
    )
    return {name: make(name) for name in QUICK} | {"EASE_BY_USERS": by_users, "ALS_WEIGHTED": weighted}


@pytest.fixture(params=[*QUICK, "EASE_BY_USERS", "ALS_WEIGHTED"])
def one(request: pytest.FixtureRequest, all_made: dict[str, Made]) -> Made:
    return all_made[request.param]


def ids(prediction: Message) -> list[str]:
    return [scored.item for scored in prediction.items]


def assert_same(found: Sequence[Message], expected: Sequence[Message], tolerance: float = 2e-4) -> None:
    """Equal up to the order of items whose scores agree within the tolerance."""
    for one, other in zip(found, expected, strict=True):
        scores = [scored.score for scored in one.items]
        np.testing.assert_allclose(scores, [scored.score for scored in other.items], rtol=tolerance, atol=tolerance)
        last = scores[-1] if scores else 0
        clear = [{s.item for s in each.items if s.score > last + 2 * tolerance} for each in (one, other)]
        assert clear[0] == clear[1]
        assert list(one.unknown_items) == list(other.unknown_items)


# Algorithms


@pytest.mark.parametrize("name", ["EASE", "ALS", "BM25", "BPR"])
def test_every_algorithm_beats_popularity(name: str, all_made: dict[str, Made]) -> None:
    def ndcg(made: Made) -> float:
        predictions = made.predictor.predict(TASK.instances(made.parts["test"]))
        return float(TASK.score(made.parts["test"], predictions).metrics["ndcg_at_10"])

    assert ndcg(all_made[name]) > 1.1 * ndcg(all_made["POPULARITY"])


def test_ease_is_the_closed_form_on_both_sides() -> None:
    interactions = Interactions.of({"train": simulated(60, 90)}, use_weights=True, seed=0)
    dense = interactions.all.toarray().astype(np.float64)
    unit = np.eye(dense.shape[1])
    inverse = np.linalg.inv(dense.T @ dense + 30 * unit)
    expected = dense @ (unit - inverse / np.diag(inverse))
    matrix = interactions.all.astype(np.float64)
    for model in (Ease._by_users(matrix, 30), Ease._by_items(matrix, 30)):
        np.testing.assert_allclose(model.scores(interactions.all), expected, atol=1e-4)


def test_bundle_equals_source(one: Made) -> None:
    instances = TASK.instances(one.parts["test"])
    assert_same(one.predictor.predict(instances), training.predict(one.model, instances))


def test_bundle_equals_source_for_every_kind_of_request(one: Made) -> None:
    user, taken = one.known(3)
    other = [item for item in one.model.interactions.items if item not in taken]
    instances: list[Message] = [
        pb.Instance(user=user, include_seen=True, k=20),
        pb.Instance(user=user, history=[*other[:3], taken[0], "unheard of"], k=7),
        pb.Instance(user=user, history=other[:3], include_seen=True),
        pb.Instance(history=taken[:5], deny=other[:10], k=200),
        pb.Instance(user="nobody", history=taken[:2], allow=other[:6]),
        pb.Instance(user="nobody", allow_unknown=True),
        pb.Instance(user=user, allow=["unheard of"]),
    ]
    if one.model.model.name != "popularity":
        instances += [pb.SimilarItemsInstance(item=taken[0]), pb.SimilarItemsInstance(item=other[0], deny=other[1:9])]
    assert_same(one.predictor.predict(instances), training.predict(one.model, instances))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_batch_equals_singles(size: int, one: Made) -> None:
    user, taken = one.known(1)
    instances: list[Message] = [
        pb.Instance(user=user, k=3),
        pb.Instance(history=taken[:4]),
        pb.Instance(user=user, allow=one.model.interactions.items[:30], k=5),
        *(pb.Instance(user=one.known(i)[0], k=i) for i in range(4, 8)),
    ][:size]
    batch = one.predictor.predict(instances)
    assert_same(batch, [one.predictor.predict([instance])[0] for instance in instances])


@pytest.mark.parametrize("name", ["ALS", "BPR", "BM25"])
def test_the_seed_fixes_the_result(name: str, all_made: dict[str, Made], tmp_path: Path) -> None:
    first = all_made[name]
    again = made(tmp_path, first.parts, algorithm=f"ALGORITHM_{name}", **QUICK[name])
    assert (again.bundle / "model.onnx").read_bytes() == (first.bundle / "model.onnx").read_bytes()


def test_search_reports_and_keeps_the_best(tmp_path: Path) -> None:
    parts = TASK.split(simulated(), Split(method="per-user", fractions=[0.1, 0.2]))
    run = run_on(parts, tmp_path, iterations=5)
    events: list[dict] = []
    run.emit = events.append
    model = training.fine_tune(run)
    values = [event["metrics"]["values"]["validation/ndcg_at_10"] for event in events if "metrics" in event]
    stages = [event["progress"] for event in events if "progress" in event]
    searched = [stage for stage in stages if stage["stage"] == "choosing settings"]
    assert searched[-1]["step"] == searched[-1]["total"] == len(values)
    assert stages[-1]["stage"] == "training"
    interactions = model.interactions
    algorithm = next(a for a in ALGORITHMS.values() if isinstance(model.model, a.model))
    fit = Fit(matrix=interactions.rest, settings=model.settings, seed=run.seed)
    users = np.flatnonzero(np.diff(interactions.held.indptr))
    best = ndcg_of(algorithm.model.fit(fit), interactions.rest, interactions.held, users)
    assert best == pytest.approx(max(values))
    assert run.figures["interactions"] == len(parts["train"]) + len(parts["validation"])


def test_the_best_trials_are_measured_on_further_draws(parts: dict[str, pa.Table], tmp_path: Path) -> None:
    run = run_on(parts, tmp_path, algorithm="ALGORITHM_EASE")
    events: list[dict] = []
    run.emit = events.append
    model = training.fine_tune(run)
    values = [event["metrics"]["values"]["validation/ndcg_at_10"] for event in events if "metrics" in event]
    candidates = ALGORITHMS[pb.ALGORITHM_EASE].grid["regularization"]
    trials = dict(zip(candidates, values, strict=False))
    finalists = sorted(trials, key=lambda candidate: -trials[candidate])[:FINALISTS]
    draws = np.array(values[len(candidates) :]).reshape(REDRAWS, FINALISTS)
    means = np.vstack([[trials[finalist] for finalist in finalists], draws]).mean(axis=0)
    assert model.settings.regularization == finalists[int(means.argmax())]


def test_search_uses_the_given_validation_part(tmp_path: Path) -> None:
    parts = TASK.split(simulated(), Split(method="per-user", fractions=[0.1, 0.2]))
    model = training.fine_tune(run_on(parts, tmp_path, algorithm="ALGORITHM_EASE"))
    assert model.interactions.held.nnz == len(parts["validation"])
    assert model.interactions.all.nnz == len(parts["train"]) + len(parts["validation"])


def test_a_cancelled_search_ends(parts: dict[str, pa.Table], tmp_path: Path) -> None:
    from luthier.errors import Cancelled

    run = run_on(parts, tmp_path)
    run.cancelled = lambda: True
    with pytest.raises(Cancelled):
        training.fine_tune(run)


def test_too_large_a_model_is_refused_before_training(
    parts: dict[str, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier_recommendation.search.MAX_MODEL_BYTES", 1000)
    for config, field in (({"algorithm": "ALGORITHM_EASE"}, "algorithm"), ({"factors": 64}, "factors")):
        with pytest.raises(InvalidArgument, match=f"config.{field}"):
            training.fine_tune(run_on(parts, Path(), **({"algorithm": "ALGORITHM_ALS"} | config)))


# Starting from an earlier model


@pytest.mark.parametrize("name", ["ALS", "BPR"])
def test_a_warm_start_begins_at_the_bases_factors(name: str, all_made: dict[str, Made], tmp_path: Path) -> None:
    base = all_made[name]
    newcomer = table([("newcomer", item, 1.0, 0.0) for item in base.known(0)[1][:5]] + [("newcomer", "new", 1.0, 0.0)])
    parts = {"train": pa.concat_tables([base.parts["train"], newcomer])}
    run = run_on(parts, tmp_path, iterations=1)
    run.base, run.warm_start = base.bundle, True
    model = training.fine_tune(run)
    assert model.settings.factors == 16
    assert model.settings.iterations == 1
    predictions = training.predict(model, TASK.instances(base.parts["test"]))
    before = training.predict(base.model, TASK.instances(base.parts["test"]))
    scores = [TASK.score(base.parts["test"], each).metrics["ndcg_at_10"] for each in (predictions, before)]
    assert scores[0] == pytest.approx(scores[1], abs=0.03)
    assert training.predict(model, [pb.Instance(user="newcomer")])[0].items


@pytest.mark.parametrize(
    ("base", "config", "field"),
    [
        ("EASE", {}, "base"),
        ("ALS", {"algorithm": "ALGORITHM_BPR"}, "config.algorithm"),
        ("ALS", {"factors": 17}, "config.factors"),
    ],
)
def test_an_unsuitable_base_is_refused(
    base: str, config: dict[str, object], field: str, all_made: dict[str, Made], tmp_path: Path
) -> None:
    run = run_on(all_made[base].parts, tmp_path, **config)
    run.base, run.warm_start = all_made[base].bundle, True
    with pytest.raises(InvalidArgument) as raised:
        training.fine_tune(run)
    assert set(raised.value.violations) == {field}


# Requests


def test_seen_items_are_excluded_unless_asked_for(one: Made) -> None:
    user, taken = one.known()
    everything = len(one.model.interactions.items)
    unseen, all_items = one.predictor.predict(
        [pb.Instance(user=user, k=everything), pb.Instance(user=user, k=everything, include_seen=True)]
    )
    assert not set(ids(unseen)) & set(taken)
    assert set(ids(all_items)) & set(taken)
    assert len(ids(unseen)) == len(set(ids(unseen))) <= everything - len(taken)


def test_allow_and_deny(one: Made) -> None:
    user, taken = one.known()
    some = [item for item in one.model.interactions.items if item not in taken][:8]
    allowed, denied, nothing = one.predictor.predict(
        [
            pb.Instance(user=user, allow=[*some, taken[0], "unheard of"], deny=some[:1]),
            pb.Instance(user=user, deny=[*some, "unheard of"], k=50),
            pb.Instance(user=user, allow=["unheard of"]),
        ]
    )
    assert set(ids(allowed)) == set(some[1:])
    assert not set(ids(denied)) & set(some)
    assert not nothing.items


def test_a_history_equals_the_known_user_for_ease(all_made: dict[str, Made]) -> None:
    for name in ("EASE", "EASE_BY_USERS", "BM25"):
        user, taken = all_made[name].known(2)
        assert_same(
            all_made[name].predictor.predict([pb.Instance(history=taken)]),
            all_made[name].predictor.predict([pb.Instance(user=user)]),
        )


@pytest.mark.parametrize(("name", "overlap"), [("ALS", 9), ("BPR", 5)])
def test_a_folded_in_history_is_close_to_the_trained_user(name: str, overlap: int, all_made: dict[str, Made]) -> None:
    one = all_made[name]
    users = [one.known(index) for index in range(40)]
    known = one.predictor.predict([pb.Instance(user=user) for user, _ in users])
    folded = one.predictor.predict([pb.Instance(history=taken) for _, taken in users])
    shared = [len(set(ids(a)) & set(ids(b))) for a, b in zip(known, folded, strict=True)]
    assert np.mean(shared) >= overlap


def test_titles_are_filled_in(all_made: dict[str, Made]) -> None:
    [prediction] = all_made["ALS"].predictor.predict([pb.Instance(user="u1")])
    assert [scored.title for scored in prediction.items] == [f"Title {item[1:]}" for item in ids(prediction)]


def test_similar_items(all_made: dict[str, Made]) -> None:
    for name in ("EASE", "EASE_BY_USERS", "ALS", "BPR", "BM25"):
        one = all_made[name]
        item = one.model.interactions.items[0]
        [prediction] = one.predictor.predict([pb.SimilarItemsInstance(item=item, k=5)])
        assert len(ids(prediction)) == 5
        assert item not in ids(prediction)
        if name in ("ALS", "BPR"):
            assert all(-1 <= scored.score <= 1.00001 for scored in prediction.items)


def test_default_k_and_unknown_items(all_made: dict[str, Made]) -> None:
    one = all_made["EASE"]
    [prediction] = one.predictor.predict([pb.Instance(user="u1", history=["unheard of"])])
    assert len(prediction.items) == 10
    assert list(prediction.unknown_items) == ["unheard of"]


@pytest.mark.parametrize(
    ("name", "instance", "field"),
    [
        ("EASE", pb.Instance(), "user"),
        ("EASE", pb.Instance(user="nobody"), "user"),
        ("EASE", pb.Instance(history=["unheard of"]), "history"),
        ("EASE", pb.Instance(user="u1", k=-1), "k"),
        ("EASE", pb.Instance(user="u1", k=1001), "k"),
        ("EASE", pb.SimilarItemsInstance(item="unheard of"), "item"),
        ("EASE", pb.SimilarItemsInstance(item="i1", k=-1), "k"),
        ("POPULARITY", pb.SimilarItemsInstance(item="i1"), "item"),
    ],
)
def test_bad_requests_name_the_field(name: str, instance: Message, field: str, all_made: dict[str, Made]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        all_made[name].predictor.predict([pb.Instance(user="u1"), instance])
    assert set(raised.value.violations) == {f"instances[1].{field}"}


def test_strangers_of_an_evaluation_get_nothing(one: Made) -> None:
    strange = table([("nobody", "i1", 1.0, 0.0), (one.known()[0], "i2", 1.0, 0.0)])
    predictions = one.predictor.predict(TASK.instances(strange))
    assert [len(prediction.items) for prediction in predictions] == [0, 10]
    assert TASK.score(strange, predictions).num_examples == 2


def test_serving_loads_no_training_library(all_made: dict[str, Made]) -> None:
    script = (
        "import sys; from pathlib import Path; from luthier_recommendation import luthier_tasks\n"
        "assert 'numpy' not in sys.modules\n"
        f"luthier_tasks()[0].open(Path({str(all_made['EASE'].bundle)!r}))\n"
        "loaded = {'torch', 'scipy', 'implicit', 'onnx', 'pyarrow', 'sklearn'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# Real data


@pytest.mark.realdata
def test_movielens_with_the_defaults(realdata: Path, tmp_path: Path) -> None:
    folder = realdata / "data" / "recsys-ml-latest-small"
    columns = {"user": "userId", "item": "movieId", "weight": "rating", "time": "timestamp"}
    files = [
        DataFile(path=folder / name, name=name, format="csv", role=role, columns=columns)
        for name, role in (("ratings.csv", ""), ("movies.csv", "titles"))
    ]
    examples, names = map(TASK.read, files)
    parts = TASK.split(examples, Split(method="per-user", fractions=[0.25], seed=42))
    one = made(tmp_path, {"train": parts["train"], "titles": names})
    predictions = one.predictor.predict(TASK.instances(parts["test"]))
    assert TASK.score(parts["test"], predictions).metrics["ndcg_at_10"] >= 0.37
    [similar] = one.predictor.predict([pb.SimilarItemsInstance(item="1", k=3)])
    assert "Toy Story 2 (1999)" in [scored.title for scored in similar.items]
    assert data.titles_of({"titles": names})["1"] == "Toy Story (1995)"
