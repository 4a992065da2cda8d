"""The one table of what each method asks of its caller. What is not in it is denied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from luthier.access.principal import Principal, Role
from luthier.errors import PermissionDenied
from luthier.task import Task

Kind: TypeAlias = Literal["model", "dataset", "operation", "evaluation", "rollout", "prediction"]


class Named(NamedTuple):
    """A resource that a request names."""

    kind: Kind
    id: str


@dataclass(frozen=True)
class Field:
    """A field of a request that holds a resource's name: `models/beer`, `models/beer/versions/3`."""

    name: str
    kind: Kind
    optional: bool = False
    """Empty means none, and not that everything is asked for."""

    def read(self, message: Any) -> str:
        """The id of what a message names; empty where it names nothing of this kind."""
        return self.id(getattr(message, self.name))

    def id(self, value: str) -> str:
        """`beer`."""
        collection, _, rest = value.partition("/")
        return rest.partition("/")[0] if collection == f"{self.kind}s" else ""

    def __str__(self) -> str:
        return f"`{self.name}`"


@dataclass(frozen=True)
class Short(Field):
    """A field that holds an id, or a model's name as predictions have it: `beer`, `beer@production`, `beer/3`,
    `beer.instances`."""

    def id(self, value: str) -> str:
        """`beer`."""
        return value.partition("@")[0].partition("/")[0].partition(".")[0]


@dataclass(frozen=True)
class Id(Field):
    """A field that holds an id, and nothing but that."""

    def id(self, value: str) -> str:
        """The same."""
        return value


@dataclass(frozen=True)
class OfFeedback(Short):
    """A field that holds a data set's id, or is empty for the one of the model's feedback."""

    def read(self, message: Any) -> str:
        """That id."""
        return super().read(message) or f"{_model('model').read(message)}-feedback"


@dataclass(frozen=True)
class Tensors(Short):
    """A field of a request of tensors, which is read by a parser of its own."""

    def read(self, message: Any) -> str:
        """The model's id."""
        return self.id(getattr(message.message, self.name))


@dataclass(frozen=True)
class Part:
    """A list in an answer, of which a restricted caller sees what it may name."""

    list: str
    fields: Sequence[Field]

    def __str__(self) -> str:
        return f"shows {self.list.replace('_', ' ')} within the scope"


@dataclass(frozen=True)
class Rule:
    """What a method asks of its caller."""

    role: Role
    """The least; Role.NONE: nobody is asked who they are."""
    fields: Sequence[Field] = ()
    """The resources of a request. Each must be within the caller's scope."""
    part: Part | None = None
    """What of an answer is shown."""

    def named(self, request: Any) -> Iterator[Named]:
        """The resources that a request names."""
        for field in self.fields:
            id = field.read(request)
            if id or not field.optional:
                yield Named(field.kind, id)


def _model(name: str, optional: bool = False) -> Field:
    return Field(name, "model", optional)


def _short(name: str, kind: Kind = "model", optional: bool = False) -> Field:
    return Short(name, kind, optional)


def _dataset(name: str, optional: bool = False) -> Field:
    return Field(name, "dataset", optional)


_OPERATION = (Field("name", "operation"),)
_EVALUATION = (Field("name", "evaluation"),)
_ROLLOUT = (Field("name", "rollout"),)
_MODELS = Part("models", [_model("name")])
_DATASETS = Part("datasets", [_dataset("name")])
_OPERATIONS = Part("operations", _OPERATION)
_EVALUATIONS = Part("evaluations", [_model("model_version"), _dataset("dataset_version")])

_LONGEST = 63

PUBLIC = Rule(Role.NONE)
"""For those who ask whether a server is up before they send it callers, such as load balancers, which hold no secret.
They learn yes or no."""

TYPED = Rule(Role.CALLER, [_short("model")])
"""Of each method of a task's own service, whoever wrote it."""

_ANYBODY = Rule(Role.VIEWER)
_ADMIN = Rule(Role.ADMIN)

RULES: Mapping[str, Rule] = {
    "/luthier.v1.TaskService/ListTasks": _ANYBODY,
    "/luthier.v1.TaskService/GetTask": _ANYBODY,
    "/luthier.v1.BaseService/ListBases": _ANYBODY,
    "/luthier.v1.BaseService/GetBase": _ANYBODY,
    "/luthier.v1.BaseService/SuggestBases": Rule(Role.VIEWER, [_dataset("dataset", optional=True)]),
    "/luthier.v1.BaseService/PullBase": Rule(Role.TUNER),
    "/luthier.v1.BaseService/ImportBase": Rule(Role.TUNER),
    # Bases are everybody's.
    "/luthier.v1.BaseService/DeleteBase": _ADMIN,
    "/luthier.v1.DatasetService/UploadFiles": Rule(Role.TUNER),
    "/luthier.v1.DatasetService/FindUpload": Rule(Role.TUNER),
    "/luthier.v1.DatasetService/CreateDataset": Rule(Role.TUNER, [_short("dataset_id", "dataset")]),
    "/luthier.v1.DatasetService/GetDataset": Rule(Role.VIEWER, [_dataset("name")]),
    "/luthier.v1.DatasetService/ListDatasets": Rule(Role.VIEWER, part=_DATASETS),
    "/luthier.v1.DatasetService/GetDatasetVersion": Rule(Role.VIEWER, [_dataset("name")]),
    "/luthier.v1.DatasetService/ListDatasetVersions": Rule(Role.VIEWER, [_dataset("parent")]),
    "/luthier.v1.DatasetService/DeleteDataset": Rule(Role.TUNER, [_dataset("name")]),
    "/luthier.v1.ModelService/FineTune": Rule(
        # A base is everybody's, unless it is a model to go on from.
        Role.TUNER,
        [_short("model_id"), _dataset("dataset"), _model("base", optional=True)],
    ),
    "/luthier.v1.ModelService/FineTuneFromFeedback": Rule(
        Role.TUNER, [_model("model"), OfFeedback("dataset_id", "dataset")]
    ),
    "/luthier.v1.ModelService/GetModel": Rule(Role.VIEWER, [_model("name")]),
    "/luthier.v1.ModelService/ListModels": Rule(Role.VIEWER, part=_MODELS),
    "/luthier.v1.ModelService/DeleteModel": Rule(Role.TUNER, [_model("name")]),
    "/luthier.v1.ModelService/GetModelVersion": Rule(Role.VIEWER, [_model("name")]),
    "/luthier.v1.ModelService/ListModelVersions": Rule(Role.VIEWER, [_model("parent")]),
    "/luthier.v1.ModelService/DeleteModelVersion": Rule(Role.TUNER, [_model("name")]),
    "/luthier.v1.ModelService/SetAlias": Rule(Role.TUNER, [_model("name"), _model("model_version")]),
    "/luthier.v1.ModelService/DeleteAlias": Rule(Role.TUNER, [_model("name")]),
    # Whoever has the bundle predicts without being asked again.
    "/luthier.v1.ModelService/DownloadVersion": Rule(Role.CALLER, [_model("name")]),
    "/luthier.v1.EvaluationService/Evaluate": Rule(Role.TUNER, [_model("model"), _dataset("dataset")]),
    "/luthier.v1.EvaluationService/GetEvaluation": Rule(Role.VIEWER, _EVALUATION),
    "/luthier.v1.EvaluationService/ListEvaluations": Rule(
        Role.VIEWER, [_model("model", optional=True), _dataset("dataset", optional=True)], _EVALUATIONS
    ),
    "/luthier.v1.EvaluationService/DownloadReport": Rule(Role.VIEWER, _EVALUATION),
    "/luthier.v1.PredictionService/Predict": TYPED,
    "/luthier.v1.PredictionService/StreamPredict": TYPED,
    "/luthier.v1.PredictionService/Render": TYPED,
    "/luthier.v1.PredictionService/RecordFeedback": Rule(Role.CALLER, [Id("prediction_id", "prediction")]),
    "/luthier.v1.BatchPredictionService/BatchPredict": Rule(Role.TUNER, [_model("model"), _dataset("dataset")]),
    "/luthier.v1.BatchPredictionService/DownloadPredictions": Rule(Role.CALLER, _OPERATION),
    "/luthier.v1.MonitoringService/GetDrift": Rule(Role.VIEWER, [_model("model")]),
    "/luthier.v1.MonitoringService/ListDriftWindows": Rule(Role.VIEWER, [_model("model")]),
    "/luthier.v1.OperationService/WatchOperation": Rule(Role.VIEWER, _OPERATION),
    "/luthier.v1.OperationService/PauseOperation": Rule(Role.TUNER, _OPERATION),
    "/luthier.v1.OperationService/ResumeOperation": Rule(Role.TUNER, _OPERATION),
    "/luthier.v1.RolloutService/StartRollout": Rule(Role.TUNER, [_model("alias")]),
    "/luthier.v1.RolloutService/GetRollout": Rule(Role.VIEWER, _ROLLOUT),
    "/luthier.v1.RolloutService/ListRollouts": Rule(
        Role.VIEWER, [_model("model", optional=True)], Part("rollouts", [_model("alias")])
    ),
    "/luthier.v1.RolloutService/UpdateRollout": Rule(Role.TUNER, _ROLLOUT),
    "/luthier.v1.RolloutService/StopRollout": Rule(Role.TUNER, _ROLLOUT),
    "/luthier.v1.RolloutService/WatchRollout": Rule(Role.VIEWER, _ROLLOUT),
    "/luthier.v1.TokenService/CreateToken": _ADMIN,
    "/luthier.v1.TokenService/ListTokens": _ADMIN,
    "/luthier.v1.TokenService/RevokeToken": _ADMIN,
    "/luthier.v1.AuditService/ListAuditEntries": _ADMIN,
    "/google.longrunning.Operations/GetOperation": Rule(Role.VIEWER, _OPERATION),
    "/google.longrunning.Operations/ListOperations": Rule(Role.VIEWER, part=_OPERATIONS),
    "/google.longrunning.Operations/WaitOperation": Rule(Role.VIEWER, _OPERATION),
    "/google.longrunning.Operations/CancelOperation": Rule(Role.TUNER, _OPERATION),
    "/google.longrunning.Operations/DeleteOperation": Rule(Role.TUNER, _OPERATION),
    "/inference.GRPCInferenceService/ServerLive": PUBLIC,
    "/inference.GRPCInferenceService/ServerReady": PUBLIC,
    "/inference.GRPCInferenceService/ServerMetadata": _ANYBODY,
    "/inference.GRPCInferenceService/ModelReady": Rule(Role.VIEWER, [_short("name")]),
    "/inference.GRPCInferenceService/ModelMetadata": Rule(Role.VIEWER, [_short("name")]),
    "/inference.GRPCInferenceService/ModelConfig": Rule(Role.VIEWER, [_short("name")]),
    "/inference.GRPCInferenceService/ModelStatistics": Rule(
        Role.VIEWER, [_short("name", optional=True)], Part("model_stats", [_short("name")])
    ),
    "/inference.GRPCInferenceService/ModelInfer": Rule(Role.CALLER, [Tensors("model_name", "model")]),
    "/inference.GRPCInferenceService/ModelStreamInfer": Rule(Role.CALLER, [Tensors("model_name", "model")]),
    "/inference.GRPCInferenceService/RepositoryIndex": Rule(Role.VIEWER, part=Part("models", [_short("name")])),
    "/inference.GRPCInferenceService/RepositoryModelLoad": Rule(Role.TUNER, [_short("model_name")]),
    "/inference.GRPCInferenceService/RepositoryModelUnload": Rule(Role.TUNER, [_short("model_name")]),
    "/grpc.health.v1.Health/Check": PUBLIC,
    # It holds a thread as long as it lasts, of which there is an end.
    "/grpc.health.v1.Health/Watch": _ANYBODY,
    "/grpc.health.v1.Health/List": _ANYBODY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _ANYBODY,
}

Resolve: TypeAlias = Callable[[Principal, Sequence[Named]], Sequence[bool]]
"""Says of each resource that is neither a model nor a data set whether a restricted principal may name it."""


class Policy:
    """The table with the methods of the tasks that a server has."""

    def __init__(self, tasks: Iterable[Task], resolve: Resolve) -> None:
        typed = {f"/{task.service.full_name}/{method.name}": TYPED for task in tasks for method in task.methods}
        # A task's service cannot take a method of the server's own under its rule.
        self.rules: Mapping[str, Rule] = {**typed, **RULES}
        self._resolve = resolve

    def rule(self, method: str, principal: Principal) -> Rule:
        """The rule of a method that a principal's role may call; raises PermissionDenied."""
        rule = self.rules.get(method)
        if rule is None:
            raise PermissionDenied(f"{method} is in no policy, so nobody may call it", method=method)
        if principal.role < rule.role:
            raise PermissionDenied(
                f"the role {principal.role} may not call {method}, which asks for {rule.role}",
                method=method,
                role=str(principal.role),
                needs=str(rule.role),
            )
        return rule

    def check(self, rule: Rule, principal: Principal, request: Any) -> None:
        """Raises PermissionDenied where a request names what is not within a principal's scope."""
        if not principal.is_restricted:
            return
        named = list(rule.named(request))
        for each, may in zip(named, self._may(principal, named), strict=True):
            if not may:
                raise PermissionDenied(f"{text(each)} is not within what this caller may name", resource=text(each))

    def shown(self, rule: Rule, principal: Principal, response: Any) -> Any:
        """An answer without what is not within a principal's scope. A page may be short for that, or empty."""
        if rule.part is None or not principal.is_restricted:
            return response
        items = getattr(response, rule.part.list)
        named = [Named(field.kind, field.read(item)) for item in items for field in rule.part.fields]
        may = self._may(principal, named)
        width = len(rule.part.fields)
        for index in reversed(range(len(items))):
            if not all(may[index * width : (index + 1) * width]):
                del items[index]
        return response

    def _may(self, principal: Principal, named: Sequence[Named]) -> list[bool]:
        scopes = {"model": principal.models, "dataset": principal.datasets}
        asked = [each for each in named if each.kind not in scopes]
        answers = iter(self._resolve(principal, asked) if asked else ())
        return [scopes[each.kind].has(each.id) if each.kind in scopes else next(answers) for each in named]


def text(named: Named) -> str:
    """`models/beer`, and no more of it than an id has."""
    return f"{named.kind}s/{named.id[:_LONGEST]}"


def table(rules: Mapping[str, Rule] = RULES) -> str:
    """The policy table as the documents show it."""
    rows = ["| method | asks for | of a caller with a scope |", "|---|---|---|"]
    for method, rule in rules.items():
        named = ", ".join(map(str, rule.fields))
        scope = "; ".join(filter(None, [f"within it: {named}" if named else "", str(rule.part or "")]))
        rows.append(f"| `{method[1:]}` | {rule.role if rule.role else 'nothing'} | {scope} |")
    rows.append(f"| each method of a task's own service | {TYPED.role} | within it: {TYPED.fields[0]} |")
    return "\n".join(rows)
