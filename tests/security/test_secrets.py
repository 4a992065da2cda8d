"""What a server says when things fail: no secret, no path of its own, no trace; and an id that its log explains."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from acme_regression.v1 import regression_pb2
from google.rpc import code_pb2, error_details_pb2

import published
import s3
from luthier.database import Database
from luthier.oip.v2 import open_inference_pb2 as oip
from luthier.oip.v2 import open_inference_pb2_grpc as oip_grpc
from luthier.store import Store
from luthier.v1 import base_pb2, base_pb2_grpc, model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc
from support import ROOT, Server, create_dataset, interactions, serving, status_of

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "HF_TOKEN": "hf_QwErTyUiOpAsDfGhJkLz",
    "LUTHIER_PLANTED_PASSWORD": "correct-horse-battery",
}
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm5hIn0.c2lnbmF0dXJlLW9mLXRoaXM"
PASSWORD = "tide-pool-anemone"
ALL = (*SECRETS.values(), TOKEN, PASSWORD)
METADATA = (("authorization", f"Bearer {TOKEN}"),)


def told(error: grpc.RpcError) -> str:
    """All that a caller is told."""
    metadata = [f"{key}={value!r}" for key, value in error.trailing_metadata()]
    return "\n".join([error.details(), str(status_of(error)), *metadata])


def check_told(text: str, home: Path) -> None:
    for secret in ALL:
        assert secret not in text
    assert str(home) not in text
    assert "Traceback" not in text
    assert not re.search(r"\.py\b|site-packages", text), text


def check_logged(log: Sequence[str], traces: int = 0) -> None:
    """No secret; and no trace but of so many errors that nobody foresaw, each behind its id."""
    for secret in ALL:
        assert not [line for line in log if secret in line]
    traced = [line for line in log if "Traceback" in line]
    assert len(traced) == traces, traced
    assert all("error_id" in json.loads(line) for line in traced)


@contextmanager
def raising(tmp_path: Path) -> Iterator[Server]:
    """A server with the model `good`, and `bad` of a plugin whose codec raises."""
    plugin = tmp_path / "plugin"
    (plugin / "raising-1.0.dist-info").mkdir(parents=True)
    (plugin / "raising-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: raising\nVersion: 1.0\n")
    (plugin / "raising-1.0.dist-info" / "entry_points.txt").write_text("[luthier]\nraising = raising\n")
    shutil.copy(ROOT / "tests" / "plugins" / "broken" / "raising.py", plugin)
    home = tmp_path / "home"
    home.mkdir()
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    database.migrate()
    store = Store(home)
    published.publish(database, store, "bad", 0.0, task="raising")
    published.publish(database, store, "good", 7.0)
    database.close()
    path = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    with serving(home, PYTHONPATH=path, **SECRETS) as server:
        yield server


def test_errors_that_nobody_foresaw(tmp_path: Path) -> None:
    with raising(tmp_path) as server:
        request = prediction_pb2.PredictRequest(model="bad")
        request.instances.add().Pack(regression_pb2.Instance(features=[0]))
        infer = oip.ModelInferRequest(model_name="bad.instances")
        infer.inputs.add(name="features", datatype="FP64", shape=[1, 1]).contents.fp64_contents.append(0)
        predict, infers = (
            server.stub(prediction_pb2_grpc.PredictionServiceStub),
            server.stub(oip_grpc.GRPCInferenceServiceStub),
        )
        calls: list[Callable[[], Any]] = [
            lambda: predict.Predict(request, metadata=METADATA),
            lambda: list(predict.StreamPredict(iter([request]), metadata=METADATA)),
            lambda: predict.Render(
                prediction_pb2.RenderRequest(model="bad", instance=request.instances[0]), metadata=METADATA
            ),
            lambda: infers.ModelInfer(infer, metadata=METADATA),
        ]
        ids = []
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            status = status_of(caught.value)
            assert status.code == code_pb2.INTERNAL
            check_told(told(caught.value), server.home)
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            ids.append(info.metadata["error_id"])
            assert status.message == f"internal error {ids[-1]}; the server's log explains it"
        (answer,) = infers.ModelStreamInfer(iter([infer]), metadata=METADATA)
        check_told(answer.error_message, server.home)
        ids.append(re.fullmatch(r"internal error (\w+); the server's log explains it", answer.error_message)[1])  # type: ignore[index]
        request.model = "good"
        assert predict.Predict(request).predictions
    check_logged(server.log, traces=len(ids))
    explained = {
        line["error_id"]: line for line in map(json.loads, filter(str.strip, server.log)) if "error_id" in line
    }
    assert set(explained) == set(ids)
    assert all(
        "RuntimeError" in line["exception"] and "the key *** is refused" in line["exception"]
        for line in explained.values()
    )


def test_a_damaged_bundle(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'luthier.db'}")
    database.migrate()
    version = published.publish(database, Store(tmp_path), "m", 1.0)
    database.close()
    with (tmp_path / "bundles" / version.digest / "model.onnx").open("ab") as file:
        file.write(b"x")
    with serving(tmp_path, **SECRETS) as server:
        for call in (
            lambda: server.stub(prediction_pb2_grpc.PredictionServiceStub).Predict(
                prediction_pb2.PredictRequest(model="m"), metadata=METADATA
            ),
            lambda: list(
                server.stub(model_pb2_grpc.ModelServiceStub).DownloadVersion(
                    model_pb2.DownloadVersionRequest(name=version.name), metadata=METADATA
                )
            ),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert status_of(caught.value).code == code_pb2.DATA_LOSS
            check_told(told(caught.value), tmp_path)
    check_logged(server.log)


def test_a_package_index_and_a_hub_that_are_away(tmp_path: Path) -> None:
    (tmp_path / "bases.toml").write_text(
        "[far]\ntitle = 'far'\ntasks = ['text-classification']\nlibrary = 'transformers'\narchitecture = 'BertModel'\n"
        "num_parameters = 1\ninput = 'text'\nlicense = 'none'\nsources = ['hub:a/b@main', 'package:far==1.0:far', "
        f"'url:http://ann:{PASSWORD}@127.0.0.1:9/x']\nfiles = {{ 'model.safetensors' = {{}} }}\n"
    )
    away = {
        "HF_ENDPOINT": f"http://ann:{PASSWORD}@127.0.0.1:9",
        "PIP_INDEX_URL": f"http://ann:{PASSWORD}@127.0.0.1:9/simple",
    }
    with serving(tmp_path, **SECRETS, **away) as server:
        bases = server.stub(base_pb2_grpc.BaseServiceStub)
        operation = bases.PullBase(base_pb2.PullBaseRequest(name="bases/far"), metadata=METADATA)
        done = server.wait(operation, 120)
        assert done.error.code == code_pb2.UNAVAILABLE
        check_told(str(done), tmp_path)
        check_told(str(bases.GetBase(base_pb2.GetBaseRequest(name="bases/far"))), tmp_path)
    check_logged(server.log)


def test_an_object_store_that_is_away(tmp_path: Path, object_store: s3.S3) -> None:
    bucket = object_store.new_bucket()
    given = {**object_store.environment(), **SECRETS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    given["LUTHIER_ARTEFACTS"] = bucket
    with serving(tmp_path, **given) as server:
        with pytest.raises(grpc.RpcError) as caught:
            create_dataset(server, "shop", "recommendation", {"_": interactions(tmp_path / "a.csv")})
        assert status_of(caught.value).code == code_pb2.UNAVAILABLE
        check_told(told(caught.value), tmp_path)
    check_logged(server.log)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql+psycopg://luthier:{PASSWORD}@127.0.0.1:9/luthier", "the database does not let this server in"),
        (f"nothing://luthier:{PASSWORD}@127.0.0.1/luthier", "it is no URL"),
        (f"luthier:{PASSWORD}", "it is no URL"),
    ],
)
def test_a_database_that_lets_nobody_in(tmp_path: Path, url: str, said: str) -> None:
    command = [sys.executable, "-m", "luthier", "--home", str(tmp_path), "--listen", "127.0.0.1:0"]
    environment = {**os.environ, **SECRETS, "LUTHIER_DATABASE_URL": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert said in done.stderr
    check_told(done.stderr + done.stdout, tmp_path / "elsewhere")


def test_a_thread_that_ends_by_an_error_is_logged_without_secrets() -> None:
    script = (
        "import os, threading; from luthier import logs; logs.configure()\n"
        "def fail(): raise RuntimeError(os.environ['HF_TOKEN'])\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join(); fail()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, **SECRETS}, capture_output=True, text=True)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.strip()]
    assert [line["level"] for line in lines] == ["critical", "critical"]
    check_logged(done.stderr.splitlines(), traces=2)
