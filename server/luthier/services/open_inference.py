"""The Open Inference Protocol, and the calls of Triton's that its client tools make, over the same models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass

from luthier import names
from luthier.errors import InvalidArgument, LuthierError
from luthier.inference import tensors
from luthier.inference.faces import Face
from luthier.inference.lanes import Caller
from luthier.inference.pool import ModelPool
from luthier.inference.routing import Messages, Router
from luthier.inference.served import Served
from luthier.inference.tensors import Request, Tensor
from luthier.logs import unexpected
from luthier.oip.v2 import open_inference_pb2 as pb
from luthier.services.prediction import MOST_INSTANCES, caller_of

PREDICTION_ID = "prediction_id"
"""The parameter of an answer that `RecordFeedback` takes."""

INSTANCES = ".instances"
"""What follows a model's name for the fields of its task's messages instead of the tensors of its graph."""

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
"""Those of Triton's extensions of the protocol that are spoken."""

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")


class OpenInferenceService:
    """Tensors in, tensors out."""

    def __init__(self, pool: ModelPool, router: Router, is_ready: Callable[[], bool]) -> None:
        """`is_ready` says whether the server takes predictions."""
        self._pool = pool
        self._router = router
        self._is_ready = is_ready

    def ServerLive(self, request: pb.ServerLiveRequest, context: grpc.ServicerContext) -> pb.ServerLiveResponse:
        """True, where anybody hears it."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest, context: grpc.ServicerContext) -> pb.ServerReadyResponse:
        """What Health says."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.ServicerContext) -> pb.ModelReadyResponse:
        """Whether a model can be asked for; one that does not exist cannot."""
        try:
            self._find(request.name, request.version)
        except InvalidArgument:
            raise
        except LuthierError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Which server this is."""
        return pb.ServerMetadataResponse(name="luthier", version=version("luthier"), extensions=EXTENSIONS)

    def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """What a model takes and gives."""
        served, face = self._find(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[_number(served)],
            platform=face.platform,
            inputs=map(_metadata, face.inputs.values()),
            outputs=map(_metadata, face.outputs.values()),
        )

    def ModelConfig(self, request: pb.ModelConfigRequest, context: grpc.ServicerContext) -> pb.ModelConfigResponse:
        """The same as Triton's tools read it."""
        served, face = self._find(request.name, request.version)
        config = pb.ModelConfig(
            name=request.name,
            platform=face.platform,
            backend="onnxruntime",
            max_batch_size=MOST_INSTANCES,
            input=[
                pb.ModelInput(name=t.name, data_type=t.number, dims=t.shape[1:], optional=t.optional)
                for t in face.inputs.values()
            ],
            output=[pb.ModelOutput(name=t.name, data_type=t.number, dims=t.shape[1:]) for t in face.outputs.values()],
            model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        )
        if served.most_rows > 1:
            config.dynamic_batching.preferred_batch_size.append(served.most_rows)
        return pb.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Request, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        """Computes what is wanted."""
        message = request.message
        if unsuited := [name for name in _SEQUENCES if name in message.parameters]:
            raise InvalidArgument(
                {f"parameters.{name}": "no model keeps a state between requests" for name in unsuited}
            )

        def run(served: Served, caller: Caller) -> _Inferred:
            face = _face(served, message.model_name)
            arrays = tensors.read(request, face.inputs)
            wanted = _wanted(message, face.outputs)
            rows = len(next(iter(arrays.values()), ()))
            if not 0 < rows <= MOST_INSTANCES:
                raise InvalidArgument({"inputs": f"{rows} rows in one request; from 1 to {MOST_INSTANCES} are taken"})
            seen: list[Messages] = []
            found = face.infer(arrays, wanted, caller, lambda *messages: seen.append(messages))
            return _Inferred([(face.outputs[name], found[name]) for name in wanted], seen)

        name = _model(message.model_name, message.model_version)
        served, inferred, id = self._router.answer(name, _caller(message, context), run, _Inferred.messages)
        response = pb.ModelInferResponse(model_name=message.model_name, model_version=_number(served), id=message.id)
        response.parameters[PREDICTION_ID].string_param = id
        raw = bool(request.raw)
        for output, array in inferred.outputs:
            tensors.write(response, output, array, raw)
        return response

    def ModelStreamInfer(
        self, request: Iterator[Request], context: grpc.ServicerContext
    ) -> Iterator[pb.ModelStreamInferResponse]:
        """Answers requests in order; what one of them fails by is its answer."""
        for one in request:
            try:
                answer = self.ModelInfer(one, context)
            except LuthierError as error:
                yield pb.ModelStreamInferResponse(error_message=error.message, infer_response=_only_id(one.message))
            except Exception as error:
                message = unexpected(error, "ModelStreamInfer").message
                yield pb.ModelStreamInferResponse(error_message=message, infer_response=_only_id(one.message))
            else:
                answer.parameters["triton_final_response"].bool_param = True
                yield pb.ModelStreamInferResponse(infer_response=answer)

    def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: grpc.ServicerContext
    ) -> pb.ModelStatisticsResponse:
        """Counts and times since the versions were loaded."""
        found = [self._find(request.name, request.version)[0]] if request.name else self._pool.served()
        return pb.ModelStatisticsResponse(model_stats=map(_statistics, found))

    def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryIndexResponse:
        """Every version: READY where a call for it is answered, if by loading it first."""
        _check_repository(request.repository_name)
        response = pb.RepositoryIndexResponse()
        for (model, number), reason in self._pool.index().items():
            if not (reason and request.ready):
                state = "UNAVAILABLE" if reason else "READY"
                response.models.add(name=model, version=str(number), state=state, reason=reason)
        return response

    def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryModelLoadResponse:
        """Loads what a name means."""
        _check_repository(request.repository_name)
        if request.parameters:
            why = "cannot be overridden; only bundles that were published are served"
            raise InvalidArgument({f"parameters.{name}": why for name in sorted(request.parameters)})
        self._pool.load(request.model_name.removesuffix(INSTANCES))
        return pb.RepositoryModelLoadResponse()

    def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: grpc.ServicerContext
    ) -> pb.RepositoryModelUnloadResponse:
        """Takes what a name means out of memory."""
        _check_repository(request.repository_name)
        if unknown := sorted(request.parameters.keys() - {"unload_dependents"}):
            raise InvalidArgument({f"parameters.{name}": "is not known" for name in unknown})
        self._pool.unload(request.model_name.removesuffix(INSTANCES))
        return pb.RepositoryModelUnloadResponse()

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods. The generated binding is not used, since it would copy tensors."""
        handlers = {}
        for method in _SERVICE.methods:
            kind = "stream_stream" if method.client_streaming else "unary_unary"
            parse = GetMessageClass(method.input_type).FromString
            handlers[method.name] = getattr(grpc, f"{kind}_rpc_method_handler")(
                getattr(self, method.name),
                request_deserializer=Request.parse if method.name.endswith("Infer") else parse,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)

    def _find(self, name: str, number: str) -> tuple[Served, Face]:
        """The model of a name and a version that may be empty, and the side of it that is asked for."""
        served = self._pool.get(_model(name, number))
        return served, _face(served, name)


class _Inferred(NamedTuple):
    """What was computed."""

    outputs: Sequence[tuple[Tensor, np.ndarray]]
    seen: Sequence[Messages]

    def messages(self) -> Messages | None:
        """The messages behind the tensors; None where there were none."""
        return self.seen[0] if self.seen else None


def _model(name: str, number: str) -> str:
    """The model of a name and a version that may be empty, as predictions name it."""
    model = name.removesuffix(INSTANCES)
    return f"{names.check_id(model, 'model_name')}/{number}" if number else model


def _face(served: Served, name: str) -> Face:
    return served.instances if name.endswith(INSTANCES) else served.graph


def _check_repository(name: str) -> None:
    if name:
        raise InvalidArgument({"repository_name": f"there is no repository {name!r}; leave it out"})


def _number(served: Served) -> str:
    return served.name.rpartition("/")[2]


def _caller(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> Caller:
    """Who waits, for no longer than the request says."""
    caller = caller_of(context)
    given = request.parameters.get("timeout")
    if given is None:
        return caller
    timeout_s = getattr(given, given.WhichOneof("parameter_choice") or "int64_param")
    if not isinstance(timeout_s, int) or timeout_s < 0:
        raise InvalidArgument({"parameters.timeout": "is no number of microseconds; 0: as long as the call may take"})
    if not timeout_s:
        return caller
    remaining_s = math.inf if caller.remaining_s is None else caller.remaining_s
    return Caller(min(timeout_s / 1e6, remaining_s), caller.is_there)


def _metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def _wanted(request: pb.ModelInferRequest, outputs: Mapping[str, Tensor]) -> Sequence[str]:
    """The outputs that a request names, all where it names none."""
    if not request.outputs:
        return list(outputs)
    violations = {}
    for one in request.outputs:
        if one.name not in outputs:
            violations[f"outputs.{one.name}"] = f"is not known; the model gives {', '.join(outputs)}"
        elif one.parameters:
            violations[f"outputs.{one.name}"] = f"has the parameter {min(one.parameters)}, which is not taken"
    if violations:
        raise InvalidArgument(violations)
    return [one.name for one in request.outputs]


def _statistics(served: Served) -> pb.ModelStatistics:
    meter, found = served.meter, served.meter.statistics()
    stages = {name: _duration(found.stages[ours].count, found.stages[ours].total) for name, ours in _STAGES.items()}
    failed = sum(count for code, count in found.calls.items() if code != "OK")
    return pb.ModelStatistics(
        name=meter.model,
        version=meter.version,
        last_inference=int(found.last * 1000),
        inference_count=sum(rows * count for rows, (count, _) in found.batches.items()),
        execution_count=sum(count for count, _ in found.batches.values()),
        inference_stats=pb.InferStatistics(
            success=_duration(found.answered.count, found.answered.total),
            fail=_duration(failed, found.failed_s),
            **stages,
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=rows, compute_infer=_duration(count, seconds))
            for rows, (count, seconds) in sorted(found.batches.items())
        ],
    )


_STAGES = {"queue": "queue", "compute_input": "encode", "compute_infer": "run", "compute_output": "decode"}


def _duration(count: int, seconds: float) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=count, ns=round(seconds * 1e9))


def _only_id(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(model_name=request.model_name, model_version=request.model_version, id=request.id)
