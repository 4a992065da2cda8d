"""One tiny model of each task, tuned in this process and published in a home: seconds where a server would take minutes."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier import bundle
from luthier.database import Database
from luthier.registry import Registry
from luthier.store import Store
from luthier.v1.model_pb2 import BundleFile, ModelVersion
from support import ROOT

CLASSES: Mapping[str, tuple[str, str]] = {
    "tickets": ("test_text_classification", "TestTextClassification"),
    "letters": ("test_entity_recognition", "TestEntityRecognition"),
    "colours": ("test_image_classification", "TestImageClassification"),
    "tables": ("test_object_detection", "TestFcosOnTimm"),
    "masks": ("test_semantic_segmentation", "TestSemanticSegmentation"),
    "books": ("test_recommendation", "TestEase"),
}
"""The conformance suite that has the data, the base and the settings of each model."""


def publish(home: Path, folder: Path) -> dict[str, list[Any]]:
    """Publishes them in a home that no server has yet; returns instances of each model's test part."""
    store = Store(home, "")
    store.check()
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    database.migrate()
    instances = {}
    for model, (file, name) in CLASSES.items():
        suite = _suite(file, name)
        (directory := folder / model).mkdir()
        (base := folder / f"{model}-base").mkdir()
        exported = suite._tune(suite.base(base), directory).bundle
        digest = bundle.seal(exported, {"made": uuid.uuid4().hex})
        files = [BundleFile(path=path.name, size_bytes=path.stat().st_size) for path in exported.iterdir()]
        store.publish(exported, store.bundle(digest))
        with database.write() as connection:
            version = ModelVersion(task=suite.task.id, digest=digest, files=files)
            Registry(database).add_model_version(connection, model, version, uuid.uuid4().hex)
        instances[model] = list(suite.task.instances(suite.parts()["test"]))
    database.close()
    return instances


def _suite(file: str, name: str) -> Any:
    path = ROOT / "tests" / "conformance" / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"six_{file}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
