"""The image for serving is small, lacks what a server does not need, and serves with nothing but a home to write to."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from packaging.requirements import Requirement

from images import CONTAINERFILE, DEPLOY, entering, environment, instruction, instructions, running
from luthier import images
from luthier_client import Client
from six_models import MODELS, scene, tune
from support import ROOT, interactions, serving

BUILD = DEPLOY / "build.sh"
TRAINING = {"torch", "torchvision", "triton", "transformers", "timm", "implicit", "onnx", "onnxscript", "safetensors"}


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed() -> dict[str, str]:
    """What the extras of the image lead to, by name and version."""
    [extras] = re.findall(r"^EXTRAS=(.+)$", BUILD.read_text(encoding="utf-8"), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]]
    for extra in extras.split(","):
        lines += project["optional-dependencies"][extra]
    found: dict[str, str] = tool("pin").versions([Requirement(line) for line in lines])
    return found


def test_nothing_of_training_is_installed_and_all_is_pinned() -> None:
    versions = installed()
    assert {"onnxruntime", "psycopg-binary", "s3fs", "opentelemetry-sdk", "grpcio"} <= versions.keys()
    assert versions.keys() & TRAINING == set()
    assert not [name for name in versions if name.startswith(("nvidia-", "cuda-"))]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {name for name in versions if not any(pin.startswith(f"{name}==") for pin in pins)} == set()


def test_what_is_measured_is_what_is_built() -> None:
    steps = tool("image_size").steps(CONTAINERFILE.read_text(encoding="utf-8"))
    assert [step[1] for step in steps] == ["base", "wheel", "install"]
    assert [step[2:] for step in steps] == [["/image"], ["/wheels"], ["/image", "/wheels"]]
    # Nothing reaches the last stage by another way.
    assert [rest for word, rest in instructions() if word in ("COPY", "ADD", "RUN")] == ["--from=build /image /"]
    assert re.search(r"^FROM scratch$", CONTAINERFILE.read_text(encoding="utf-8"), re.M)


def test_the_image_starts_a_server_as_nobody() -> None:
    assert json.loads(instruction("ENTRYPOINT")) == ["/opt/luthier/bin/luthier"]
    assert json.loads(instruction("CMD")) == ["serve"]
    assert instruction("USER") == "65532:65532"
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert json.loads(instruction("VOLUME")) == [environment()["LUTHIER_HOME"]]
    for file in ("Containerfile", "Containerfile.train"):
        text = (DEPLOY / file).read_text(encoding="utf-8")
        assert "\nUSER 65532:65532\n" in text
        assert {f"org.opencontainers.image.{name}" for name in ("title", "version", "revision", "licenses")} <= set(
            re.findall(r"[\w.]+(?==)", text)
        )


@pytest.mark.parametrize("file", ["Containerfile", "Containerfile.train"])
def test_what_is_copied_is_there_and_not_ignored(file: str) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    copied = []
    for arguments in re.findall(r"^COPY (?!--from)(.+)$", (DEPLOY / file).read_text(encoding="utf-8"), re.M):
        copied += arguments.split()[:-1]
    assert copied
    assert {path for path in copied if not (ROOT / path).exists() or path not in kept} == set()


def test_the_health_check_of_the_image(tmp_path: Path) -> None:
    check = instruction("HEALTHCHECK").partition("CMD ")[2]
    program, option, address, *command = json.loads(check)
    assert (program, option, address) == (
        "/opt/luthier/bin/luthier",
        "--address",
        environment()["LUTHIER_HEALTH_LISTEN"],
    )
    luthier = [sys.executable, "-m", "luthier_client.main", "--address"]

    def ask(address: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*luthier, address, *command], capture_output=True, text=True, timeout=30)

    with serving(tmp_path, "--health-listen", "127.0.0.1:0") as server:
        [port] = [json.loads(line)["address"] for line in server.log if '"event": "health"' in line]
        done = ask(port)
        assert (done.returncode, done.stdout) == (0, "SERVING\n")
    done = ask(port)
    assert done.returncode == 1
    assert "no server answers" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a root file system, and runs in it as another user")
@pytest.mark.timeout(1800)
def test_the_image_is_small_and_serves_every_task(tmp_path: Path) -> None:
    size = tool("image_size")
    # What `tools/image_size.py --keep` has left saves the minutes of another.
    image = Path(os.environ["LUTHIER_IMAGE"]) if "LUTHIER_IMAGE" in os.environ else size.make(tmp_path)
    lines = dict(size.weights(image))
    assert lines["the image"] < size.LIMIT_MB
    assert not [name for name in TRAINING if (image / "opt" / "luthier" / name).exists()]
    forbidden = [*image.glob("**/bin/*sh"), *image.glob("**/bin/*gcc*"), *image.glob("**/pip/__main__.py")]
    assert forbidden == []

    home = tmp_path / "home"
    home.mkdir()
    # Every library of the image loads with what the image has.
    program = ["/usr/bin/python3.11", "-P", "-c", (DEPLOY / "imports.py").read_text(encoding="utf-8"), "/opt/luthier"]
    done = subprocess.run(entering(image, home, *program), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2000
    with serving(home) as server:
        tune(server, tmp_path)
        wanted = answers(server.address)
    with running(image, home, "serve", "--listen", "127.0.0.1:0", "--trainings", "0") as server:
        assert answers(server.address) == wanted
        health = health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        # Small jobs: reading, Parquet, scoring, in processes of their own.
        with Client(server.address) as client:
            client.create_dataset("more", interactions(tmp_path / "more.csv"), task="recommendation").result(timeout=60)
            for name in MODELS:
                assert client.evaluate(name, dataset=name).result(timeout=120).metrics
        with pytest.raises(OSError, match="Read-only file system"):
            Path(f"/proc/{server.process.pid}/root/opt/new").touch()
    assert server.process.returncode == 0
    assert not [line for line in server.log if '"level": "error"' in line]
    shutil.rmtree(home)


def answers(address: str) -> dict[str, Any]:
    """A prediction for each task, as JSON."""
    # As JSON has bytes.
    picture = {"image": base64.b64encode(images.encode_png(scene(1))).decode()}
    instances: dict[str, Any] = {
        "shop": {"user": "u1"},
        "mail": {"text": "cheap pills now"},
        "names": {"text": "Ann1 flew to Oslo1"},
        "photos": picture,
        "boxes": picture,
        "masks": picture,
    }
    with Client(address) as client:
        return {
            name: [json_format.MessageToDict(found) for found in client.predict(name, [instances[name]])]
            for name in MODELS
        }
