"""Resident memory of this process, as Linux counts it, and giving back to the system what has been freed."""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from luthier.errors import FailedPrecondition

_STATUS = Path("/proc/self/status")
_LOOK_S = 0.005


def resident_bytes() -> int:
    """All that the process holds in memory, code of libraries among it: what a container's limit is compared with.

    Raises FailedPrecondition where the system does not tell.
    """
    if (found := _read("VmRSS")) is None:
        raise FailedPrecondition("serve_memory_mb needs a system that tells what a process holds, as Linux does")
    return found


def anonymous_bytes() -> int:
    """The part that belongs to no file: what models take, without the libraries that the first of a kind loads.

    0 where the system does not tell.
    """
    return _read("RssAnon") or 0


def trim() -> None:
    """Has the C library give freed memory back: by itself it keeps up to all that a session held.

    Only glibc can; others decide for themselves.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def trim_after(last: weakref.ref[Any]) -> threading.Thread:
    """Gives memory back once nobody refers to an object any more, on a thread that can be waited for."""
    thread = threading.Thread(target=_trim_after, args=(last,), name="trim", daemon=True)
    thread.start()
    return thread


def _trim_after(last: weakref.ref[Any]) -> None:
    while last() is not None:
        time.sleep(_LOOK_S)
    trim()


def _read(field: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
