"""The catalogue, and pulling bases from every kind of source."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from luthier import bases, sources
from luthier.bases import Catalogue, proto, pull
from luthier.database import Database
from luthier.entries import BASE_FILE, LIBRARIES, Entry, File, Preprocessing, digest_of
from luthier.errors import (
    AlreadyExists,
    BaseUnavailable,
    Cancelled,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from luthier.v1 import base_pb2

CONTENT = {"config.json": b"{}", "model.safetensors": b"w" * 3_000_000, "sub/vocab.txt": b"a\nb\n"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(*origins: str, content: Mapping[str, bytes] = CONTENT, hashed: bool = True) -> Entry:
    files = [File(path, (sha256(data),) if hashed else (), len(data)) for path, data in content.items()]
    return Entry(
        id="tiny",
        title="Tiny",
        tasks=("text-classification",),
        library="transformers",
        architecture="BertModel",
        num_parameters=7,
        input="text",
        license="Apache-2.0",
        files=tuple(files),
        sources=origins,
    )


def content_of(folder: Path) -> dict[str, bytes]:
    """The files of a base besides what the pull itself writes."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del found[BASE_FILE]
    return found


class Mirror:
    """An HTTP server with some files."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = False
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                data = mirror.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write((data or b"")[: -1 if mirror.cut else None])

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def serve(self, prefix: str, content: Mapping[str, bytes] = CONTENT) -> None:
        self.files |= {f"{prefix}/{path}": data for path, data in content.items()}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    mirror = Mirror()
    thread = threading.Thread(target=mirror.server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", mirror.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()
    thread.join()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of a package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, members: Mapping[str, bytes]) -> None:
    info = "tiny_base-1.0.dist-info"
    facts = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-base\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "tiny_base-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in {**members, **facts}.items():
            wheel.writestr(name, data)


HUB = "hub:acme/tiny@r1"
PREFIX = "/acme/tiny/resolve/r1"
PACKAGE = "package:tiny-base==1.0:tiny_base/model"


def test_the_catalogue_has_minilm_with_a_hash_for_every_file():
    found = Catalogue.load().get("minilm-l6")
    assert [source.partition(":")[0] for source in found.sources] == ["hub", "package"]
    assert all(file.sha256 and file.size_bytes for file in found.files)
    assert {file.path for file in found.files} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_an_unknown_base_is_named_with_those_there_are():
    with pytest.raises(NotFound, match=r"bases/nope was not found; there are minilm-l6"):
        Catalogue.load().get("nope")


OPERATORS = """
[{id}]
title = "Ours"
tasks = ["text-classification"]
library = "{library}"
architecture = "BertModel"
num_parameters = 1
input = "text"
license = "MIT"
sources = ["{source}"]
files = {{ "model.safetensors" = {{}}, "{file}" = {{ sha256 = ["{sha256}"] }} }}
"""


def operators(
    tmp_path: Path, id="ours", source="file:/srv/base", file="config.json", sha256="0" * 64, library="transformers"
) -> Path:
    path = tmp_path / "bases.toml"
    path.write_text(OPERATORS.format(id=id, source=source, file=file, sha256=sha256, library=library))
    return path


def test_an_operators_catalogue_adds_and_replaces(tmp_path):
    assert Catalogue.load(operators(tmp_path)).get("ours").sources == ("file:/srv/base",)
    replaced = Catalogue.load(operators(tmp_path, id="minilm-l6"))
    assert replaced.get("minilm-l6").title == "Ours"
    assert Catalogue.load(tmp_path / "absent.toml").all() == Catalogue.load().all()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"id": "OURS"}, "small letters"),
        ({"source": "ftp://x"}, "is none of hub:"),
        ({"source": "hub:../x@main"}, "is none of hub:"),
        ({"file": "../x"}, "leads out of the base"),
        ({"file": "/x"}, "leads out of the base"),
        ({"sha256": "abc"}, "64 small hexadecimal digits"),
        ({"library": "keras"}, "none of timm, torchvision, transformers"),
        ({"library": "timm"}, "a base for images has a table `preprocessing`"),
        ({"file": "model.pth"}, "one of the files must be its weights"),
    ],
)
def test_what_is_wrong_in_an_operators_catalogue_is_said(tmp_path, wrong, why):
    with pytest.raises(InvalidArgument, match=why):
        Catalogue.load(operators(tmp_path, **wrong))


def test_an_entry_of_other_keys_is_told_which(tmp_path):
    path = operators(tmp_path)
    path.write_text(path.read_text().replace("license", "licence"))
    with pytest.raises(InvalidArgument, match="it lacks license and has no use for licence"):
        Catalogue.load(path)


@pytest.mark.parametrize("text", ["[ours]\ntitle = 'x'", "ours = 1", "[ours"])
def test_a_catalogue_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "bases.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"bases\.toml"):
        Catalogue.load(path)


def test_only_an_operator_may_name_files_of_the_machine():
    with pytest.raises(ValueError, match="only an operator"):
        sources.check("file:/srv/base", own=False)


def test_from_the_hub(mirror, tmp_path):
    mirror.serve(PREFIX)
    reports = []
    folder = pull(entry(HUB), tmp_path, lambda *report: reports.append(report))
    assert folder == tmp_path / "tiny"
    assert content_of(folder) == CONTENT
    total = sum(map(len, CONTENT.values()))
    assert reports[0] == ("downloading", 0, total)
    assert reports[-1] == ("downloading", total, total)
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)


def test_what_is_there_is_not_fetched_again(mirror, tmp_path):
    mirror.serve(PREFIX)
    pull(entry(HUB), tmp_path)
    mirror.asked.clear()
    pull(entry(HUB), tmp_path)
    assert mirror.asked == []


def test_a_damaged_base_is_fetched_again(mirror, tmp_path):
    mirror.serve(PREFIX)
    folder = pull(entry(HUB), tmp_path)
    (folder / "config.json").write_bytes(b"[]")
    pull(entry(HUB), tmp_path)
    assert content_of(folder) == CONTENT


def test_from_a_mirror_by_url_and_from_a_folder(mirror, tmp_path):
    mirror.serve("/files")
    there = pull(entry(f"url:{mirror.url}/files/"), tmp_path / "a")
    assert content_of(pull(entry(f"file:{there}"), tmp_path / "b")) == CONTENT


def test_from_a_package_that_is_never_installed(index, tmp_path):
    members = {f"tiny_base/model/{path}": data for path, data in CONTENT.items()}
    write_wheel(index, {**members, "tiny_base/__init__.py": b"raise SystemExit", "tiny_base/model/other": b"x"})
    assert content_of(pull(entry(PACKAGE), tmp_path / "bases")) == CONTENT
    assert sorted(path.name for path in (tmp_path / "bases").iterdir()) == [".tiny.lock", "tiny", "tiny.json"]


def test_nothing_in_a_package_leads_out_of_the_base(index, tmp_path):
    members = {f"tiny_base/model/{path}": data for path, data in CONTENT.items()}
    evil = {"../../evil": b"x", "tiny_base/model/../../../evil": b"x", "/evil": b"x"}
    write_wheel(index, {**members, **evil})
    before = set(tmp_path.rglob("evil"))
    assert content_of(pull(entry(PACKAGE), tmp_path / "bases")) == CONTENT
    assert set(tmp_path.rglob("evil")) == before == set()


def test_a_package_without_the_file(index, tmp_path):
    write_wheel(index, {"tiny_base/model/config.json": b"{}"})
    with pytest.raises(BaseUnavailable, match=r"the package has no tiny_base/model/model\.safetensors"):
        pull(entry(PACKAGE), tmp_path / "bases")


def test_a_package_that_no_index_has(index, tmp_path):
    with pytest.raises(BaseUnavailable, match=r"No matching distribution found for tiny-base==1\.0"):
        pull(entry(PACKAGE), tmp_path / "bases")


def test_a_python_without_pip_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(BaseUnavailable, match="pip failed without a word"):
        pull(entry(PACKAGE), tmp_path)
    log = "/usr/bin/python3: No module named pip\n"
    assert sources._reason(log) == "this Python has no pip to download it with; `python -m ensurepip` brings it"


def test_a_wrong_hash_is_refused_and_the_next_source_tried(mirror, tmp_path):
    mirror.serve(PREFIX, {**CONTENT, "config.json": b"evil"})
    mirror.serve("/files")
    assert content_of(pull(entry(HUB, f"url:{mirror.url}/files"), tmp_path)) == CONTENT
    assert json.loads((tmp_path / "tiny.json").read_text())["source"] == f"url:{mirror.url}/files"


def test_a_wrong_hash_everywhere_leaves_nothing_behind(mirror, tmp_path):
    mirror.serve(PREFIX, {**CONTENT, "config.json": b"evil"})
    with pytest.raises(BaseUnavailable, match=f"config.json is refused: its SHA-256 is {sha256(b'evil')}"):
        pull(entry(HUB), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".tiny.lock"]


def test_any_of_several_hashes_is_enough(mirror, tmp_path):
    mirror.serve(PREFIX)
    wanted = entry(HUB)
    several = replace(wanted, files=tuple(replace(file, sha256=("0" * 64, *file.sha256)) for file in wanted.files))
    assert content_of(pull(several, tmp_path)) == CONTENT


def test_a_hash_that_was_not_published_is_recorded_and_holds_from_then_on(mirror, tmp_path):
    mirror.serve(PREFIX)
    unknown = entry(HUB, hashed=False)
    folder = pull(unknown, tmp_path)
    assert proto(unknown, tmp_path).files[0].sha256 == sha256(b"{}")
    pull(unknown, tmp_path)
    mirror.serve(PREFIX, {"config.json": b"changed"})
    shutil.rmtree(folder)
    with pytest.raises(BaseUnavailable, match=r"config\.json is refused"):
        pull(unknown, tmp_path)


def prefixed(prefix: str, *origins: str) -> Entry:
    return replace(entry(*origins, hashed=False), files=(File("model.safetensors", sha256_prefix=prefix),))


def test_the_published_beginning_of_a_hash_is_checked_and_the_whole_is_recorded(mirror, tmp_path):
    mirror.serve(PREFIX)
    whole = sha256(CONTENT["model.safetensors"])
    with pytest.raises(BaseUnavailable, match=f"its SHA-256 is {whole}, accepted is 01234567"):
        pull(prefixed("01234567", HUB), tmp_path)
    folder = pull(prefixed(whole[:8], HUB), tmp_path)
    assert proto(prefixed(whole[:8], HUB), tmp_path).files[0].sha256 == whole
    # From now on the whole hash counts: a file that only begins alike is damaged.
    (folder / "model.safetensors").write_bytes(b"damaged")
    record = json.loads((tmp_path / "tiny.json").read_text())
    record["files"]["model.safetensors"]["sha256"] = whole[:8] + "0" * 56
    (tmp_path / "tiny.json").write_text(json.dumps(record))
    with pytest.raises(BaseUnavailable, match=f"its SHA-256 is {whole}, accepted is {whole[:8]}0000"):
        pull(prefixed(whole[:8], HUB), tmp_path)


SEEING = Preprocessing(input_size=(224, 160), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), num_classes=1000)


def test_the_folder_of_a_base_says_what_it_is(mirror, tmp_path):
    mirror.serve(PREFIX)
    text = pull(entry(HUB), tmp_path / "text")
    assert json.loads((text / BASE_FILE).read_text()) == {
        "id": "tiny",
        "library": "transformers",
        "architecture": "BertModel",
        "weights": "model.safetensors",
    }
    seeing = replace(entry(HUB), library="timm", architecture="resnet18", preprocessing=SEEING)
    vision = json.loads((pull(seeing, tmp_path / "vision") / BASE_FILE).read_text())
    assert vision["input_size"] == [224, 160]
    assert (vision["mean"], vision["std"], vision["num_classes"]) == ([0.5] * 3, [0.25] * 3, 1000)


def test_a_base_that_was_pulled_without_a_description_gets_one_and_is_not_fetched_again(mirror, tmp_path):
    mirror.serve(PREFIX)
    folder = pull(entry(HUB), tmp_path)
    (folder / BASE_FILE).unlink()
    mirror.asked.clear()
    pull(entry(HUB), tmp_path)
    assert json.loads((folder / BASE_FILE).read_text())["architecture"] == "BertModel"
    pull(replace(entry(HUB), architecture="RobertaModel"), tmp_path)
    assert json.loads((folder / BASE_FILE).read_text())["architecture"] == "RobertaModel"
    assert mirror.asked == []


def test_a_description_among_the_files_of_a_base_stays_as_it_came(mirror, tmp_path):
    content = {**CONTENT, BASE_FILE: b'{"id": "own"}'}
    mirror.serve(PREFIX, content)
    folder = pull(entry(HUB, content=content), tmp_path)
    pull(entry(HUB, content=content), tmp_path)
    assert (folder / BASE_FILE).read_bytes() == b'{"id": "own"}'


def imported(directory: Path) -> Entry:
    """An imported base whose files are in the folder of bases."""
    files = tuple(File(path, (sha256(data),), len(data)) for path, data in CONTENT.items())
    report = base_pb2.ImportReport(matched=3, dropped=["head.weight"], dtypes=["float16"])
    made = replace(
        entry(HUB),
        library="timm",
        preprocessing=SEEING,
        sources=(),
        files=files,
        digest=digest_of(files),
        gmacs=0.5,
        report=report,
    )
    for path, data in CONTENT.items():
        (directory / made.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / made.folder / path).write_bytes(data)
    return made


@pytest.fixture
def database(tmp_path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.migrate()
    yield database
    database.close()


def test_an_imported_base_is_seen_by_every_process_at_once_and_is_used_from_its_folder(database, tmp_path):
    here, there = Catalogue.load(database=database), Catalogue.load(database=database)
    made = imported(tmp_path)
    there.check_free("tiny")
    with database.write() as connection:
        here.add(connection, made)
    assert there.get("tiny") == made
    assert there.all()[-1] == made
    assert pull(there.get("tiny"), tmp_path) == tmp_path / f"tiny@{made.digest[:16]}"
    shown = proto(there.get("tiny"), tmp_path)
    assert (shown.imported, shown.pulled, shown.import_report.dropped[:]) == (True, True, ["head.weight"])
    with pytest.raises(AlreadyExists, match="there is a base tiny already"):
        there.check_free("tiny")
    with pytest.raises(AlreadyExists), database.write() as connection:
        there.add(connection, made)


def test_an_imported_base_with_damaged_files_is_not_used(tmp_path):
    made = imported(tmp_path)
    (tmp_path / made.folder / "config.json").write_bytes(b"[]")
    with pytest.raises(DataLoss, match="the files of the base tiny are no longer as imported"):
        pull(made, tmp_path)


def test_only_imported_bases_can_be_deleted(database, tmp_path):
    catalogue = Catalogue.load(database=database)
    made = imported(tmp_path)
    with database.write() as connection:
        catalogue.add(connection, made)
    assert catalogue.delete("tiny") == made
    with pytest.raises(NotFound):
        catalogue.get("tiny")
    with pytest.raises(FailedPrecondition, match="minilm-l6 is of the catalogue"):
        catalogue.delete("minilm-l6")


def test_the_catalogue_holds_small_and_large_of_each_family():
    entries = Catalogue.load().all()
    families = {(task, entry.library) for entry in entries for task in entry.tasks}
    assert families == {
        ("text-classification", "transformers"),
        ("entity-recognition", "transformers"),
        ("image-classification", "timm"),
        ("object-detection", "timm"),
        ("object-detection", "torchvision"),
        ("semantic-segmentation", "timm"),
        ("semantic-segmentation", "torchvision"),
    }
    for library in LIBRARIES:
        sizes = [entry.num_parameters for entry in entries if entry.library == library]
        assert max(sizes) > 10 * min(sizes)
    assert all(entry.gmacs and entry.license for entry in entries)
    for entry in entries:
        assert bool(entry.languages) == (entry.library == "transformers")
        assert entry.library != "torchvision" or entry.files[0].sha256_prefix == entry.weights[-12:-4]


def test_a_body_cut_short_is_no_file_even_without_a_hash(mirror, tmp_path):
    mirror.serve(PREFIX)
    mirror.cut = True
    with pytest.raises(BaseUnavailable, match=r"the connection broke 1 bytes before the end of config\.json"):
        pull(entry(HUB, hashed=False), tmp_path)


def test_all_failures_are_listed_with_the_way_out(mirror, index, tmp_path):
    gone = "url:http://127.0.0.1:1/x"
    with pytest.raises(BaseUnavailable) as caught:
        pull(entry(HUB, gone, PACKAGE, "file:/nowhere"), tmp_path / "bases")
    message = caught.value.message
    assert f"{HUB}: it answered 404 Not Found" in message
    assert f"{gone}: it cannot be reached" in message
    assert f"{PACKAGE}: No matching distribution" in message
    assert "file:/nowhere: No such file or directory" in message
    assert "HF_ENDPOINT" in message
    assert "file:/FOLDER" in message


def test_offline_the_hub_is_not_asked(mirror, monkeypatch, tmp_path):
    mirror.serve(PREFIX)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BaseUnavailable, match="HF_HUB_OFFLINE is set"):
        pull(entry(HUB), tmp_path)
    assert mirror.asked == []


def test_a_hub_that_never_answers_costs_three_seconds(black_hole, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", black_hole)
    start = time.monotonic()
    with pytest.raises(BaseUnavailable, match="it did not answer within 3 s"):
        pull(entry(HUB), tmp_path)
    assert 2.9 < time.monotonic() - start < 3.5


def test_a_name_that_is_looked_up_for_ever_costs_three_seconds(monkeypatch, tmp_path):
    released = threading.Event()

    def lookup(*args: object) -> list:
        released.wait()
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    start = time.monotonic()
    with pytest.raises(BaseUnavailable, match="it did not answer within 3 s"):
        pull(entry(HUB), tmp_path)
    assert time.monotonic() - start < 3.5
    released.set()


def test_a_package_index_that_never_answers_is_given_up_soon(black_hole, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", f"{black_hole}/simple")
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    start = time.monotonic()
    with pytest.raises(BaseUnavailable, match="the package index did not answer in time"):
        pull(entry(PACKAGE), tmp_path)
    # Two seconds for the index, the rest for pip to start on a machine that is busy with other tests.
    assert time.monotonic() - start < 6


def test_a_cancelled_pull_leaves_nothing_and_ends_pip(black_hole, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", f"{black_hole}/simple")

    def cancel(stage: str, done: int, total: int) -> None:
        if (tmp_path / ".tiny.work/source/pip.log").exists():
            raise Cancelled("the operation was cancelled")

    with pytest.raises(Cancelled):
        pull(entry(PACKAGE), tmp_path, cancel)
    assert [path.name for path in tmp_path.iterdir()] == [".tiny.lock"]


def test_processes_that_pull_at_once_fetch_once(mirror, tmp_path):
    mirror.serve(PREFIX)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=pull, args=(entry(HUB), tmp_path)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(mirror.asked) == len(CONTENT)
    assert content_of(tmp_path / "tiny") == CONTENT


def test_what_a_killed_process_left_is_cleared_away(mirror, tmp_path):
    mirror.serve(PREFIX)
    (tmp_path / ".tiny.work/base").mkdir(parents=True)
    (tmp_path / ".tiny.work/base/config.json").write_bytes(b"half")
    assert content_of(pull(entry(HUB), tmp_path)) == CONTENT


def test_the_message_shows_what_is_known(mirror, tmp_path):
    mirror.serve(PREFIX)
    wanted = entry(HUB)
    before = proto(wanted, tmp_path)
    assert (before.name, before.pulled, before.num_parameters) == ("bases/tiny", False, 7)
    assert before.files[0].sha256 == sha256(b"{}")
    pull(wanted, tmp_path)
    after = proto(wanted, tmp_path)
    assert after.pulled
    assert [(file.path, file.size_bytes) for file in after.files] == [(p, len(d)) for p, d in CONTENT.items()]


def test_the_module_is_light():
    heavy = ("torch", "pyarrow", "huggingface_hub", "numpy")
    code = f"import sys, luthier.bases; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert output.stdout.strip() == "[]"
    assert bases.sources is sources
