"""What `make guards` breaks is there to be broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_guard_has_its_code_and_its_test() -> None:
    done = subprocess.run(
        [sys.executable, "tools/guards", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
