"""BaseService."""

from __future__ import annotations

import math
import re
from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict

from luthier import bases, entries, names, paging, suggestions
from luthier.errors import InvalidArgument, NotFound
from luthier.operations import Operations
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.store import Store
from luthier.v1 import base_pb2, base_pb2_grpc
from luthier.v1.operation_pb2 import OperationMetadata

_MOST_SUGGESTIONS = 5
"""Where the request does not say."""
_MOST_PIXELS = 4096
_MOST_FILES = 20
_COMPANION = re.compile(r"[A-Za-z0-9][\w.-]{0,126}\.(json|txt|model)")


_ARCHITECTURE = re.compile(r"[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")


class BaseService(base_pb2_grpc.BaseServiceServicer):
    """The catalogue, and the bases that were imported."""

    def __init__(
        self, catalogue: bases.Catalogue, store: Store, operations: Operations, registry: Registry, plugins: Plugins
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._operations = operations
        self._registry = registry
        self._plugins = plugins

    def ListBases(
        self, request: base_pb2.ListBasesRequest, context: grpc.ServicerContext
    ) -> base_pb2.ListBasesResponse:
        """A page, in the catalogue's order, the imported ones last."""
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, int)
        start = key[0] if key else 0
        task = names.check_task(request.task)
        found = [entry for entry in self._catalogue.all() if not task or task in entry.tasks]
        return base_pb2.ListBasesResponse(
            bases=[bases.proto(entry, self._store.bases) for entry in found[start : start + size]],
            next_page_token=paging.token_of(start + size) if len(found) > start + size else "",
        )

    def GetBase(self, request: base_pb2.GetBaseRequest, context: grpc.ServicerContext) -> base_pb2.Base:
        """One entry."""
        return bases.proto(self._catalogue.get(names.parse("bases/{base}", request.name)[0]), self._store.bases)

    def PullBase(self, request: base_pb2.PullBaseRequest, context: grpc.ServicerContext) -> operations_pb2.Operation:
        """Queues a pull."""
        self._catalogue.get(names.parse("bases/{base}", request.name)[0])
        return self._operations.submit(OperationMetadata.KIND_PULL_BASE, request.name, request)

    def ImportBase(
        self, request: base_pb2.ImportBaseRequest, context: grpc.ServicerContext
    ) -> operations_pb2.Operation:
        """Checks what can be checked without a training framework, and queues the rest."""
        # A retry may come when its uploads are gone, or the base is there.
        if before := self._operations.repeated(OperationMetadata.KIND_IMPORT_BASE, request):
            return before
        names.check_id(request.base_id, "base_id")
        if violations := self._violations(request):
            raise InvalidArgument(violations)
        self._catalogue.check_free(request.base_id)
        return self._operations.submit(OperationMetadata.KIND_IMPORT_BASE, f"bases/{request.base_id}", request)

    def DeleteBase(self, request: base_pb2.DeleteBaseRequest, context: grpc.ServicerContext) -> Empty:
        """Deletes an imported base and its files."""
        entry = self._catalogue.delete(names.parse("bases/{base}", request.name)[0])
        self._store.remove(self._store.bases / entry.folder)
        return Empty()

    def SuggestBases(
        self, request: base_pb2.SuggestBasesRequest, context: grpc.ServicerContext
    ) -> base_pb2.SuggestBasesResponse:
        """Ranks what suits the task."""
        violations = {
            field: "it is negative"
            for field in ("max_latency_ms", "max_size_mb", "size", "max_results")
            if getattr(request, field) < 0
        }
        if violations:
            raise InvalidArgument(violations)
        self._plugins.task(request.task)
        found, rejected = suggestions.suggest(self._catalogue.all(), self._needs(request))
        found = found[: request.max_results or _MOST_SUGGESTIONS]
        return base_pb2.SuggestBasesResponse(
            suggestions=[
                base_pb2.Suggestion(
                    base=bases.proto(suggestion.entry, self._store.bases),
                    latency_ms=suggestion.latency_ms,
                    training_s=suggestion.training_s,
                    reasons=suggestion.reasons,
                )
                for suggestion in found
            ],
            rejections=[base_pb2.Rejection(base=f"bases/{id}", reason=reason) for id, reason in rejected.items()],
        )

    def _needs(self, request: base_pb2.SuggestBasesRequest) -> suggestions.Needs:
        num_examples, statistics = 0, dict[str, Any]()
        if request.dataset:
            version = self._registry.dataset_version(names.parse_versioned("datasets", request.dataset, "dataset"))
            if version.task != request.task:
                raise InvalidArgument({"dataset": f"{version.name} is of the task {version.task}, not {request.task}"})
            num_examples = version.num_examples["train"]
            statistics = MessageToDict(version.statistics)
        return suggestions.Needs(
            task=request.task,
            num_examples=num_examples,
            size=request.size or suggestions.size_of(statistics),
            exact_size=bool(request.size),
            max_latency_ms=request.max_latency_ms,
            max_size_mb=request.max_size_mb,
            language=request.language,
            greyscale=request.greyscale or suggestions.is_grey(statistics),
        )

    def _violations(self, request: base_pb2.ImportBaseRequest) -> dict[str, str]:
        if len(request.files) > _MOST_FILES:
            return {"files": f"{len(request.files)} beside the weights; at most {_MOST_FILES} are taken"}
        violations = {}
        # Libraries give some names a meaning of their own, such as a folder or a repository to fetch from.
        if not _ARCHITECTURE.fullmatch(request.architecture):
            violations["architecture"] = "name one, such as mobilenet_v2 or BertModel"
        known = self._plugins.tasks
        if unknown := [task for task in request.tasks if task not in known]:
            violations["tasks"] = f"{', '.join(unknown)}: this server knows {', '.join(known)}"
        uploads = {"weights": request.weights} | {
            f"files[{position}].upload": file.upload for position, file in enumerate(request.files)
        }
        for field, upload in uploads.items():
            try:
                self._registry.upload(names.parse("uploads/{upload}", upload, field)[0])
            except (InvalidArgument, NotFound) as error:
                violations[field] = error.message
        paths = [file.path for file in request.files]
        for position, path in enumerate(paths):
            if not _is_importable(path) or paths.index(path) < position:
                violations[f"files[{position}].path"] = (
                    f"{path!r} is not a plain name that ends in .json, .txt or .model, each given once"
                )
        return violations | _preprocessing_violations(request.preprocessing)


def _is_importable(path: str) -> bool:
    """Whether a path is that of a file which may lie beside the weights: text, and nothing that code could be in."""
    return bool(_COMPANION.fullmatch(path)) and path != entries.BASE_FILE


def _preprocessing_violations(wanted: base_pb2.Preprocessing) -> dict[str, str]:
    violations = {}
    if not 0 <= wanted.height <= _MOST_PIXELS or not 0 <= wanted.width <= _MOST_PIXELS:
        violations["preprocessing.height"] = f"height and width are between 1 and {_MOST_PIXELS}"
    if bool(wanted.height) != bool(wanted.width):
        violations["preprocessing.width"] = "height and width go together"
    for field in ("mean", "std"):
        if len(getattr(wanted, field)) not in (0, 3):
            violations[f"preprocessing.{field}"] = "three values, one for each of red, green and blue"
    if not all(math.isfinite(value) for value in wanted.mean):
        violations["preprocessing.mean"] = "each is a number"
    if any(not 0 < value < math.inf for value in wanted.std):
        violations["preprocessing.std"] = "each is above 0"
    if wanted.num_classes:
        violations["preprocessing.num_classes"] = "it follows from the weights; leave it out"
    return violations
