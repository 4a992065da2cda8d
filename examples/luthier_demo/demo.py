"""The tour: for each task data in, a fine-tune, what it is worth, predictions; at the end the exported bundles."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from luthier_client import Client, LuthierClientError
from luthier_client.cli import output
from luthier_demo.stops import FIRST, READER, STOPS
from luthier_demo.tour import Tour

if TYPE_CHECKING:
    from luthier_demo.server import Server

NEEDED = ("grpc_health", "implicit", "numpy", "onnxruntime", "torch")
"""Packages without which nothing here works."""


def run(tasks: Sequence[str] = FIRST, *, exit_after: bool, home: Path | None = None) -> int:
    """Runs the tour through tasks and returns an exit status: 0, 1 where something failed, 2 for wrong use.

    A server is started on a free port of 127.0.0.1 with its state in `home`, or in a temporary folder, and is ended
    with the demo. At the end it is left to play with until Ctrl-C, unless `exit_after` is set or standard output is no
    terminal.
    """
    console = Console(highlight=False)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        console.print(f"luthier demo needs {', '.join(missing)}: pip install 'luthier\\[train]'")
        return 2
    if unknown := [task for task in tasks if task not in STOPS]:
        console.print(f"there is no demo of {', '.join(unknown)}; there are {', '.join(STOPS)}")
        return 2
    from luthier_demo.server import ServerFailed, serve

    try:
        with _orderly_end(), _folder(home) as folder, serve(folder) as server, Client(server.address) as client:
            console.print(f"[bold]Luthier[/] serves at {server.address}; everything it keeps is in {folder}.")
            started = time.monotonic()
            tour = Tour(console, client, folder)
            for task in tasks:
                STOPS[task](tour)
            tour.exports()
            console.print(f"\nDone in {time.monotonic() - started:.0f} s.")
            if not exit_after and sys.stdout.isatty():
                _leave_up(console, server, tasks)
    except KeyboardInterrupt:
        console.print("Interrupted; the server is stopped.")
        return 128 + signal.SIGINT
    except (LuthierClientError, ServerFailed, OSError) as error:
        output.print_error(console, "its own address", error)
        return 1
    return 0


def _leave_up(console: Console, server: Server, tasks: Sequence[str]) -> None:
    """Says what to try, and waits for Ctrl-C; raises ServerFailed where the server ends before."""
    console.print(*_invitation(server.address, tasks), sep="\n")
    with suppress(KeyboardInterrupt):
        server.wait()


def _invitation(address: str, tasks: Sequence[str]) -> list[str]:
    return [
        f"\nThe server stays up at [bold]{address}[/] until Ctrl-C. In another terminal:\n",
        f"  export LUTHIER_ADDRESS={address}",
        "  luthier models list",
        *(line for task in tasks for line in _COMMANDS.get(task, ())),
        "",
    ]


_COMMANDS = {
    "text-classification": (
        "  luthier predict beer 'Smells like a bakery, tastes like rain.'",
        "  luthier evaluate beer --dataset beer-reviews --report beer.html",
        "  luthier tune beer --task text-classification --dataset beer-reviews --seed 1",
        "  luthier models versions beer",
    ),
    "recommendation": (f"""  luthier predict books '{{"user": "{READER}", "k": 3}}'""",),
    "entity-recognition": ("  luthier predict letters 'Ms Nwosu leaves Tallinn on 9 June.' --output letter.svg",),
    "object-detection": ("  luthier predict tables --file PHOTOGRAPH --output boxes.png",),
    "semantic-segmentation": ("  luthier predict masks --file PHOTOGRAPH --output masks.png",),
}


@contextmanager
def _folder(home: Path | None) -> Iterator[Path]:
    """The folder given, made where it is missing, or a temporary one."""
    if home is None:
        with tempfile.TemporaryDirectory(prefix="luthier-demo-") as folder:
            yield Path(folder)
    else:
        home.mkdir(parents=True, exist_ok=True)
        yield home.absolute()


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Has SIGTERM unwind the stack as Ctrl-C does, so that the server is ended too."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
