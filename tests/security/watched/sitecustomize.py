"""Has a server, its workers and all that they start in Python write down what they open, connect to and start.

Python imports this by itself where the folder is on its path. LUTHIER_WATCH is the file.
"""

import os
import sys

_FILE = os.open(os.environ["LUTHIER_WATCH"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_OF_PATHS = (
    "open", "os.chmod", "os.chown", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
    "os.scandir", "os.symlink", "os.truncate", "os.utime", "shutil.copyfile", "shutil.move", "shutil.rmtree",
    "sqlite3.connect",
)  # fmt: skip
_OF_OTHERS = (
    "socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.system", "os.exec",
    "os.posix_spawn", "urllib.Request", "pickle.find_class", "ctypes.dlopen",
)  # fmt: skip


def _write(event: str, arguments: tuple[object, ...]) -> None:
    if event in _OF_PATHS:
        for path in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink", "shutil.copyfile") else 1]:
            if isinstance(path, str | bytes | os.PathLike):
                os.write(_FILE, f"{event}\t{os.path.join(os.getcwd(), os.fsdecode(path))}\n".encode(errors="replace"))
    elif event in _OF_OTHERS:
        os.write(_FILE, f"{event}\t{arguments!r}".replace("\n", " ").encode(errors="replace")[:2000] + b"\n")


sys.addaudithook(_write)
