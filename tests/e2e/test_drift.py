"""A live model is watched: windows against its profile, scores by feedback, and a fine-tune of what came back."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2

import published
from luthier import drift
from luthier.database import Database
from luthier.store import Store
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    monitoring_pb2,
    monitoring_pb2_grpc,
    operation_pb2,
    prediction_pb2,
    prediction_pb2_grpc,
)
from scrapes import scrape, value, wait_for_lines
from support import Server, children, create_dataset, fine_tune, interactions, serving, status_of, until_training

Drift = monitoring_pb2.Drift
EASE = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)
SHOP = {"model": "shop", "version": "1"}
FLAGS = ("--metrics-listen", "127.0.0.1:0", "--drift-interval-s", "1", "--drift-window-s", "6")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that looks every second at what was predicted in the last six, with a model that keeps inputs."""
    home = tmp_path_factory.mktemp("shop")
    with serving(home, *FLAGS) as server:
        prepare(server, home)
        yield server


def prepare(server: Server, home: Path) -> None:
    split = dataset_pb2.Split(method="per-user", fractions=[0.25], seed=1)
    create_dataset(server, "shop", "recommendation", {"_": interactions(home / "shop.csv", users=300)}, split=split)
    fine_tune(server, "shop", "recommendation", "shop", EASE)
    server.stub(model_pb2_grpc.ModelServiceStub).SetAlias(
        model_pb2.SetAliasRequest(
            name="models/shop/aliases/production",
            model_version="models/shop/versions/1",
            recording=model_pb2.Recording(mode=model_pb2.Recording.MODE_INPUTS),
        )
    )
    time.sleep(1.0)  # Each process hears of it within a quarter of a second.


def users(count: int, seed: int = 0) -> list[recommendation.Instance]:
    return [recommendation.Instance(user=f"u{n}", k=10) for n in random.Random(seed).sample(range(300), count)]


def ask(server: Server, instances: Sequence[recommendation.Instance]) -> recommendation.RecommendResponse:
    request = recommendation.RecommendRequest(model="shop", instances=instances)
    return server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(request)


def tell(server: Server, answer: recommendation.RecommendResponse, index: int, *items: str) -> None:
    request = prediction_pb2.RecordFeedbackRequest(prediction_id=answer.prediction_id, index=index)
    for item in items:
        request.labels.add().Pack(recommendation.Example(item=item))
    server.stub(prediction_pb2_grpc.PredictionServiceStub).RecordFeedback(request)


def look(server: Server, since: float, model: str = "models/shop") -> monitoring_pb2.Drift:
    end = time.time() + 1
    request = monitoring_pb2.GetDriftRequest(model=model)
    request.window.FromMilliseconds(int((end - since) * 1000))
    request.end_time.FromMilliseconds(int(end * 1000))
    return server.stub(monitoring_pb2_grpc.MonitoringServiceStub).GetDrift(request)


def moved(found: monitoring_pb2.Drift) -> set[str]:
    return {one.name for one in found.features if one.alarm}


def shuffled() -> list[recommendation.Instance]:
    """Histories of as many items as before, and each item as often, but users and items are no longer together."""
    draw = random.Random(0)
    taken = [f"i{item}" for user in range(300) for item in draw.sample(range(50), 9)]
    draw.shuffle(taken)
    return [recommendation.Instance(history=sorted({*taken[n * 9 : n * 9 + 9]}), k=10) for n in range(150)]


def test_users_as_at_publication_are_steady_and_shuffled_ones_are_not(shop: Server) -> None:
    since = time.time()
    ask(shop, users(150))
    steady = look(shop, since)
    assert steady.verdict == Drift.VERDICT_STEADY
    assert steady.num_predictions == 150
    assert steady.family_error == drift.FAMILY_ERROR
    assert {one.name for one in steady.features} == {"answered", "best_score", "scores_fall", "recommended"}
    since = time.time()
    ask(shop, shuffled())
    alarm = look(shop, since)
    assert alarm.verdict == Drift.VERDICT_ALARM
    assert moved(alarm) & {"best_score", "scores_fall"}
    assert alarm.features[0].alarm


def test_few_predictions_tell_nothing(shop: Server) -> None:
    since = time.time()
    ask(shop, users(20))
    found = look(shop, since)
    assert (found.verdict, found.num_predictions) == (Drift.VERDICT_TOO_FEW, 20)


def test_the_server_looks_by_itself_and_says_when_drift_begins_and_ends(shop: Server) -> None:
    deadline = time.monotonic() + 40
    ask(shop, shuffled())
    begun = wait_for_lines(shop, "drift begins", 1)[-1]
    assert begun["version"] == "models/shop/versions/1"
    assert set(begun["features"]) <= {"best_score", "scores_fall", "recommended"}
    while True:
        seen = scrape(shop)
        if value(seen, "luthier_drift_alarm", **SHOP, feature=begun["features"][0]):
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert value(seen, "luthier_drift_statistic", **SHOP, feature=begun["features"][0]) >= drift.LEAST_DISTANCE
    assert value(seen, "luthier_drift_predictions", **SHOP) >= 150
    while not [line for line in shop.log if '"drift ends"' in line]:
        ask(shop, users(150, seed=round(time.time() * 10)))
        assert time.monotonic() < deadline, "the alarm did not end"
        time.sleep(0.5)
    listed = shop.stub(monitoring_pb2_grpc.MonitoringServiceStub).ListDriftWindows(
        monitoring_pb2.ListDriftWindowsRequest(model="models/shop", page_size=3)
    )
    ends = [one.end_time.seconds for one in listed.windows]
    assert ends == sorted(set(ends), reverse=True)
    assert len(ends) == 3
    further = shop.stub(monitoring_pb2_grpc.MonitoringServiceStub).ListDriftWindows(
        monitoring_pb2.ListDriftWindowsRequest(model="models/shop", page_token=listed.next_page_token)
    )
    assert further.windows[0].end_time.seconds < ends[-1]


def test_users_who_are_mistaken_for_others_are_seen_by_their_feedback_alone(shop: Server) -> None:
    """A request that names a user says nothing else: mixed up, the same users are asked for as before. What they go for
    then is not what was recommended."""
    rights, wrongs = users(150, seed=3), users(150, seed=3)
    random.Random(0).shuffle(wrongs)
    for asked, worse in ((rights, False), (wrongs, True)):
        since = time.time()
        answer = ask(shop, asked)
        for index, one in enumerate(rights):
            number = int(one.user[1:])
            likes = {f"i{item}" for item in range(50) if item % 3 == number % 3}
            told = [scored.item for scored in ask_again(shop, one) if scored.item in likes][:2] or ["i0"]
            tell(shop, answer, index, *told)
        found = look(shop, since)
        assert moved(found) == set()
        assert found.live.num_labels == 150
        assert found.live.metric == "ndcg_at_10"
        assert found.live.low <= found.live.value <= found.live.high
        assert found.live.worse == worse, (found.live.value, found.live.published)


_ANSWERS: dict[str, Sequence[recommendation.ScoredItem]] = {}


def ask_again(server: Server, one: recommendation.Instance) -> Sequence[recommendation.ScoredItem]:
    """What the version recommends to a user, asked by its number, which is not recorded."""
    if one.user not in _ANSWERS:
        request = recommendation.RecommendRequest(model="shop/1", instances=[one])
        answer = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(request)
        _ANSWERS[one.user] = answer.predictions[0].items
    return _ANSWERS[one.user]


def test_a_version_without_a_profile_says_what_to_do(shop: Server) -> None:
    database = Database(f"sqlite:///{shop.home / 'luthier.db'}")
    published.publish(database, Store(shop.home, ""), "old", 1.0)
    database.close()
    with pytest.raises(grpc.RpcError) as caught:
        look(shop, time.time() - 60, "models/old")
    assert status_of(caught.value).code in (code_pb2.FAILED_PRECONDITION, code_pb2.NOT_FOUND)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (monitoring_pb2.GetDriftRequest(model="shop"), "model"),
        (monitoring_pb2.GetDriftRequest(model="models/shop", window={"seconds": -1}), "window"),
        (monitoring_pb2.GetDriftRequest(model="models/shop", window={"seconds": 91 * 86400}), "window"),
        (monitoring_pb2.GetDriftRequest(model="models/shop", end_time={"seconds": 2**60}), "end_time"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(
    shop: Server, request_: monitoring_pb2.GetDriftRequest, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        shop.stub(monitoring_pb2_grpc.MonitoringServiceStub).GetDrift(request_)
    assert status_of(caught.value).code == code_pb2.INVALID_ARGUMENT
    assert field in status_of(caught.value).SerializeToString().decode("latin-1")


def feed(server: Server) -> None:
    """Feedback of a hundred users, who all went for one item that is new."""
    answer = ask(server, users(100, seed=9))
    for index in range(100):
        tell(server, answer, index, "i-new", f"i{index % 50}")


def retune(server: Server, **fields: object) -> model_pb2.FineTuneFromFeedbackRequest:
    return model_pb2.FineTuneFromFeedbackRequest(model="models/shop", **fields)  # type: ignore[arg-type]


def versions_of(server: Server, dataset: str) -> Sequence[dataset_pb2.DatasetVersion]:
    request = dataset_pb2.ListDatasetVersionsRequest(parent=f"datasets/{dataset}")
    return server.stub(dataset_pb2_grpc.DatasetServiceStub).ListDatasetVersions(request).dataset_versions


def test_one_call_makes_a_data_set_of_feedback_and_tunes_on_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        prepare(server, tmp_path)
        models = server.stub(model_pb2_grpc.ModelServiceStub)
        none = server.wait(models.FineTuneFromFeedback(retune(server)))
        assert none.error.code == code_pb2.FAILED_PRECONDITION
        assert "none has any" in none.error.message
        feed(server)
        request = retune(server, request_id="again")
        operation = models.FineTuneFromFeedback(request)
        assert models.FineTuneFromFeedback(request).name == operation.name
        version = server.result(operation, model_pb2.ModelVersion)
        assert version.name == "models/shop/versions/2"
        assert version.base == "models/shop/versions/1"
        assert version.dataset_version == "datasets/shop-feedback/versions/1"
        [made] = versions_of(server, "shop-feedback")
        assert made.feedback.model_version == "models/shop/versions/1"
        assert made.feedback.num_predictions == 100
        assert made.feedback.operation == operation.name
        assert made.feedback.joined == "datasets/shop/versions/1"
        assert len(made.feedback.predictions_sha256) == 64
        assert made.split.method == "per-user"
        assert sum(made.num_examples.values()) >= 300 * 12 + 100
        answered = ask_version(server, "shop/2", "u1")
        assert "i-new" in [scored.item for scored in answered]
        alone = server.result(
            models.FineTuneFromFeedback(retune(server, feedback_only=True, dataset_id="alone")), model_pb2.ModelVersion
        )
        assert sum(versions_of(server, "alone")[0].num_examples.values()) == 200
        assert alone.dataset_version == "datasets/alone/versions/1"
        with pytest.raises(grpc.RpcError) as caught:
            models.FineTuneFromFeedback(retune(server, dataset_id="No id", seed=-1, since={"seconds": 2_000_000_000_0}))
        text = status_of(caught.value).SerializeToString().decode("latin-1")
        assert all(field in text for field in ("dataset_id", "seed"))


def ask_version(server: Server, model: str, user: str) -> Sequence[recommendation.ScoredItem]:
    request = recommendation.RecommendRequest(model=model, instances=[recommendation.Instance(user=user, k=50)])
    answer = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(request)
    return answer.predictions[0].items


def test_an_attempt_that_dies_between_both_steps_makes_no_second_data_set(tmp_path: Path) -> None:
    """The worker is killed once the data set's version is there; feedback that came since does not change it."""
    with serving(tmp_path) as server:
        prepare(server, tmp_path)
        feed(server)
        slow = recommendation.Config(
            algorithm=recommendation.ALGORITHM_BPR, factors=128, regularization=0.01, iterations=3000
        )
        request = retune(server)
        request.config.Pack(slow)
        operation = server.stub(model_pb2_grpc.ModelServiceStub).FineTuneFromFeedback(request)
        until_training(server, operation)
        answer = ask(server, users(3))
        tell(server, answer, 0, "i1")
        for pid in children(server.process.pid):
            os.kill(pid, 9)
        done = server.wait(operation)
        metadata = operation_pb2.OperationMetadata()
        assert done.metadata.Unpack(metadata)
        assert metadata.state == operation_pb2.OperationMetadata.STATE_SUCCEEDED, done.error
        assert metadata.attempt == 2
        [made] = versions_of(server, "shop-feedback")
        assert made.feedback.num_predictions == 100


def test_of_servers_that_share_a_database_one_looks_at_a_window(tmp_path: Path) -> None:
    with serving(tmp_path, *FLAGS) as server:
        prepare(server, tmp_path)
        with serving(tmp_path, *FLAGS) as other:
            ask(server, shuffled())
            wait_for_begin = time.monotonic() + 20
            while not any('"drift begins"' in line for line in [*server.log, *other.log]):
                assert time.monotonic() < wait_for_begin
                time.sleep(0.1)
            time.sleep(2)
            begun = [line for one in (server, other) for line in one.log if '"drift begins"' in line]
            assert len(begun) == 1, begun
            assert value(scrape(server), "luthier_drift_predictions", **SHOP) == 150
            assert value(scrape(other), "luthier_drift_predictions", **SHOP) == 150


def test_the_profile_is_in_the_bundle_and_was_not_changed(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        prepare(server, tmp_path)
        ask(server, users(60))
        [file] = (tmp_path / "bundles").glob(f"*/{drift.PROFILE_FILE}")
        assert json.loads(file.read_bytes())["num_examples"] == 300
        file.chmod(0o644)
        file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
        with pytest.raises(grpc.RpcError) as caught:
            look(server, time.time() - 60)
        assert status_of(caught.value).code == code_pb2.DATA_LOSS
