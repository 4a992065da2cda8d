"""ModelService."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from luthier import bundle, fields, names, paging
from luthier.bases import Catalogue
from luthier.errors import FailedPrecondition, InvalidArgument, NotFound
from luthier.operations import Operations
from luthier.plugins import Plugins
from luthier.registry import Leftovers, Registry
from luthier.rollouts import check_recording
from luthier.store import Store
from luthier.task import Task
from luthier.v1 import model_pb2, model_pb2_grpc
from luthier.v1.operation_pb2 import OperationMetadata

_CHUNK_BYTES = 512 * 1024
LAST_S = 253_402_300_800
"""Seconds from 1970 until the year 10000, where protobuf's moments end."""


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Models, versions, aliases."""

    def __init__(
        self, registry: Registry, store: Store, operations: Operations, plugins: Plugins, catalogue: Catalogue
    ) -> None:
        self._registry = registry
        self._store = store
        self._operations = operations
        self._plugins = plugins
        self._catalogue = catalogue

    def FineTune(self, request: model_pb2.FineTuneRequest, context: grpc.ServicerContext) -> operations_pb2.Operation:
        """Checks the request, fills its defaults in and queues it: what is queued says all that the result needs."""
        if before := self._operations.repeated(OperationMetadata.KIND_FINE_TUNE, request):
            return before
        task = self._plugins.task(request.task)
        full = model_pb2.FineTuneRequest()
        full.CopyFrom(request)
        violations: dict[str, str] = {}
        for check in (self._check_id, self._fill_dataset, self._fill_base, self._fill_config):
            try:
                check(task, full)
            except InvalidArgument as error:
                violations |= error.violations
        violations |= _misfits(request)
        if violations:
            raise InvalidArgument(violations)
        return self._operations.submit(OperationMetadata.KIND_FINE_TUNE, f"models/{request.model_id}", request, full)

    def FineTuneFromFeedback(
        self, request: model_pb2.FineTuneFromFeedbackRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Pins the version and the time, fills in the defaults and queues it."""
        kind = OperationMetadata.KIND_FINE_TUNE_FROM_FEEDBACK
        if before := self._operations.repeated(kind, request):
            return before
        model, number = self._registry.resolve(request.model, "model")
        version = self._registry.model_version(model, number)
        full = model_pb2.FineTuneFromFeedbackRequest()
        full.CopyFrom(request)
        full.model, full.dataset_id = version.name, request.dataset_id or f"{model[:54]}-feedback"
        if not request.HasField("since"):
            full.since.CopyFrom(version.create_time)
        if not request.HasField("until"):
            full.until.GetCurrentTime()
        if not request.HasField("config"):
            full.config.CopyFrom(version.config)
        violations = _misfits(full)
        try:
            self._check_feedback(self._plugins.task(version.task), full)
        except InvalidArgument as error:
            violations |= error.violations
        if violations:
            raise InvalidArgument(violations)
        return self._operations.submit(kind, f"models/{model}", request, full)

    def GetModel(self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext) -> model_pb2.Model:
        """One model."""
        model = self._registry.model(names.parse("models/{model}", request.name)[0])
        self._mark(model.latest_version)
        return model

    def ListModels(
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        """A page, by name."""
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, str)
        found = self._registry.models(names.check_task(request.task), key[0] if key else "", size + 1)
        token = paging.token_of(found[size - 1].name.partition("/")[2]) if len(found) > size else ""
        for model in found:
            self._mark(model.latest_version)
        return model_pb2.ListModelsResponse(models=found[:size], next_page_token=token)

    def DeleteModel(self, request: model_pb2.DeleteModelRequest, context: grpc.ServicerContext) -> Empty:
        """Deletes a model."""
        self._remove(self._registry.delete_model(names.parse("models/{model}", request.name)[0]))
        return Empty()

    def GetModelVersion(
        self, request: model_pb2.GetModelVersionRequest, context: grpc.ServicerContext
    ) -> model_pb2.ModelVersion:
        """One version."""
        return self._mark(self._version(request.name))

    def ListModelVersions(
        self, request: model_pb2.ListModelVersionsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelVersionsResponse:
        """A page, newest first."""
        id = names.parse("models/{model}", request.parent, "parent")[0]
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, int)
        self._registry.model(id)
        found = self._registry.model_versions(id, key[0] if key else None, size + 1)
        token = paging.token_of(int(found[size - 1].name.rpartition("/")[2])) if len(found) > size else ""
        return model_pb2.ListModelVersionsResponse(
            model_versions=[self._mark(version) for version in found[:size]], next_page_token=token
        )

    def DeleteModelVersion(self, request: model_pb2.DeleteModelVersionRequest, context: grpc.ServicerContext) -> Empty:
        """Deletes a version."""
        model, number = names.parse("models/{model}/versions/{number}", request.name)
        self._remove(self._registry.delete_model_version(model, int(number)))
        return Empty()

    def SetAlias(self, request: model_pb2.SetAliasRequest, context: grpc.ServicerContext) -> model_pb2.Alias:
        """Promotes or rolls back, after proving that the version can be served."""
        model, alias = names.parse("models/{model}/aliases/{alias}", request.name)
        of, number = names.parse("models/{model}/versions/{number}", request.model_version, "model_version")
        if of != model:
            raise InvalidArgument({"model_version": f"it is of models/{of}, the alias of models/{model}"})
        version = self._version(request.model_version)
        if version.task not in self._plugins.loaded:
            raise FailedPrecondition(f"the plugin of its task {version.task} is not installed")
        bundle.verify(self._store.bring(self._store.bundle(version.digest)), version.digest)
        recording = request.recording if request.HasField("recording") else None
        if recording is not None:
            check_recording(recording)
        return self._registry.set_alias(model, alias, int(number), recording)

    def DeleteAlias(self, request: model_pb2.DeleteAliasRequest, context: grpc.ServicerContext) -> Empty:
        """Removes an alias."""
        self._registry.delete_alias(*names.parse("models/{model}/aliases/{alias}", request.name))
        return Empty()

    def DownloadVersion(
        self, request: model_pb2.DownloadVersionRequest, context: grpc.ServicerContext
    ) -> Iterator[model_pb2.DownloadVersionResponse]:
        """Sends the bundle's files, its manifest first, after checking them."""
        version = self._version(request.name)
        directory = self._store.bring(self._store.bundle(version.digest))
        bundle.verify(directory, version.digest)
        manifest = directory / bundle.MANIFEST
        head = model_pb2.BundleFile(path=bundle.MANIFEST, sha256=version.digest, size_bytes=manifest.stat().st_size)
        for file in (head, *version.files):
            yield model_pb2.DownloadVersionResponse(file=file)
            with (directory / file.path).open("rb") as source:
                while chunk := source.read(_CHUNK_BYTES):
                    yield model_pb2.DownloadVersionResponse(chunk=chunk)

    def _version(self, name: str) -> model_pb2.ModelVersion:
        model, number = names.parse("models/{model}/versions/{number}", name)
        return self._registry.model_version(model, int(number))

    def _mark(self, version: model_pb2.ModelVersion) -> model_pb2.ModelVersion:
        version.servable = version.task in self._plugins.loaded
        return version

    def _remove(self, leftovers: Leftovers) -> None:
        for digest in leftovers.digests:
            self._store.remove(self._store.bundle(digest))
        for evaluation in leftovers.evaluations:
            self._store.remove(self._store.report(evaluation))

    def _check_id(self, task: Task, request: model_pb2.FineTuneRequest) -> None:
        names.check_id(request.model_id, "model_id")
        try:
            model = self._registry.model(request.model_id)
        except NotFound:
            return
        if model.task != task.id:
            raise InvalidArgument({"task": f"{model.name} is of the task {model.task}, not {task.id}"})

    def _fill_dataset(self, task: Task, request: model_pb2.FineTuneRequest) -> None:
        """Pins the newest version where the request does not name one."""
        dataset = self._registry.dataset_version(names.parse_versioned("datasets", request.dataset, "dataset"))
        if dataset.task != task.id:
            raise InvalidArgument({"dataset": f"{dataset.name} is of the task {dataset.task}, not {task.id}"})
        request.dataset = dataset.name

    def _fill_base(self, task: Task, request: model_pb2.FineTuneRequest) -> None:
        """Takes the task's first suggestion where the request names none, and pins aliases."""
        if not request.base:
            request.base = f"bases/{task.bases[0]}" if task.bases else ""
        elif request.base.startswith("models/"):
            model, number = self._registry.resolve(request.base, "base")
            if self._registry.model_version(model, number).task != task.id:
                raise InvalidArgument({"base": f"models/{model} is not of the task {task.id}"})
            request.base = names.model_version(model, number)
        else:
            entry = self._catalogue.get(names.parse("bases/{base}", request.base, "base")[0])
            if task.id not in entry.tasks:
                raise InvalidArgument({"base": f"it suits {', '.join(entry.tasks)}, not {task.id}"})

    def _check_feedback(self, task: Task, request: model_pb2.FineTuneFromFeedbackRequest) -> None:
        names.check_id(request.dataset_id, "dataset_id")
        try:
            dataset = self._registry.dataset(request.dataset_id)
        except NotFound:
            pass
        else:
            if dataset.task != task.id:
                raise InvalidArgument({"dataset_id": f"{dataset.name} is of the task {dataset.task}, not {task.id}"})
        moments = {"since": request.since, "until": request.until}
        if odd := [name for name, one in moments.items() if not (0 <= one.seconds < LAST_S and 0 <= one.nanos < 10**9)]:
            raise InvalidArgument(dict.fromkeys(odd, "it is not between 1970 and 9999"))
        if request.since.ToMicroseconds() >= request.until.ToMicroseconds():
            raise InvalidArgument({"since": "it is not before `until`"})
        self._fill_config(task, request)

    def _fill_config(
        self, task: Task, request: model_pb2.FineTuneRequest | model_pb2.FineTuneFromFeedbackRequest
    ) -> None:
        config = task.config()
        if request.HasField("config"):
            wanted = task.config.DESCRIPTOR.full_name
            try:
                if not request.config.Unpack(config):
                    raise InvalidArgument({"config": f"it is a {request.config.TypeName()}, not a {wanted}"})
            except DecodeError as error:
                raise InvalidArgument({"config": f"its bytes are no {wanted}"}) from error
        fields.resolve(config)
        request.config.Pack(config)


def _misfits(request: model_pb2.FineTuneRequest | model_pb2.FineTuneFromFeedbackRequest) -> dict[str, str]:
    """Numbers out of their bounds, by field."""
    violations: dict[str, str] = {}
    if not 0 <= request.parity_tolerance <= 1:
        violations["parity_tolerance"] = f"{request.parity_tolerance:g} is not between 0 and 1"
    if not 0 <= request.quantization.tolerance <= 1:
        violations["quantization.tolerance"] = f"{request.quantization.tolerance:g} is not between 0 and 1"
    if not 0 <= request.seed < 2**32:
        violations["seed"] = f"{request.seed} is not between 0 and 2**32 - 1"
    return violations
