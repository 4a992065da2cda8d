"""TaskService."""

from __future__ import annotations

import grpc

from luthier import fields, names, paging
from luthier.plugins import LoadedTask, Plugins
from luthier.v1 import task_pb2, task_pb2_grpc


class TaskService(task_pb2_grpc.TaskServiceServicer):
    """What the plugins bring."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    def ListTasks(
        self, request: task_pb2.ListTasksRequest, context: grpc.ServicerContext
    ) -> task_pb2.ListTasksResponse:
        """A page of tasks, and all failures."""
        size, key = paging.size_of(request.page_size), paging.key_of(request.page_token, str)
        ids = [id for id in self._plugins.loaded if key is None or id > key[0]]
        return task_pb2.ListTasksResponse(
            tasks=[to_proto(self._plugins.loaded[id]) for id in ids[:size]],
            next_page_token=paging.token_of(ids[size - 1]) if len(ids) > size else "",
            failed_plugins=[task_pb2.PluginFailure(plugin=f.plugin, reason=f.reason) for f in self._plugins.failures],
        )

    def GetTask(self, request: task_pb2.GetTaskRequest, context: grpc.ServicerContext) -> task_pb2.Task:
        """One task."""
        id = names.parse("tasks/{task}", request.name)[0]
        self._plugins.task(id)
        return to_proto(self._plugins.loaded[id])


def to_proto(loaded: LoadedTask) -> task_pb2.Task:
    """A task as the API shows it."""
    task = loaded.task
    return task_pb2.Task(
        name=f"tasks/{task.id}",
        title=task.title,
        description=task.description,
        service=task.service.full_name,
        methods=[
            task_pb2.TaskMethod(
                method=method.name,
                instance_type=method.instance.DESCRIPTOR.full_name,
                prediction_type=method.prediction.DESCRIPTOR.full_name,
            )
            for method in task.methods
        ],
        config_type=task.config.DESCRIPTOR.full_name,
        config_fields=fields.describe(task.config),
        example_type=task.example.DESCRIPTOR.full_name,
        columns=fields.describe(task.example),
        formats=task.formats,
        extra_files=task.extra_files,
        splits=task.splits,
        bases=[f"bases/{base}" for base in task.bases],
        primary_metric=task.primary_metric,
        lower_is_better=task.lower_is_better,
        distribution=loaded.distribution,
        distribution_version=loaded.version,
        read_options=[
            task_pb2.TaskField(
                field=name, type="string", help=option.help, default=option.default, choices=option.choices
            )
            for name, option in task.read_options.items()
        ],
    )
