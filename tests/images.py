"""The image for serving without a container engine: its root file system, as one would run it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from support import ROOT, Server

_COPIES = [Path(place) for place in sys.path if (Path(place) / "helm" / "luthier").is_dir()]
DEPLOY = next(iter(_COPIES), ROOT / "deploy")
"""What deploys; tools/guards puts a broken copy into the path."""
CONTAINERFILE = DEPLOY / "Containerfile"
USER = 65532

_ENTER = """
set -e
mount --bind {image} {image}
mount --bind {home} {image}/var/luthier
mount -t tmpfs tmpfs {image}/tmp
mount --rbind /proc {image}/proc
mount --rbind /dev {image}/dev
mount -o remount,bind,ro {image}
exec chroot --userspec {user}:{user} {image} "$@"
"""
"""What a container engine does with `--read-only`, a volume for the home and one for /tmp."""


def instructions() -> list[tuple[str, str]]:
    """The instructions of the last stage, with lines joined and without comments."""
    lines = [line for line in CONTAINERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest) for word, _, rest in (line.partition(" ") for line in joined.split("FROM ")[-1].splitlines()[1:])
    ]


def instruction(name: str) -> str:
    """What follows an instruction that is there once."""
    [found] = [rest for word, rest in instructions() if word == name]
    return found


def environment() -> dict[str, str]:
    """ENV of the image, and where this machine has `mount` and `chroot`."""
    own = dict(assignment.split("=", 1) for assignment in shlex.split(instruction("ENV")))
    return own | {"PATH": f"{own['PATH']}:/usr/sbin:/sbin:/bin"}


def entering(image: Path, home: Path, *program: str) -> list[str]:
    """The command that runs a program in the image, its root read-only, with `home` as its volume. Needs root."""
    subprocess.run(["chown", "--recursive", f"{USER}:{USER}", home], check=True)
    enter = _ENTER.format(image=shlex.quote(str(image)), home=shlex.quote(str(home)), user=USER)
    return ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", enter, "enter", *program]


@contextmanager
def running(image: Path, home: Path, *arguments: str, **variables: str) -> Iterator[Server]:
    """Starts the image with these arguments in place of CMD, and ends it by SIGTERM."""
    command = entering(image, home, *json.loads(instruction("ENTRYPOINT")), *arguments)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment(), **variables}
    )
    assert process.stdout
    assert process.stderr
    log: list[str] = []
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), "\n".join(log)
        address = line.split()[-1].replace("0.0.0.0", "127.0.0.1")
        with grpc.insecure_channel(address) as channel:
            yield Server(address, home, process, channel, log)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
