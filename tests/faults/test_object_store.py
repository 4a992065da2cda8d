"""Artefacts in an object store: several homes that see one another's, homes that are lost, a store that is away."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2

from luthier.access.audit import Audit
from luthier.database import Database
from luthier.errors import DataLoss, FailedPrecondition, StoreUnavailable
from luthier.housekeeping import DAY_S, Housekeeping
from luthier.journal import Journal
from luthier.operations import Operations
from luthier.registry import Registry
from luthier.store import Store
from luthier.tasks.recommendation.v1 import recommendation_pb2 as recommendation
from luthier.tasks.recommendation.v1 import recommendation_pb2_grpc as recommendation_grpc
from luthier.v1 import (
    batch_prediction_pb2,
    batch_prediction_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
    model_pb2,
    operation_pb2,
)
from s3 import S3, gate
from support import Server, create_dataset, fine_tune, interactions, serving, status_of

EASE = recommendation.Config(algorithm=recommendation.ALGORITHM_EASE, regularization=10)


@pytest.fixture
def url(object_store: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder in a bucket, which this process and those that it starts can reach."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    return object_store.new_bucket()


TRANSFER = """
import pathlib, re, sys
from luthier.objectstore import ObjectStore

store, large = ObjectStore(sys.argv[1]), pathlib.Path(sys.argv[2])
store.names("warm")
# Has the kernel forget the most that was resident so far.
pathlib.Path("/proc/self/clear_refs").write_text("5")
most = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before = most()
store.put(large, "large")
put = most()
assert store.get("large", large.with_name("fetched"))
print(put - before, most() - before)
"""
"""Puts a file and gets it again; prints by how many kB the most that was resident grew until after each."""


@contextmanager
def working(home: Path, *flags: str) -> Iterator[None]:
    """A `luthier worker` with a home of its own."""
    command = [sys.executable, "-m", "luthier", "worker", "--home", str(home), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(20)


def answer(server: Server) -> recommendation.RecommendResponse:
    """What the model `m` says."""
    asked = recommendation.RecommendRequest(model="m", instances=[recommendation.Instance(user="u1")])
    response: recommendation.RecommendResponse = server.stub(recommendation_grpc.RecommendationServiceStub).Recommend(
        asked, timeout=60
    )
    # Each call's is its own.
    response.ClearField("prediction_id")
    return response


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def names(object_store: S3, url: str) -> list[str]:
    """What is in a folder of the store."""
    root = url.removeprefix("s3://")
    return [name.removeprefix(f"{root}/") for name in object_store.files.find(root)]


def test_a_large_artefact_takes_little_memory(tmp_path: Path, url: str) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(192 * 2**20)
    done = subprocess.run([sys.executable, "-c", TRANSFER, url, str(large)], check=True, stdout=subprocess.PIPE)
    assert all(int(kilobytes) < 64 * 1024 for kilobytes in done.stdout.split()), done.stdout
    assert (tmp_path / "fetched").stat().st_size == large.stat().st_size


def test_a_server_and_a_worker_share_nothing_but_database_and_store(
    tmp_path: Path, database_url: str, url: str, object_store: S3
) -> None:
    flags = ["--database-url", database_url, "--artefacts", url]
    served, worked = tmp_path / "served", tmp_path / "worked"
    with serving(served, *flags, "--trainings", "0", "--jobs", "0") as server, working(worked, *flags):
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        version = fine_tune(server, "m", "recommendation", "shop", EASE)
        said = answer(server)
        assert said.model_version == version.name
        assert files(served / "bundles") == files(worked / "bundles")

        evaluations = server.stub(evaluation_pb2_grpc.EvaluationServiceStub)
        operation = evaluations.Evaluate(
            evaluation_pb2.EvaluateRequest(model="models/m", dataset="datasets/shop", split="train")
        )
        evaluation = server.result(operation, evaluation_pb2.Evaluation)
        report = evaluations.DownloadReport(evaluation_pb2.DownloadReportRequest(name=evaluation.name))
        assert b"".join(part.chunk for part in report).startswith(b"<!doctype html>")

        batch = server.stub(batch_prediction_pb2_grpc.BatchPredictionServiceStub)
        operation = batch.BatchPredict(
            batch_prediction_pb2.BatchPredictRequest(model="models/m", dataset="datasets/shop")
        )
        made = server.result(operation, batch_prediction_pb2.BatchPrediction)
        asked = batch_prediction_pb2.DownloadPredictionsRequest(name=made.name)
        assert sum(len(part.chunk) for part in batch.DownloadPredictions(asked)) == made.size_bytes

        id = evaluation.name.partition("/")[2]
        assert {f"bundles/{version.digest}.tar", f"reports/{id}.html"} < set(names(object_store, url))
    shutil.rmtree(served)
    with serving(served, *flags) as server:
        assert answer(server) == said
        assert files(served / "bundles") == files(worked / "bundles")


def test_a_restored_home_fills_an_empty_store(tmp_path: Path, url: str, object_store: S3) -> None:
    def run(program: str, home: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "luthier", program, "--home", str(home), *flags, str(tmp_path / "backup")]
        subprocess.run(command, check=True, timeout=60, stdout=subprocess.DEVNULL)

    home, again = tmp_path / "home", tmp_path / "again"
    flags = ["--artefacts", url]
    with serving(home, *flags) as server:
        create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
        version = fine_tune(server, "m", "recommendation", "shop", EASE)
        said = answer(server)
    # What a backup needs and the home lacks comes from the store.
    shutil.rmtree(home / "bundles")
    run("backup", home, *flags)
    object_store.files.rm(url, recursive=True)
    run("restore", again, *flags)
    assert f"bundles/{version.digest}.tar" in names(object_store, url)
    shutil.rmtree(again / "bundles")
    with serving(again, *flags) as server:
        assert answer(server) == said


def test_what_nothing_names_goes_after_a_day(tmp_path: Path, database: Database, url: str, object_store: S3) -> None:
    store, registry = Store(tmp_path / "home", url), Registry(database)
    with database.write() as connection:
        registry.add_model_version(connection, "m", model_pb2.ModelVersion(task="t", digest="named"), "o")
    for digest in ("named", "old"):
        folder = tmp_path / digest
        folder.mkdir()
        (folder / "file").write_text(digest, encoding="utf-8")
        store.publish(folder, store.bundle(digest))
    store.write(b"x", store.report("old"))
    store.write(b"x", store.upload("old"))
    # Objects of another machine, of which this home has nothing.
    shutil.rmtree(store.bundle("old"))
    housekeeping = Housekeeping(
        registry, Operations(database), store, Audit(database), Journal(database), keep_operations_days=0
    )
    housekeeping.keep(time.time() + 0.9 * DAY_S)
    assert names(object_store, url) == ["bundles/named.tar", "bundles/old.tar", "reports/old.html", "uploads/old"]
    housekeeping.keep(time.time() + 1.1 * DAY_S)
    assert names(object_store, url) == ["bundles/named.tar"]
    assert not store.report("old").exists()
    assert (store.bring(store.bundle("named")) / "file").read_text(encoding="utf-8") == "named"


def test_what_is_deleted_goes_but_for_what_was_just_put(
    tmp_path: Path, url: str, object_store: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, url)
    store.write(b"x", store.report("r"))
    store.remove(store.report("r"))
    assert not store.report("r").exists()
    assert names(object_store, url) == ["reports/r.html"]
    now = time.time()
    monkeypatch.setattr("luthier.store.time.time", lambda: now + 70)
    store.remove(store.report("r"))
    assert names(object_store, url) == []
    Store(tmp_path, "s3://no-such-bucket").remove(store.report("r"))


def test_an_object_that_is_cut_short_is_no_artefact(tmp_path: Path, url: str, object_store: S3) -> None:
    ours, theirs = Store(tmp_path / "ours", url), Store(tmp_path / "theirs", url)
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(100_000))
    ours.publish(folder, ours.bundle("b"))
    name = f"{url}/bundles/b.tar"
    object_store.files.pipe_file(name, object_store.files.cat_file(name)[:50_000])
    with pytest.raises(DataLoss, match=r"bundles/b\.tar is damaged"):
        theirs.bring(theirs.bundle("b"))
    assert list((tmp_path / "theirs" / "bundles").iterdir()) == []


def test_a_store_that_is_away_delays_and_loses_nothing(
    tmp_path: Path, database_url: str, url: str, object_store: S3
) -> None:
    flags = ["--database-url", database_url, "--artefacts", url]
    with gate(object_store.port) as way:
        behind = object_store.environment(way.port)
        with serving(tmp_path / "home", *flags, **behind) as server:
            create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "shop.csv")})
            fine_tune(server, "m", "recommendation", "shop", EASE)
            said = answer(server)
            way.shut()
            assert answer(server) == said
            batch = server.stub(batch_prediction_pb2_grpc.BatchPredictionServiceStub)
            request = batch_prediction_pb2.BatchPredictRequest(model="models/m", dataset="datasets/shop")
            waiting = batch.BatchPredict(request)
            with serving(tmp_path / "late", *flags, "--jobs", "0", **behind) as other:
                with pytest.raises(grpc.RpcError) as caught:
                    answer(other)
                assert status_of(caught.value).code == code_pb2.UNAVAILABLE
                assert "STORE_UNAVAILABLE" in str(status_of(caught.value))
                while attempt_of(server, waiting) < 2:
                    time.sleep(0.2)
                way.open()
                deadline = time.monotonic() + 60
                while answer_or_none(other) != said:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            made = server.result(waiting, batch_prediction_pb2.BatchPrediction)
            asked = batch_prediction_pb2.DownloadPredictionsRequest(name=made.name)
            assert sum(len(part.chunk) for part in batch.DownloadPredictions(asked)) == made.size_bytes


def attempt_of(server: Server, operation: operations_pb2.Operation) -> int:
    found = server.stub(operations_pb2_grpc.OperationsStub).GetOperation(
        operations_pb2.GetOperationRequest(name=operation.name)
    )
    metadata = operation_pb2.OperationMetadata()
    assert found.metadata.Unpack(metadata)
    return metadata.attempt


def answer_or_none(server: Server) -> Any:
    try:
        return answer(server)
    except grpc.RpcError:
        return None


def test_a_bucket_that_is_not_there_is_an_error_at_the_start(tmp_path: Path, url: str) -> None:
    with pytest.raises(FailedPrecondition, match="bucket does not exist"):
        Store(tmp_path, "s3://no-such-bucket/luthier").check()
    with pytest.raises(StoreUnavailable, match="bucket does not exist"):
        Store(tmp_path, "s3://no-such-bucket/luthier").bring(tmp_path / "bundles" / "b")
    Store(tmp_path, url).check()
    for program in ("serve", "worker"):
        command = [sys.executable, "-m", "luthier", program, "--home", str(tmp_path / "home")]
        for wrong, code in (("s3://no-such-bucket/luthier", 1), ("bucket/luthier", 2)):
            done = subprocess.run([*command, "--artefacts", wrong], capture_output=True, text=True, timeout=60)
            assert (done.returncode, wrong in done.stderr) == (code, True), done.stderr


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'luthier\[s3\]'"):
        Store(tmp_path, "s3://bucket")
