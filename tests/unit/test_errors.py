import inspect
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from luthier import errors
from luthier.v1.dataset_pb2 import DataProblem


def every_error(of: type[errors.LuthierError] = errors.LuthierError) -> Iterator[type[errors.LuthierError]]:
    """Those of the module; others tell one part of a process something, and no caller."""
    for kind in of.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
        yield from every_error(kind)


def detail(error: errors.LuthierError, kind: type[Message]) -> Message:
    """The one detail of a kind, out of the status as a caller gets it."""
    (packed,) = [packed for packed in error.status().details if packed.Is(kind.DESCRIPTOR)]
    message = kind()
    packed.Unpack(message)
    return message


@pytest.mark.parametrize("kind", list(every_error()))
def test_the_docstrings_tree_is_the_classes(kind: type[errors.LuthierError]) -> None:
    """The picture at the top of the module says which code and reason each class has."""
    (line,) = [
        line for line in inspect.getdoc(errors).splitlines() if line.lstrip("│├└─ ").startswith(f"{kind.__name__} ")
    ]
    assert line.split()[-2:] == [code_pb2.Code.Name(kind.code), kind.reason]
    assert line.index(kind.__name__) == 4 * (kind.__mro__.index(errors.LuthierError) + 1)


def test_every_status_carries_error_info() -> None:
    status = errors.FailedPrecondition("the model has no versions", model="beer").status()
    assert (status.code, status.message) == (code_pb2.FAILED_PRECONDITION, "the model has no versions")
    info = detail(errors.FailedPrecondition("no", model="beer"), error_details_pb2.ErrorInfo)
    assert info == error_details_pb2.ErrorInfo(
        reason="FAILED_PRECONDITION", domain="luthier", metadata={"model": "beer"}
    )


def test_invalid_argument_names_every_field() -> None:
    error = errors.InvalidArgument({"config.epochs": "is below 0", "seed": "is not a number"})
    request = detail(error, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in request.field_violations] == [
        ("config.epochs", "is below 0"),
        ("seed", "is not a number"),
    ]
    assert str(error) == "config.epochs: is below 0; seed: is not a number"


def test_invalid_data_holds_every_problem_and_shows_the_first() -> None:
    problems = [DataProblem(file="beer.csv", row=row, field="label", message="is empty") for row in range(1, 26)]
    error = errors.InvalidData(problems)
    assert error.status().code == code_pb2.INVALID_ARGUMENT
    assert sum(packed.Is(DataProblem.DESCRIPTOR) for packed in error.status().details) == 25
    assert str(error).startswith("25 problems in the data: beer.csv:row 1:label: is empty; ")
    assert str(error).endswith("; and 5 more")


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (DataProblem(file="a.csv", row=3, field="text"), "a.csv:row 3:text"),
        (DataProblem(file="a.csv"), "a.csv"),
        (DataProblem(field="text"), "text"),
        (DataProblem(), "data set"),
    ],
)
def test_where_says_what_is_known(problem: DataProblem, expected: str) -> None:
    assert errors.where(problem) == expected


def test_not_found_names_the_resource() -> None:
    error = errors.NotFound("models/beer", "there are none")
    info = detail(error, error_details_pb2.ResourceInfo)
    assert (info.resource_type, info.resource_name) == ("models", "models/beer")
    assert str(error) == "models/beer was not found; there are none"


def test_a_retry_is_advised_only_where_it_makes_sense() -> None:
    advised = detail(errors.ResourceExhausted("busy", retry_s=1.5), error_details_pb2.RetryInfo)
    assert (advised.retry_delay.seconds, advised.retry_delay.nanos) == (1, 500_000_000)
    assert len(errors.OutOfMemory("too large").details()) == 1


def test_secrets_are_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://ann:a-long-password@index/simple"
    for error in (errors.Unavailable(f"{url} is away", source=url), errors.InvalidArgument({"source": url})):
        assert "a-long-password" not in str(error.status())
        assert "a-long-password" not in str(error)
    problem = DataProblem(file="a.csv", message=url)
    assert "a-long-password" not in errors.InvalidData([problem]).status().message
