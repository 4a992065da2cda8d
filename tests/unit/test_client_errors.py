# ruff: noqa: N802 -- the proto names the methods
"""Statuses and their details as exceptions."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from inprocess import serving
from luthier.v1 import task_pb2, task_pb2_grpc
from luthier.v1.dataset_pb2 import DataProblem
from luthier_client import AsyncClient, Client, errors


def status(code: int, message: str, *details: Message) -> status_pb2.Status:
    made = status_pb2.Status(code=code, message=message)
    for detail in details:
        made.details.add().Pack(detail)
    return made


BAD_DATA = status(
    code_pb2.INVALID_ARGUMENT,
    "1 problem in the data",
    error_details_pb2.ErrorInfo(reason="INVALID_DATA", domain="luthier", metadata={"rows": "7"}),
    error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="files[0]", description="empty")]
    ),
    DataProblem(file="a.csv", row=7, field="label", message="it is empty"),
)


class Failing(task_pb2_grpc.TaskServiceServicer):
    def GetTask(self, request: task_pb2.GetTaskRequest, context: grpc.ServicerContext) -> task_pb2.Task:
        context.abort_with_status(rpc_status.to_status(BAD_DATA))
        raise AssertionError("abort_with_status raises")


def test_details_become_fields() -> None:
    error = errors.from_status(BAD_DATA)
    assert isinstance(error, errors.InvalidArgument)
    assert str(error) == error.message == "1 problem in the data"
    assert (error.code, error.reason, error.domain) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_DATA", "luthier")
    assert error.metadata == {"rows": "7"}
    assert error.violations == {"files[0]": "empty"}
    assert [problem.row for problem in error.problems] == [7]


def test_retry_info_becomes_seconds() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    assert errors.from_status(status(code_pb2.RESOURCE_EXHAUSTED, "full", retry)).retry_s == 2.5


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_keeps_itself(code: grpc.StatusCode) -> None:
    error = errors.from_status(status_pb2.Status(code=code.value[0], message="why"))
    assert error.code is code
    assert error.message == "why"


def test_a_deadline_is_a_time_out() -> None:
    assert isinstance(errors.from_status(status(code_pb2.DEADLINE_EXCEEDED, "late")), TimeoutError)


def test_both_clients_raise_the_same() -> None:
    async def asynchronously(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.get_task("x")

    with serving(lambda server: task_pb2_grpc.add_TaskServiceServicer_to_server(Failing(), server)) as address:
        with Client(address) as client, pytest.raises(errors.InvalidArgument) as first:
            client.get_task("x")
        with pytest.raises(errors.InvalidArgument) as second:
            asyncio.run(asynchronously(address))
    assert first.value.violations == second.value.violations == {"files[0]": "empty"}


def test_nobody_answers() -> None:
    with serving() as address:
        pass
    with Client(address) as client, pytest.raises(errors.Unreachable):
        client.get_task("x")
