"""Whose code holds a server's interpreter lock: py-spy looks while the server is driven."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import environments

PY_SPY = "py-spy==0.4.3"
LOOKS_A_S = 400
GROUPS = {
    "gRPC": ("grpc/",),
    "interceptors and services": ("luthier/services/", "luthier/access/"),
    "counting": ("luthier/telemetry/",),
    "routing, lanes and tensors": ("luthier/inference/", "luthier/names.py", "luthier/journal.py"),
    "onnxruntime": ("onnxruntime/",),
    "codec": ("luthier_", "luthier/", "acme_", "PIL/", "numpy/", "float_images"),
}
"""Beginnings of the files whose code it is, the first that fits. What is in none, such as `threading.py`, works for
whoever called it."""


def create() -> Path:
    """The program, installed where it is not there yet."""
    folder = environments.BUILD / "py-spy"
    program = folder / "bin" / "py-spy"
    if not program.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, "--target", folder, PY_SPY], check=True)
    return program


def look(pid: int, drive: Callable[[float], object], seconds: float) -> dict[str, float]:
    """The shares of each group's code in the moments at which some held the lock, while a server is driven.

    How often none held it is not said: py-spy misses many moments of a busy machine. Empty where the system does not
    let one process look at another, which is told.
    """
    with tempfile.TemporaryDirectory() as name:
        stacks = Path(name) / "stacks"
        command = [create(), "record", "--pid", str(pid), "--gil", "--format", "raw", "--output", stacks]
        driving = threading.Thread(target=drive, args=(seconds + 1,))
        driving.start()
        done = subprocess.run(
            [*command, "--duration", str(round(seconds)), "--rate", str(LOOKS_A_S)], capture_output=True, text=True
        )
        driving.join()
        if done.returncode:
            print(f"WARNING: no profile, since py-spy failed: {done.stderr.strip()}", flush=True)
            return {}
        counts = counted(stacks.read_text(encoding="utf-8").splitlines())
    return {group: round(counts[group] / max(1, counts.total()), 4) for group in GROUPS}


def counted(stacks: Iterable[str]) -> Counter[str]:
    """How often each group was met, of lines as `outer (a.py:1);inner (b.py:2) 3`."""
    found: Counter[str] = Counter()
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        files = [frame.rpartition("(")[2] for frame in reversed(frames.split(";"))]
        group = next((group for file in files if (group := _group_of(file))), "gRPC")
        found[group] += int(count)
    return found


def _group_of(file: str) -> str:
    return next((group for group, starts in GROUPS.items() if file.startswith(starts)), "")
