"""Gives a process a slow disk: what it writes to the part of an upload takes its time.

Python imports this by itself where the folder is on its path. LUTHIER_DISK_BYTES_S is how much is written in a second.
"""

import io
import os
import time
from pathlib import Path

BYTES_S = float(os.environ["LUTHIER_DISK_BYTES_S"])
opened = io.open


class SlowFile(io.BufferedRandom):
    def write(self, content):  # type: ignore[no-untyped-def]
        time.sleep(len(content) / BYTES_S)
        return super().write(content)


def opening(file, mode="r", *rest, **named):  # type: ignore[no-untyped-def]
    if isinstance(file, Path) and file.suffix == ".partial" and mode == "a+b":
        return SlowFile(io.FileIO(file, mode="a+"))
    return opened(file, mode, *rest, **named)


io.open = opening
