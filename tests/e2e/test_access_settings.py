"""A server as an operator sets it up: its first token, its policy file, its quotas, a plugin that knows callers."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from credentials import AUDIENCE, ISSUER, Issuer, holding
from luthier.v1 import (
    access_pb2,
    access_pb2_grpc,
    base_pb2,
    base_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
)
from support import ROOT, Server, serving, status_of


def test_the_first_token_lets_its_holder_make_others_and_end_them_on_every_replica(tmp_path: Path) -> None:
    with serving(tmp_path, "--tokens", "--jobs", "0") as server:
        line = server.process.stdout.readline()
        path = Path(line.partition(" is in ")[2].strip())
        assert path == tmp_path / "admin.token"
        secret = path.read_text().strip()
        assert secret not in line + "".join(server.log)
        with serving(tmp_path, "--tokens", "--jobs", "0", "--trainings", "0") as other:
            admin = access_pb2_grpc.TokenServiceStub(holding(server.channel, secret))
            wanted = access_pb2.CreateTokenRequest(principal="shop", role=access_pb2.ROLE_VIEWER)
            wanted.expire_time.FromDatetime(datetime.now(UTC) + timedelta(days=90))
            made = admin.CreateToken(wanted)
            assert eventually(lambda: code_of(other, made.secret), grpc.StatusCode.OK) < 1.0
            admin.RevokeToken(access_pb2.RevokeTokenRequest(name=made.token.name))
            assert eventually(lambda: code_of(other, made.secret), grpc.StatusCode.UNAUTHENTICATED) < 1.0
            assert eventually(lambda: code_of(server, made.secret), grpc.StatusCode.UNAUTHENTICATED) < 1.0
            listed = admin.ListTokens(access_pb2.ListTokensRequest()).tokens
            assert [(token.principal, token.HasField("revoke_time")) for token in listed] == [
                ("shop", True),
                ("admin", False),
            ]


def test_a_server_that_asks_nobody_makes_no_tokens(server: Server) -> None:
    """They would outlast the day on which it is closed."""
    stub = server.stub(access_pb2_grpc.TokenServiceStub)
    with pytest.raises(grpc.RpcError) as caught:
        stub.CreateToken(access_pb2.CreateTokenRequest(principal="eve", role=access_pb2.ROLE_ADMIN))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        server.stub(access_pb2_grpc.AuditServiceStub).ListAuditEntries(access_pb2.ListAuditEntriesRequest())
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_what_is_wrong_with_a_token_is_said_by_field(tmp_path: Path) -> None:
    with serving(tmp_path, "--tokens", "--jobs", "0") as server:
        secret = (tmp_path / "admin.token").read_text().strip()
        admin = access_pb2_grpc.TokenServiceStub(holding(server.channel, secret))
        bad = access_pb2.CreateTokenRequest(principal="../x", role=9, models=["ok", "a b"], datasets=["*"] * 65)
        bad.expire_time.FromSeconds(1)
        with pytest.raises(grpc.RpcError) as caught:
            admin.CreateToken(bad)
        found = error_details_pb2.BadRequest()
        assert any(detail.Unpack(found) for detail in status_of(caught.value).details)
        fields = {violation.field for violation in found.field_violations}
        assert fields == {"principal", "role", "models[1]", "datasets", "expire_time"}


def test_a_policy_file_bounds_callers_and_is_heeded_while_the_server_runs(tmp_path: Path) -> None:
    issuer, policy = Issuer(), tmp_path / "policy.toml"
    (tmp_path / "keys.json").write_text(issuer.jwks())
    policy.write_text(
        """
        [[principals]]
        name = "jwt:ann"
        role = "tuner"
        models = ["shop-*"]
        quotas = { requests_per_minute = 30, operations = 1 }
        """
    )
    flags = ["--tokens", "--policy", str(policy), "--jwt-keys", str(tmp_path / "keys.json")]
    flags += ["--jwt-audience", AUDIENCE, "--jwt-issuer", ISSUER, "--jobs", "0"]
    with serving(tmp_path, *flags) as server:
        assert not (tmp_path / "admin.token").exists()
        ann = holding(server.channel, issuer.token("admin"))
        # Bounded by the file, whatever the token says.
        assert code_of(server, issuer.token("admin"), "models/bank") is grpc.StatusCode.PERMISSION_DENIED
        assert code_of(server, issuer.token("admin"), "models/shop-1") is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as caught:
            access_pb2_grpc.TokenServiceStub(ann).ListTokens(access_pb2.ListTokensRequest())
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

        bases = base_pb2_grpc.BaseServiceStub(ann)
        [base, *_] = bases.ListBases(base_pb2.ListBasesRequest()).bases
        bases.PullBase(base_pb2.PullBaseRequest(name=base.name))
        with pytest.raises(grpc.RpcError) as caught:
            bases.PullBase(base_pb2.PullBaseRequest(name=base.name))
        assert reason_of(caught.value) == ("QUOTA_EXCEEDED", "operations")

        tasks = task_pb2_grpc.TaskServiceStub(ann)
        while ended(lambda: tasks.ListTasks(task_pb2.ListTasksRequest())) is grpc.StatusCode.OK:
            pass
        with pytest.raises(grpc.RpcError) as caught:
            tasks.ListTasks(task_pb2.ListTasksRequest())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(caught.value) == ("QUOTA_EXCEEDED", "requests_per_minute")
        delay = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(delay) for detail in status_of(caught.value).details)
        assert 0 < delay.retry_delay.ToMilliseconds() <= 2000
        bob = issuer.token("viewer", sub="bob")
        assert code_of(server, bob) is grpc.StatusCode.OK

        policy.write_text('[[principals]]\nname = "jwt:bob"\nrole = "none"\n')
        assert eventually(lambda: code_of(server, bob), grpc.StatusCode.PERMISSION_DENIED) < 5.0
        policy.write_text("[[principals]]\nname = 3\n")
        assert eventually(lambda: any("policy unreadable" in line for line in server.log), True) < 5.0
        assert code_of(server, bob) is grpc.StatusCode.PERMISSION_DENIED


def test_a_policy_that_is_broken_keeps_a_server_from_starting(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[[principals]]\nrole = "emperor"\ncolour = "red"\n')
    command = [sys.executable, "-m", "luthier", "--home", str(tmp_path), "--listen", "127.0.0.1:0", "--tokens"]
    ended = subprocess.run(
        [*command, "--policy", str(tmp_path / "policy.toml")], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    problems = [line for line in ended.stderr.splitlines() if line.startswith("luthier serve: --policy ")]
    assert [problem.split(": ")[2] for problem in problems] == [
        "principals[0].colour",
        "principals[0].name",
        "principals[0].role",
    ]


def test_a_plugin_says_who_calls(tmp_path: Path) -> None:
    """And tokens still do, for those whom it does not know."""
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{hashlib.sha256(b'opensesame').hexdigest()} till viewer shop-*\n")
    (tmp_path / "policy.toml").write_text('[[principals]]\nname = "key:till"\nmodels = ["*-eu"]\n')
    flags = ["--tokens", "--policy", str(tmp_path / "policy.toml"), "--jobs", "0"]
    with serving(tmp_path / "home", *flags, **installed(tmp_path), API_KEYS=str(keys)) as server:
        models = model_pb2_grpc.ModelServiceStub(server.channel)

        def asked(name: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
            return ended(lambda: models.GetModel(model_pb2.GetModelRequest(name=name), metadata=metadata))

        key = ("x-api-key", "opensesame")
        assert asked("models/shop-eu", key) is grpc.StatusCode.NOT_FOUND
        assert asked("models/shop-us", key) is grpc.StatusCode.PERMISSION_DENIED, "the policy file bounds it"
        assert asked("models/bank-eu", key) is grpc.StatusCode.PERMISSION_DENIED
        assert asked("models/shop-eu", ("x-api-key", "guess")) is grpc.StatusCode.UNAUTHENTICATED
        assert asked("models/shop-eu") is grpc.StatusCode.UNAUTHENTICATED
        admin = (tmp_path / "home" / "admin.token").read_text().strip()
        assert asked("models/bank", ("authorization", f"Bearer {admin}")) is grpc.StatusCode.NOT_FOUND
        wrong = ("authorization", f"Bearer {admin}")
        assert asked("models/bank", key, wrong) is grpc.StatusCode.PERMISSION_DENIED, "its answer comes first"
        keys.unlink()
        assert asked("models/shop-eu", key) is grpc.StatusCode.INTERNAL, "a plugin that fails lets nobody in"
        assert "opensesame" not in "".join(server.log)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from luthier_client.cli.app import app
    from luthier_client.client import Client

    with serving(tmp_path, "--tokens", "--jobs", "0") as server:
        secret = (tmp_path / "admin.token").read_text().strip()

        def connect(client: Client, address: str, **_: Any) -> None:
            original(client, address)
            client.channel = holding(client.channel, secret)
            client._tokens = access_pb2_grpc.TokenServiceStub(client.channel)
            client._audit = access_pb2_grpc.AuditServiceStub(client.channel)

        original = Client.__init__
        monkeypatch.setattr(Client, "__init__", connect)

        def run(*words: str) -> str:
            done = CliRunner().invoke(app, [*words, "--address", server.address])
            assert done.exit_code == 0, done.output
            return done.stdout

        made = run("tokens", "create", "shop", "--role", "caller", "--model", "shop-*", "--expires", "90d").strip()
        assert code_of(server, made, "models/shop-1") is grpc.StatusCode.NOT_FOUND
        listed = run("tokens", "list")
        assert "shop-*" in listed
        assert "valid until" in listed
        stub = access_pb2_grpc.TokenServiceStub(holding(server.channel, secret))
        newest, _ = stub.ListTokens(access_pb2.ListTokensRequest()).tokens
        run("tokens", "revoke", newest.name)
        assert "revoked" in run("tokens", "list")
        audited = run("--json", "audit", "--method", "RevokeToken", "--since", "1h")
        assert '"principal": "admin"' in audited
        assert newest.name in audited


def installed(folder: Path) -> dict[str, str]:
    """Environment in which the plugin is there, as if it were installed."""
    info = folder / "site" / "api_keys-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: api-keys\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[luthier]\napi-keys = api_keys:plugin\n")
    path = [os.environ.get("PYTHONPATH", ""), str(ROOT / "tests" / "plugins" / "api_keys"), str(folder / "site")]
    return {"PYTHONPATH": os.pathsep.join(path).strip(os.pathsep)}


def ended(call: Callable[[], Any]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def code_of(server: Server, token: str, model: str = "") -> grpc.StatusCode:
    """How a call with a token ends: one for a list, or for a model."""
    stub = model_pb2_grpc.ModelServiceStub(holding(server.channel, token))
    if model:
        return ended(lambda: stub.GetModel(model_pb2.GetModelRequest(name=model)))
    return ended(lambda: stub.ListModels(model_pb2.ListModelsRequest()))


def reason_of(error: grpc.RpcError) -> tuple[str, str]:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status_of(error).details)
    return info.reason, info.metadata["quota"]


def eventually(asked: Callable[[], Any], wanted: Any, limit_s: float = 10.0) -> float:
    """Seconds until an answer is the wanted one."""
    started = time.monotonic()
    while asked() != wanted:
        assert time.monotonic() - started < limit_s, f"it never became {wanted}"
        time.sleep(0.02)
    return time.monotonic() - started
