"""Mutated requests on every service of a running server: it lives, answers, and explains what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import code_pb2

from luthier.database import Database
from luthier.names import Versioned
from luthier.registry import Registry
from luthier.v1 import model_pb2, model_pb2_grpc, operation_pb2
from six_models import MODELS
from support import Server, interactions, serving, upload

HERE = Path(__file__).parent
A_SECOND = 900
"""Requests: 50,000 in 60 s are 833."""
DOOMED = 40
"""Models and data sets that nothing else asks for, so that there is something to delete until the end."""
LEAST_METHODS = 60
SLOW_S = 0.1
"""What health may take."""


@contextmanager
def probing(address: str) -> Iterator[dict[str, Any]]:
    """Asks for the health beside what a test does; what it found is there afterwards."""
    found: dict[str, Any] = {}
    command = [sys.executable, str(HERE / "prober.py"), address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield found
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, "health was not answered, or was not SERVING"
    found |= json.loads(output)


def multiply(home: Path) -> None:
    """Adds the doomed: the model and the data set `shop` by other names."""
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    registry = Registry(database)
    version, data = (registry.model_version("shop", 1), registry.dataset_version(Versioned("shop", 1)))
    for number in range(DOOMED):
        with database.write() as connection:
            registry.add_model_version(connection, f"doomed{number}", version, uuid.uuid4().hex)
            registry.add_dataset_version(connection, f"doomed{number}", data)
        registry.delete_alias(f"doomed{number}", "production")
    database.close()


def words_of(server: Server, folder: Path) -> dict[str, list[str]]:
    """Good values by the names of fields: what a stranger could know of this server."""
    uploads = [upload(server, interactions(folder / "u.csv"))]
    submit = model_pb2.FineTuneRequest(model_id="doomed", task="recommendation", dataset="datasets/shop")
    operation = server.stub(model_pb2_grpc.ModelServiceStub).FineTune(submit).name
    models, datasets = list(MODELS), [f"datasets/{name}" for name in MODELS]
    versions = [f"models/{name}/versions/1" for name in MODELS]
    aliases = [f"models/{name}/aliases/{alias}" for name in MODELS for alias in ("production", "canary")]
    resources = [*datasets, *versions, *aliases, *(f"models/{name}" for name in MODELS)]
    resources += [*(f"{name}/versions/1" for name in datasets), operation, "bases/luthier-text", *uploads]
    resources += [f"tasks/{task}" for task in MODELS.values()]
    of = {
        "Model": [f"models/{name}" for name in MODELS],
        "Dataset": datasets,
        "Alias": aliases,
        "Base": ["bases/luthier-text"],
    }
    doomed = [f"doomed{number}" for number in range(DOOMED)]
    of |= {
        "ModelVersion": versions,
        "Version": versions,
        "Operation": [operation],
        "Task": [f"tasks/{t}" for t in MODELS.values()],
    }
    of |= {"DatasetVersion": [f"{name}/versions/1" for name in datasets], "Predictions": [operation]}
    verbs = ("Get", "Set", "Download", "Watch", "Wait", "Cancel", "Pause", "Resume", "Pull")
    requests = {f"{verb}{noun}Request.name": names for noun, names in of.items() for verb in verbs}
    requests |= {
        f"luthier.tasks.{task.replace('-', '_')}.v1.model": [name, f"{name}/1"] for name, task in MODELS.items()
    }
    requests |= {
        "DeleteModelRequest.name": [f"models/{name}" for name in doomed],
        "DeleteModelVersionRequest.name": [f"models/{name}/versions/1" for name in doomed],
        "DeleteAliasRequest.name": aliases,
        "DeleteDatasetRequest.name": [f"datasets/{name}" for name in doomed],
        "DeleteOperationRequest.name": [operation],
        "DeleteBaseRequest.name": ["bases/luthier-text"],
        "RepositoryModelUnloadRequest.model_name": [f"{name}/1" for name in doomed],
    }
    requests |= {"ListModelVersionsRequest.parent": of["Model"], "ListDatasetVersionsRequest.parent": datasets}
    return requests | {
        "model": [*models, *(f"{name}@production" for name in models), *(f"{name}/1" for name in models)],
        "model_name": [*models, *(f"{name}.instances" for name in models)],
        "name": [*resources, *(r for r in resources for _ in range(2) if "models" not in r), *models, "input"],
        "parent": resources,
        "model_version": versions,
        "dataset": datasets,
        "base": ["bases/luthier-text", "bases/luthier-vision", *versions],
        "task": list(MODELS.values()),
        "tasks": list(MODELS.values()),
        "model_id": ["doomed", *models],
        "dataset_id": ["doomed", *models],
        "base_id": ["doomed"],
        "upload": uploads,
        "weights": uploads,
        "service": ["", "luthier.v1.ModelService"],
        "path": ["config.json"],
        "filename": ["a.csv"],
        "role": ["", "train"],
        "format": ["csv"],
        "split": ["test", "train"],
        "method": ["hash", "given"],
        "text": ["cheap pills", "Ann flew to Oslo"],
        "user": ["u1", "u2"],
        "items": ["i1", "i2"],
        "item": ["i1", "i2"],
        "datatype": ["FP32", "BYTES", "INT64", "UINT8"],
        "version": ["", "1"],
        "page_token": ["", "WzFd", "WyJhIl0=", "WzEsICJhIl0=", "W10=", "WzFlNDAwXQ==", "W251bGxd", "W1tdXQ=="],
        "sha256": ["0" * 64],
        "type_url": ["type.googleapis.com/luthier.tasks.recommendation.v1.Config"],
    }


def fuzz(server: Server, seconds: float, words: dict[str, list[str]], methods: str = "") -> dict[str, Any]:
    """Has mutated requests sent to all methods, or those whose names match."""
    command = [sys.executable, str(HERE / "fuzzer.py"), server.address, "1", str(seconds), str(A_SECOND)]
    done = subprocess.run([*command, json.dumps(words), methods], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    counted: dict[str, Any] = json.loads(done.stdout)
    return counted


@pytest.mark.parametrize("seconds", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_mutated_requests(home: Path, tmp_path: Path, seconds: int) -> None:
    multiply(home)
    with serving(home, "--jobs", "0", "--trainings", "0") as server:
        words = words_of(server, tmp_path)
        with probing(server.address) as health:
            counted = fuzz(server, seconds, words)
        took, sent = np.array(health["took"]), counted["sent"]
        print(
            f"{sent} messages to {len(counted['methods'])} methods in {counted['seconds']:.0f} s: "
            f"{counted['parsed'] / sent:.0%} can be parsed, {counted['handled'] / sent:.0%} reached a handler. "
            f"{counted['codes']}. Health in {np.median(took) * 1e3:.1f} ms, p99 {np.percentile(took, 99) * 1e3:.1f}, "
            f"at most {took.max() * 1e3:.1f}; whoever asked was woken up to {max(health['late']) * 1e3:.1f} ms late"
        )
        assert not counted["unexplained"]
        assert len(counted["methods"]) >= LEAST_METHODS
        assert sent >= seconds * 50_000 / 60
        assert counted["handled"] >= sent / 2
        # The slowest of hundreds is what the machine did meanwhile as much as the server; of five turns the middle one.
        assert np.percentile(took, 99) < SLOW_S
        assert np.median([turn.max() for turn in np.array_split(took, 5)]) < SLOW_S
        assert server.process.poll() is None
    assert server.process.returncode == 0
    assert not errors_in(server.log)


def test_what_was_asked_for_ends(home: Path, tmp_path: Path) -> None:
    """Operations that mutated requests began: whatever is in them, each ends in a way that is explained."""
    with serving(home, "--jobs", "0", "--trainings", "0") as server:
        fuzz(
            server, 3, words_of(server, tmp_path) | {"request_id": [""]}, "Create|Evaluate|BatchPredict|PullBase|Import"
        )
        stub = server.stub(operations_pb2_grpc.OperationsStub)
        waiting = list(stub.ListOperations(operations_pb2.ListOperationsRequest(page_size=1000)).operations)
        kept: dict[int, operations_pb2.Operation] = {}
        for operation in waiting:
            kind = operation_pb2.OperationMetadata.FromString(operation.metadata.value).kind
            if kind in kept or kind == operation_pb2.OperationMetadata.KIND_FINE_TUNE:
                stub.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
            kept.setdefault(kind, operation)
        assert len(kept) >= 3
    with serving(home, "--jobs", "2", "--trainings", "0") as server:
        for operation in kept.values():
            assert server.wait(operation, 120).error.code not in (code_pb2.INTERNAL, code_pb2.UNKNOWN)
    assert not errors_in(server.log)


def errors_in(log: list[str]) -> list[str]:
    return [line for line in log if '"level": "error"' in line or "Traceback" in line]
