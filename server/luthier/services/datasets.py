"""DatasetService, uploads included."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import grpc
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty

from luthier import names, paging
from luthier.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from luthier.operations import Operations
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.services.watchdog import Watchdog
from luthier.store import Store
from luthier.task import PARTS, Task
from luthier.v1 import dataset_pb2, dataset_pb2_grpc
from luthier.v1.operation_pb2 import OperationMetadata

MOST_CHUNK_BYTES = 2**20
MOST_UPLOAD_BYTES = 64 * 2**30
MOST_FILES = 1000
"""Of one data set; each is looked up in the database."""
FREE_BYTES = 2**30
"""What an upload must leave free on the disk, for the database and for trainings."""


class DatasetService(dataset_pb2_grpc.DatasetServiceServicer):
    """Uploads and data sets."""

    def __init__(
        self, registry: Registry, store: Store, operations: Operations, plugins: Plugins, idle_s: float
    ) -> None:
        """`idle_s` is how long an upload may bring nothing before it is ended."""
        self._idle_s = idle_s
        self._registry = registry
        self._store = store
        self._operations = operations
        self._plugins = plugins

    def UploadFiles(
        self, request: Iterator[dataset_pb2.UploadFilesRequest], context: grpc.ServicerContext
    ) -> dataset_pb2.Upload:
        """Writes the chunks to disk as they come, and answers once they are there and right."""
        first = next(request, None)
        if first is None or not first.HasField("header"):
            raise InvalidArgument({"header": "the first message of an upload must be its header"})
        header = self._checked(first.header)
        id = uuid.uuid4().hex
        with Watchdog(self._idle_s, context.cancel) as watchdog:
            _receive(watchdog.watched(request), header, self._store.partial(header.sha256), self._store.upload(id))
        self._store.share(self._store.upload(id))
        upload = dataset_pb2.Upload(
            name=f"uploads/{id}", filename=header.filename, size_bytes=header.size_bytes, sha256=header.sha256
        )
        self._registry.add_upload(id, upload)
        return upload

    def FindUpload(
        self, request: dataset_pb2.FindUploadRequest, context: grpc.ServicerContext
    ) -> dataset_pb2.FindUploadResponse:
        """How much there is of an upload that broke."""
        if not _is_sha256(request.sha256):
            raise InvalidArgument({"sha256": _SHA256})
        try:
            held = self._store.partial(request.sha256).stat().st_size
        except FileNotFoundError:
            held = 0
        return dataset_pb2.FindUploadResponse(received_bytes=held)

    def CreateDataset(
        self, request: dataset_pb2.CreateDatasetRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Checks what can be checked at once, and queues the rest."""
        # A retry may come when its uploads are gone.
        if before := self._operations.repeated(OperationMetadata.KIND_CREATE_DATASET, request):
            return before
        names.check_id(request.dataset_id, "dataset_id")
        task = self._plugins.task(request.task)
        violations = self._violations(request, task)
        if violations:
            raise InvalidArgument(violations)
        return self._operations.submit(OperationMetadata.KIND_CREATE_DATASET, f"datasets/{request.dataset_id}", request)

    def GetDataset(self, request: dataset_pb2.GetDatasetRequest, context: grpc.ServicerContext) -> dataset_pb2.Dataset:
        """One data set."""
        return self._registry.dataset(names.parse("datasets/{dataset}", request.name)[0])

    def ListDatasets(
        self, request: dataset_pb2.ListDatasetsRequest, context: grpc.ServicerContext
    ) -> dataset_pb2.ListDatasetsResponse:
        """A page, by name."""
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, str)
        found = self._registry.datasets(names.check_task(request.task), key[0] if key else "", size + 1)
        token = paging.token_of(found[size - 1].name.partition("/")[2]) if len(found) > size else ""
        return dataset_pb2.ListDatasetsResponse(datasets=found[:size], next_page_token=token)

    def GetDatasetVersion(
        self, request: dataset_pb2.GetDatasetVersionRequest, context: grpc.ServicerContext
    ) -> dataset_pb2.DatasetVersion:
        """One version."""
        id, number = names.parse("datasets/{dataset}/versions/{number}", request.name)
        return self._registry.dataset_version(names.Versioned(id, int(number)))

    def ListDatasetVersions(
        self, request: dataset_pb2.ListDatasetVersionsRequest, context: grpc.ServicerContext
    ) -> dataset_pb2.ListDatasetVersionsResponse:
        """A page, newest first."""
        id = names.parse("datasets/{dataset}", request.parent, "parent")[0]
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, int)
        self._registry.dataset(id)
        found = self._registry.dataset_versions(id, key[0] if key else None, size + 1)
        token = paging.token_of(int(found[size - 1].name.rpartition("/")[2])) if len(found) > size else ""
        return dataset_pb2.ListDatasetVersionsResponse(dataset_versions=found[:size], next_page_token=token)

    def DeleteDataset(self, request: dataset_pb2.DeleteDatasetRequest, context: grpc.ServicerContext) -> Empty:
        """Deletes a data set and the files that no other holds."""
        for digest in self._registry.delete_dataset(names.parse("datasets/{dataset}", request.name)[0]):
            self._store.remove(self._store.dataset(digest))
        return Empty()

    def _checked(self, header: dataset_pb2.UploadHeader) -> dataset_pb2.UploadHeader:
        violations = {}
        if not header.filename or "/" in header.filename or "\0" in header.filename or len(header.filename) > 255:
            violations["header.filename"] = "the name of a file, without folders, at most 255 characters"
        if not 0 <= header.size_bytes <= MOST_UPLOAD_BYTES:
            violations["header.size_bytes"] = f"between 0 and {MOST_UPLOAD_BYTES}"
        if not _is_sha256(header.sha256):
            violations["header.sha256"] = _SHA256
        if not 0 <= header.offset <= header.size_bytes:
            violations["header.offset"] = "between 0 and the size of the file"
        if violations:
            raise InvalidArgument(violations)
        self._registry.check_room(header.size_bytes)
        free = shutil.disk_usage(self._store.home).free
        if header.size_bytes - header.offset + FREE_BYTES > free:
            raise FailedPrecondition(f"the server's disk has no room for {header.size_bytes} bytes")
        return header

    def _violations(self, request: dataset_pb2.CreateDatasetRequest, task: Task) -> dict[str, str]:
        violations = {}
        if not request.files:
            violations["files"] = "there are none; upload them first"
        if len(request.files) > MOST_FILES:
            return {"files": f"{len(request.files)} in one data set; at most {MOST_FILES} are taken, or a zip of more"}
        if request.format and request.format not in task.formats:
            violations["format"] = f"{request.format!r} is none of {', '.join(task.formats)}"
        roles = ("", *PARTS, *task.extra_files)
        for index, file in enumerate(request.files):
            if file.role not in roles:
                violations[f"files[{index}].role"] = f"{file.role!r} is none of {', '.join(roles[1:])}, and not empty"
            try:
                upload = self._registry.upload(names.parse("uploads/{upload}", file.upload, "upload")[0])
            except (InvalidArgument, NotFound) as error:
                violations[f"files[{index}].upload"] = error.message
                continue
            if why := _misfit(task, upload.filename, request.format):
                violations[f"files[{index}]"] = f"{upload.filename}: {why}"
        columns = {field.name for field in task.example.DESCRIPTOR.fields}
        # What columns an extra file has, its reader knows alone.
        unknown_columns = [] if task.extra_files else sorted(request.columns.keys() - columns)
        for unknown in unknown_columns:
            violations[f"columns[{unknown}]"] = f"the task's examples have the fields {', '.join(sorted(columns))}"
        violations |= _misread(request, task)
        if request.split.method not in ("", "given", *task.splits):
            violations["split.method"] = f"{request.split.method!r} is none of {', '.join(task.splits)}"
        return violations


def _misread(request: dataset_pb2.CreateDatasetRequest, task: Task) -> dict[str, str]:
    """What is wrong with the options, by field."""
    violations = {}
    for name, value in request.options.items():
        option = task.read_options.get(name)
        if option is None:
            known = ", ".join(sorted(task.read_options))
            violations[f"options[{name}]"] = (
                f"the task reads with the options {known}" if known else "the task has none"
            )
        elif option.choices and value not in option.choices:
            violations[f"options[{name}]"] = f"{value!r} is none of {', '.join(option.choices)}"
    return violations


def _misfit(task: Task, filename: str, format: str) -> str:
    """Why a file cannot be of the format that is stated, or of none; empty where it can."""
    ending = filename.rpartition(".")[2].lower()
    if ending == "zip":
        if not task.archives:
            return f"a zip cannot be read; send {', '.join(task.formats)}"
        if format and format not in task.archives:
            return f"a zip is read as {', '.join(task.archives)}, not as {format}"
        return ""
    if format in task.archives:
        return f"{format} is a folder of files; send the folder, or a zip of it"
    if not format and ending not in task.formats:
        return f"state its format, one of {', '.join(task.formats)}"
    return ""


def _receive(
    messages: Iterator[dataset_pb2.UploadFilesRequest],
    header: dataset_pb2.UploadHeader,
    partial: Path,
    path: Path,
) -> None:
    """Writes chunks to a file, through to the disk, and gives it its name once it is whole.

    What came before a stream breaks stays, to go on from. Raises DataLoss where the whole is not what the header
    announced, FailedPrecondition where less is there than it begins behind, Unavailable while another stream brings it:
    that of the same client too, which may end a moment after its connection broke.
    """
    with partial.open("a+b") as file:
        _lock(file)
        digest, size = _begin(file, header.offset)
        for message in messages:
            size += len(message.chunk)
            if not 0 < len(message.chunk) <= MOST_CHUNK_BYTES:
                raise InvalidArgument({"chunk": f"{len(message.chunk)} bytes; a chunk has 1 to {MOST_CHUNK_BYTES}"})
            if size > header.size_bytes:
                raise InvalidArgument({"header.size_bytes": f"more came than the {header.size_bytes} announced"})
            digest.update(message.chunk)
            file.write(message.chunk)
        file.flush()
        os.fsync(file.fileno())
        # A stream that breaks may look as if it had ended.
        if size < header.size_bytes:
            raise DataLoss(f"{size} of {header.size_bytes} bytes came; go on from there")
        if digest.hexdigest() != header.sha256:
            partial.unlink()
            raise DataLoss(f"{size} bytes came that are not the file announced; send it again")
        partial.rename(path)


def _lock(file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Unavailable("this file is being uploaded already; try again once that has ended") from error
    # Whoever held it before may have renamed or removed it.
    if os.fstat(file.fileno()).st_nlink == 0 or not os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
        raise Unavailable("this file was being uploaded until now; ask again what there is of it")


def _begin(file: IO[bytes], offset: int) -> tuple[hashlib._Hash, int]:
    """Leaves so many bytes of what is there; returns their digest so far and their number."""
    held = os.fstat(file.fileno()).st_size
    if offset > held:
        raise FailedPrecondition(f"the server holds {held} bytes of it; go on from there")
    file.truncate(offset)
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(MOST_CHUNK_BYTES):
        digest.update(block)
    return digest, offset


_SHA256 = "64 small hexadecimal digits"


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
