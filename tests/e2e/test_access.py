"""Nobody comes in who should not: every method of a running server, by its descriptors, against the policy table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import luthier.database as db
from credentials import AUDIENCE, ISSUER, Issuer, bearer, holding
from luthier import plugins
from luthier.access.policy import RULES, Field, Id, Policy, Rule, Short
from luthier.access.principal import Role
from luthier.database import Database
from luthier.operations import Operations
from luthier.services.interceptor import CHANGES
from luthier.v1 import (
    access_pb2,
    access_pb2_grpc,
    evaluation_pb2,
    model_pb2,
    model_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
    rollout_pb2,
)
from luthier.v1.operation_pb2 import OperationMetadata
from support import ROOT, Server, serving

ROLES = [Role.VIEWER, Role.CALLER, Role.TUNER, Role.ADMIN]
NOWHERE = "f" * 32
NOTHING = dict.fromkeys(["operation", "evaluation", "rollout", "prediction"], NOWHERE)
ROLLOUT, PREDICTION = "d" * 32, "0" * 24
REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
NAMING = {"model", "model_name", "model_id", "model_version", "alias", "dataset", "dataset_id", "base", "prediction_id"}
"""Fields of requests that name a model, a data set or what was made of them, whatever the method."""
NAMES_NOTHING = {
    # Of these, `name` and `parent` are of tasks, bases, tokens or nothing.
    "/luthier.v1.TaskService/GetTask",
    "/luthier.v1.BaseService/GetBase",
    "/luthier.v1.BaseService/PullBase",
    "/luthier.v1.BaseService/DeleteBase",
    "/luthier.v1.TokenService/RevokeToken",
    "/google.longrunning.Operations/ListOperations",
}


@dataclass(frozen=True)
class Guarded:
    """A server that asks for tokens, and what a caller can hold."""

    server: Server
    issuer: Issuer
    static: Mapping[Role, str]
    scoped: Mapping[Role, str]
    ended: Mapping[str, str]
    methods: Mapping[str, MethodDescriptor]
    theirs: Mapping[str, str]
    """Ids of resources that are not within the scope of `scoped`, by kind."""

    def admin(self) -> grpc.Channel:
        return holding(self.server.channel, self.static[Role.ADMIN])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """One for all tests here; its work is left undone."""
    home, issuer = tmp_path_factory.mktemp("guarded"), Issuer()
    (home / "jwks.json").write_text(issuer.jwks())
    theirs = furnish(home)
    flags = ["--tokens", "--jwt-keys", str(home / "jwks.json"), "--jwt-audience", AUDIENCE, "--jwt-issuer", ISSUER]
    with serving(home, *flags, "--jobs", "0", "--trainings", "0", **stranger(home)) as server:
        admin = access_pb2_grpc.TokenServiceStub(holding(server.channel, issuer.token("admin")))

        def make(name: str, role: Role, **fields: Any) -> access_pb2.CreateTokenResponse:
            return admin.CreateToken(access_pb2.CreateTokenRequest(principal=name, role=int(role), **fields))

        static = {role: make(f"all-{role}", role).secret for role in ROLES}
        scoped = {role: make(f"some-{role}", role, models=["mine*"], datasets=["mine*"]).secret for role in ROLES}
        soon = access_pb2.CreateTokenRequest(principal="gone", role=access_pb2.ROLE_ADMIN)
        soon.expire_time.FromNanoseconds(time.time_ns() + 500_000_000)
        expired = admin.CreateToken(soon).secret
        revoked = make("thrown-out", Role.ADMIN)
        admin.RevokeToken(access_pb2.RevokeTokenRequest(name=revoked.token.name))
        time.sleep(0.6)
        ended = {"static, expired": expired, "static, revoked": revoked.secret}
        methods = methods_of(holding(server.channel, static[Role.VIEWER]))
        yield Guarded(server, issuer, static, scoped, ended, methods, theirs)


def furnish(home: Path) -> dict[str, str]:
    """Puts an operation and an evaluation of somebody else's model into a home's database."""
    database = Database(f"sqlite:///{home / 'luthier.db'}")
    database.migrate()
    request = evaluation_pb2.EvaluateRequest(model="models/other", dataset="datasets/other")
    operation = Operations(database).submit(OperationMetadata.KIND_EVALUATE, "models/other", request)
    evaluation = "e" * 32
    record = evaluation_pb2.Evaluation(
        name=f"evaluations/{evaluation}",
        model_version="models/other/versions/1",
        dataset_version="datasets/other/versions/1",
    )
    with database.write() as connection:
        for id in ("other", "mine"):
            row = {"id": id, "task": "text-classification", "last_number": 1, "create_time": 0.0}
            connection.execute(db.models.insert().values(row))
            connection.execute(db.datasets.insert().values(row))
            version = {"model": id, "number": 1, "digest": id, "operation": id, "record": b""}
            connection.execute(db.model_versions.insert().values(version))
        of = {"model": "other", "model_number": 1, "dataset": "other", "dataset_number": 1, "create_time": 0.0}
        connection.execute(db.evaluations.insert().values(id=evaluation, record=record.SerializeToString(), **of))
        rollout = rollout_pb2.Rollout(
            name=f"rollouts/{ROLLOUT}",
            alias="models/other/aliases/production",
            state=rollout_pb2.Rollout.STATE_ROLLED_BACK,
        )
        of = {
            "model": "other",
            "alias": "production",
            "looks": 0,
            "next_look": 0,
            "last_sequence": 0,
            "create_time": 0.0,
        }
        of |= {"state": rollout.state, "record": rollout.SerializeToString(), "last_sequence": 0}
        connection.execute(db.rollouts.insert().values(id=ROLLOUT, **of))
        of = {"alias": rollout.alias, "rollout": ROLLOUT, "caller": "", "create_time": time.time(), "prediction": b""}
        values = {"id": PREDICTION, "index": 0, "version": "models/other/versions/1", **of}
        connection.execute(db.predictions.insert().values(values))
    database.close()
    return {
        "model": "other",
        "dataset": "other",
        "operation": operation.name.partition("/")[2],
        "evaluation": evaluation,
        "rollout": ROLLOUT,
        "prediction": PREDICTION,
    }


def stranger(home: Path) -> dict[str, str]:
    """Environment in which a third party's task is there, as if it were installed."""
    if entry_points(group="luthier", name="acme-regression"):
        return {}
    info = home / "site" / "acme_regression-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-regression\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[luthier]\nacme-regression = acme_regression\n")
    return {"PYTHONPATH": path_with(ROOT / "tests" / "plugins" / "acme_regression", home / "site")}


def path_with(*folders: Path) -> str:
    return os.pathsep.join([os.environ.get("PYTHONPATH", ""), *map(str, folders)]).strip(os.pathsep)


def methods_of(channel: grpc.Channel) -> dict[str, MethodDescriptor]:
    """Every method that a server's reflection tells of."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    found = {}
    for name in database.get_services():
        service = pool.FindServiceByName(name)
        found |= {f"/{service.full_name}/{method.name}": method for method in service.methods}
    return found


def policy_of(methods: Mapping[str, MethodDescriptor]) -> dict[str, Rule | None]:
    """The rule of each method, by the table with the tasks that are installed here and the stranger's."""
    tasks = list(plugins.load().tasks.values())
    rules = Policy(tasks, lambda principal, named: []).rules
    typed = RULES["/luthier.v1.PredictionService/Predict"]
    return {name: rules.get(name, typed if name.startswith("/acme_regression.") else None) for name in methods}


def undecided(methods: Mapping[str, MethodDescriptor], rules: Mapping[str, Rule | None]) -> list[str]:
    """Methods that nobody decided on, and fields of requests that name what no rule looks at."""
    missing = [name for name in methods if rules.get(name) is None]
    for name, method in methods.items():
        rule = rules.get(name)
        if rule is None or rule.role in (Role.NONE, Role.ADMIN):
            continue
        looked_at = {field.name for field in rule.fields}
        naming = set(NAMING)
        if name.startswith("/inference."):
            # There it is a number.
            naming -= {"model_version"}
        if name not in NAMES_NOTHING:
            naming |= {"name", "parent"}
        missing += [
            f"{name}: {field.name}"
            for field in method.input_type.fields
            if field.name in naming - looked_at and field.cpp_type == field.CPPTYPE_STRING
        ]
    return missing


def test_every_method_has_a_rule(guarded: Guarded) -> None:
    assert len(guarded.methods) > 70
    assert "/acme_regression.v1.RegressionService/Estimate" in guarded.methods
    assert undecided(guarded.methods, policy_of(guarded.methods)) == []


def test_a_method_without_a_rule_would_be_found(guarded: Guarded) -> None:
    rules = policy_of(guarded.methods)
    name = "/luthier.v1.ModelService/SetAlias"
    assert undecided(guarded.methods, {**rules, name: None}) == [name]
    assert undecided(guarded.methods, {**rules, name: Rule(Role.TUNER, [Field("name", "model")])}) == [
        f"{name}: model_version"
    ]


def test_the_table_has_no_method_that_is_not_there(guarded: Guarded) -> None:
    assert RULES.keys() - guarded.methods.keys() == set()


def test_what_changes_something_asks_for_more_than_to_see_it() -> None:
    assert {name for name in RULES if CHANGES.fullmatch(name) and RULES[name].role < Role.TUNER} == set()


def test_nobody_comes_in_without_a_token(guarded: Guarded) -> None:
    for name, rule in policy_of(guarded.methods).items():
        assert rule is not None
        code = call(guarded, name, None, {})
        assert (code is grpc.StatusCode.UNAUTHENTICATED) == (rule.role != Role.NONE), f"{name} without a token: {code}"


@pytest.mark.parametrize("why", sorted(Issuer().bad()))
def test_a_token_that_is_not_to_be_believed(guarded: Guarded, why: str) -> None:
    refused(guarded, guarded.issuer.bad()[why])


@pytest.mark.parametrize("why", ["static, expired", "static, revoked"])
def test_a_static_token_that_has_ended(guarded: Guarded, why: str) -> None:
    refused(guarded, guarded.ended[why])


def refused(guarded: Guarded, token: str) -> None:
    for name, rule in policy_of(guarded.methods).items():
        assert rule is not None
        if rule.role != Role.NONE:
            code = call(guarded, name, token, {})
            assert code is grpc.StatusCode.UNAUTHENTICATED, f"{name}: {code}"


@pytest.mark.parametrize("kind", ["static", "JWT"])
def test_each_role_may_call_what_the_table_says(guarded: Guarded, kind: str) -> None:
    """Not more, and not less; in calls that name what is not there, so that nothing changes."""
    mine = {"model": "mine-not-there", "dataset": "mine-not-there", **NOTHING}
    scope = {"luthier_models": ["mine*"], "luthier_datasets": ["mine*"]}
    for name, rule in policy_of(guarded.methods).items():
        assert rule is not None
        for role in ROLES:
            token = guarded.scoped[role] if kind == "static" else guarded.issuer.token(str(role), **scope)
            code = call(guarded, name, token, filled(rule, mine))
            denied = code is grpc.StatusCode.PERMISSION_DENIED
            assert denied == (role < rule.role), f"{name} as {role}: {code}"
            assert code is not grpc.StatusCode.UNAUTHENTICATED, name


@pytest.mark.parametrize("kind", ["static", "JWT"])
def test_nothing_outside_a_scope_can_be_named(guarded: Guarded, kind: str) -> None:
    scope = {"luthier_models": ["mine*"], "luthier_datasets": ["mine*"]}
    checked = 0
    for name, rule in policy_of(guarded.methods).items():
        assert rule is not None
        token = guarded.scoped[Role.ADMIN] if kind == "static" else guarded.issuer.token("admin", **scope)
        for field in rule.fields:
            # All others are within it.
            mine = {"model": "mine", "dataset": "mine", **NOTHING}
            values = filled(rule, mine) | filled(Rule(rule.role, [field]), guarded.theirs)
            code = call(guarded, name, token, values)
            assert code is grpc.StatusCode.PERMISSION_DENIED, f"{name} with another's {field.name}: {code}"
            checked += 1
    assert checked > 50


def test_lists_show_what_is_within_the_scope(guarded: Guarded) -> None:
    scoped, admin = guarded.scoped[Role.VIEWER], guarded.static[Role.VIEWER]
    for name, rule in policy_of(guarded.methods).items():
        assert rule is not None
        if rule.part is None or name == "/inference.GRPCInferenceService/ModelStatistics":
            continue
        some, all = (answer(guarded, name, token) for token in (scoped, admin))
        shown = [[field.read(item) for field in rule.part.fields] for item in getattr(some, rule.part.list)]
        assert all != some, name
        assert len(getattr(all, rule.part.list)) > len(shown), name
        assert "other" not in {id for ids in shown for id in ids}, name


def test_a_revoked_token_ends_a_stream(guarded: Guarded) -> None:
    tokens = access_pb2_grpc.TokenServiceStub(guarded.admin())
    made = tokens.CreateToken(access_pb2.CreateTokenRequest(principal="short-lived", role=access_pb2.ROLE_CALLER))

    def requests() -> Iterator[prediction_pb2.PredictRequest]:
        tokens.RevokeToken(access_pb2.RevokeTokenRequest(name=made.token.name))
        time.sleep(0.5)
        yield prediction_pb2.PredictRequest(model="mine")

    stub = prediction_pb2_grpc.PredictionServiceStub(holding(guarded.server.channel, made.secret))
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.StreamPredict(requests(), timeout=5))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_no_token_is_in_the_log_or_in_the_database(guarded: Guarded) -> None:
    secrets = [*guarded.static.values(), *guarded.scoped.values(), *guarded.ended.values()]
    written = "".join(guarded.server.log).encode() + (guarded.server.home / "luthier.db").read_bytes()
    assert b"token refused" in written
    assert not [secret for secret in secrets if secret.encode() in written]
    assert guarded.issuer.bad()["alg none"].split(".")[1].encode() not in written


def test_who_changed_what_is_written_down(guarded: Guarded) -> None:
    models = model_pb2_grpc.ModelServiceStub(guarded.server.channel)
    alias = model_pb2.SetAliasRequest(name="models/mine/aliases/best", model_version="models/mine/versions/7")
    for token in (guarded.static[Role.TUNER], guarded.static[Role.CALLER], None):
        with pytest.raises(grpc.RpcError):
            models.SetAlias(alias, metadata=[*bearer(token), ("x-request-id", "audited-1")])
    channel = holding(guarded.server.channel, guarded.static[Role.ADMIN])
    audit = access_pb2_grpc.AuditServiceStub(channel)
    found = audit.ListAuditEntries(access_pb2.ListAuditEntriesRequest(method="SetAlias", page_size=3)).audit_entries
    assert [(entry.principal, entry.code) for entry in found] == [
        ("", "UNAUTHENTICATED"),
        ("all-caller", "PERMISSION_DENIED"),
        ("all-tuner", "NOT_FOUND"),
    ]
    assert {entry.request_id for entry in found} == {"audited-1"}
    assert {entry.resource for entry in found} == {"models/mine"}
    assert all(entry.peer.startswith("ipv4:127.0.0.1:") for entry in found)
    by_admin = audit.ListAuditEntries(access_pb2.ListAuditEntriesRequest(principal="jwt:ann", method="CreateToken"))
    made = [entry for entry in by_admin.audit_entries if entry.code == "OK"]
    assert len(made) == 10
    assert all(entry.resource.startswith("tokens/") for entry in made)
    assert any('"principal": "all-tuner"' in line and '"event": "call"' in line for line in guarded.server.log)


def filled(rule: Rule, ids: Mapping[str, str]) -> dict[str, str]:
    """The fields of a request that name resources, with these ids."""
    return {
        field.name: ids[field.kind] if isinstance(field, Short | Id) else resource(field, ids[field.kind])
        for field in rule.fields
    }


def resource(field: Field, id: str) -> str:
    return f"{field.kind}s/{id}"


def call(guarded: Guarded, name: str, token: str | None, fields: Mapping[str, str]) -> grpc.StatusCode:
    """Calls a method with a request of a few fields; returns how it ended, or OK once it has answered."""
    try:
        answer(guarded, name, token, fields)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def answer(guarded: Guarded, name: str, token: str | None, fields: Mapping[str, str] | None = None) -> Message:
    """The answer of a method, or the first of several."""
    method = guarded.methods[name]
    request, kind = GetMessageClass(method.input_type)(**(fields or {})), GetMessageClass(method.output_type)
    arity = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    multi = getattr(guarded.server.channel, arity)(
        name, request_serializer=lambda message: message.SerializeToString(), response_deserializer=kind.FromString
    )
    sent: Any = iter([request]) if method.client_streaming else request
    found = multi(sent, metadata=bearer(token), timeout=10)
    if not method.server_streaming:
        return found
    try:
        for first in found:
            return first
        return kind()
    finally:
        found.cancel()
