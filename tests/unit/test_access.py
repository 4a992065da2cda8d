"""Who calls and what they may do, piece by piece: policies, tokens, keys, quotas."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import jwt
import pytest
from google.protobuf import wrappers_pb2

from certificates import Authority
from credentials import AUDIENCE, ISSUER, Issuer, bearer
from luthier.access import Credentials, Limits, Principal, Role, Scope, quotas
from luthier.access.audit import Asked, Audit
from luthier.access.gate import CannotOpen, Gate, make
from luthier.access.jwt_tokens import LEEWAY_S, BadKeys, JwtTokens, KeySet, parse
from luthier.access.policy import Field, Named, Policy, Rule, Short
from luthier.access.policy_file import BadPolicy, PolicyFile
from luthier.access.policy_file import parse as parse_policy
from luthier.access.principal import acting
from luthier.access.quotas import Bucket, Rates
from luthier.access.resources import Resources
from luthier.access.tokens import ADMIN_FILE, Tokens, digest_of
from luthier.database import Database
from luthier.errors import PermissionDenied, QuotaExceeded, Unauthenticated, Unavailable
from luthier.operations import Operations
from luthier.registry import Registry
from luthier.services.access import AccessInterceptor
from luthier.services.interceptor import CallInterceptor
from luthier.services.tokens import AuditService, TokenService
from luthier.settings import Settings
from luthier.telemetry.meters import Meters
from luthier.v1 import access_pb2, base_pb2, dataset_pb2
from luthier.v1.operation_pb2 import OperationMetadata

ANN = Principal("ann", Role.TUNER)


def credentials(token: str | None = None) -> Credentials:
    return Credentials(dict(bearer(token)), "ipv4:127.0.0.1:1")


# Scopes.


def test_a_scope_within_another_has_what_both_have() -> None:
    scope = Scope(["shop-*", "toys"]).within(Scope(["*-eu", "toys"]))
    assert [id for id in ("shop-eu", "shop-us", "toys", "bank-eu", "") if scope.has(id)] == ["shop-eu", "toys"]
    assert Scope(["*"]).is_all
    assert not Scope([]).has("anything")
    assert Scope().has("anything")
    assert Scope(["shop"]).within(Scope()) == Scope(["shop"])


@pytest.mark.parametrize(
    ("field", "value", "id"),
    [
        (Field("model", "model"), "models/beer", "beer"),
        (Field("model", "model"), "models/beer/versions/3", "beer"),
        (Field("model", "model"), "datasets/beer", ""),
        (Field("model", "model"), "beer", ""),
        (Short("model", "model"), "beer", "beer"),
        (Short("model", "model"), "beer@production", "beer"),
        (Short("model", "model"), "beer/3", "beer"),
        (Short("model", "model"), "beer.instances", "beer"),
        # A model may be called so: this is its version 3.
        (Short("model", "model"), "models/3", "models"),
    ],
)
def test_what_a_field_names(field: Field, value: str, id: str) -> None:
    assert field.id(value) == id


# The policy file.

GOOD = """
[[principals]]
name = "jwt:*@example.com"
role = "caller"
models = ["shop-*"]
quotas = { requests_per_minute = 600, operations = 2 }

[[principals]]
name = "ci"
"""

BAD = """
colour = "red"

[[principals]]
role = "emperor"
models = "shop"

[[principals]]
name = "b"
datasets = ["../x"]
quotas = { requests_per_minute = -1, cats = 3 }
"""


def test_an_entry_bounds_and_never_widens() -> None:
    file = PolicyFile(None)
    file._entries = parse_policy(GOOD)
    bounded = file.bound(Principal("jwt:ann@example.com", Role.ADMIN, models=Scope(["*-eu"])))
    assert bounded.role == Role.CALLER
    assert [id for id in ("shop-eu", "shop-us", "x-eu") if bounded.models.has(id)] == ["shop-eu"]
    assert bounded.limits == Limits(requests_per_minute=600, operations=2)
    assert file.bound(Principal("jwt:ann@example.com", Role.VIEWER)).role == Role.VIEWER
    # A token without a role of its own takes the entry's.
    assert file.bound(Principal("jwt:ann@example.com", Role.NONE)).role == Role.CALLER
    other = Principal("ci", Role.TUNER)
    assert file.bound(other) == other


def test_a_role_of_none_bars_whoever_holds_a_token() -> None:
    file = PolicyFile(None)
    file._entries = parse_policy('[[principals]]\nname = "jwt:eve"\nrole = "none"')
    assert file.bound(Principal("jwt:eve", Role.ADMIN)).role == Role.NONE


def test_all_that_is_wrong_with_a_policy_is_named() -> None:
    with pytest.raises(BadPolicy) as caught:
        parse_policy(BAD)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "colour",
        "principals[0].name",
        "principals[0].role",
        "principals[0].models",
        "principals[1].datasets",
        "principals[1].quotas.requests_per_minute",
        "principals[1].quotas.cats",
    ]


def test_a_policy_is_read_again_once_it_is_whole_and_the_last_good_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(GOOD)
    file = PolicyFile(path)
    ci = Principal("ci", Role.TUNER)
    path.write_text('[[principals]]\nname = "ci"\nrole = "viewer"\n')
    file.look()
    assert file.bound(ci).role == Role.TUNER, "it may be half of a file"
    file.look()
    assert file.bound(ci).role == Role.VIEWER
    for broken in (BAD, None):
        path.unlink()
        if broken:
            path.write_text(broken)
        for _ in range(3):
            file.look()
        assert file.bound(ci).role == Role.VIEWER
    path.write_text('[[principals]]\nname = "ci"\nrole = "caller"\n')
    for _ in range(2):
        file.look()
    assert file.bound(ci).role == Role.CALLER


def test_a_server_does_not_start_with_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(BAD)
    (tmp_path / "keys.json").write_text("{}")
    files = {"policy": tmp_path / "policy.toml", "jwt_keys": str(tmp_path / "keys.json")}
    with pytest.raises(CannotOpen) as caught:
        make(Tokens(Database("sqlite://")), None, **files, jwt_audience="luthier", jwt_issuer="")
    assert len(caught.value.problems) == 8


# The table.


def test_what_is_in_no_rule_is_denied_to_everybody(database: Database, tmp_path: Path) -> None:
    """A method of a stranger's that came in some other way than by a task."""
    tokens = Tokens(database)
    _, secret = tokens.create("root", Role.ADMIN)
    gate, reached = Gate(tokens, PolicyFile(None)), []
    gate.start()
    policy = Policy([], lambda principal, named: [])
    interceptors = [CallInterceptor(Meters()), AccessInterceptor(gate, policy, Audit(database))]

    def strange(request: Any, context: grpc.ServicerContext) -> Any:
        reached.append(request)
        return request

    kind = wrappers_pb2.StringValue
    handler = grpc.unary_unary_rpc_method_handler(strange, kind.FromString, kind.SerializeToString)
    server = grpc.server(futures.ThreadPoolExecutor(1), interceptors=interceptors)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("acme.Strange", {"Do": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/acme.Strange/Do", kind.SerializeToString, kind.FromString)
        with pytest.raises(grpc.RpcError) as caught:
            call(kind(value="x"), metadata=bearer(secret))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not reached
    server.stop(None).wait()
    gate.stop()


def test_a_task_cannot_take_a_method_of_the_servers_own_under_its_rule() -> None:
    service = SimpleNamespace(full_name="luthier.v1.TokenService")
    thief: Any = SimpleNamespace(service=service, methods=[SimpleNamespace(name="CreateToken")])
    rules = Policy([thief], lambda principal, named: []).rules
    assert rules["/luthier.v1.TokenService/CreateToken"].role == Role.ADMIN


def test_a_restricted_caller_names_something_within_its_scope() -> None:
    policy = Policy([], lambda principal, named: [])
    rule = Rule(Role.CALLER, [Field("name", "model")])
    some = Principal("ann", Role.CALLER, models=Scope(["shop"]))
    policy.check(rule, some, dataset_pb2.GetDatasetRequest(name="models/shop"))
    for name in ("models/shop2", "", "shop", "datasets/shop"):
        with pytest.raises(PermissionDenied):
            policy.check(rule, some, dataset_pb2.GetDatasetRequest(name=name))


# Static tokens.


def test_a_secret_is_known_by_its_digest_alone(database: Database) -> None:
    tokens = Tokens(database)
    row, secret = tokens.create("ci", Role.TUNER, ["shop-*"])
    assert len(secret) == len("luthier_") + 43
    assert row.digest == digest_of(secret)
    tokens.refresh()
    found = tokens.find(digest_of(secret), time.time())
    assert found == Principal("ci", Role.TUNER, models=Scope(["shop-*"]))
    tokens.revoke(row.id)
    tokens.refresh()
    assert tokens.find(digest_of(secret), time.time()) is None


def test_a_token_ends_on_time_without_a_look_at_the_database(database: Database) -> None:
    tokens = Tokens(database)
    ends = time.time() + 60
    _, secret = tokens.create("ci", Role.TUNER, expire_time=ends)
    tokens.refresh()
    assert tokens.find(digest_of(secret), ends - 1) is not None
    assert tokens.find(digest_of(secret), ends) is None


def test_uses_are_noted_to_the_minute(database: Database) -> None:
    tokens = Tokens(database)
    row, secret = tokens.create("ci", Role.TUNER)
    tokens.refresh()
    tokens.find(digest_of(secret), 1_000_000_059.0)
    tokens.note_uses()
    assert tokens.page(None, 10)[0].last_use_time == 1_000_000_020.0
    assert tokens.page(None, 10)[0].id == row.id


def test_the_first_token_is_made_once(database: Database, tmp_path: Path) -> None:
    path = Tokens(database).bootstrap(tmp_path)
    assert path == tmp_path / ADMIN_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    secret = path.read_text().strip()
    tokens = Tokens(database)
    assert tokens.bootstrap(tmp_path) is None
    tokens.refresh()
    found = tokens.find(digest_of(secret), time.time())
    assert found is not None
    assert found.role == Role.ADMIN
    tokens.revoke(tokens.page(None, 1)[0].id)
    assert Tokens(database).bootstrap(tmp_path) is None, "who ends the last token does not get another"
    assert [each.name for each in tmp_path.iterdir() if "token" in each.name] == [ADMIN_FILE]


# JSON Web Tokens.


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def keys(issuer: Issuer, tmp_path: Path) -> KeySet:
    path = tmp_path / "keys.json"
    path.write_text(issuer.jwks())
    keys = KeySet(str(path))
    keys.load()
    return keys


def test_a_good_token_says_who_calls(issuer: Issuer, keys: KeySet) -> None:
    tokens = JwtTokens(keys, AUDIENCE, ISSUER)
    end = int(time.time()) + 100
    found = tokens.verify(issuer.token("tuner", luthier_models="shop-* toys", exp=end))
    assert found == Principal("jwt:ann", Role.TUNER, models=Scope(["shop-*", "toys"]), expires=end + LEEWAY_S)
    assert tokens.verify(issuer.token(None)).role == Role.NONE
    # Clocks differ.
    tokens.verify(issuer.token("viewer", exp=int(time.time()) - 20))


@pytest.mark.parametrize("why", sorted({*Issuer().bad()} - {"nothing known"}))
def test_a_bad_token_says_nothing(issuer: Issuer, keys: KeySet, why: str) -> None:
    with pytest.raises((Unauthenticated, Unavailable)):
        JwtTokens(keys, AUDIENCE, ISSUER).verify(issuer.bad()[why])


@pytest.mark.parametrize(
    "keys",
    [
        b"{",
        b"[]",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}]}',
        b'{"keys": [{"kty": "RSA", "alg": "HS256", "n": "AQAB", "e": "AQAB"}]}',
        b'{"keys": [{"kty": "EC"}]}',
    ],
)
def test_what_is_no_set_of_public_keys(keys: bytes) -> None:
    with pytest.raises(BadKeys):
        parse(keys)


def test_keys_of_a_file_are_read_again_and_the_last_good_ones_kept(issuer: Issuer, keys: KeySet) -> None:
    path, other = Path(keys.source), Issuer()
    tokens = JwtTokens(keys, AUDIENCE, ISSUER)
    path.write_text("{ half")
    keys.look()
    tokens.verify(issuer.token())
    path.write_text(other.jwks())
    keys.look()
    tokens.verify(other.token())
    with pytest.raises(Unauthenticated):
        tokens.verify(issuer.token())


def test_a_verified_token_is_believed_until_it_ends_or_its_key_goes(
    issuer: Issuer, keys: KeySet, database: Database
) -> None:
    gate = Gate(Tokens(database), PolicyFile(None), JwtTokens(keys, AUDIENCE, ISSUER))
    ending = issuer.token(exp=int(time.time() - LEEWAY_S) + 3)
    first = gate.principal(credentials(ending))
    assert gate.principal(credentials(ending)) is first
    time.sleep(max(0.0, first.expires - time.time()) + 0.1)
    with pytest.raises(Unauthenticated):
        gate.principal(credentials(ending))
    token = issuer.token()
    gate.principal(credentials(token))
    Path(keys.source).write_text(Issuer().jwks())
    keys.look()
    with pytest.raises(Unauthenticated):
        gate.principal(credentials(token))


class Provider:
    """Gives keys over HTTPS."""

    def __init__(self, folder: Path) -> None:
        authority = Authority()
        self.status, self.body, self.headers, self.asked = 200, b"", {"Content-Type": "application/json"}, 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                self.send_response(provider.status)
                for name, value in provider.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(provider.body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.server().write(folder, "id"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.trust = ssl.create_default_context(cadata=authority.certificate.decode())
        self.url = f"https://localhost:{self._server.server_port}/keys"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    running = Provider(tmp_path)
    yield running
    running.close()


def test_keys_of_a_url_are_looked_for_anew_when_one_is_not_known(issuer: Issuer, provider: Provider) -> None:
    keys, other = KeySet(provider.url, provider.trust), Issuer()
    tokens = JwtTokens(keys, AUDIENCE, ISSUER)
    with pytest.raises(Unavailable):
        tokens.verify(issuer.token())
    provider.body = issuer.jwks().encode()
    keys.look(at=0.0)
    tokens.verify(issuer.token())
    # The provider has changed its keys.
    renamed = json.loads(other.jwks())
    renamed["keys"][0]["kid"] = "next"
    provider.body = json.dumps(renamed).encode()
    fresh = jwt.encode(other.claims(), other.key, algorithm="ES256", headers={"kid": "next"})
    with pytest.raises(Unavailable, match="try again"):
        tokens.verify(fresh)
    keys.look(at=1.0)
    tokens.verify(fresh)
    assert provider.asked == 2
    # Names that nobody knows bring no more than a look a minute.
    for number in range(20):
        unknown = jwt.encode(other.claims(), other.key, algorithm="ES256", headers={"kid": str(number)})
        with pytest.raises(Unauthenticated):
            tokens.verify(unknown)
        keys.look(at=2.0)
    assert provider.asked == 2
    keys.look(at=2000.0)
    assert provider.asked == 3


@pytest.mark.parametrize("how", ["nothing", "redirect", "huge", "stranger", "error"])
def test_a_url_that_gives_no_keys_leaves_the_last_good_ones(issuer: Issuer, provider: Provider, how: str) -> None:
    keys = KeySet(provider.url, provider.trust)
    provider.body = issuer.jwks().encode()
    keys.load()
    if how == "nothing":
        provider.body = b"<html>"
    elif how == "redirect":
        provider.status, provider.headers = 302, {"Location": provider.url}
    elif how == "huge":
        provider.body += b" " * 2**20
    elif how == "stranger":
        keys._trust = None
    else:
        provider.status = 500
    with pytest.raises(BadKeys):
        keys.load()
    keys.look(at=1e9)
    JwtTokens(keys, AUDIENCE, ISSUER).verify(issuer.token())


# Quotas.


def test_a_bucket_fills_steadily() -> None:
    bucket = Bucket(60, 60.0, at=0.0)
    assert [bucket.draw_if(1, 0.0) for _ in range(61)] == [0.0] * 60 + [1.0]
    assert bucket.draw_if(1, 0.5) == 0.5
    assert bucket.draw_if(1, 1.0) == 0.0
    assert [bucket.draw_if(1, 1000.0) for _ in range(61)][-2:] == [0.0, 1.0], "it holds no more than its most"


def test_requests_and_bytes_are_each_principals_own() -> None:
    rates = Rates()
    request = dataset_pb2.GetDatasetRequest(name="x" * 998)
    ann = replace(ANN, limits=Limits(requests_per_minute=3))
    for _ in range(3):
        rates.admit(ann, request)
    with pytest.raises(QuotaExceeded) as caught:
        rates.admit(ann, request)
    assert 0 < caught.value.retry_s <= 20
    rates.admit(replace(ann, name="bob"), request)
    rates.admit(ann, request, counts=False)

    eve = replace(ANN, name="eve", limits=Limits(bytes_per_day=1500))
    rates.admit(eve, request)
    rates.note(eve, request)
    with pytest.raises(QuotaExceeded) as caught:
        rates.admit(eve, request)
    assert caught.value.retry_s == pytest.approx((2 * 1001 - 1500) / 1500 * 86_400, rel=0.01)
    assert quotas.size_of(request) == 1001


def test_operations_at_once_are_counted_where_they_are_submitted(database: Database) -> None:
    operations = Operations(database)
    token = acting.set(replace(ANN, limits=Limits(operations=2)))
    try:

        def submit(request_id: str) -> str:
            request = base_pb2.PullBaseRequest(name="bases/x", request_id=request_id)
            return operations.submit(OperationMetadata.KIND_PULL_BASE, "bases/x", request).name

        first = submit("1")
        submit("2")
        with pytest.raises(QuotaExceeded, match="2 operations at once"):
            submit("3")
        assert submit("1") == first, "a retry asks for nothing new"
        operations.cancel(first.partition("/")[2])
        submit("3")
        acting.set(replace(ANN, name="bob", limits=Limits(operations=1)))
        submit("4")
    finally:
        acting.reset(token)


def test_of_many_submitted_at_once_no_more_are_taken_than_may_be(database: Database) -> None:
    operations, bounded = Operations(database), replace(ANN, limits=Limits(operations=3))

    def submit(number: int) -> bool:
        acting.set(bounded)
        request = base_pb2.PullBaseRequest(name="bases/x", request_id=str(number))
        try:
            operations.submit(OperationMetadata.KIND_PULL_BASE, "bases/x", request)
        except QuotaExceeded:
            return False
        return True

    with futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(16))) == 3


def test_uploads_and_data_sets_are_held_against_who_brought_them(database: Database) -> None:
    registry, operations = Registry(database), Operations(database)
    token = acting.set(replace(ANN, limits=Limits(storage_bytes=1000)))
    try:
        registry.add_upload("1" * 32, dataset_pb2.Upload(filename="a", size_bytes=600))
        registry.check_room(400)
        with pytest.raises(QuotaExceeded):
            registry.check_room(401)
        with pytest.raises(QuotaExceeded):
            registry.add_upload("2" * 32, dataset_pb2.Upload(filename="b", size_bytes=401))
        request = dataset_pb2.CreateDatasetRequest(dataset_id="d")
        made = operations.submit(OperationMetadata.KIND_CREATE_DATASET, "datasets/d", request).name.partition("/")[2]
        version = dataset_pb2.DatasetVersion(task="t", digest="x", size_bytes=300)
        with database.write() as connection:
            registry.add_dataset_version(connection, "d", version, made)
        registry.check_room(100)
        with pytest.raises(QuotaExceeded):
            registry.check_room(101)
        registry.delete_dataset("d")
        registry.check_room(400)
    finally:
        acting.reset(token)


# The audit log, and settings.


def test_a_call_is_written_down_before_its_work_begins(database: Database) -> None:
    audit = Audit(database)
    row = audit.begin("ann", "/luthier.v1.ModelService/SetAlias", "models/a, models/b", "r", "p")
    assert [each.code for each in audit.page(Asked(resource="models/b"), None, 10)] == ["STARTED"]
    audit.end(row, "OK", "models/a, models/b")
    assert [each.code for each in audit.page(Asked(method="SetAlias"), None, 10)] == ["OK"]
    assert not audit.page(Asked(method="Alias"), None, 10)
    assert not audit.page(Asked(resource="models/_"), None, 10)
    assert audit.forget(time.time() + 1) == 1


def test_words_of_strangers_are_written_down_as_a_database_takes_them(database: Database) -> None:
    audit = Audit(database)
    audit.refused("", "/luthier.v1.ModelService/DeleteModel", "models/\0a\nb" + "x" * 9999, "UNAUTHENTICATED", "r", "p")
    [row] = audit.page(Asked(resource="models/\0a\nb" + "x" * 9999), None, 10)
    assert row.resource == "models/?a?b" + "x" * 501
    assert not audit.page(Asked(principal="\0", method="\0"), None, 10)
    nobody = Principal("ann", Role.VIEWER, models=Scope(["shop"]))
    assert Resources(database).may(nobody, [Named("operation", "\0"), Named("evaluation", "\0")]) == [True, True]


def test_pages_follow_one_another(database: Database) -> None:
    audit, tokens = Audit(database), Tokens(database)
    for number in range(3):
        audit.refused(f"p{number}", "/luthier.v1.ModelService/SetAlias", "", "UNAUTHENTICATED", "r", "p")
        tokens.create(f"p{number}", Role.VIEWER)
    context: Any = None
    audited, token = [], ""
    while token or not audited:
        entries = access_pb2.ListAuditEntriesRequest(page_size=1, page_token=token)
        answer = AuditService(audit, True).ListAuditEntries(entries, context)
        audited += [entry.principal for entry in answer.audit_entries]
        token = answer.next_page_token
    held = []
    while token or not held:
        listed = TokenService(tokens, True).ListTokens(
            access_pb2.ListTokensRequest(page_size=1, page_token=token), context
        )
        held += [each.principal for each in listed.tokens]
        token = listed.next_page_token
    assert audited == held == ["p2", "p1", "p0"]


def test_strangers_cannot_fill_the_audit_log(database: Database) -> None:
    audit = Audit(database)
    audit._refused = Bucket(5, 60.0, time.time())
    for _ in range(20):
        audit.refused("", "/luthier.v1.ModelService/SetAlias", "", "UNAUTHENTICATED", "r", "p")
    assert len(audit.page(Asked(), None, 100)) == 5


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"policy": "p.toml"}, "--tokens"),
        ({"jwt_keys": "keys.json", "jwt_audience": "a"}, "--tokens"),
        ({"tokens": True, "jwt_keys": "keys.json"}, "--jwt-audience"),
        ({"tokens": True, "jwt_audience": "a"}, "--jwt-keys"),
        ({"tokens": True, "jwt_keys": "http://id.example.com/keys", "jwt_audience": "a"}, "https"),
        ({"tokens": True, "jwt_keys": "file:///etc/keys", "jwt_audience": "a"}, "https"),
    ],
)
def test_settings_that_would_not_be_heeded_are_refused(given: dict[str, Any], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        Settings(**given)
