"""Predictions: the generic service, and the typed service of every task, bound from its descriptor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from luthier import feedback, names
from luthier.errors import FailedPrecondition, InvalidArgument
from luthier.inference.lanes import Caller
from luthier.inference.routing import Answer, Messages, Router
from luthier.inference.served import Served
from luthier.journal import Journal
from luthier.plugins import Plugins
from luthier.registry import Registry
from luthier.services.binding import Behavior
from luthier.task import Method, Task
from luthier.v1 import prediction_pb2, prediction_pb2_grpc

MOST_INSTANCES = 1024
"""Instances in one call; more belong into several calls, which can then share the cores."""


class PredictionService(prediction_pb2_grpc.PredictionServiceServicer):
    """Any in, Any out."""

    def __init__(self, router: Router, journal: Journal, registry: Registry, plugins: Plugins) -> None:
        self._router = router
        self._journal = journal
        self._registry = registry
        self._plugins = plugins

    def Predict(
        self, request: prediction_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> prediction_pb2.PredictResponse:
        """Predicts for the instances of a request."""
        answer = self._predict(request.model, request.instances, context)
        response = prediction_pb2.PredictResponse(model_version=answer.served.name, prediction_id=answer.id)
        for prediction in answer.result[1]:
            response.predictions.add().Pack(prediction)
        return response

    def StreamPredict(
        self, request: Iterator[prediction_pb2.PredictRequest], context: grpc.ServicerContext
    ) -> Iterator[prediction_pb2.PredictResponse]:
        """Answers requests in order."""
        for one in request:
            yield self.Predict(one, context)

    def Render(
        self, request: prediction_pb2.RenderRequest, context: grpc.ServicerContext
    ) -> prediction_pb2.RenderResponse:
        """Predicts for one instance and draws it."""
        answer = self._predict(request.model, [request.instance], context)
        ([instance], [prediction]), task = answer.result, answer.served.task
        picture = task.render(instance, prediction)
        if picture is None:
            raise FailedPrecondition(f"the task {task.id} draws no pictures of its predictions")
        response = prediction_pb2.RenderResponse(
            model_version=answer.served.name,
            picture=picture.content,
            media_type=picture.media_type,
            prediction_id=answer.id,
        )
        response.prediction.Pack(prediction)
        return response

    def RecordFeedback(
        self, request: prediction_pb2.RecordFeedbackRequest, context: grpc.ServicerContext
    ) -> prediction_pb2.RecordFeedbackResponse:
        """Joins what was true to a prediction, and to what shadows said of the same."""
        found = self._journal.find(request.prediction_id, request.index)
        model, _ = names.parse("models/{model}/versions/{number}", found[0].version)
        task = self._plugins.task(self._registry.model(model).task)
        values = [feedback.value_of(task, one, request.labels) for one in found]
        replaced = [self._journal.label(one, request.labels, value) for one, value in zip(found, values, strict=True)]
        return prediction_pb2.RecordFeedbackResponse(
            model_version=found[0].version, value=values[0], replaced=replaced[0]
        )

    def _predict(self, model: str, packed: Sequence[Any], context: grpc.ServicerContext) -> Answer[Messages]:
        def run(served: Served, caller: Caller) -> Messages:
            instances = unpack(served.task, packed)
            return instances, _predict(served, instances, caller)

        return self._router.answer(model, caller_of(context), run, _all)


def _all(messages: Messages) -> Messages:
    return messages


def unpack(task: Task, packed: Sequence[Any]) -> list[Message]:
    """The instances in a list of Any; raises InvalidArgument for every one of another type or of broken bytes."""
    _check_count(packed)
    kinds = {method.instance.DESCRIPTOR.full_name: method.instance for method in task.methods}
    instances: list[Message] = []
    violations = {}
    for index, one in enumerate(packed):
        name = one.type_url.rpartition("/")[2]
        try:
            instances.append(kinds[name].FromString(one.value))
        except KeyError:
            violations[f"instances[{index}]"] = f"a {name or 'message without type'}, not a {' or '.join(kinds)}"
        except DecodeError:
            violations[f"instances[{index}]"] = f"bytes that are no {name}"
    if violations:
        raise InvalidArgument(violations)
    return instances


def typed_behavior(router: Router, task: Task, method: Method) -> Behavior:
    """The function of one method of a task's own service."""
    # A third party's response may lack it.
    has_id = "prediction_id" in method.response.DESCRIPTOR.fields_by_name

    def predict(request: Message, context: grpc.ServicerContext) -> Message:
        instances: Sequence[Message] = request.instances  # type: ignore[attr-defined]

        def run(served: Served, caller: Caller) -> Sequence[Message]:
            if served.task.id != task.id:
                raise InvalidArgument({"model": f"{served.name} is of the task {served.task.id}, not {task.id}"})
            return _predict(served, instances, caller)

        def messages(predictions: Sequence[Message]) -> Messages:
            return instances, predictions

        name: str = request.model  # type: ignore[attr-defined]
        served, predictions, id = router.answer(name, caller_of(context), run, messages)
        if has_id:
            return method.response(model_version=served.name, predictions=predictions, prediction_id=id)
        return method.response(model_version=served.name, predictions=predictions)

    return predict


def typed_handler(router: Router, task: Task) -> grpc.GenericRpcHandler:
    """All unary methods of a task's own service."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            typed_behavior(router, task, method),
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )
        for method in task.methods
    }
    return grpc.method_handlers_generic_handler(task.service.full_name, handlers)


def caller_of(context: grpc.ServicerContext) -> Caller:
    """Who waits for the answer to a call."""
    return Caller(context.time_remaining(), context.is_active)


def _check_count(instances: Sequence[Message]) -> None:
    if not instances:
        raise InvalidArgument({"instances": "there are none"})
    if len(instances) > MOST_INSTANCES:
        raise InvalidArgument({"instances": f"{len(instances)} in one call; at most {MOST_INSTANCES} are taken"})


def _predict(served: Served, instances: Sequence[Message], caller: Caller) -> list[Message]:
    _check_count(instances)
    return served.predict(instances, caller)
