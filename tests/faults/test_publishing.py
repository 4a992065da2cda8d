"""Workers that die at a step of publishing: nothing partial is ever seen, and the work is done once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.longrunning import operations_pb2

from luthier import bundle
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import model_pb2, model_pb2_grpc, operation_pb2
from support import Server, create_dataset, interactions, serving

PATH = os.pathsep.join([str(Path(__file__).parent / "dying"), *filter(None, [os.environ.get("PYTHONPATH")])])


def submit(server: Server, number: int) -> operations_pb2.Operation:
    request = model_pb2.FineTuneRequest(model_id=f"m{number}", task="recommendation", dataset="datasets/shop")
    # Of different content each.
    config = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10 + number)
    request.config.Pack(config)
    return server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_worker_may_die_at_any_step_of_publishing(tmp_path: Path, database_url: str, stride: int) -> None:
    die_at = tmp_path / "die-at"
    flags = ["--database-url", database_url]
    with serving(tmp_path / "home", *flags, PYTHONPATH=PATH, LUTHIER_DIE_AT=str(die_at)) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        recommend = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend
        models = server.stub(model_pb2_grpc.ModelServiceStub)
        deaths, attempt = 0, 2
        while attempt == 2:
            step = 1 + deaths * stride
            die_at.write_text(str(step), encoding="utf-8")
            done = server.wait(submit(server, step))
            metadata = operation_pb2.OperationMetadata()
            assert done.metadata.Unpack(metadata)
            assert metadata.state == operation_pb2.OperationMetadata.STATE_SUCCEEDED, done.error
            attempt = metadata.attempt
            deaths += attempt - 1
            found = models.ListModelVersions(model_pb2.ListModelVersionsRequest(parent=f"models/m{step}"))
            assert [version.name for version in found.model_versions] == [f"models/m{step}/versions/1"]
            asked = recommendation.RecommendRequest(model=f"m{step}", instances=[recommendation.Instance(user="u1")])
            assert recommend(asked).predictions[0].items
            for folder in (tmp_path / "home" / "bundles").iterdir():
                bundle.verify(folder, folder.name)
        # A bundle of four files at least: each synced, the folder, its renaming, the commit.
        assert deaths * stride >= 8


def test_a_commit_that_the_database_declines_is_tried_again(tmp_path: Path) -> None:
    with serving(tmp_path, PYTHONPATH=PATH) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        done = server.wait(submit(server, 0))
        metadata = operation_pb2.OperationMetadata()
        assert done.metadata.Unpack(metadata)
        assert (metadata.state, metadata.attempt) == (operation_pb2.OperationMetadata.STATE_SUCCEEDED, 2), done.error
        found = server.stub(model_pb2_grpc.ModelServiceStub).ListModelVersions(
            model_pb2.ListModelVersionsRequest(parent="models/m0")
        )
        assert [version.name for version in found.model_versions] == ["models/m0/versions/1"]
    assert "to be taken up again" in "\n".join(server.log)
