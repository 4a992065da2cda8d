"""A home that is written into a file, lost, and made again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import evaluation_pb2, evaluation_pb2_grpc, model_pb2, model_pb2_grpc
from support import Server, create_dataset, fine_tune, interactions, serving

QUICK = recommendation.Config(algorithm=recommendation.ALGORITHM_POPULARITY)
EASE = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)
BM25 = recommendation.Config(algorithm=recommendation.ALGORITHM_BM25)


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "luthier", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def answers(server: Server) -> list[bytes]:
    """What each version says, and what is known of the models and their evaluations."""
    predict = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend
    instances = [recommendation.Instance(user=f"u{n}") for n in range(20)]
    found = []
    for model in ("m", "m/1", "m/2", "m/3"):
        answer = predict(recommendation.RecommendRequest(model=model, instances=instances))
        # Each call's is its own.
        answer.ClearField("prediction_id")
        found.append(answer.SerializeToString(deterministic=True))
    models = server.stub(model_pb2_grpc.ModelServiceStub)
    evaluations = server.stub(evaluation_pb2_grpc.EvaluationServiceStub)
    known = [
        models.GetModel(model_pb2.GetModelRequest(name="models/m")),
        models.ListModelVersions(model_pb2.ListModelVersionsRequest(parent="models/m")),
        evaluations.ListEvaluations(evaluation_pb2.ListEvaluationsRequest()),
    ]
    return found + [message.SerializeToString(deterministic=True) for message in known]


def files(home: Path) -> dict[str, bytes]:
    """The artefacts of a home."""
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for folder in ("bundles", "datasets", "reports", "bases")
        for path in sorted((home / folder).rglob("*"))
        if path.is_file()
    }


def test_a_lost_home_is_restored_into_any_database(tmp_path: Path, database_url: str) -> None:
    home, again, file = tmp_path / "home", tmp_path / "again", tmp_path / "home.backup"
    with serving(home) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        for config in (QUICK, EASE, BM25):
            fine_tune(server, "m", "recommendation", "shop", config)
        request = model_pb2.SetAliasRequest(name="models/m/aliases/production", model_version="models/m/versions/2")
        server.stub(model_pb2_grpc.ModelServiceStub).SetAlias(request)
        saved = run("backup", "--home", home, file)
        assert saved.returncode == 0, saved.stderr
        assert "MiB" in saved.stdout
        said, held = answers(server), files(home)
    shutil.rmtree(home)
    restored = run("restore", "--home", again, "--database-url", database_url, file)
    assert restored.returncode == 0, restored.stderr
    assert files(again) == held
    with serving(again, "--database-url", database_url) as server:
        assert answers(server) == said
        assert fine_tune(server, "m", "recommendation", "shop", QUICK).name == "models/m/versions/4"
    occupied = run("restore", "--home", again, "--database-url", database_url, file)
    assert occupied.returncode == 1
    assert "restore into a home that is empty" in occupied.stderr


def test_what_is_damaged_is_neither_saved_nor_restored(tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "home.backup"
    with serving(home) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        version = fine_tune(server, "m", "recommendation", "shop", EASE)
    assert run("backup", "--home", home, file).returncode == 0
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused = run("restore", "--home", tmp_path / "again", file)
    assert refused.returncode == 1
    assert "damaged" in refused.stderr
    assert not list((tmp_path / "again").rglob("*.onnx"))
    file.write_bytes(b"no zip")
    assert "is no backup" in run("restore", "--home", tmp_path / "other", file).stderr
    file.unlink()
    (home / "bundles" / version.digest / "model.onnx").write_bytes(b"")
    refused = run("backup", "--home", home, file)
    assert refused.returncode == 1
    assert "model.onnx of the bundle is missing or was changed" in refused.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("home.backup")] == []
