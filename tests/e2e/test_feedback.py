"""Recommenders of two kinds in a rollout, judged by what readers went for."""

from __future__ import annotations

import csv
import random
import time
from collections import defaultdict
from pathlib import Path

import grpc
from google.protobuf.any_pb2 import Any

from luthier.tasks.recommendation.v1 import recommendation_pb2 as pb
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc
from luthier.v1 import (
    model_pb2,
    model_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)
from support import Server, create_dataset, fine_tune, interactions

ITEMS = 50


def test_the_better_recommender_is_promoted_and_the_worse_rolled_back(server: Server, tmp_path: Path) -> None:
    """What is popular against what others of the same taste like. A reader goes for two things of their taste."""
    path = interactions(tmp_path / "live.csv", items=ITEMS)
    create_dataset(server, "live", "recommendation", {"_": path})
    popular, personal = (
        fine_tune(server, "live", "recommendation", "live", pb.Config(algorithm=algorithm)).name
        for algorithm in (pb.ALGORITHM_POPULARITY, pb.ALGORITHM_EASE)
    )
    had: dict[str, set[str]] = defaultdict(set)
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        had[row["user"]].add(row["item"])
    promoted = decided(server, personal, had, random.Random(0))
    assert promoted.state == rollout_pb2.Rollout.STATE_PROMOTED, promoted
    values = {side.model_version: side.value for side in promoted.sides}
    assert values[personal] > values[popular] + 0.1
    assert all(side.metric == "ndcg_at_10" and side.lower < side.value < side.upper for side in promoted.sides)
    model = server.stub(model_pb2_grpc.ModelServiceStub).GetModel(model_pb2.GetModelRequest(name="models/live"))
    assert [alias.model_version for alias in model.aliases] == [personal]
    assert decided(server, popular, had, random.Random(1)).state == rollout_pb2.Rollout.STATE_ROLLED_BACK


def decided(server: Server, candidate: str, had: dict[str, set[str]], draw: random.Random) -> rollout_pb2.Rollout:
    """A rollout of half the readers, with feedback until it is over or 400 have given it."""
    stub = server.stub(rollout_pb2_grpc.RolloutServiceStub)
    alias = "models/live/aliases/production"
    rollout = stub.StartRollout(rollout_pb2.StartRolloutRequest(alias=alias, candidate=candidate, percent=50))
    recommend = server.stub(recommendation_pb2_grpc.RecommendationServiceStub).Recommend
    tell = server.stub(prediction_pb2_grpc.PredictionServiceStub).RecordFeedback
    told, deadline = 0, time.monotonic() + 60
    while told < 400 and time.monotonic() < deadline:
        user = draw.choice(sorted(had))
        request = pb.RecommendRequest(model="live", instances=[pb.Instance(user=user)])
        answer = recommend(request, metadata=[("luthier-key", str(draw.random()))])
        taste = [f"i{item}" for item in range(ITEMS) if item % 3 == int(user[1:]) % 3 and f"i{item}" not in had[user]]
        feedback = prediction_pb2.RecordFeedbackRequest(
            prediction_id=answer.prediction_id, labels=[packed(item) for item in draw.sample(taste, 2)]
        )
        try:
            tell(feedback)
            told += 1
        except grpc.RpcError as error:
            # Before the server follows the rollout, and once it is over, nothing is kept.
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise
            if told:
                break
    return stub.GetRollout(rollout_pb2.GetRolloutRequest(name=rollout.name))


def packed(item: str) -> Any:
    label = Any()
    label.Pack(pb.Example(item=item))
    return label
