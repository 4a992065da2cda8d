"""What recommenders serve, against a search of all items by hand: exact, with an index, from an older bundle."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from scipy.sparse import csr_matrix

from luthier.errors import FailedPrecondition, InvalidArgument, ParityFailed
from luthier.inference.predictor import Predictor
from luthier.task import MODEL_FILE
from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
from luthier_recommendation import Recommendation, graphs, index, search, training
from luthier_recommendation.algorithms import Als, Settings
from luthier_recommendation.codec import RecommendationCodec
from luthier_recommendation.interactions import Interactions
from luthier_recommendation.texts import Ids, Texts

TASK = Recommendation()
BUNDLES = Path(__file__).parent.parent / "bundles"
USERS, ITEMS, WIDTH, SEEN = 40, 700, 8, 60


class Catalogue:
    """A bundle of given factors, exported as a training would, and its answers found by hand."""

    def __init__(self, directory: Path, *, min_recall: float | None = None) -> None:
        random = np.random.default_rng(3)
        self.users = random.integers(-3, 4, (USERS, WIDTH)).astype(np.float32)
        # Small whole numbers, so that sums are exact in any order, and many items have the same score.
        self.items = random.integers(-3, 4, (ITEMS, WIDTH)).astype(np.float32)
        self.items[400:430] = self.items[10:40]
        self.norms = np.linalg.norm(self.items, axis=1)
        self.seen = np.array([np.sort(random.choice(ITEMS, SEEN, replace=False)) for _ in range(USERS)])
        matrix = csr_matrix(
            (np.ones(self.seen.size, np.float32), self.seen.ravel(), np.arange(0, self.seen.size + 1, SEEN)),
            shape=(USERS, ITEMS),
        )
        fitted = SimpleNamespace(
            user_factors=self.users, item_factors=self.items, item_norms=self.norms, regularization=1.0
        )
        model = training.Recommender(
            model=Als(fitted, matrix),
            settings=Settings(factors=WIDTH, regularization=1.0, iterations=1),
            interactions=Interactions(
                [f"u{i}" for i in range(USERS)], [f"i{i}" for i in range(ITEMS)], matrix, matrix, True
            ),
            titles={"i3": "Drei", "i5": "Fünf"},
            min_recall=min_recall,
        )
        training.export(model, directory)
        self.directory = directory
        self.predictor = Predictor(TASK, directory)

    def ranked(self, instance: pb.Instance | pb.SimilarItemsInstance) -> list[tuple[str, float]]:
        """The answer for a known user, or an item."""
        if isinstance(instance, pb.SimilarItemsInstance):
            item = int(instance.item[1:])
            # The order of operations is that of the graph, so that equal scores stay equal.
            scores = ((self.items[item] / self.norms[item]) @ self.items.T) * (1 / self.norms)
            excluded = [item]
        else:
            user = int(instance.user[1:])
            scores = self.items @ self.users[user]
            excluded = [] if instance.include_seen else self.seen[user].tolist()
        excluded += [int(item[1:]) for item in instance.deny]
        allowed = {int(item[1:]) for item in instance.allow} or set(range(ITEMS))
        order = [i for i in np.argsort(-scores, kind="stable") if i in allowed - {*excluded}]
        return [(f"i{i}", float(scores[i])) for i in order[: instance.k or 10]]

    def assert_exact(self, instances: Sequence[Message]) -> None:
        for instance, prediction in zip(instances, self.predictor.predict(instances), strict=True):
            expected = self.ranked(instance)
            if isinstance(instance, pb.SimilarItemsInstance):
                scores = [scored.score for scored in prediction.items]
                np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-5, atol=1e-6)
            else:
                assert [(scored.item, scored.score) for scored in prediction.items] == expected


MIXED: list[Message] = [
    pb.Instance(user="u0"),
    pb.Instance(user="u1", k=200),
    pb.Instance(user="u2", include_seen=True, k=3),
    pb.Instance(user="u3", deny=[f"i{i}" for i in range(0, ITEMS, 2)]),
    pb.Instance(user="u4", allow=[f"i{i}" for i in (699, 5, 300, 8, 4, 128, 127, 64, 63, 5)], deny=["i8"]),
    pb.Instance(user="u5", k=1000),
    pb.Instance(user="u6", allow=["i1"]),
    pb.SimilarItemsInstance(item="i12", k=5),
    pb.SimilarItemsInstance(item="i20", allow=["i410", "i3", "i4"]),
    *(pb.Instance(user=f"u{i}", k=1 + i % 12) for i in range(7, USERS)),
]


@pytest.fixture(params=[64, 100, 700, 4096])
def exact(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """With items in many blocks, few and one."""
    monkeypatch.setattr(graphs, "BLOCK", request.param)
    return Catalogue(tmp_path)


@pytest.fixture
def indexed(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path, min_recall=0.99)


# Exact


def test_rankings_are_those_of_a_search_by_hand(exact: Catalogue) -> None:
    exact.assert_exact(MIXED)


def test_a_ranking_does_not_depend_on_its_company(exact: Catalogue) -> None:
    together = exact.predictor.predict(MIXED)
    assert len(MIXED) > RecommendationCodec.max_rows
    assert [exact.predictor.predict([instance])[0].items for instance in MIXED] == [each.items for each in together]


def test_of_equal_items_the_lower_index_comes_first(exact: Catalogue) -> None:
    [prediction] = exact.predictor.predict([pb.Instance(user="u0", include_seen=True, k=ITEMS)])
    found = [(-scored.score, int(scored.item[1:])) for scored in prediction.items]
    assert len(found) == ITEMS
    assert found == sorted(found)
    assert len({score for score, _ in found}) < ITEMS / 4


def test_nothing_the_size_of_all_items_goes_in(exact: Catalogue) -> None:
    codec = TASK.open(exact.directory)
    inputs = codec.encode([pb.Instance(user="u1", allow=["i1", "i2"]), pb.SimilarItemsInstance(item="i1")])
    assert max(array.size for array in inputs.values()) <= 2 * SEEN


# Ids and titles


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "ä", "日本", "a b"], [f"item-{i}" for i in range(3000)]])
def test_texts_come_back(texts: list[str]) -> None:
    assert list(Texts(Texts.arrays_of(texts))) == texts
    ids = Ids(Ids.arrays_of(texts))
    assert [ids.find(text) for text in texts] == list(range(len(texts)))
    assert "unheard of" not in ids
    assert ids[:2] == texts[:2]


def test_ids_of_one_hash_are_told_apart() -> None:
    # A well-known pair with one CRC-32.
    ids = Ids(Ids.arrays_of(["plumless", "buckeroo"]))
    assert len({*ids._hashes}) == 1
    assert [ids.find(id) for id in ("plumless", "buckeroo", "plum")] == [0, 1, None]


def test_titles_may_be_missing_for_some(exact: Catalogue) -> None:
    [prediction] = exact.predictor.predict([pb.Instance(user="u0", include_seen=True, k=ITEMS)])
    titles = {scored.item: scored.title for scored in prediction.items}
    assert titles["i3"] == "Drei"
    assert titles["i4"] == ""
    assert titles["i5"] == "Fünf"


# Other formats


def test_a_bundle_of_the_first_format_answers_as_it_did() -> None:
    predictor = Predictor(TASK, BUNDLES / "recommendation-1")
    cases = json.loads((BUNDLES / "recommendation-1.json").read_text(encoding="utf-8"))
    kinds = [pb.SimilarItemsInstance if "item" in case["instance"] else pb.Instance for case in cases]
    instances = [ParseDict(case["instance"], kind()) for case, kind in zip(cases, kinds, strict=True)]
    for case, prediction in zip(cases, predictor.predict(instances), strict=True):
        found, expected = MessageToDict(prediction)["items"], case["prediction"]["items"]
        assert [scored["item"] for scored in found] == [scored["item"] for scored in expected]
        assert [scored.get("title") for scored in found] == [scored.get("title") for scored in expected]
        np.testing.assert_allclose([s["score"] for s in found], [s["score"] for s in expected], rtol=1e-5)


def test_a_bundle_of_a_later_format_is_refused(tmp_path: Path) -> None:
    Catalogue(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    (tmp_path / "model.json").write_text(json.dumps(description | {"format": 3, "sparkle": True}), encoding="utf-8")
    with pytest.raises(FailedPrecondition, match="format 3, this server reads up to 2"):
        TASK.open(tmp_path)


# The approximate index


def test_the_index_finds_the_best_and_scores_them_exactly(indexed: Catalogue) -> None:
    users = [pb.Instance(user=f"u{i}", deny=["i1", "i2"]) for i in range(USERS)]
    shares = []
    for instance, prediction in zip(users, indexed.predictor.predict(users), strict=True):
        scores = dict(indexed.ranked(pb.Instance(user=instance.user, deny=instance.deny, k=ITEMS)))
        found = [(scored.item, scored.score) for scored in prediction.items]
        assert all(scores[item] == score for item, score in found), "an item that is excluded, or another score"
        assert found == sorted(found, key=lambda pair: (-pair[1], int(pair[0][1:])))
        worst = sorted(scores.values())[-10]
        shares.append(np.mean([score >= worst for _, score in found]))
    assert np.mean(shares) > 0.97


def test_the_index_is_asked_where_it_can_answer_alone(indexed: Catalogue) -> None:
    inputs = TASK.open(indexed.directory).encode(MIXED)
    scanned = [instance for instance, scans in zip(MIXED, inputs["scans"][:, 0], strict=True) if scans]
    # An allow list, similar items, and more than there are.
    assert all(isinstance(each, pb.SimilarItemsInstance) or each.allow or each.k == 1000 for each in scanned)
    assert len(scanned) == 5
    indexed.assert_exact(scanned)


def test_with_an_index_too_a_ranking_does_not_depend_on_its_company(indexed: Catalogue) -> None:
    together = indexed.predictor.predict(MIXED)
    assert [indexed.predictor.predict([instance])[0].items for instance in MIXED] == [each.items for each in together]


def test_what_an_index_finds_too_little_of_is_scanned(indexed: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    search_index = index.Index.search
    monkeypatch.setattr(index.Index, "search", lambda *given: search_index(*given)[1:])
    indexed.assert_exact(MIXED)


def test_the_index_is_searched_as_widely_as_recall_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = dict(zip(index.EXPANSIONS, (0.5, 0.96, 0.974, 0.975, 1.0, 1.0, 1.0), strict=True))
    monkeypatch.setattr(index, "recall", lambda opened, *_: measured[opened._expansion])
    Catalogue(tmp_path, min_recall=0.95)
    assert json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["expansion"] == index.EXPANSIONS[3]


def test_recall_is_the_share_of_the_exact_best() -> None:
    def prediction(*items: str) -> pb.Prediction:
        return pb.Prediction(items=[pb.ScoredItem(item=item) for item in items])

    exact = [prediction("a", "b", "c", "d"), prediction("a", "b"), prediction()]
    served = [prediction("d", "x", "a", "b"), prediction("y", "a"), prediction("a")]
    config = pb.Config(index=pb.INDEX_HNSW, min_recall=0.625)
    assert TASK.compare(config, exact, served) == {"index_recall_at_10": 0.625}
    assert TASK.compare(pb.Config(index=pb.INDEX_EXACT, min_recall=0.95), exact, served) == {}
    config.min_recall = 0.63
    with pytest.raises(ParityFailed, match=r"finds 0\.6250 of the exact best 10 items for 2 users"):
        TASK.compare(config, exact, served)


def test_an_index_needs_factors() -> None:
    with pytest.raises(InvalidArgument, match=r"config\.index"):
        search._candidates(pb.Config(algorithm=pb.ALGORITHM_EASE, index=pb.INDEX_HNSW), (10, 10))
    automatic = search._candidates(pb.Config(algorithm=pb.ALGORITHM_AUTO, index=pb.INDEX_HNSW), (10, 10))
    assert [algorithm.name for algorithm in automatic] == ["als", "bpr"]


def test_without_faiss_the_error_says_what_to_install(indexed: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(FailedPrecondition, match=r"luthier\[ann\]"):
        Predictor(TASK, indexed.directory)


def test_an_exact_bundle_needs_no_faiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert Catalogue(tmp_path).predictor.predict([pb.Instance(user="u0")])[0].items
    inputs = {each.name for each in onnx.load(tmp_path / MODEL_FILE).graph.input}
    assert inputs == {"query", "is_similar", "k", "adjusted", "adjustments", "allowed", "is_restricted"}
