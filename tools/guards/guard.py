"""One guard, and the verdict on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOTS = (ROOT / "server", ROOT / "clients" / "python", ROOT / "deploy")
LIMIT_S = 180
"""A test that has not ended by then waits for what a broken guard does not bring, and counts as failed."""


@dataclass(frozen=True)
class Guard:
    """A piece of code that a test guards, and what it reads when broken; `file` is in one of the ROOTS."""

    name: str
    test: str
    file: str
    old: str
    new: str = ""

    @property
    def root(self) -> Path:
        """Which of the ROOTS the file is in."""
        [root] = [root for root in ROOTS if (root / self.file).exists()]
        return root

    def problem(self) -> str:
        """Why it cannot be broken or tested any more; empty where it can."""
        if (self.root / self.file).read_text(encoding="utf-8").count(self.old) != 1:
            return f"{self.name}: {self.file} no longer has the code to break"
        file, _, test = self.test.partition("::")
        if f"def {test.partition('[')[0]}(" not in (ROOT / file).read_text(encoding="utf-8") and test:
            return f"{self.name}: {file} no longer has {test}"
        return ""


def verdict_on(guard: Guard) -> str:
    """Runs a guard's test on a copy of the server in which it is broken."""
    if problem := guard.problem():
        return f"cannot be run: {problem}"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(guard.root, copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / guard.file
        path.write_text(path.read_text(encoding="utf-8").replace(guard.old, guard.new), encoding="utf-8")
        # In front of the one that is installed, for the test and for all that it starts.
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", guard.test]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            try:
                said, _ = process.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return "fails: it waits for ever"
    failed = [line.partition(" - ")[2] for line in said.splitlines() if line.startswith("FAILED")]
    if failed:
        return f"fails: {failed[0][:150]}"
    return "passes" if process.returncode == 0 else f"cannot be run: pytest ended with {process.returncode}\n{said}"
