import random
from collections.abc import Mapping

import pyarrow as pa
import pytest

from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
from luthier.testing import TaskConformance
from luthier_recommendation import TITLES, Recommendation

ITEMS = [f"book-{i}" for i in range(30)]
TASTES = 3


def purchases() -> list[tuple[str, str]]:
    """Users who buy eight books of the ten of their taste, and one of another."""
    draw = random.Random(1)
    pairs = []
    for user in range(45):
        own = [item for i, item in enumerate(ITEMS) if i % TASTES == user % TASTES]
        other = [item for item in ITEMS if item not in own]
        pairs += [(f"reader-{user}", item) for item in draw.sample(own, 8) + draw.sample(other, 1)]
    return pairs


def interactions(pairs: list[tuple[str, str]]) -> pa.Table:
    users, items = zip(*pairs, strict=True)
    times = [1_700_000_000.0 + i for i in range(len(pairs))]
    return pa.table({"user": users, "item": items, "weight": [1.0] * len(pairs), "time": times})


# implicit warns of the form of a matrix that it made itself (nearest_neighbours.py, BM25Recommender.fit).
pytestmark = pytest.mark.filterwarnings("ignore:Method expects CSR input")


class RecommendationConformance(TaskConformance):
    """Common to the algorithms."""

    task = Recommendation()
    loss = None
    invalid_instances = (
        (pb.Instance(), "user"),
        (pb.Instance(user="a stranger"), "user"),
        (pb.Instance(history=["a book nobody knows"]), "history"),
        (pb.Instance(user="reader-1", k=-1), "k"),
    )
    edge_cases = (
        pb.Instance(user="reader-1", k=3, include_seen=True),
        pb.Instance(user="reader-1", k=1000),
        pb.Instance(user="reader-1", history=["book-0", "a book nobody knows"]),
        pb.Instance(user="a stranger", history=["book-1", "book-4"]),
        pb.Instance(user="a stranger", allow_unknown=True),
        pb.Instance(user="reader-2", allow=ITEMS[:5], deny=ITEMS[2:3]),
        pb.Instance(user="reader-2", allow=["a book nobody knows"]),
    )
    trivial_score = 0.3
    """Popularity, which serves every taste alike, reaches an nDCG at 10 of 0.17 here."""

    @classmethod
    def parts(cls) -> Mapping[str, pa.Table]:
        pairs = purchases()
        return {
            "train": interactions([pair for i, pair in enumerate(pairs) if i % 9 not in (0, 1, 2)]),
            "validation": interactions([pair for i, pair in enumerate(pairs) if i % 9 == 0]),
            "test": interactions([pair for i, pair in enumerate(pairs) if i % 9 in (1, 2)]),
            TITLES: pa.table({"item": ITEMS, "title": [item.title() for item in ITEMS]}),
        }


class TestEase(RecommendationConformance):
    config = pb.Config(algorithm=pb.ALGORITHM_EASE, regularization=10)


class TestAls(RecommendationConformance):
    config = pb.Config(algorithm=pb.ALGORITHM_ALS, factors=8, regularization=1)


class TestAlsWithAnIndex(RecommendationConformance):
    config = pb.Config(algorithm=pb.ALGORITHM_ALS, factors=8, regularization=1, index=pb.INDEX_HNSW)


class TestBm25(RecommendationConformance):
    config = pb.Config(algorithm=pb.ALGORITHM_BM25)


class TestBpr(RecommendationConformance):
    config = pb.Config(algorithm=pb.ALGORITHM_BPR, factors=8, regularization=0.01, iterations=500)


class TestAuto(RecommendationConformance):
    config = pb.Config()
