"""What the processes that do an operation's work have in common."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import sys

from google.rpc import status_pb2

from luthier.errors import LuthierError, OutOfMemory, ResourceExhausted
from luthier.logs import unexpected

_PR_SET_PDEATHSIG = 1

_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory")
"""Words of torch's allocator, which raises RuntimeError, and of pyarrow."""
_NO_SPACE = re.compile(
    r"\d+ requested and \d+ written|No space left on device|File too large|enforce fail at inline_container"
)
"""Words of numpy, whose OSError has no number, and of safetensors and torch, which raise errors of their own."""


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
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(str(error)):
        return OutOfMemory(f"{doing} ran out of memory; try a smaller batch or a smaller base").status()
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or _NO_SPACE.search(str(error)):
        return ResourceExhausted(f"{doing} ran out of disk space").status()
    return unexpected(error, doing)
