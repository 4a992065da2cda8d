"""docs/quality.md shows what docs/quality.json records, and nothing else."""

from __future__ import annotations

import subprocess
import sys

from support import ROOT


def test_the_page_is_that_of_the_record() -> None:
    subprocess.run([sys.executable, ROOT / "tools" / "quality", "--check"], check=True)
