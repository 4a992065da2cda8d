# ruff: noqa: N802 -- the proto names the methods
"""The clients over TLS, with certificates of their own, and with tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from certificates import Authority
from inprocess import serving as serving_here
from luthier.v1 import task_pb2, task_pb2_grpc
from luthier_client import AsyncClient, Client, errors
from luthier_client.cli.app import app
from support import Server, serving

TOKEN = "lu_0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates: of the server's authority, of another, and of a caller."""
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(), Authority("Strangers")
    authority.write(folder / "ca.pem")
    other.write(folder / "other.pem")
    authority.server().write(folder, "server")
    authority.server("luthier.example.com").write(folder, "elsewhere")
    authority.client().write(folder, "caller")
    return folder


@pytest.fixture(scope="module")
def closed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of mutual TLS."""
    ca, pem, key = (str(folder / name) for name in ("ca.pem", "server.pem", "server.key"))
    files = [(folder / name).read_bytes() for name in ("ca.pem", "caller.key", "caller.pem")]
    flags = ("--tls-certificate", pem, "--tls-key", key, "--tls-client-ca", ca)
    home = tmp_path_factory.mktemp("home")
    with serving(home, *flags, credentials=grpc.ssl_channel_credentials(*files)) as running:
        yield running


def luthier(*arguments: str, **environment: str) -> Result:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160", **environment})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_python(closed: Server, folder: Path) -> None:
    files = {"ca": folder / "ca.pem", "cert": folder / "caller.pem", "key": folder / "caller.key"}
    with Client(closed.address, **files) as client:
        tasks = {task.name for task in client.list_tasks()}
        # Reflection goes the same way.
        assert client.schema.message_class("luthier.tasks.recommendation.v1.Instance")

    async def asynchronously() -> set[str]:
        async with AsyncClient(closed.address, **files) as client:
            return {task.name async for task in client.list_tasks()}

    assert "tasks/recommendation" in tasks == asyncio.run(asynchronously())


def test_the_command_line(closed: Server, folder: Path) -> None:
    options = [
        f"--tls-ca={folder / 'ca.pem'}",
        f"--tls-cert={folder / 'caller.pem'}",
        f"--tls-key={folder / 'caller.key'}",
    ]
    variables = {f"LUTHIER_{name.upper()}": str(folder / file) for name, file in FILES.items()}
    address = f"--address={closed.address}"
    before = luthier(address, *options, "tasks", "list", "--json")
    after = luthier("tasks", "list", "--json", address, *options)
    by_variables = luthier("tasks", "list", "--json", address, **variables)
    assert [run.exit_code for run in (before, after, by_variables)] == [0, 0, 0], before.stderr
    assert json.loads(before.stdout) == json.loads(after.stdout) == json.loads(by_variables.stdout)
    # An option counts for more than a variable.
    assert luthier("tasks", "list", address, *options, LUTHIER_CA=str(folder / "other.pem")).exit_code == 0


FILES = {"ca": "ca.pem", "cert": "caller.pem", "key": "caller.key"}


def test_a_server_that_is_not_to_be_trusted(closed: Server, folder: Path) -> None:
    own = {"cert": folder / "caller.pem", "key": folder / "caller.key"}
    with Client(closed.address, ca=folder / "other.pem", **own) as client, pytest.raises(errors.Untrusted) as caught:
        client.get_task("recommendation")
    assert "signed by none of the authorities" in caught.value.message
    with Client(f"https://{closed.address}", **own) as client, pytest.raises(errors.Untrusted, match="signed by none"):
        client.get_task("recommendation")
    said = luthier("tasks", "list", "--address", closed.address, "--tls-ca", str(folder / "other.pem"))
    assert said.exit_code == 1
    assert said.stderr.startswith(
        f"error: {closed.address} is not to be trusted: the server's certificate was signed by"
    )
    assert "--tls-ca or LUTHIER_CA" in said.stderr


def test_a_certificate_for_another_address(folder: Path, tmp_path: Path) -> None:
    pair = ("--tls-certificate", str(folder / "elsewhere.pem"), "--tls-key", str(folder / "elsewhere.key"))
    by = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
    with pytest.raises(grpc.RpcError, match="Hostname"), serving(tmp_path, *pair, credentials=by):
        pass


def test_what_stands_between_is_said(closed: Server, server: Server, folder: Path) -> None:
    for client in (Client(closed.address), Client(closed.address, ca=folder / "ca.pem")):
        with client, pytest.raises(errors.Unreachable, match="it may want TLS, or a certificate of the client"):
            client.get_task("recommendation")
    with Client(server.address, ca=folder / "ca.pem") as client, pytest.raises(errors.Unreachable, match="no TLS"):
        client.get_task("recommendation")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ca": "caller.key"}, "caller.key holds no certificate"),
        ({"cert": "caller.pem"}, "go together"),
        ({"cert": "caller.pem", "key": "server.key"}, "are no certificate and its key"),
    ],
)
def test_files_that_cannot_be_used(options: dict[str, str], said: str, folder: Path) -> None:
    files = {name: str(folder / file) for name, file in options.items()}
    with pytest.raises(ValueError, match=said):
        Client("127.0.0.1:1", **files)
    flags = [f"--tls-{name}={path}" for name, path in files.items()]
    refused = luthier("tasks", "list", "--address", "127.0.0.1:1", *flags)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert luthier("tasks", "list", "--tls-ca", str(folder / "none.pem")).exit_code == 2


class Listening(task_pb2_grpc.TaskServiceServicer):
    """Notes who calls."""

    def __init__(self) -> None:
        self.heard: list[str | bytes | None] = []

    def ListTasks(
        self, request: task_pb2.ListTasksRequest, context: grpc.ServicerContext
    ) -> task_pb2.ListTasksResponse:
        self.heard.append(dict(context.invocation_metadata()).get("authorization"))
        return task_pb2.ListTasksResponse()


def test_a_token_goes_along() -> None:
    listening = Listening()

    async def asynchronously(address: str) -> None:
        async with AsyncClient(address, token=TOKEN) as client:
            assert [task async for task in client.list_tasks()] == []

    def by_client(address: str) -> None:
        with Client(address, token=TOKEN) as client:
            list(client.list_tasks())

    ways: list[Callable[[str], object]] = [
        by_client,
        lambda address: asyncio.run(asynchronously(address)),
        lambda address: luthier("tasks", "list", "--address", address, LUTHIER_TOKEN=TOKEN),
        lambda address: luthier("--token", TOKEN, "tasks", "list", "--address", address),
    ]
    with serving_here(lambda server: task_pb2_grpc.add_TaskServiceServicer_to_server(listening, server)) as address:
        for call in ways:
            call(address)
            assert set(listening.heard) == {f"Bearer {TOKEN}"}
            listening.heard.clear()
        luthier("tasks", "list", "--address", address)
        assert set(listening.heard) == {None}


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("address", ["192.168.0.1:50051", "luthier:50051", "0.0.0.0:50051", "dns:///127.0.0.1:1"])
def test_a_token_goes_nowhere_in_the_open(client: Callable[..., object], address: str) -> None:
    with pytest.raises(ValueError, match="everybody to read") as caught:
        client(address, token=TOKEN)
    assert TOKEN not in str(caught.value)


def test_a_token_goes_nowhere_in_the_open_from_the_command_line() -> None:
    refused = luthier("tasks", "list", "--address", "luthier:50051", LUTHIER_TOKEN=TOKEN)
    assert refused.exit_code == 2
    assert "it is sent over TLS alone" in refused.stderr
    assert TOKEN not in refused.stderr


def test_a_server_that_others_can_reach(tmp_path: Path) -> None:
    authority = Authority()
    authority.write(tmp_path / "ca.pem")
    certificate, key = authority.server("127.0.0.1", "0.0.0.0").write(tmp_path, "server")
    flags = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--tokens")
    by = grpc.ssl_channel_credentials(authority.certificate)
    with serving(tmp_path / "home", *flags, listen="0.0.0.0:0", credentials=by) as server:
        address = f"127.0.0.1:{server.address.rpartition(':')[2]}"
        token = (server.home / "admin.token").read_text(encoding="utf-8").strip()
        with Client(address, ca=tmp_path / "ca.pem", token=token) as client:
            assert any(client.list_tasks())
        for strange in ("", f"{token}x"):
            with (
                Client(address, ca=tmp_path / "ca.pem", token=strange) as client,
                pytest.raises(errors.Unauthenticated),
            ):
                list(client.list_tasks())
        ca = f"--tls-ca={tmp_path / 'ca.pem'}"
        assert luthier("tasks", "list", "--address", address, ca, LUTHIER_TOKEN=token).exit_code == 0
        refused = luthier("tasks", "list", "--address", address, ca)
        assert refused.exit_code == 1
        assert "token" in refused.stderr
