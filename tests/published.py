"""Models published without a training: graphs as large as a test needs, that give one known number."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from luthier import bundle
from luthier.database import Database
from luthier.registry import Registry
from luthier.store import Store
from luthier.v1.model_pb2 import BundleFile, ModelVersion

TASK = "acme-regression"


def publish(
    database: Database,
    store: Store,
    model: str,
    value: float,
    megabytes: int = 0,
    tables: int = 1,
    claimed_bytes: int = 0,
    output: str = "value",
    change: Callable[[Path], object] | None = None,
    files: Sequence[tuple[str, Path]] = (),
    task: str = TASK,
    threads: int = 0,
) -> ModelVersion:
    """Publishes a version that gives `value` for the features `[0]`, from tables of so many megabytes in all.

    Where `claimed_bytes` is not 0, its record says that the graph's file is of this size. With
    another `output` the codec does not find what it looks for, which is an error that nobody foresaw. `change` is what
    happens to the bundle before it is sealed, and `files` are named by its manifest too. `threads` are what was settled
    for a call; 0: nobody has measured.
    """
    directory = store.home / "work" / f"published-{uuid.uuid4().hex}"
    directory.mkdir()
    save(directory, value, megabytes, tables, output)
    if change is not None:
        change(directory)
    digest = bundle.seal(directory, {"made": uuid.uuid4().hex})
    if files:
        manifest = json.loads((directory / bundle.MANIFEST).read_text(encoding="utf-8"))
        manifest["files"] += [{"path": path, "sha256": bundle.sha256_of(file), "size_bytes": 1} for path, file in files]
        (directory / bundle.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        digest = bundle.sha256_of(directory / bundle.MANIFEST)
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    if claimed_bytes:
        sizes["model.onnx"] = claimed_bytes
    files = [BundleFile(path=path, size_bytes=size) for path, size in sizes.items()]
    store.publish(directory, store.bundle(digest))
    version = ModelVersion(task=task, digest=digest, files=files)
    if threads:
        version.serving.threads = threads
    with database.write() as connection:
        return Registry(database).add_model_version(connection, model, version, uuid.uuid4().hex)


def save(directory: Path, value: float, megabytes: int, tables: int, output: str = "value") -> None:
    """Writes what the task's codec and the server want of a bundle. The sum over all tables is `value` in each row."""
    rows = max(megabytes * 2**20 // (4 * tables), 2)
    nodes = [helper.make_node("Cast", ["features"], ["row"], to=TensorProto.INT64)]
    nodes += [helper.make_node("Gather", [f"table{i}", "row"], [f"found{i}"]) for i in range(tables)]
    nodes += [
        helper.make_node("Sum", [f"found{i}" for i in range(tables)], ["sum"]),
        helper.make_node("Squeeze", ["sum", "axis"], [output]),
    ]
    constants = {f"table{i}": np.full(rows, value if i == 0 else 0, np.float32) for i in range(tables)}
    constants["axis"] = np.array([1])
    graph = helper.make_graph(
        nodes,
        "tables",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), directory / "model.onnx")
    (directory / "num_features").write_text("1")
