"""CreateDataset: uploaded files become an immutable version of a data set."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from luthier import datasets, names
from luthier.errors import DataLoss
from luthier.task import DataFile
from luthier.v1 import dataset_pb2
from luthier.worker.job import Job, Publish


def work(job: Job) -> Publish:
    """Reads, validates, splits and stores."""
    request: dataset_pb2.CreateDatasetRequest = job.request(dataset_pb2.CreateDatasetRequest)
    task = job.tools.plugins.task(request.task)
    options = {name: request.options.get(name, option.default) for name, option in task.read_options.items()}
    built = datasets.build(
        task,
        [_file(job, request, file, options) for file in request.files],
        request.split,
        job.directory / "built",
        job.progress,
        strict=request.strictness == dataset_pb2.STRICTNESS_STRICT,
    )
    job.check()
    job.tools.store.publish(job.directory / "built", job.tools.store.dataset(built.digest))
    version = dataset_pb2.DatasetVersion(
        task=request.task,
        digest=built.digest,
        num_examples=built.num_examples,
        size_bytes=built.size_bytes,
        split=built.split,
        statistics=ParseDict(built.statistics, Struct()),
        warnings=built.warnings,
    )

    def record(connection: sa.Connection) -> Message:
        return job.tools.registry.add_dataset_version(connection, request.dataset_id, version, job.claim.operation)

    return record


def _file(
    job: Job, request: dataset_pb2.CreateDatasetRequest, file: dataset_pb2.DatasetFile, options: Mapping[str, str]
) -> DataFile:
    id = names.parse("uploads/{upload}", file.upload)[0]
    upload = job.tools.registry.upload(id)
    path = job.tools.store.bring(job.tools.store.upload(id))
    if not path.is_file() or path.stat().st_size != upload.size_bytes:
        raise DataLoss(f"{upload.filename} is no longer as it was uploaded; upload it again")
    ending = upload.filename.rpartition(".")[2].lower()
    return DataFile(
        path=path,
        name=upload.filename,
        format=request.format or ("" if ending == "zip" else ending),
        role=file.role,
        columns=dict(request.columns),
        header=not request.no_header,
        options=options,
        lenient=request.strictness == dataset_pb2.STRICTNESS_LENIENT,
    )
