"""The REST form of the Open Inference Protocol, over its gRPC service.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, and of Triton's
extensions the configuration, the statistics, the repository and binary tensor data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import code_pb2
from starlette.requests import Request
from starlette.responses import Response

from luthier.errors import InvalidArgument
from luthier.oip.v2 import open_inference_pb2 as pb
from luthier.web import tensors
from luthier.web.bodies import Bodies
from luthier.web.failures import Failure
from luthier.web.upstream import Answer, Upstream, finish, metadata_of, named
from luthier.web.work import Work, until_gone

M = TypeVar("M", bound=Message)

_JSON = "application/json"
_HEADER_LENGTH = "inference-header-content-length"
_TYPES = frozenset({"", _JSON, "application/octet-stream", "application/x-www-form-urlencoded"})
"""Content types that a body may have. The last is what curl says where nobody said another."""
_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"


class _Route(NamedTuple):
    verb: str
    path: re.Pattern[str]
    answer: Callable[[OpenInference, Request, Mapping[str, str]], Awaitable[Response]]


class OpenInference:
    """Answers requests under `/v2`."""

    def __init__(self, upstream: Upstream, bodies: Bodies, work: Work) -> None:
        self._upstream = upstream
        self._bodies = bodies
        self._work = work

    async def answer(self, request: Request) -> Response:
        """The answer to a request; raises Failure."""
        path = request.url.path
        found = [(route, match) for route in _ROUTES if (match := route.path.fullmatch(path))]
        for route, match in found:
            if route.verb == request.method:
                given = {key: value for key, value in match.groupdict().items() if value is not None}
                return await route.answer(self, request, given)
        if found:
            allowed = ", ".join(sorted({route.verb for route, _ in found}))
            raise Failure.plain(
                code_pb2.UNIMPLEMENTED, f"{request.method} is not for {path[:200]}; use {allowed}", 405, allow=allowed
            )
        raise Failure.plain(code_pb2.UNIMPLEMENTED, f"there is nothing at {path[:200]!r}", 404)

    async def _live(self, request: Request, given: Mapping[str, str]) -> Response:
        found, answer = await self._call(request, pb.ServerLiveRequest(), pb.ServerLiveResponse)
        return _yes_or_no("live", found.live, answer)

    async def _ready(self, request: Request, given: Mapping[str, str]) -> Response:
        found, answer = await self._call(request, pb.ServerReadyRequest(), pb.ServerReadyResponse)
        return _yes_or_no("ready", found.ready, answer)

    async def _model_ready(self, request: Request, given: Mapping[str, str]) -> Response:
        found, answer = await self._call(request, pb.ModelReadyRequest(**given), pb.ModelReadyResponse)
        return _yes_or_no("ready", found.ready, answer)

    async def _server(self, request: Request, given: Mapping[str, str]) -> Response:
        return _plain(*await self._call(request, pb.ServerMetadataRequest(), pb.ServerMetadataResponse))

    async def _model(self, request: Request, given: Mapping[str, str]) -> Response:
        return _plain(*await self._call(request, pb.ModelMetadataRequest(**given), pb.ModelMetadataResponse))

    async def _config(self, request: Request, given: Mapping[str, str]) -> Response:
        found, answer = await self._call(request, pb.ModelConfigRequest(**given), pb.ModelConfigResponse)
        return _plain(found.config, answer)

    async def _statistics(self, request: Request, given: Mapping[str, str]) -> Response:
        return _plain(*await self._call(request, pb.ModelStatisticsRequest(**given), pb.ModelStatisticsResponse))

    async def _index(self, request: Request, given: Mapping[str, str]) -> Response:
        asked = await self._body(request)
        ready = asked.get("ready", False)
        if not isinstance(ready, bool):
            raise _wrong("ready", "is neither true nor false")
        message = pb.RepositoryIndexRequest(ready=ready, **given)
        found, answer = await self._call(request, message, pb.RepositoryIndexResponse)
        return _json([_dict(model) for model in found.models], answer)

    async def _load(self, request: Request, given: Mapping[str, str]) -> Response:
        message = pb.RepositoryModelLoadRequest(model_name=given["model_name"])
        return await self._change(request, message, pb.RepositoryModelLoadResponse)

    async def _unload(self, request: Request, given: Mapping[str, str]) -> Response:
        message = pb.RepositoryModelUnloadRequest(model_name=given["model_name"])
        return await self._change(request, message, pb.RepositoryModelUnloadResponse)

    async def _change(
        self,
        request: Request,
        message: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest,
        kind: type[Message],
    ) -> Response:
        for name, value in _object(await self._body(request), "parameters").items():
            parameter = message.parameters[name]
            match value:
                case bool():
                    parameter.bool_param = value
                case int() if -(2**63) <= value < 2**63:
                    parameter.int64_param = value
                case str():
                    parameter.string_param = value
                case _:
                    raise _wrong(f"parameters.{name}", "is no truth value, integer or string")
        _, answer = await self._call(request, message, kind)
        return Response(b"", headers=answer.headers | named(answer.trailers))

    async def _infer(self, request: Request, given: Mapping[str, str]) -> Response:
        with self._bodies.place() as place:
            _check_type(request)
            body = await place.read(request)
            length = _header_length(request, len(body))
            message, wishes = await self._work.do(len(body), _asked, body, length, given)
            found, answer = await self._call(request, message, pb.ModelInferResponse)
            size = sum(map(len, found.raw_output_contents))
            header, parts = await self._work.do(size, _answered, found, wishes)
        headers = answer.headers | named(answer.trailers)
        if not parts:
            return Response(header, headers=headers, media_type=_JSON)
        headers[_HEADER_LENGTH] = str(len(header))
        return Response(b"".join([header, *parts]), headers=headers, media_type="application/octet-stream")

    async def _body(self, request: Request) -> dict[str, Any]:
        _check_type(request)
        with self._bodies.place() as place:
            return _parsed(await place.read(request) or b"{}")

    async def _call(self, request: Request, message: Message, kind: type[M]) -> tuple[M, Answer]:
        """Calls the method that takes this message."""
        name = message.DESCRIPTOR.name.removesuffix("Request")
        metadata = metadata_of(request.scope)
        call = self._upstream.begin(f"/inference.GRPCInferenceService/{name}", message.SerializeToString(), metadata)
        answer = await until_gone(request, call, finish(call)) if request.method == "POST" else await finish(call)
        return kind.FromString(answer.message), answer


_ROUTES = [
    _Route(verb, re.compile(path), answer)
    for verb, path, answer in [
        ("GET", r"/v2/health/live", OpenInference._live),
        ("GET", r"/v2/health/ready", OpenInference._ready),
        ("GET", r"/v2/?", OpenInference._server),
        ("GET", r"/v2/models/stats", OpenInference._statistics),
        ("GET", _MODEL, OpenInference._model),
        ("GET", _MODEL + "/ready", OpenInference._model_ready),
        ("GET", _MODEL + "/config", OpenInference._config),
        ("GET", _MODEL + "/stats", OpenInference._statistics),
        ("POST", _MODEL + "/infer", OpenInference._infer),
        ("POST", r"/v2/repository(?:/(?P<repository_name>[^/]+))?/index", OpenInference._index),
        ("POST", r"/v2/repository/models/(?P<model_name>[^/]+)/load", OpenInference._load),
        ("POST", r"/v2/repository/models/(?P<model_name>[^/]+)/unload", OpenInference._unload),
    ]
]


class _Wishes(NamedTuple):
    """Which outputs are wanted as bytes."""

    all: bool
    by_name: Mapping[str, bool]


def _asked(body: bytes, length: int, given: Mapping[str, str]) -> tuple[pb.ModelInferRequest, _Wishes]:
    """The gRPC message of a request whose JSON has a length; behind it are the bytes of its tensors."""
    asked = _parsed(body[:length])
    if unknown := sorted(asked.keys() - {"id", "parameters", "inputs", "outputs"}):
        raise _wrong(unknown[0][:80], "there is no such field")
    message = pb.ModelInferRequest(
        model_name=given["name"], model_version=given.get("version", ""), id=_string(asked, "id", "")
    )
    parameters = _object(asked, "parameters")
    all_bytes = parameters.pop("binary_data_output", False)
    if not isinstance(all_bytes, bool):
        raise _wrong("parameters.binary_data_output", "is neither true nor false")
    _set(message.parameters, parameters, "parameters")
    at = length
    for index, one in enumerate(_objects(asked, "inputs")):
        at = _add_input(message, index, one, body, at)
    if at != len(body):
        raise _wrong("body", f"has {len(body) - at} bytes behind those of its tensors")
    by_name: dict[str, bool] = {}
    for index, one in enumerate(_objects(asked, "outputs")):
        name = _string(one, "name", where=f"outputs[{index}].name")
        parameters = _object(one, "parameters")
        by_name[name] = parameters.pop("binary_data", all_bytes) is True
        _set(message.outputs.add(name=name).parameters, parameters, f"outputs.{name}.parameters")
    return message, _Wishes(all_bytes, by_name)


def _add_input(message: pb.ModelInferRequest, index: int, one: dict[str, Any], body: bytes, at: int) -> int:
    """Adds an input, whose bytes are at a place where it has no data. Returns where the next one's are."""
    name = _string(one, "name", where=f"inputs[{index}].name")
    datatype = _string(one, "datatype", where=f"inputs.{name}.datatype")
    shape = one.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise _wrong(f"inputs.{name}.shape", "is no array of lengths")
    tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
    parameters = _object(one, "parameters")
    size = parameters.pop("binary_data_size", None)
    _set(tensor.parameters, parameters, f"inputs.{name}.parameters")
    if size is None:
        message.raw_input_contents.append(tensors.to_bytes(name, datatype, shape, one.get("data")))
        return at
    if type(size) is not int or not 0 <= size <= len(body) - at:
        raise _wrong(
            f"inputs.{name}.parameters.binary_data_size", f"is no number of bytes up to the {len(body) - at} left"
        )
    if "data" in one:
        raise _wrong(f"inputs.{name}", "has both data and binary_data_size")
    message.raw_input_contents.append(body[at : at + size])
    return at + size


def _answered(found: pb.ModelInferResponse, wishes: _Wishes) -> tuple[bytes, list[bytes]]:
    """The JSON of an answer, and the bytes behind it."""
    outputs, parts = list[dict[str, Any]](), list[bytes]()
    for tensor, raw in zip(found.outputs, found.raw_output_contents, strict=True):
        said: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": [*tensor.shape]}
        if wishes.by_name.get(tensor.name, wishes.all):
            said["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            said["data"] = tensors.to_json(tensor.name, tensor.datatype, raw)
        outputs.append(said)
    answer: dict[str, Any] = {"model_name": found.model_name, "model_version": found.model_version}
    if found.id:
        answer["id"] = found.id
    if found.parameters:
        answer["parameters"] = {key: _value(value) for key, value in found.parameters.items()}
    return _dumped(answer | {"outputs": outputs}), parts


def _set(into: Any, parameters: Mapping[str, Any], where: str) -> None:
    """Sets parameters of the protocol from those of JSON."""
    for name, value in parameters.items():
        match value:
            case bool():
                into[name].bool_param = value
            case int() if -(2**63) <= value < 2**63:
                into[name].int64_param = value
            case float():
                into[name].double_param = value
            case str():
                into[name].string_param = value
            case _:
                raise _wrong(f"{where}.{name}", "is no truth value, number or string")


def _value(parameter: pb.InferParameter) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice") or "bool_param")


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in _TYPES:
        raise Failure.plain(code_pb2.UNKNOWN, f"{given[:80]!r} is not taken; send {_JSON}", 415, accept=_JSON)


def _header_length(request: Request, size: int) -> int:
    """How many bytes of a body are its JSON."""
    given = request.headers.get(_HEADER_LENGTH)
    if given is None:
        return size
    if not re.fullmatch(r"\d{1,10}", given) or int(given) > size:
        raise _wrong(_HEADER_LENGTH, f"is no number of bytes up to the body's {size}")
    return int(given)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong("body", f"is no JSON: {error}"[:300]) from None
    if not isinstance(found, dict):
        raise _wrong("body", "is no JSON object")
    return found


def _object(of: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = of.get(name, {})
    if not isinstance(found, dict):
        raise _wrong(name, "is no object")
    return dict(found)


def _objects(of: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = of.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _wrong(name, "is no array of objects")
    return found


def _string(of: Mapping[str, Any], name: str, default: str | None = None, where: str = "") -> str:
    found = of.get(name, default)
    if not isinstance(found, str):
        raise _wrong(where or name, "is missing" if found is None else "is no string")
    return found


def _plain(message: Message, answer: Answer) -> Response:
    return _json(_dict(message), answer)


def _dict(message: Message) -> Any:
    """A message by the names of its fields, with numbers as such: 64-bit ones are no strings in this protocol."""
    found = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _numbers(found, message)


def _numbers(found: dict[str, Any], message: Message) -> dict[str, Any]:
    for field in message.DESCRIPTOR.fields:
        value = found.get(field.name)
        if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64) and value is not None:
            found[field.name] = [*map(int, value)] if isinstance(value, list) else int(value)
        elif field.cpp_type == field.CPPTYPE_MESSAGE and value:
            inner = getattr(message, field.name)
            if isinstance(value, list):
                found[field.name] = [_numbers(one, part) for one, part in zip(value, inner, strict=True)]
            else:
                found[field.name] = _numbers(value, inner)
    return found


def _yes_or_no(name: str, value: bool, answer: Answer) -> Response:
    """The protocol says no by a status of the 400s."""
    response = _json({name: value}, answer)
    response.status_code = 200 if value else 400
    return response


def _json(value: Any, answer: Answer) -> Response:
    return Response(_dumped(value), headers=answer.headers | named(answer.trailers), media_type=_JSON)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _wrong(field: str, why: str) -> Failure:
    return Failure.of(InvalidArgument({field: why}))
