"""Luthier and its peers as processes: started, waited for, and ended whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import environments
import grpc
import onnxruntime as ort

from luthier.inference.tensors import Tensor
from luthier.oip.v2 import open_inference_pb2 as oip
from luthier.oip.v2 import open_inference_pb2_grpc as oip_grpc
from luthier.task import MODEL_FILE

START_S = 120.0
"""Seconds that a server gets until all its models answer."""
STOP_S = 30.0
INSTANCES = 2
"""Of each model in Triton."""
ANSWERS = environments.HERE / "peers" / "answers.py"


@dataclass(frozen=True)
class Deployment:
    """A model of a peer: one of `answers.KINDS` over a bundle."""

    name: str
    kind: str
    bundle: Path
    raw_outputs: Mapping[str, str]
    """Outputs by datatype where the kind has others than the graph."""


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    name: str
    address: str
    pid: int

    def cpu_s(self) -> float:
        """Seconds of processors that it and all processes that it has started have used."""
        parents: dict[int, int] = {}
        ticks: dict[int, int] = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    values = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                except OSError:  # It has just ended.
                    continue
                parents[int(folder.name)] = int(values[1])
                ticks[int(folder.name)] = int(values[11]) + int(values[12])

        def is_own(process: int) -> bool:
            return process == self.pid or (process in parents and is_own(parents[process]))

        return sum(spent for process, spent in ticks.items() if is_own(process)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def luthier(home: Path, models: Sequence[str], *flags: str, log: str = "luthier.log") -> Iterator[Server]:
    """`luthier serve` on a home, in this process's own environment."""
    command = [sys.executable, "-m", "luthier", "--home", str(home), "--listen", "127.0.0.1:0", *flags]
    written = environments.BUILD / log
    with _running(command, written, environments.plugins(), stdout=subprocess.PIPE) as process:
        assert process.stdout
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise SystemExit(_failure("luthier", written))
        yield _ready("luthier", line.split()[-1], process, written, models)


@contextmanager
def triton(environment: Path, deployments: Sequence[Deployment]) -> Iterator[Server]:
    """The tritonserver of nvidia-pytriton, with the Python backend."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    home = environment / "lib" / f"python{version}" / "site-packages" / "pytriton" / "tritonserver"
    # The stub finds its libraries relative to itself, and the backend looks for it beside itself.
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    repository = _emptied(environments.BUILD / "triton-models")
    for deployment in deployments:
        folder = repository / deployment.name / "1"
        folder.mkdir(parents=True)
        shutil.copy(ANSWERS, folder)
        shutil.copy(ANSWERS.with_name("triton_model.py"), folder / "model.py")
        (folder.parent / "config.pbtxt").write_text(triton_config(deployment), encoding="utf-8")
    variables = {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    }  # The stub is the python found there.
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        variables["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    port = _free_port()
    command = [
        str(home / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={home / 'backends'}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={port}",
        "--allow-http=false",
        "--allow-metrics=false",
    ]
    log = environments.BUILD / "triton.log"
    with _running(command, log, variables) as process:
        yield _ready("triton", f"127.0.0.1:{port}", process, log, [deployment.name for deployment in deployments])


@contextmanager
def mlserver(environment: Path, deployments: Sequence[Deployment], workers: int) -> Iterator[Server]:
    """MLServer with as many worker processes, or with none where `workers` is 0."""
    folder = _emptied(environments.BUILD / "mlserver-models")
    ports = [_free_port() for _ in range(3)]
    settings: dict[str, object] = dict(zip(("grpc_port", "http_port", "metrics_port"), ports, strict=True))
    # Neither peer counts its calls: that would only cost it.
    settings |= {"host": "127.0.0.1", "parallel_workers": workers, "debug": False, "metrics_endpoint": None}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    for deployment in deployments:
        model = folder / deployment.name
        model.mkdir()
        extra = {"kind": deployment.kind, "bundle": str(deployment.bundle)}
        described = {"name": deployment.name, "implementation": "mlserver_model.OnnxModel"}
        described |= {"parameters": {"extra": extra}}
        (model / "model-settings.json").write_text(json.dumps(described), encoding="utf-8")
    log = environments.BUILD / "mlserver.log"
    command = [str(environment / "bin" / "mlserver"), "start", str(folder)]
    variables = {"PYTHONPATH": str(ANSWERS.parent), "MLSERVER_LOGGING_SETTINGS": ""}
    with _running(command, log, variables, cwd=folder) as process:
        names = [deployment.name for deployment in deployments]
        yield _ready("mlserver", f"127.0.0.1:{settings['grpc_port']}", process, log, names)


def triton_config(deployment: Deployment) -> str:
    """The `config.pbtxt` of a model."""
    inputs, outputs = [("raw", "BYTES", (-1,))], [(n, t, (-1,)) for n, t in deployment.raw_outputs.items()]
    if deployment.kind == "tensors":
        session = ort.InferenceSession(deployment.bundle / MODEL_FILE, providers=["CPUExecutionProvider"])
        graph = [[Tensor.of_graph(a) for a in side] for side in (session.get_inputs(), session.get_outputs())]
        inputs, outputs = ([(t.name, t.datatype, t.shape) for t in side] for side in graph)

    def described(tensors: Sequence[tuple[str, str, Sequence[int]]]) -> str:
        types = [(name, "STRING" if datatype == "BYTES" else datatype, dims) for name, datatype, dims in tensors]
        return ", ".join(f'{{name: "{name}" data_type: TYPE_{type} dims: {list(dims)}}}' for name, type, dims in types)

    def parameter(key: str, value: str) -> str:
        return f'parameters {{key: "{key}" value: {{string_value: "{value}"}}}}'

    lines = [
        f'name: "{deployment.name}"',
        'backend: "python"',
        "max_batch_size: 0",
        f"input [{described(inputs)}]",
        f"output [{described(outputs)}]",
        f"instance_group [{{count: {INSTANCES} kind: KIND_CPU}}]",
        parameter("kind", deployment.kind),
        parameter("bundle", str(deployment.bundle)),
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def _running(
    command: Sequence[str],
    log: Path,
    variables: Mapping[str, str],
    *,
    stdout: int | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A process in a session of its own, which is ended with all that it started."""
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            command,
            stdout=said if stdout is None else stdout,
            stderr=said,
            text=True,
            env=os.environ | dict(variables),
            cwd=cwd,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            try:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
            finally:  # Where a signal ends this process meanwhile, too.
                with suppress(ProcessLookupError):  # It left nobody behind.
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdout:
                process.stdout.close()


def _ready(name: str, address: str, process: subprocess.Popen[str], log: Path, models: Sequence[str]) -> Server:
    """Waits until all models can be asked for."""
    deadline = time.monotonic() + START_S
    with grpc.insecure_channel(address) as channel:
        stub = oip_grpc.GRPCInferenceServiceStub(channel)
        for model in models:
            while not _is_ready(stub, model):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(_failure(name, log))
                time.sleep(0.2)
    return Server(name, address, process.pid)


def _is_ready(stub: oip_grpc.GRPCInferenceServiceStub, model: str) -> bool:
    try:
        return bool(stub.ModelReady(oip.ModelReadyRequest(name=model), timeout=5).ready)
    except grpc.RpcError:
        return False


def _failure(name: str, log: Path) -> str:
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
    return f"{name} did not start; the end of {log}:\n{tail}"


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
