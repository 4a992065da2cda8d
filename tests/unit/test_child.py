"""What a child of the worker is started with, seen from within it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.worker.child import run_child

PROBE = """
import json, os, resource, sys
import numpy

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**26, dtype=numpy.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

said = {"first": faults(), "second": faults(), "spin": os.environ["GOMP_SPINCOUNT"]}
os.write(int(sys.argv[2]), json.dumps(said).encode() + b"\\n")
"""
"""Says how many pages the system clears for 64 MB, the first time and the second."""


def said_by_the_probe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (folder / "probe.py").write_text(PROBE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    events: list[dict[str, Any]] = []
    job: Any = SimpleNamespace(emit=events.append, check=lambda: None, wish="")
    run_child(job, "probe", folder, "the probe")
    (said,) = events
    return said


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="these are settings of the GNU C library"
)
def test_freed_memory_is_kept_and_the_surroundings_have_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = said_by_the_probe(tmp_path, monkeypatch)
    assert said["first"] > 0
    assert said["second"] < said["first"] / 4
    assert said["spin"] == "100000"

    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    said = said_by_the_probe(tmp_path, monkeypatch)
    assert said["second"] > said["first"] / 2
    assert said["spin"] == "7"
