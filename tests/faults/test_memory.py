"""Models that together want more memory than the server may hold, and what unloading one is worth."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from luthier.database import Database
from luthier.oip.v2 import open_inference_pb2 as oip
from luthier.oip.v2 import open_inference_pb2_grpc
from luthier.store import Store
from published import publish
from support import Server, serving

pb = pytest.importorskip("acme_regression.v1.regression_pb2")
pb_grpc = pytest.importorskip("acme_regression.v1.regression_pb2_grpc")

SIZE_MB = 64
SLACK_MB = 28
"""Less than half a model."""
LOAD = 2.5
"""What loading a graph takes for a moment, in sizes of its file, as docs/operations.md tells operators."""


def publish_models(home: Path, url: str, models: str, tables: int = 1) -> None:
    """Each gives the place of its name in the alphabet."""
    database = Database(url)
    database.migrate()
    store = Store(home)
    for model in models:
        publish(database, store, model, "abc".index(model) + 1, SIZE_MB, tables)
    database.close()


def megabytes(server: Server, field: str) -> float:
    """A figure of the server's memory, such as VmHWM: the most that it ever held."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def ask(server: Server, models: str) -> list[float]:
    estimate = server.stub(pb_grpc.RegressionServiceStub).Estimate
    instances = [pb.Instance(features=[0])]
    return [estimate(pb.EstimateRequest(model=model, instances=instances)).predictions[0].value for model in models]


@pytest.mark.parametrize("room", [0.0, LOAD - 1 + 0.4])
def test_three_models_under_a_budget_for_two(tmp_path: Path, database_url: str, room: float) -> None:
    flags = ["--database-url", database_url]
    publish_models(tmp_path, database_url, "ab")
    with serving(tmp_path, *flags) as server:
        assert ask(server, "abab") == [1, 2, 1, 2]
        two = megabytes(server, "VmRSS")
    publish_models(tmp_path, database_url, "c")
    budget = round(two + room * SIZE_MB + SLACK_MB)
    with serving(tmp_path, *flags, "--serve-memory-mb", str(budget)) as server:
        for _ in range(3):
            assert ask(server, "abc") == [1, 2, 3]
        if room:
            # With room for what a load takes for a moment, two stay. The log is read on a thread of its own.
            time.sleep(0.5)
            loads = sum("version loaded" in line for line in server.log)
            assert ask(server, "bcbcbc") == [2, 3] * 3
            assert sum("version loaded" in line for line in server.log) == loads
            assert megabytes(server, "VmRSS") > two - SLACK_MB
        assert megabytes(server, "VmHWM") <= budget


def test_an_unload_gives_back_what_its_load_took(tmp_path: Path) -> None:
    # Many tables, as the layers of a network: the C library keeps more of what is freed in small pieces.
    publish_models(tmp_path, f"sqlite:///{tmp_path / 'luthier.db'}", "abc", tables=2 * SIZE_MB)
    with serving(tmp_path) as server:
        stub = server.stub(open_inference_pb2_grpc.GRPCInferenceServiceStub)
        all_three = megabytes(server, "VmRSS")
        for name in "abc":
            stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name=name))
        # What was loaded at the start the collector no longer looks at.
        assert all_three - megabytes(server, "VmRSS") >= 0.8 * 3 * SIZE_MB
        for name in "abcabc":
            before = megabytes(server, "VmRSS")
            stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name=name))
            took = megabytes(server, "VmRSS") - before
            assert took == pytest.approx(SIZE_MB, rel=0.15)
            assert ask(server, name * 20) == ["abc".index(name) + 1] * 20
            stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name=name))
            left = megabytes(server, "VmRSS") - before
            assert left <= 0.2 * took, f"{left:.0f} MB of {took:.0f} are left"
