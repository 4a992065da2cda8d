"""Predictions: the generic service, and the typed service of every task, bound from its descriptor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from luthier.errors import FailedPrecondition, InvalidArgument
from luthier.inference.lanes import Caller
from luthier.inference.pool import ModelPool
from luthier.inference.served import Served
from luthier.services.binding import Behavior
from luthier.task import Method, Task
from luthier.v1 import prediction_pb2, prediction_pb2_grpc

MOST_INSTANCES = 1024
"""Instances in one call; more belong into several calls, which can then share the cores."""


class PredictionService(prediction_pb2_grpc.PredictionServiceServicer):
    """Any in, Any out."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def Predict(
        self, request: prediction_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> prediction_pb2.PredictResponse:
        """Predicts for the instances of a request."""
        served = self._pool.get(request.model)
        response = prediction_pb2.PredictResponse(model_version=served.name)
        for prediction in _predict(served, unpack(served.task, request.instances), context):
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
        served = self._pool.get(request.model)
        [instance] = unpack(served.task, [request.instance])
        [prediction] = _predict(served, [instance], context)
        picture = served.task.render(instance, prediction)
        if picture is None:
            raise FailedPrecondition(f"the task {served.task.id} draws no pictures of its predictions")
        response = prediction_pb2.RenderResponse(
            model_version=served.name, picture=picture.content, media_type=picture.media_type
        )
        response.prediction.Pack(prediction)
        return response


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


def typed_behavior(pool: ModelPool, task: Task, method: Method) -> Behavior:
    """The function of one method of a task's own service."""

    def predict(request: Message, context: grpc.ServicerContext) -> Message:
        served = pool.get(request.model)  # type: ignore[attr-defined]
        if served.task.id != task.id:
            raise InvalidArgument({"model": f"{served.name} is of the task {served.task.id}, not {task.id}"})
        predictions = _predict(served, request.instances, context)  # type: ignore[attr-defined]
        return method.response(model_version=served.name, predictions=predictions)

    return predict


def typed_handler(pool: ModelPool, task: Task) -> grpc.GenericRpcHandler:
    """All unary methods of a task's own service."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            typed_behavior(pool, task, method),
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


def _predict(served: Served, instances: Sequence[Message], context: grpc.ServicerContext) -> list[Message]:
    _check_count(instances)
    return served.predict(instances, caller_of(context))
