"""An environment for each peer, and the plugins that Luthier gets for this benchmark alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "benchmarks"
"""All that the benchmark makes; git ignores it."""
HERE = Path(__file__).parent
PLUGINS = BUILD / "plugins"

PEERS = {
    "triton": ["nvidia-pytriton==0.7.0"],
    # Its worker processes do not start with a newer uvloop: "There is no current event loop".
    "mlserver": ["mlserver==1.7.1", "uvloop==0.21.0"],
}
_SAME = ("onnxruntime", "pillow", "tokenizers")
"""What does the work: of the peers' environments the same version as of Luthier's."""


def create(peer: str) -> Path:
    """The environment of a peer, made where it is not there yet as it should be."""
    environment = BUILD / peer
    requirements = [*PEERS[peer], *(f"{name}=={version(name)}" for name in _SAME)]
    stamp = environment / "requirements"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join(requirements):
        print(f"installing {' '.join(requirements)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        _install(environment / "bin" / "python", requirements)
        stamp.write_text("\n".join(requirements), encoding="utf-8")
    return environment


def packages(environment: Path) -> dict[str, str]:
    """The versions in an environment that matter here."""
    command = [environment / "bin" / "python", "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    wanted = {"grpcio", "numpy", *_SAME, *(one.split("==")[0] for one in itertools.chain(*PEERS.values()))}
    return {package["name"]: package["version"] for package in found if package["name"] in wanted}


def plugins() -> dict[str, str]:
    """Environment variables with which Luthier finds the plugins that publish the MLP and the float images."""
    sources = [ROOT / "tests" / "plugins" / "acme_regression", HERE / "float_images"]
    stamp = PLUGINS / "digest"
    found = digest(sources)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != found:
        shutil.rmtree(PLUGINS, ignore_errors=True)
        _install(Path(sys.executable), ["--no-deps", "--target", str(PLUGINS), *map(str, sources)])
        stamp.write_text(found, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH", "")]))}


def digest(sources: Sequence[Path]) -> str:
    """What files, and the code in folders, are told from others by."""
    found = hashlib.sha256()
    for source in sources:
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            if path.suffix in (".py", ".toml"):
                found.update(path.relative_to(source.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


def _install(python: Path, arguments: Sequence[str]) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments], check=True)
