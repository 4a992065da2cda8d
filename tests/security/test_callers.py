"""curl, as README shows it, and a Connect client from npm call every task's prediction over HTTPS with a token."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet

import six_models
from certificates import Authority
from luthier import images, plugins
from luthier.v1 import model_pb2, model_pb2_grpc, operation_pb2
from over_http import address_of, ask, call
from scrapes import wait_for_lines
from support import ROOT, Server, serving

NODE = ROOT / ".tools" / "connect"
METHODS = {
    "mail": ("text_classification.v1.TextClassificationService", "Classify"),
    "names": ("entity_recognition.v1.EntityRecognitionService", "Recognize"),
    "photos": ("image_classification.v1.ImageClassificationService", "Classify"),
    "boxes": ("object_detection.v1.ObjectDetectionService", "Detect"),
    "masks": ("semantic_segmentation.v1.SemanticSegmentationService", "Segment"),
    "shop": ("recommendation.v1.RecommendationService", "Recommend"),
}
TOLD = {
    "mail": "label",
    "names": "entities",
    "photos": "label",
    "boxes": "imageWidth",
    "masks": "width",
    "shop": "items",
}
"""A field that each model's prediction has, whatever was learnt."""


@dataclass(frozen=True)
class Shown:
    """A server with TLS and tokens."""

    server: Server
    address: str
    authority: Path
    token: str
    picture: Path
    folder: Path
    authorities: Authority

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


@pytest.fixture(scope="module")
def shown(tuned_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("shown")
    home = Path(shutil.copytree(tuned_home, folder / "home"))
    authority = Authority()
    ca = authority.write(folder / "ca.pem")
    certificate, key = authority.server().write(folder, "server")
    (folder / "photo.png").write_bytes(images.encode_png(six_models.scene(1)))
    flags = ("--tokens", "--tls-certificate", str(certificate), "--tls-key", str(key))
    credentials = grpc.ssl_channel_credentials(authority.certificate)
    with serving(home, *flags, "--http-listen", "127.0.0.1:0", credentials=credentials) as server:
        token = (home / "admin.token").read_text(encoding="utf-8").strip()
        yield Shown(server, address_of(server), ca, token, folder / "photo.png", folder, authority)


def test_curl_as_readme_shows_it(shown: Shown) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = [one for one in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if "curl --cacert" in one]
    ours = {"tickets": "mail", "letters": "names", "animals": "photos", "tables": "boxes", "books": "shop"}
    for theirs, name in {**ours, "r0017": "u1", "localhost:8080": shown.address}.items():
        block = block.replace(theirs, name)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace("curl ", "curl --silent --show-error --write-out '\\n' ")],
        cwd=shown.folder,
        env={**os.environ, "LUTHIER_CA": str(shown.authority), "LUTHIER_TOKEN": shown.token},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line]
    models = {answer["modelVersion"].split("/")[1]: answer["predictions"] for answer in answers}
    assert models.keys() == METHODS.keys(), done.stdout
    for model, [prediction] in models.items():
        assert model == "names" or TOLD[model] in prediction


def descriptors(path: Path) -> Path:
    """Writes what `buf build` would make of the protos of the services, and all that they import."""
    found, seen = FileDescriptorSet(), set()

    def add(file: FileDescriptor) -> None:
        if file.name not in seen:
            seen.add(file.name)
            for imported in file.dependencies:
                add(imported)
            copy = found.file.add()
            file.CopyToProto(copy)
            for message in copy.message_type:
                _name(message, file.message_types_by_name[message.name])

    for task in six_models.MODELS.values():
        add(plugins.load().task(task).service.file)
    add(operation_pb2.DESCRIPTOR)
    path.write_bytes(found.SerializeToString())
    return path


def _name(message: DescriptorProto, known: Descriptor) -> None:
    """Gives the fields their names in JSON, which protoc writes and Python leaves out."""
    for field in message.field:
        field.json_name = known.fields_by_name[field.name].json_name
    for nested in message.nested_type:
        _name(nested, known.nested_types_by_name[nested.name])


def rounded(value: Any) -> Any:
    """JSON writes a float of four bytes by fewer digits than JavaScript, which has eight."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {key: rounded(one) for key, one in value.items()} if isinstance(value, dict) else value


def requests(picture: Path) -> dict[str, dict[str, Any]]:
    image = base64.b64encode(picture.read_bytes()).decode()
    instances: dict[str, dict[str, Any]] = {
        "mail": {"text": "cheap pills now", "topK": 2},
        "names": {"text": "Ann1 flew to Oslo2"},
        "shop": {"user": "u1", "k": 3},
    }
    return {model: {"model": model, "instances": [instances.get(model, {"image": image})]} for model in METHODS}


@pytest.mark.skipif(not (NODE / ".made").exists(), reason="Connect's packages are not installed; `make test` does")
def test_a_connect_client_from_npm(shown: Shown) -> None:
    for name in ("calls.mjs", "package.json"):
        shutil.copy(ROOT / "tests/security/connect" / name, NODE)
    asked = requests(shown.picture)
    calls = [[f"luthier.tasks.{METHODS[model][0]}", METHODS[model][1], asked[model]] for model in METHODS]
    done = subprocess.run(
        [
            "node",
            NODE / "calls.mjs",
            shown.address,
            descriptors(shown.folder / "a.binpb"),
            shown.authority,
            json.dumps(calls),
        ],
        env={**os.environ, "LUTHIER_TOKEN": shown.token},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for model, answer in zip(METHODS, found["answers"], strict=True):
        # Each prediction has an id of its own.
        ids = {one.pop("predictionId") for one in answer.values()}
        assert len(ids) == 2, model
        assert rounded(answer["json"]) == rounded(answer["binary"]), model
        assert answer["json"]["modelVersion"] == f"models/{model}/versions/1"
        [prediction] = answer["json"]["predictions"]
        assert model == "names" or TOLD[model] in prediction
    assert found["stranger"]["code"] == "Unauthenticated"
    assert found["nobody"]["code"] == "NotFound"
    assert "google.rpc.ErrorInfo" in found["nobody"]["details"]
    assert found["operation"]["code"] == "NotFound"


def test_a_call_without_a_token_is_refused_over_http(shown: Shown) -> None:
    method = f"luthier.tasks.{METHODS['mail'][0]}/Classify"
    asked = requests(shown.picture)["mail"]
    for given in ({}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic YTpi"}):
        answer = call(shown.address, method, asked, context=shown.context, **given)
        assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/v2/models/mail", "/v2/repository/index"):
        assert ask(shown.address, path, None if "models" in path else "{}", context=shown.context).status == 401
    # Health is anybody's.
    assert ask(shown.address, "/v2/health/live", context=shown.context).status == 200
    assert call(shown.address, "grpc.health.v1.Health/Check", {}, context=shown.context).json == {"status": "SERVING"}
    bearer = {"authorization": f"Bearer {shown.token}"}
    assert call(shown.address, method, asked, context=shown.context, **bearer).status == 200


def test_who_calls_over_http_is_known_by_their_own_address(shown: Shown) -> None:
    """And what callers say of themselves is not believed, over HTTP nor over gRPC."""
    bearer = {"authorization": f"Bearer {shown.token}"}
    alias = {"name": "models/nobody/aliases/production"}
    forged = {"luthier-front-peer": "ipv4:6.6.6.6:66", "luthier_front_peer": "ipv4:6.6.6.6:66"}
    call(shown.address, "luthier.v1.ModelService/DeleteAlias", alias, context=shown.context, **bearer, **forged)
    metadata = [("authorization", f"Bearer {shown.token}"), ("luthier-front-peer", "ipv4:6.6.6.6:66")]
    with pytest.raises(grpc.RpcError):
        shown.server.stub(model_pb2_grpc.ModelServiceStub).DeleteAlias(
            model_pb2.DeleteAliasRequest(name="models/nobody/aliases/production"), metadata=metadata
        )
    audit = call(shown.address, "luthier.v1.AuditService/ListAuditEntries", {}, context=shown.context, **bearer)
    peers = [one["peer"] for one in audit.json["auditEntries"] if one.get("method", "").endswith("DeleteAlias")]
    assert len(peers) >= 2
    assert all(peer.startswith("ipv4:127.0.0.1:") for peer in peers), peers


def test_certificates_are_rotated_over_http_too(shown: Shown) -> None:
    before = _serial(shown)
    pair = shown.authorities.server()
    pair.write(shown.folder, "server")
    # One line of the gRPC server's and one of the front's.
    wait_for_lines(shown.server, "certificate taken up", 2, serial=f"{pair.serial:x}")
    assert (_serial(shown), before == pair.serial) == (pair.serial, False)


def _serial(shown: Shown) -> int:
    host, _, port = shown.address.rpartition(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        shown.context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        return int(connection.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]


def test_mutual_tls_over_http(tmp_path: Path) -> None:
    authority, stranger = Authority(), Authority("somebody else")
    ca = authority.write(tmp_path / "ca.pem")
    certificate, key = authority.server().write(tmp_path, "server")
    flags = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--tls-client-ca", str(ca))
    own = authority.client()
    credentials = grpc.ssl_channel_credentials(authority.certificate, own.key, own.certificate)
    with serving(tmp_path / "home", *flags, "--http-listen", "127.0.0.1:0", credentials=credentials) as server:
        address = address_of(server)
        for issuer, name in ((authority, "caller"), (stranger, "stranger"), (None, "nobody")):
            context = ssl.create_default_context(cafile=str(ca))
            if issuer is not None:
                context.load_cert_chain(*issuer.client(name).write(tmp_path, name))
            if issuer is authority:
                assert ask(address, "/v2/health/live", context=context).status == 200
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    ask(address, "/v2/health/live", context=context)
