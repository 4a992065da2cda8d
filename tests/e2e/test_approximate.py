"""A recommender with an approximate index through one real server: tuned, its recall measured, published, served."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc
from support import create_dataset, fine_tune, interactions, serving


def test_recall_is_measured_when_a_version_is_published(tmp_path: Path) -> None:
    files = {"train": interactions(tmp_path / "train.csv"), "test": interactions(tmp_path / "test.csv", seed=1)}
    config = pb.Config(algorithm=pb.ALGORITHM_ALS, factors=8, regularization=1, index=pb.INDEX_HNSW)
    with serving(tmp_path / "home") as server:
        create_dataset(server, "shop", "recommendation", files)
        version = fine_tune(server, "shop", "recommendation", "shop", config)
        # So few items are found all.
        assert version.training["index_recall_at_10"] == pytest.approx(1, abs=0.01)
        assert "index.faiss" in {file.path for file in version.files}
        request = pb.RecommendRequest(model="shop", instances=[pb.Instance(user="u1", k=5)])
        answer = server.stub(recommendation_pb2_grpc.RecommendationServiceStub).Recommend(request)
        assert len(answer.predictions[0].items) == 5

        config.index = pb.INDEX_EXACT
        assert "index_recall_at_10" not in fine_tune(server, "shop", "recommendation", "shop", config).training
