"""Handing over to the server, which is another extra of the same distribution."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

WRONG_USE = 2
_NEEDED = ("onnxruntime", "sqlalchemy")


PROGRAMS = ("serve", "worker", "backup", "restore")
"""What `python -m luthier` can be."""


def become(program: str, arguments: Sequence[str]) -> int:
    """Becomes `python -m luthier`, as one of its programs.

    Returns only where the server is not installed, with the exit status for that.
    """
    if missing := [package for package in _NEEDED if find_spec(package) is None]:
        print(
            f"luthier {program}: {' and '.join(missing)} not found. The server comes with an extra of this package:\n"
            "  pip install 'luthier[serve]'",
            file=sys.stderr,
        )
        return WRONG_USE
    os.execv(sys.executable, [sys.executable, "-m", "luthier", program, *arguments])
