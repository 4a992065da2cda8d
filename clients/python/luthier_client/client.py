"""The client for programs that use threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.message import Message

from luthier.v1 import (
    access_pb2,
    access_pb2_grpc,
    base_pb2,
    base_pb2_grpc,
    batch_prediction_pb2,
    batch_prediction_pb2_grpc,
    dataset_pb2,
    dataset_pb2_grpc,
    evaluation_pb2,
    evaluation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    monitoring_pb2,
    monitoring_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)
from luthier_client import channels, names, requests, transfer
from luthier_client.errors import Unavailable, translated
from luthier_client.operation import Operation
from luthier_client.requests import Files, Instance, Metadata, PathLike, Predictions, Rendered
from luthier_client.schema import Schema


class Client:
    """A client of the Luthier server at `host:port`. Thread-safe; a context manager.

    Models are named `beer`, `beer@production` or `beer/3`, data sets `banking` or `banking/2`; whole resource names do
    as well. `timeout` is the deadline of a single call in seconds; uploads, downloads and watches have none. Calls that
    find the server unavailable are tried again for a few seconds; no operation is started twice by that.

    With `ca`, a PEM file of the authority that signed the server's certificate, the connection has TLS; `cert` and
    `key` are the client's own, for a server that wants them. An address that begins with `https://` has TLS with the
    authorities that everybody trusts. `token` goes along with every call, over TLS or to this machine alone.

    Every call raises a LuthierClientError where it does not succeed.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        ca: PathLike | None = None,
        cert: PathLike | None = None,
        key: PathLike | None = None,
        token: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Raises ValueError for files that do not hold what they should, and for a token that others could read."""
        target = channels.target(address, ca=ca, cert=cert, key=key, token=token, credentials=credentials)
        self.channel = channels.connect(target)
        """For the stubs of a task's own service."""
        self.timeout = timeout
        self.schema = Schema(self.channel)
        self._audit = access_pb2_grpc.AuditServiceStub(self.channel)
        self._tokens = access_pb2_grpc.TokenServiceStub(self.channel)
        self._bases = base_pb2_grpc.BaseServiceStub(self.channel)
        self._datasets = dataset_pb2_grpc.DatasetServiceStub(self.channel)
        self._evaluations = evaluation_pb2_grpc.EvaluationServiceStub(self.channel)
        self._batch_predictions = batch_prediction_pb2_grpc.BatchPredictionServiceStub(self.channel)
        self._models = model_pb2_grpc.ModelServiceStub(self.channel)
        self._monitoring = monitoring_pb2_grpc.MonitoringServiceStub(self.channel)
        self._operations = operations_pb2_grpc.OperationsStub(self.channel)
        self._predictions = prediction_pb2_grpc.PredictionServiceStub(self.channel)
        self._rollouts = rollout_pb2_grpc.RolloutServiceStub(self.channel)
        self._tasks = task_pb2_grpc.TaskServiceStub(self.channel)
        self.operation_stub = operation_pb2_grpc.OperationServiceStub(self.channel)

    def close(self) -> None:
        """Closes the channel; calls under way end with Cancelled."""
        self.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Tasks.

    def list_tasks(self) -> Iterator[task_pb2.Task]:
        """The tasks that the server can tune models for."""
        return self._pages(self._tasks.ListTasks, task_pb2.ListTasksRequest(), "tasks")

    def list_failed_plugins(self) -> list[task_pb2.PluginFailure]:
        """The plugins that the server found and could not load."""
        return list(self._call(self._tasks.ListTasks, task_pb2.ListTasksRequest(page_size=1)).failed_plugins)

    def get_task(self, task: str) -> task_pb2.Task:
        """One task with its config, messages and formats."""
        found: task_pb2.Task = self._call(
            self._tasks.GetTask, task_pb2.GetTaskRequest(name=names.resource("tasks", task))
        )
        return found

    # Bases.

    def list_bases(self, task: str = "") -> Iterator[base_pb2.Base]:
        """The catalogue of bases, or those that suit a task."""
        return self._pages(self._bases.ListBases, base_pb2.ListBasesRequest(task=task), "bases")

    def get_base(self, base: str) -> base_pb2.Base:
        """One base."""
        found: base_pb2.Base = self._call(
            self._bases.GetBase, base_pb2.GetBaseRequest(name=names.resource("bases", base))
        )
        return found

    def pull_base(self, base: str) -> Operation[base_pb2.Base]:
        """Has the server fetch the files of a base."""
        request = base_pb2.PullBaseRequest(name=names.resource("bases", base), request_id=requests.request_id())
        return Operation(self, self._call(self._bases.PullBase, request))

    def import_base(
        self,
        base_id: str,
        *,
        architecture: str,
        weights: PathLike,
        files: Mapping[str, PathLike] | None = None,
        tasks: Sequence[str] = (),
        title: str = "",
        license: str = "",
        preprocessing: base_pb2.Preprocessing | None = None,
        languages: Sequence[str] = (),
    ) -> Operation[base_pb2.Base]:
        """Uploads a checkpoint of your own and makes it a base to start from.

        `architecture` is a model of timm or torchvision, or the class of a Hugging Face encoder, whose `config.json`
        and `tokenizer.json` then belong into `files`, by their path within the base. `preprocessing` holds what is not
        as usual for the architecture. The Base's `import_report` says what matched.
        """
        uploads = {path: self.upload(file) for path, file in (files or {}).items()}
        request = requests.import_base(
            base_id,
            self.upload(weights),
            uploads,
            architecture=architecture,
            tasks=tasks,
            title=title,
            license=license,
            preprocessing=preprocessing,
            languages=languages,
        )
        return Operation(self, self._call(self._bases.ImportBase, request))

    def delete_base(self, base: str) -> None:
        """Deletes a base that was imported."""
        self._call(self._bases.DeleteBase, base_pb2.DeleteBaseRequest(name=names.resource("bases", base)))

    def suggest_bases(
        self,
        task: str,
        *,
        dataset: str = "",
        max_latency_ms: float = 0.0,
        max_size_mb: float = 0.0,
        language: str = "",
        greyscale: bool = False,
        size: int = 0,
        max_results: int = 0,
    ) -> base_pb2.SuggestBasesResponse:
        """Ranks the bases for a task, the data and a budget, each with reasons, and says why others were left out."""
        request = base_pb2.SuggestBasesRequest(
            task=task,
            dataset=names.dataset(dataset) if dataset else "",
            max_latency_ms=max_latency_ms,
            max_size_mb=max_size_mb,
            language=language,
            greyscale=greyscale,
            size=size,
            max_results=max_results,
        )
        found: base_pb2.SuggestBasesResponse = self._call(self._bases.SuggestBases, request)
        return found

    # Data sets.

    def upload(self, path: PathLike) -> dataset_pb2.Upload:
        """Sends a file, or a folder as a zip, checked by SHA-256, and returns what the server calls it.

        What the server holds of it already is not sent again, and an upload that breaks goes on where it broke.
        """
        with transfer.as_file(Path(path)) as file:
            header = transfer.upload_header(file)
            patience = transfer.Patience()
            while True:
                try:
                    header.offset = self._call(self._datasets.FindUpload, requests.find_upload(header)).received_bytes
                    with translated():
                        sent: dataset_pb2.Upload = self._datasets.UploadFiles(transfer.upload_messages(file, header))
                        return sent
                except Unavailable as error:
                    time.sleep(patience.after(error, header.offset))

    def create_dataset(
        self,
        dataset_id: str,
        files: Files,
        *,
        task: str,
        format: str = "",
        columns: Mapping[str, str] | None = None,
        no_header: bool = False,
        split: dataset_pb2.Split | None = None,
        options: Mapping[str, str] | None = None,
        strictness: dataset_pb2.Strictness.ValueType = dataset_pb2.STRICTNESS_USUAL,
    ) -> Operation[dataset_pb2.DatasetVersion]:
        """Uploads files and makes them the next version of a data set.

        `files` is one path, or paths by role: `train`, `validation`, `test`, `` to be split, or a further role of the
        task such as `titles`. A path may be a folder, which goes up as a zip. `columns` names the column of the file
        for a field of the example where they differ; `options` says how to read the files, by the names of the task's
        `read_options`; `strictness` what is refused and what is only warned of.
        """
        uploads = [(role, self.upload(path)) for role, path in requests.files_by_role(files)]
        request = requests.create_dataset(
            dataset_id,
            uploads,
            task=task,
            format=format,
            columns=columns,
            no_header=no_header,
            split=split,
            options=options,
            strictness=strictness,
        )
        return Operation(self, self._call(self._datasets.CreateDataset, request))

    def get_dataset(self, dataset: str) -> dataset_pb2.Dataset:
        """A data set with its newest version."""
        request = dataset_pb2.GetDatasetRequest(name=names.dataset(dataset))
        found: dataset_pb2.Dataset = self._call(self._datasets.GetDataset, request)
        return found

    def list_datasets(self, task: str = "") -> Iterator[dataset_pb2.Dataset]:
        """All data sets, or those of a task."""
        return self._pages(self._datasets.ListDatasets, dataset_pb2.ListDatasetsRequest(task=task), "datasets")

    def get_dataset_version(self, version: str) -> dataset_pb2.DatasetVersion:
        """One version, such as `banking/2`."""
        request = dataset_pb2.GetDatasetVersionRequest(name=names.dataset(version))
        found: dataset_pb2.DatasetVersion = self._call(self._datasets.GetDatasetVersion, request)
        return found

    def list_dataset_versions(self, dataset: str) -> Iterator[dataset_pb2.DatasetVersion]:
        """The versions of a data set, newest first."""
        request = dataset_pb2.ListDatasetVersionsRequest(parent=names.dataset(dataset))
        return self._pages(self._datasets.ListDatasetVersions, request, "dataset_versions")

    def delete_dataset(self, dataset: str) -> None:
        """Deletes a data set with all its versions."""
        self._call(self._datasets.DeleteDataset, dataset_pb2.DeleteDatasetRequest(name=names.dataset(dataset)))

    # Models.

    def fine_tune(
        self,
        model_id: str,
        *,
        task: str,
        dataset: str,
        base: str = "",
        config: Message | Mapping[str, Any] | None = None,
        seed: int = 0,
        parity_tolerance: float | None = None,
        int8: bool = False,
        int8_tolerance: float | None = None,
    ) -> Operation[model_pb2.ModelVersion]:
        """Tunes, proves and publishes the next version of a model, which is made where it does not exist.

        `base` is an entry of the catalogue (`minilm-l6`) or a model version (`beer/3`); empty: the task's default.
        `config` is a message of the task's config type or its fields; those left out take their defaults.
        With `int8` the version serves 8-bit weights where its primary metric falls by at most `int8_tolerance` (0.01
        where None; a number asks for int8 by itself). The version's `variants` say what was measured.
        """
        config_type = self.get_task(task).config_type if isinstance(config, Mapping) else ""
        request = requests.fine_tune(
            model_id,
            task=task,
            dataset=dataset,
            base=base,
            config=None if config is None else self.schema.pack(config, config_type, "config"),
            seed=seed,
            parity_tolerance=parity_tolerance,
            int8=int8,
            int8_tolerance=int8_tolerance,
        )
        return Operation(self, self._call(self._models.FineTune, request))

    def fine_tune_from_feedback(
        self,
        model: str,
        *,
        dataset_id: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        feedback_only: bool = False,
        config: Message | Mapping[str, Any] | None = None,
        seed: int = 0,
        parity_tolerance: float | None = None,
        int8: bool = False,
        int8_tolerance: float | None = None,
    ) -> Operation[model_pb2.ModelVersion]:
        """Tunes a version further on its live predictions whose labels came back, and publishes the next version.

        They become a version of the data set `dataset_id` (`{model}-feedback` where that is empty), joined with what
        the version was tuned on unless it is to be `feedback_only`. `since` and `until` bound the time; without them
        all count since the version was published. The config is the version's own where none is given.
        """
        config_type = self.get_task(self.get_model(model).task).config_type if isinstance(config, Mapping) else ""
        request = requests.fine_tune_from_feedback(
            model,
            dataset_id=dataset_id,
            since=since,
            until=until,
            feedback_only=feedback_only,
            config=None if config is None else self.schema.pack(config, config_type, "config"),
            seed=seed,
            parity_tolerance=parity_tolerance,
            int8=int8,
            int8_tolerance=int8_tolerance,
        )
        return Operation(self, self._call(self._models.FineTuneFromFeedback, request))

    def get_model(self, model: str) -> model_pb2.Model:
        """A model with its aliases and its newest version."""
        found: model_pb2.Model = self._call(self._models.GetModel, model_pb2.GetModelRequest(name=names.parent(model)))
        return found

    def list_models(self, task: str = "") -> Iterator[model_pb2.Model]:
        """All models, or those of a task."""
        return self._pages(self._models.ListModels, model_pb2.ListModelsRequest(task=task), "models")

    def delete_model(self, model: str) -> None:
        """Deletes a model with its versions and aliases."""
        self._call(self._models.DeleteModel, model_pb2.DeleteModelRequest(name=names.model(model)))

    def resolve_version(self, model: str) -> str:
        """The name of the version that `beer`, `beer@production` or `beer/3` stands for at present."""
        resource = names.model(model)
        return resource if "/versions/" in resource else requests.find_version(self.get_model(model), resource)

    def get_model_version(self, model: str) -> model_pb2.ModelVersion:
        """The version that a name stands for."""
        request = model_pb2.GetModelVersionRequest(name=self.resolve_version(model))
        found: model_pb2.ModelVersion = self._call(self._models.GetModelVersion, request)
        return found

    def list_model_versions(self, model: str) -> Iterator[model_pb2.ModelVersion]:
        """The versions of a model, newest first."""
        request = model_pb2.ListModelVersionsRequest(parent=names.model(model))
        return self._pages(self._models.ListModelVersions, request, "model_versions")

    def delete_model_version(self, version: str) -> None:
        """Deletes a version, such as `beer/3`, that no alias names."""
        self._call(self._models.DeleteModelVersion, model_pb2.DeleteModelVersionRequest(name=names.model(version)))

    def set_alias(
        self, model: str, alias: str, version: int, recording: model_pb2.Recording | None = None
    ) -> model_pb2.Alias:
        """Points an alias of a model at a version: promotes, or rolls back."""
        request = model_pb2.SetAliasRequest(
            name=names.alias(model, alias), model_version=names.version(model, version), recording=recording
        )
        changed: model_pb2.Alias = self._call(self._models.SetAlias, request)
        return changed

    def delete_alias(self, model: str, alias: str) -> None:
        """Removes an alias of a model."""
        self._call(self._models.DeleteAlias, model_pb2.DeleteAliasRequest(name=names.alias(model, alias)))

    def download_version(self, model: str, directory: PathLike) -> Path:
        """Writes the bundle of a version into a folder, each file checked by SHA-256, and returns the folder."""
        directory = Path(directory)
        request = model_pb2.DownloadVersionRequest(name=self.resolve_version(model))
        with translated(), transfer.Download(directory) as download:
            for message in self._models.DownloadVersion(request):
                download.take(message)
        return directory

    # Evaluations.

    def evaluate(self, model: str, *, dataset: str, split: str = "") -> Operation[evaluation_pb2.Evaluation]:
        """Scores a served version on a part of a data set; `split` is `train`, `validation` or, where empty, `test`."""
        request = requests.evaluate(model, dataset=dataset, split=split)
        return Operation(self, self._call(self._evaluations.Evaluate, request))

    def get_evaluation(self, evaluation: str) -> evaluation_pb2.Evaluation:
        """One evaluation."""
        request = evaluation_pb2.GetEvaluationRequest(name=names.resource("evaluations", evaluation))
        found: evaluation_pb2.Evaluation = self._call(self._evaluations.GetEvaluation, request)
        return found

    def list_evaluations(self, model: str = "", dataset: str = "") -> Iterator[evaluation_pb2.Evaluation]:
        """Evaluations, newest first: all, or those of a model or version, or those on a data set or version.

        They come without curves; `get_evaluation` has them.
        """
        request = evaluation_pb2.ListEvaluationsRequest(
            model=names.model(model) if model else "", dataset=names.dataset(dataset) if dataset else ""
        )
        return self._pages(self._evaluations.ListEvaluations, request, "evaluations")

    def download_report(self, evaluation: str, path: PathLike) -> Path:
        """Writes the report of an evaluation, an HTML page that stands alone, to a file, and returns its path."""
        request = evaluation_pb2.DownloadReportRequest(name=names.resource("evaluations", evaluation))
        with translated(), transfer.whole(Path(path)) as file:
            for message in self._evaluations.DownloadReport(request):
                file.write(message.chunk)
        return Path(path)

    # Watching what is live.

    def get_drift(
        self, model: str, *, window: timedelta = timedelta(days=1), end: datetime | None = None
    ) -> monitoring_pb2.Drift:
        """Compares the live predictions of a window, which ends now where no end is given, with the test part's."""
        found: monitoring_pb2.Drift = self._call(self._monitoring.GetDrift, requests.drift(model, window, end))
        return found

    def list_drift_windows(self, model: str) -> Iterator[monitoring_pb2.Drift]:
        """What the server found by itself, newest first, with the features that moved."""
        request = monitoring_pb2.ListDriftWindowsRequest(model=names.model(model))
        return self._pages(self._monitoring.ListDriftWindows, request, "windows")

    # Batch predictions.

    def batch_predict(
        self, model: str, *, dataset: str, split: str = ""
    ) -> Operation[batch_prediction_pb2.BatchPrediction]:
        """Predicts for each example of a part of a data set; `split` is `train`, `validation` or, where empty, `test`.

        What comes of it is kept at the server as long as the operation: `download_predictions` brings it.
        """
        request = requests.batch_predict(model, dataset=dataset, split=split)
        return Operation(self, self._call(self._batch_predictions.BatchPredict, request))

    def download_predictions(self, operation: str, path: PathLike) -> Path:
        """Writes what a batch prediction came to, JSON lines, to a file, and returns its path."""
        name = names.resource("operations", operation)
        request = batch_prediction_pb2.DownloadPredictionsRequest(name=name)
        with translated(), transfer.whole(Path(path)) as file:
            for message in self._batch_predictions.DownloadPredictions(request):
                file.write(message.chunk)
        return Path(path)

    # Rollouts.

    def start_rollout(
        self,
        model: str,
        candidate: int | None,
        *,
        percent: float = 0.0,
        shadows: Sequence[int] = (),
        rule: rollout_pb2.RolloutRule | None = None,
        recording: model_pb2.Recording | None = None,
    ) -> rollout_pb2.Rollout:
        """Tries a version beside the one that `beer` or `beer@alias` names: it answers so many percent of the calls.

        Feedback decides, by `rule`; see `record_feedback`. Shadows predict for the same calls without being heard.
        """
        request = requests.start_rollout(model, candidate, percent, shadows, rule, recording)
        started: rollout_pb2.Rollout = self._call(self._rollouts.StartRollout, request)
        return started

    def get_rollout(self, rollout: str) -> rollout_pb2.Rollout:
        """A rollout with the figures of both sides."""
        request = rollout_pb2.GetRolloutRequest(name=names.resource("rollouts", rollout))
        found: rollout_pb2.Rollout = self._call(self._rollouts.GetRollout, request)
        return found

    def list_rollouts(self, model: str = "") -> Iterator[rollout_pb2.Rollout]:
        """Rollouts, newest first, without figures: all, or those of a model."""
        request = rollout_pb2.ListRolloutsRequest(model=names.parent(model) if model else "")
        return self._pages(self._rollouts.ListRollouts, request, "rollouts")

    def update_rollout(
        self, rollout: str, *, percent: float | None = None, paused: bool | None = None
    ) -> rollout_pb2.Rollout:
        """Changes the candidate's share of the calls, pauses a rollout, or has it go on."""
        name = names.resource("rollouts", rollout)
        request = rollout_pb2.UpdateRolloutRequest(name=name, percent=percent, paused=paused)
        changed: rollout_pb2.Rollout = self._call(self._rollouts.UpdateRollout, request)
        return changed

    def stop_rollout(self, rollout: str, *, promote: bool, reason: str = "") -> rollout_pb2.Rollout:
        """Ends a rollout: the alias goes to the candidate, or stays where it is."""
        request = requests.stop_rollout(rollout, promote=promote, reason=reason)
        ended: rollout_pb2.Rollout = self._call(self._rollouts.StopRollout, request)
        return ended

    def watch_rollout(self, rollout: str, after: int = 0) -> Iterator[rollout_pb2.RolloutEvent]:
        """The events of a rollout behind a sequence number, as they come, until it is over."""
        name = names.resource("rollouts", rollout)
        with translated():
            yield from self._rollouts.WatchRollout(rollout_pb2.WatchRolloutRequest(name=name, after_sequence=after))

    # Operations.

    def get_operation(self, operation: str) -> Operation[Any]:
        """The handle of an operation."""
        request = operations_pb2.GetOperationRequest(name=names.resource("operations", operation))
        return Operation(self, self._call(self._operations.GetOperation, request))

    def list_operations(self) -> Iterator[Operation[Any]]:
        """The handles of all operations, newest first."""
        request = operations_pb2.ListOperationsRequest(name="operations")
        for proto in self._pages(self._operations.ListOperations, request, "operations"):
            yield Operation(self, proto)

    def wait_operation(self, operation: str, timeout: float) -> Operation[Any]:
        """The handle of an operation once it has ended, or as it stands after so many seconds."""
        request = operations_pb2.WaitOperationRequest(name=names.resource("operations", operation))
        request.timeout.FromMilliseconds(int(timeout * 1000))
        return Operation(self, self._call(self._operations.WaitOperation, request, timeout + self.timeout))

    def cancel_operation(self, operation: str) -> None:
        """Asks an operation to end."""
        request = operations_pb2.CancelOperationRequest(name=names.resource("operations", operation))
        self._call(self._operations.CancelOperation, request)

    def pause_operation(self, operation: str) -> Operation[Any]:
        """Holds an operation until it is resumed; the worker of a running one is asked to save where it stands."""
        request = operation_pb2.PauseOperationRequest(name=names.resource("operations", operation))
        return Operation(self, self._call(self.operation_stub.PauseOperation, request))

    def resume_operation(self, operation: str) -> Operation[Any]:
        """Puts an operation that is held back into the queue; a training goes on where it stood."""
        request = operation_pb2.ResumeOperationRequest(name=names.resource("operations", operation))
        return Operation(self, self._call(self.operation_stub.ResumeOperation, request))

    def delete_operation(self, operation: str) -> None:
        """Has the server forget an operation that has ended."""
        request = operations_pb2.DeleteOperationRequest(name=names.resource("operations", operation))
        self._call(self._operations.DeleteOperation, request)

    # Tokens, and who changed what: for administrators.

    def create_token(
        self,
        principal: str,
        *,
        role: access_pb2.Role.ValueType,
        models: Sequence[str] = (),
        datasets: Sequence[str] = (),
        expire_time: datetime | None = None,
    ) -> access_pb2.CreateTokenResponse:
        """Makes a static token; its `secret` is in this answer and nowhere else.

        `models` and `datasets` are ids or patterns such as `shop-*`; none: all. `expire_time` has a time zone.
        """
        request = requests.create_token(principal, role=role, models=models, datasets=datasets, expire_time=expire_time)
        found: access_pb2.CreateTokenResponse = self._call(self._tokens.CreateToken, request)
        return found

    def list_tokens(self) -> Iterator[access_pb2.Token]:
        """All tokens without their secrets, newest first."""
        return self._pages(self._tokens.ListTokens, access_pb2.ListTokensRequest(), "tokens")

    def revoke_token(self, token: str) -> access_pb2.Token:
        """Ends a token."""
        request = access_pb2.RevokeTokenRequest(name=names.resource("tokens", token))
        found: access_pb2.Token = self._call(self._tokens.RevokeToken, request)
        return found

    def list_audit_entries(
        self, *, principal: str = "", method: str = "", resource: str = "", start_time: datetime | None = None
    ) -> Iterator[access_pb2.AuditEntry]:
        """Calls that changed something, or were to, newest first: all, or of a principal, a method, a resource."""
        request = requests.list_audit_entries(
            principal=principal, method=method, resource=resource, start_time=start_time
        )
        return self._pages(self._audit.ListAuditEntries, request, "audit_entries")

    # Predictions.

    def predict(
        self,
        model: str,
        instances: Sequence[Instance],
        *,
        method: str = "",
        timeout: float | None = None,
        key: str = "",
        record: str = "",
    ) -> Predictions:
        """Predicts for instances: messages of an instance type of the model's task, or their fields.

        Fields alone are taken for those of `method`, the task's first one where it is empty. `key` says whom the call
        is for: it stays with one side of a rollout. `record` is `off` where nothing may be kept of the call, or
        `predictions` where its inputs may not.
        """
        task_method = self._method(model, method) if requests.needs_method(instances) else None
        request = requests.predict(model, instances, task_method, self.schema)
        return Predictions(
            self._call(self._predictions.Predict, request, timeout, requests.metadata(key, record)), self.schema
        )

    def stream_predict(self, model: str, batches: Iterable[Sequence[Message]]) -> Iterator[Predictions]:
        """Predicts for each batch of messages, in order, over one stream."""
        stream = (requests.predict(model, batch, None, self.schema) for batch in batches)
        with translated():
            for response in self._predictions.StreamPredict(stream):
                yield Predictions(response, self.schema)

    def render(self, model: str, instance: Instance, *, method: str = "", timeout: float | None = None) -> Rendered:
        """Predicts for one instance and has the server draw the prediction."""
        task_method = self._method(model, method) if requests.needs_method([instance]) else None
        request = requests.render(model, instance, task_method, self.schema)
        response: prediction_pb2.RenderResponse = self._call(self._predictions.Render, request, timeout)
        prediction = self.schema.unpack(response.prediction)
        return Rendered(
            prediction, response.model_version, response.picture, response.media_type, response.prediction_id
        )

    def record_feedback(
        self, model: str, prediction_id: str, labels: Sequence[Instance], *, index: int = 0
    ) -> prediction_pb2.RecordFeedbackResponse:
        """Says what was true for a prediction: `prediction_id` is that of the answer, `index` the instance's place.

        `labels` are messages of the task's example type, or their fields, without the inputs.
        """
        example = self.get_task(self.get_model(model).task).example_type if requests.needs_method(labels) else ""
        request = requests.record_feedback(prediction_id, index, labels, example, self.schema)
        recorded: prediction_pb2.RecordFeedbackResponse = self._call(self._predictions.RecordFeedback, request)
        return recorded

    def _method(self, model: str, name: str) -> task_pb2.TaskMethod:
        return requests.find_method(self.get_task(self.get_model(model).task), name)

    def _call(
        self, method: Callable[..., Any], request: Message, timeout: float | None = None, metadata: Metadata = ()
    ) -> Any:
        with translated():
            return method(request, timeout=self.timeout if timeout is None else timeout, metadata=metadata)

    def _pages(self, method: Callable[..., Any], request: Any, field: str) -> Iterator[Any]:
        """The entries of all pages."""
        while True:
            page = self._call(method, request)
            yield from getattr(page, field)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
