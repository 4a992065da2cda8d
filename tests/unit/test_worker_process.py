"""What the libraries of a training raise where the disk or the memory is full, and what an operation then ends with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.rpc import code_pb2

IMPORTS = "import os, numpy, pyarrow as pa, pyarrow.parquet as pq, safetensors.numpy, torch"
WRITE = {
    "numpy": "numpy.save(path, numpy.zeros(10**6))",
    "torch": "torch.save(torch.zeros(10**6), path)",
    "safetensors": "safetensors.numpy.save_file(dict(a=numpy.zeros(10**6)), path)",
    "pyarrow": "pq.write_table(pa.table(dict(a=[os.urandom(10**6)])), path)",
    "python": "open(path, 'wb').write(bytes(10**6))",
}
TAKE = {
    "numpy": "numpy.ones(10**10)",
    "torch": "torch.ones(10**10)",
    "pyarrow": "pa.allocate_buffer(10**11)",
}


def code_after(work: str, limit: str, most: int, path: Path) -> int:
    """Does the work in a process with a limit; the code of the status that is made of what it raises."""
    script = f"""
{IMPORTS}
import resource, sys
from luthier.worker.process import status_of
path = sys.argv[1]
resource.setrlimit(resource.{limit}, ({most}, {most}))
try:
    {work}
except Exception as error:
    print(status_of(error, "the training").code)
"""
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("library", WRITE)
def test_a_full_disk(library: str, tmp_path: Path) -> None:
    assert code_after(WRITE[library], "RLIMIT_FSIZE", 200_000, tmp_path / "file.npy") == code_pb2.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("library", TAKE)
def test_too_little_memory(library: str, tmp_path: Path) -> None:
    assert code_after(TAKE[library], "RLIMIT_AS", 16 * 2**30, tmp_path) == code_pb2.RESOURCE_EXHAUSTED
