"""What the processes that do an operation's work have in common."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys

from google.rpc import status_pb2

from luthier.errors import LuthierError, OutOfMemory, ResourceExhausted
from luthier.logs import unexpected

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent goes, so that no orphan trains on. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have gone before the call.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def status_of(error: Exception, doing: str) -> status_pb2.Status:
    """The status that an operation ends with after an error."""
    if isinstance(error, LuthierError):
        return error.status()
    # torch reports memory that it cannot have as a RuntimeError of its allocator.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return OutOfMemory(f"{doing} ran out of memory; try a smaller batch or a smaller base").status()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceExhausted(f"{doing} ran out of disk space").status()
    return unexpected(error, doing)
