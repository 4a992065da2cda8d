"""Where trainings and predictions compute: a device that is not there is an error, never another device."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.rpc import code_pb2

from luthier.tasks.text_classification.v1 import text_classification_pb2 as text
from luthier.tasks.text_classification.v1 import text_classification_pb2_grpc as text_grpc
from luthier.v1 import model_pb2, model_pb2_grpc
from support import Server, create_dataset, serving

HAS_GPU = shutil.which("nvidia-smi") is not None
CONFIG = text.Config(epochs=2, batch_size=8)


def tuned(server: Server, folder: Path) -> model_pb2.FineTuneRequest:
    """Makes a data set; returns the request for a training on it."""
    path = folder / "texts.csv"
    rows = [f"a {('lovely', 'dull')[i % 2]} beer of the kind {i},{('good', 'bad')[i % 2]}" for i in range(80)]
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    create_dataset(server, "texts", "text-classification", {"_": path})
    request = model_pb2.FineTuneRequest(
        model_id="m", task="text-classification", dataset="datasets/texts", base="bases/luthier-text"
    )
    request.config.Pack(CONFIG)
    return request


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_training_without_its_device_fails_and_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, "--train-device", "cuda:0") as server:
        done = server.wait(server.stub(model_pb2_grpc.ModelServiceStub).FineTune(tuned(server, tmp_path)))
    assert done.error.code == code_pb2.FAILED_PRECONDITION
    assert "torch finds 0 CUDA devices here" in done.error.message


@pytest.mark.parametrize(
    ("device", "code", "said"),
    [
        ("gpu", 2, "gpu is none of cpu, cuda"),
        pytest.param("cuda", 1, "onnxruntime-gpu", marks=pytest.mark.skipif(HAS_GPU, reason="there is a GPU")),
    ],
)
def test_a_server_without_its_device_does_not_start(tmp_path: Path, device: str, code: int, said: str) -> None:
    command = [sys.executable, "-m", "luthier", "--home", str(tmp_path), "--listen", "127.0.0.1:0"]
    done = subprocess.run([*command, "--serve-device", device], capture_output=True, text=True, timeout=60)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not HAS_GPU, reason="there is no GPU")
def test_a_gpu_trains_and_serves(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    devices = ["--train-device", "cuda"]
    if "CUDAExecutionProvider" in ort.get_available_providers():
        devices += ["--serve-device", "cuda"]
    with serving(tmp_path, *devices) as server:
        operation = server.stub(model_pb2_grpc.ModelServiceStub).FineTune(tuned(server, tmp_path))
        version = server.result(operation, model_pb2.ModelVersion)
        request = text.ClassifyRequest(model="m", instances=[text.Instance(text="a lovely beer")])
        answer = server.stub(text_grpc.TextClassificationServiceStub).Classify(request)
    assert version.parity.served == pytest.approx(version.parity.source, abs=0.01)
    assert answer.predictions[0].label == "good"
