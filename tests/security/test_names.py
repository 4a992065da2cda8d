"""Names that lead elsewhere, in every field of every request: refused; nothing but what is the server's is opened."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from luthier.v1 import model_pb2, model_pb2_grpc
from luthier_client import Client, LuthierClientError
from luthier_client.errors import InvalidArgument, NotFound
from support import ROOT, Server, interactions, serving, upload
from wire import Method, methods_of

WATCHED = str(Path(__file__).parent / "watched")
EVIL = (
    "../../../../etc/passwd",
    "models/../../etc/passwd",
    "models/shop/../../../etc",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "/etc/passwd",
    "/proc/self/environ",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data",
    "url:http://169.254.169.254/latest",
    "hub:evil/repo@main",
    "hf-hub:evil/repo",
    "local-dir:/etc",
    "s3://bucket/key#fragment",
    "simplecache::file:///etc/passwd",
    "shop#fragment",
    "shop::shop",
    "shop\0/etc",
)

FREE = {
    "text": "read as it is",
    "user": "an id of the callers' own",
    "item": "an id of the callers' own",
    "history": "ids of the callers' own",
    "allow": "ids of the callers' own",
    "deny": "ids of the callers' own",
    "request_id": "repeated and compared, and nothing else",
    "title": "shown as it is",
    "reason": "shown as it is",
    "license": "shown as it is",
    "languages": "shown and compared",
    "language": "compared",
    "id": "of a request: repeated in the answer",
    "filename": "shown; one with folders is refused",
    "columns": "names of columns in files",
    "parameters": "of the Open Inference Protocol: those that are not known are not read",
    "string_param": "of such a parameter",
    "service": "of health: looked up in a table",
}
"""Fields that name nothing of the server's, by their last names, and what is done with them; all others are refused."""

CLOSED = ("/luthier.v1.TokenService/", "/luthier.v1.AuditService/")
"""Services that a server without tokens refuses whole."""

GOOD = {
    "CreateDatasetRequest": 'dataset_id: "new" task: "recommendation" files { upload: "UPLOAD" }',
    "FineTuneRequest": 'model_id: "new" task: "recommendation" dataset: "datasets/shop"',
    "ImportBaseRequest": 'base_id: "new" architecture: "mobilenet_v2" weights: "UPLOAD"',
    "EvaluateRequest": 'model: "models/shop/versions/1" dataset: "datasets/shop"',
    "BatchPredictRequest": 'model: "models/shop/versions/1" dataset: "datasets/shop"',
    "SetAliasRequest": 'name: "models/shop/aliases/canary" model_version: "models/shop/versions/1"',
    "SuggestBasesRequest": 'task: "image-classification"',
    "ModelInferRequest": 'model_name: "shop.instances" inputs { name: "user" datatype: "BYTES" shape: 1 shape: 1 '
    'contents { bytes_contents: "u1" } }',
    "FineTuneFromFeedbackRequest": 'model: "models/shop"',
    "StartRolloutRequest": 'alias: "models/shop/aliases/production" candidate: "models/shop/versions/1"',
    "StopRolloutRequest": "outcome: OUTCOME_PROMOTE",
    "GetDriftRequest": 'model: "models/shop"',
    "ListDriftWindowsRequest": 'model: "models/shop"',
    "ListDatasetVersionsRequest": 'parent: "datasets/shop"',
    "ListModelVersionsRequest": 'parent: "models/shop"',
    "UploadFilesRequest": f'header {{ filename: "a.csv" size_bytes: 1 sha256: "{"0" * 64}" }}',
    "PredictRequest": 'model: "shop"',
    "ModelReadyRequest": 'name: "shop"',
    "ModelMetadataRequest": 'name: "shop"',
    "ModelConfigRequest": 'name: "shop"',
    "ModelStatisticsRequest": 'name: "shop"',
    "RepositoryModelLoadRequest": 'model_name: "shop"',
    "RepositoryModelUnloadRequest": 'model_name: "shop"',
    "RenderRequest": 'model: "shop"',
}
"""Requests in which nothing is wrong but what a test puts there; of others all else is empty."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with the model `shop`, that writes down what it opens, and the file that it writes to."""
    home, record = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("watch") / "record"
    path = os.pathsep.join([WATCHED, *filter(None, [os.environ.get("PYTHONPATH")])])
    with serving(home, PYTHONPATH=path, LUTHIER_WATCH=str(record)) as server:
        for folder in ("datasets", "bundles", "bases", "uploads", "reports"):
            (home / folder / "luthier-link").symlink_to("/etc")
        with Client(server.address) as client:
            client.create_dataset("shop", interactions(home.parent / "shop.csv"), task="recommendation").result(60)
            popularity = {"algorithm": "ALGORITHM_POPULARITY"}
            client.fine_tune("shop", task="recommendation", dataset="shop", config=popularity).result(60)
        yield server, record


def texts(kind: Any, at: str = "", depth: int = 0) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The paths of all fields of texts in a message, and the fields on the way."""
    for field in kind.fields:
        path = f"{at}.{field.name}" if at else field.name
        if field.message_type is not None and depth < 4 and field.message_type.full_name != "google.protobuf.Any":
            for inner, fields in texts(field.message_type, path, depth + 1):
                yield inner, (field, *fields)
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield path, (field,)


def put(message: Message, fields: tuple[Any, ...], value: str) -> None:
    """Sets a field, on the way to which one of each repeated field is made."""
    first, rest = fields[0], fields[1:]
    entry = first.message_type
    if entry is not None and entry.GetOptions().map_entry:
        items, key = getattr(message, first.name), value if rest[0].name == "key" else "text"
        if entry.fields_by_name["value"].message_type is None:
            items[key] = value if rest[0].name == "value" else ""
        else:
            items[key].SetInParent()
    elif not rest:
        if first.is_repeated:
            getattr(message, first.name).append(value)
        else:
            setattr(message, first.name, value)
    elif first.is_repeated:
        inside = getattr(message, first.name)
        put(inside[0] if len(inside) else inside.add(), rest, value)
    else:
        put(getattr(message, first.name), rest, value)


def answer(server: Server, method: Method, request: Message) -> tuple[grpc.StatusCode, str]:
    """How a call ends, and what is said of it."""
    kind = ("stream" if method.streams_in else "unary") + "_" + ("stream" if method.streams_out else "unary")
    call = getattr(server.channel, kind)(method.path)
    data = request.SerializeToString()
    try:
        answered = call(iter([data]) if method.streams_in else data, timeout=30)
        if method.streams_out:
            said = b"".join(answered)
            # Its errors are answers.
            if method.path.endswith(("/ModelStreamInfer", "/ServerReflectionInfo")):
                return grpc.StatusCode.INVALID_ARGUMENT, said.decode(errors="replace")
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def test_archives_that_lead_out(watched: tuple[Server, Path], tmp_path: Path) -> None:
    server, record = watched
    link = zipfile.ZipInfo("kind0/link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archives: dict[str, dict[str | zipfile.ZipInfo, bytes]] = {
        "slip": {"../../../tmp/slipped.png": b"x", "kind1/a.png": b"x"},
        "absolute": {"/tmp/slipped.png": b"x", "kind1/a.png": b"x"},
        "drive": {"C:\\slipped.png": b"x", "kind1/a.png": b"x"},
        "url": {"file:///etc/passwd": b"x", "kind1/a.png": b"x"},
        "link": {link: b"/etc/passwd", "kind1/a.png": b"x"},
        "bomb": {"kind0/a.png": b"\0" * 2**26, "kind1/a.png": b"x"},
    }
    with Client(server.address) as client:
        for name, files in archives.items():
            path = tmp_path / f"{name}.zip"
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for inner, content in files.items():
                    archive.writestr(inner, content)
            with pytest.raises(LuthierClientError) as caught:
                client.create_dataset(name, path, task="image-classification").result(timeout=60)
            assert caught.value.code == InvalidArgument.code
            assert any(f"{name}.zip" in field for field in caught.value.violations)
    assert not strangers(server, record)


def test_every_text_of_every_request(watched: tuple[Server, Path], tmp_path: Path) -> None:
    server, record = watched
    name = upload(server, interactions(tmp_path / "more.csv"))
    asked, wrong = 0, dict[str, str]()
    for method in methods_of(server.channel):
        short = method.request.DESCRIPTOR.name
        if method.path.startswith("/grpc.health") and method.streams_out:
            continue
        for path, fields in texts(method.request.DESCRIPTOR):
            for evil in EVIL:
                request = method.request()
                good = GOOD.get(short, "") if "tasks" not in method.path else 'model: "shop"'
                text_format.Parse(good.replace("UPLOAD", name), request)
                put(request, fields, evil)
                code, said = answer(server, method, request)
                asked += 1
                field = path.removesuffix(".key").removesuffix(".value").rpartition(".")[2]
                if field in FREE:
                    explained = code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
                elif code is grpc.StatusCode.INVALID_ARGUMENT:
                    explained = field in said or evil[:20] in said or repr(evil)[1:-1] in said
                elif method.path.startswith(CLOSED):
                    explained = code is grpc.StatusCode.FAILED_PRECONDITION
                elif code is grpc.StatusCode.NOT_FOUND:
                    explained = evil[:8] in said or field in said
                else:
                    explained = False
                if not explained:
                    wrong[f"{method.path} {path}"] = f"{method.path} {path}={evil!r}: {code.name} {said[:120]}"
    assert not wrong, "\n".join(wrong.values())
    assert asked > 1500
    # After all that it still does what it is for.
    stub = server.stub(model_pb2_grpc.ModelServiceStub)
    assert stub.GetModel(model_pb2.GetModelRequest(name="models/shop")).name == "models/shop"
    assert not strangers(server, record)


def test_names_of_links(watched: tuple[Server, Path]) -> None:
    """Links in the server's own folders, whose names are good ones: nothing follows them."""
    server, record = watched
    with Client(server.address) as client:
        for call in (client.pull_base, client.get_base, client.delete_base, client.get_dataset, client.get_model):
            with pytest.raises(NotFound):
                call("luthier-link")
    assert not strangers(server, record)
    assert (server.home / "bases" / "luthier-link").is_symlink()


def test_what_is_watched_is_seen(tmp_path: Path) -> None:
    """A process that does open what it should not: without it, a record of nothing would pass."""
    record = tmp_path / "record"
    script = "open('/etc/passwd').close(); import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    environment = {**os.environ, "PYTHONPATH": WATCHED, "LUTHIER_WATCH": str(record)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    found = strangers_in(record, tmp_path)
    assert any(line.startswith("open\t/etc/passwd") for line in found)
    assert any(line.startswith("socket.connect") for line in found)


def strangers(server: Server, record: Path) -> list[str]:
    return strangers_in(record, server.home)


OWN = (
    "/proc/self/", "/sys/", "/dev/null", "/dev/urandom", "/dev/shm/", "/etc/localtime", "/usr/share/zoneinfo",
    "/etc/mime.types", "/etc/ssl/", "/usr/lib", "/lib", "/etc/os-release", "/etc/debian_version", "/etc/ld.so.cache",
)  # fmt: skip
"""What any server reads: its own processes' state, the clock's zone, libraries."""


def strangers_in(record: Path, home: Path) -> list[str]:
    """The lines of a record that are of nothing which is a server's business."""
    folders = {home, ROOT / "server", ROOT / "plugins", ROOT / "clients", ROOT / "examples", ROOT / "tests" / "plugins"}
    folders |= {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parent}
    folders |= {Path(path) for path in sys.path if path}
    folders |= {Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path}
    inside = tuple(f"{os.path.realpath(folder)}{end}" for folder in folders for end in ("", "/"))
    found = []
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines():
        event, _, what = line.partition("\t")
        if event in ("subprocess.Popen", "os.posix_spawn"):
            is_own = "'-m', 'luthier" in what or "uname" in what or "ldconfig" in what or "/sbin/" in what
        elif event in ("ctypes.dlopen", "pickle.find_class"):
            is_own = event == "ctypes.dlopen"
        elif event.startswith(("socket.", "urllib.", "os.system", "os.exec")):
            is_own = False
        else:
            # Without following links: a link within the home that leads out of it is what must not be opened.
            path = os.path.normpath(what)
            is_link = "luthier-link" in path
            is_looked_for = event == "os.listdir" and path in (str(ROOT), str(Path.cwd()))
            is_tried = re.fullmatch(rf"{re.escape(tempfile.gettempdir())}/([a-z0-9_]{{8}}|torchinductor_\w+)", path)
            is_listed = is_looked_for or path.startswith((*inside, *OWN)) or _is_of_a_process(path)
            # A trainer's Python tries out whether there can be temporary files, and PyTorch makes its folder.
            is_own = not is_link and (is_listed or is_tried is not None)
        if not is_own:
            found.append(line)
    return found


def _is_of_a_process(path: str) -> bool:
    parts = path.split("/")
    return len(parts) > 2 and parts[1] == "proc" and "environ" not in parts
