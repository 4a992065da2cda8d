"""Trainings whose trainer or server is killed, and what they come to."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.longrunning import operations_pb2

from luthier.tasks.text_classification.v1 import text_classification_pb2 as text
from luthier.v1 import model_pb2, model_pb2_grpc, operation_pb2, operation_pb2_grpc
from support import Server, children, create_dataset, serving

CONFIG = text.Config(epochs=10, batch_size=8, dropout=0.2, patience=0)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Sums are taken in one order then, so that the same steps come to the same weights."""


def texts(path: Path) -> Path:
    """Writes a CSV of two kinds of texts."""
    draw = random.Random(0)
    words = {"good": ["lovely", "fine", "warm", "bright"], "bad": ["dull", "cold", "broken", "late"]}
    rows = ["text,label"]
    for i in range(400):
        label = ("good", "bad")[i % 2]
        said = draw.choices([*words[label] * 3, *words["good"], *words["bad"], "beer", "the", "a"], k=12)
        rows.append(f"{' '.join(said)} {i},{label}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def submit(server: Server, model: str) -> operations_pb2.Operation:
    request = model_pb2.FineTuneRequest(
        model_id=model, task="text-classification", dataset="datasets/texts", base="bases/luthier-text", seed=3
    )
    request.config.Pack(CONFIG)
    return server.stub(model_pb2_grpc.ModelServiceStub).FineTune(request)


def weights(version: model_pb2.ModelVersion) -> str:
    """The hash of the exported graph."""
    return next(file.sha256 for file in version.files if file.path == "model.onnx")


def events(
    server: Server, operation: operations_pb2.Operation, after: int = 0
) -> Iterator[operation_pb2.OperationEvent]:
    request = operation_pb2.WatchOperationRequest(name=operation.name, after_sequence=after)
    return server.stub(operation_pb2_grpc.OperationServiceStub).WatchOperation(request, timeout=120)


def until_saved(server: Server, operation: operations_pb2.Operation, after: int, least: int) -> tuple[int, int]:
    """Waits for a checkpoint of at least so many steps; returns its sequence number and its steps."""
    for event in events(server, operation, after):
        if event.HasField("checkpoint") and event.checkpoint.step >= least:
            return event.sequence, event.checkpoint.step
        assert not event.HasField("done"), "the training was over before it was killed"
    pytest.fail("the stream ended")


def until_paused(server: Server, operation: operations_pb2.Operation, after: int) -> int:
    """Waits until an operation is held and its worker has gone; returns the sequence number of that event."""
    for event in events(server, operation, after):
        if event.state == operation_pb2.OperationMetadata.STATE_PAUSED:
            break
    deadline = time.monotonic() + 5
    while children(server.process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return event.sequence


def trainer_of(server: Server) -> int:
    """The process that trains."""
    for pid in children(server.process.pid):
        if b"luthier.worker.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    pytest.fail("no trainer runs")


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path, database_url: str) -> None:
    flags = ["--database-url", database_url, "--checkpoint-s", "0", "--lease-s", "2"]
    draw = random.Random(os.environ.get("LUTHIER_SEED", "0"))
    with serving(tmp_path, *flags, **ONE_THREAD) as server:
        create_dataset(server, "texts", "text-classification", {"_": texts(tmp_path / "texts.csv")})
        expected = server.result(submit(server, "undisturbed"), model_pb2.ModelVersion)
        steps = int(expected.training["steps"])
        operation = submit(server, "disturbed")
        killed_at, sequence = [], 0
        for share in (0.1, 0.3):
            sequence, step = until_saved(server, operation, sequence, int(steps * (share + draw.uniform(0, 0.2))))
            os.kill(trainer_of(server), signal.SIGKILL)
            killed_at.append(step)
        sequence, step = until_saved(server, operation, sequence, int(steps * 0.55))
        pause = operation_pb2.PauseOperationRequest(name=operation.name)
        server.stub(operation_pb2_grpc.OperationServiceStub).PauseOperation(pause)
        sequence = until_paused(server, operation, sequence)
        assert not children(server.process.pid)
        resume = operation_pb2.ResumeOperationRequest(name=operation.name)
        server.stub(operation_pb2_grpc.OperationServiceStub).ResumeOperation(resume)
        killed_at.append(step)
        sequence, step = until_saved(server, operation, sequence, int(steps * 0.75))
        killed_at.append(step)
        server.process.kill()
        server.process.wait()
    with serving(tmp_path, *flags, **ONE_THREAD) as server:
        found = server.result(operation, model_pb2.ModelVersion)
        said = [event.message for event in events(server, operation) if event.HasField("message")]
    went_on = [int(message.split()[4]) for message in said if message.startswith("goes on after step")]
    assert len(went_on) == 4, said
    assert all(step >= saved for step, saved in zip(went_on, killed_at, strict=True)), (went_on, killed_at)
    assert found.training["steps"] == steps
    assert weights(found) == weights(expected)
