"""ImportBase: an uploaded checkpoint becomes a base. What is in it is looked at by a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from google.protobuf.message import Message

from luthier import bases, entries, names
from luthier.entries import Entry, File, Preprocessing
from luthier.errors import DataLoss, InvalidArgument
from luthier.v1 import base_pb2
from luthier.worker.child import run_child
from luthier.worker.job import Job, Publish


def work(job: Job) -> Publish:
    """Has the checkpoint read and matched, then publishes the base with the hashes of its files."""
    request: base_pb2.ImportBaseRequest = job.request(base_pb2.ImportBaseRequest)
    job.progress("reading the checkpoint", 0, 1)
    spec = {
        "id": request.base_id,
        "architecture": request.architecture,
        "weights": str(_upload(job, request.weights)),
        "files": {file.path: str(_upload(job, file.upload)) for file in request.files},
        "preprocessing": _preprocessing(request.preprocessing),
        "parent": os.getpid(),
    }
    (job.directory / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    run_child(job, "luthier.worker.importer", job.directory, "the import")
    outcome = json.loads((job.directory / "outcome.json").read_text(encoding="utf-8"))
    entry = _entry(request, outcome, job.directory / "base")
    job.check()
    job.tools.store.publish(job.directory / "base", job.tools.store.bases / entry.folder)

    def record(connection: sa.Connection) -> Message:
        job.tools.catalogue.add(connection, entry)
        return bases.proto(entry, job.tools.store.bases)

    return record


def _entry(request: base_pb2.ImportBaseRequest, outcome: dict[str, Any], directory: Path) -> Entry:
    described, tasks = outcome["base"], outcome["tasks"]
    if unsuited := [task for task in request.tasks if task not in tasks]:
        why = f"{described['architecture']} suits {', '.join(tasks)}, not {', '.join(unsuited)}"
        raise InvalidArgument({"tasks": why})
    files = tuple(_file(path, directory) for path in sorted(directory.rglob("*")) if path.is_file())
    keys = ("input_size", "mean", "std", "num_classes")
    vision = described["library"] != "transformers"
    height, width = described["input_size"]
    return Entry(
        id=request.base_id,
        title=request.title or f"{request.base_id}: an imported {described['architecture']}",
        tasks=tuple(request.tasks or tasks),
        library=described["library"],
        architecture=described["architecture"],
        num_parameters=outcome["num_parameters"],
        input=f"RGB {height}x{width}" if vision else f"text, {outcome['tokens']} tokens",
        license=request.license,
        files=files,
        sources=(),
        preprocessing=Preprocessing(**{key: described[key] for key in keys}) if vision else None,
        gmacs=outcome["gmacs"],
        languages=tuple(request.languages),
        digest=entries.digest_of(files),
        report=base_pb2.ImportReport(**outcome["report"]),
    )


def _file(path: Path, directory: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path.relative_to(directory).as_posix(), (digest,), path.stat().st_size)


def _upload(job: Job, name: str) -> Path:
    id = names.parse("uploads/{upload}", name)[0]
    upload = job.tools.registry.upload(id)
    path = job.tools.store.bring(job.tools.store.upload(id))
    if not path.is_file() or path.stat().st_size != upload.size_bytes:
        raise DataLoss(f"{upload.filename} is no longer as it was uploaded; upload it again")
    return path


def _preprocessing(wanted: base_pb2.Preprocessing) -> dict[str, Any]:
    given: dict[str, Any] = {"input_size": [wanted.height, wanted.width] if wanted.height else []}
    given |= {"mean": list(wanted.mean), "std": list(wanted.std)}
    return {key: values for key, values in given.items() if values}
