"""Where the files of a base come from. Each kind of source opens files one by one; none is trusted: see `bases`."""

from __future__ import annotations

import fnmatch
import http.client
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import IO

ANSWER_S = 3.0
"""What a source that does not answer costs, from looking up its name to the first byte of its answer."""
STALL_S = 30.0
"""A source that has answered and then sends nothing for so long is given up."""
_PIP_ANSWER_S = 2
"""ANSWER_S without the time that pip takes to start."""
_TICK_S = 0.25

Opener = Callable[[str], IO[bytes]]
"""Opens a file of the base by its path within it."""
Waiting = Callable[[int], None]
"""Called while a source works without handing out bytes, with the bytes that it has; may raise to end the wait."""


class SourceError(Exception):
    """A source did not give what it should."""


def check(source: str, *, own: bool) -> None:
    """Raises ValueError where a source is of no known form; `own` says that the operator of this server wrote it."""
    kind, _, location = source.partition(":")
    if kind not in _FORMS or not _FORMS[kind].fullmatch(location):
        raise ValueError(
            f"{source!r} is none of hub:OWNER/NAME@REVISION, package:NAME==VERSION:FOLDER, url:https://… and file:/…"
        )
    if kind == "file" and not own:
        raise ValueError(f"{source!r} is of this machine; only an operator's own catalogue may name such a source")


def open_source(source: str, work: Path, waiting: Waiting) -> AbstractContextManager[Opener]:
    """Makes a source ready. `work` is an empty folder for what has to be kept meanwhile.

    Within the context, what goes wrong raises one of FAILURES.
    """
    kind, _, location = source.partition(":")
    return _KINDS[kind](location, work, waiting)


FAILURES = (SourceError, OSError, http.client.HTTPException, zipfile.BadZipFile)


def explain(error: Exception) -> str:
    """What went wrong, for people."""
    match error:
        case urllib.error.URLError():
            return f"it cannot be reached: {error.reason}"
        case TimeoutError():
            return f"it sent nothing for {STALL_S:.0f} s"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return str(error) or type(error).__name__


@contextmanager
def _hub(location: str, work: Path, waiting: Waiting) -> Iterator[Opener]:
    repository, _, revision = location.partition("@")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise SourceError("HF_HUB_OFFLINE is set")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    yield lambda path: _get(f"{endpoint}/{repository}/resolve/{revision}/{path}")


@contextmanager
def _url(location: str, work: Path, waiting: Waiting) -> Iterator[Opener]:
    yield lambda path: _get(f"{location.rstrip('/')}/{path}")


@contextmanager
def _folder(location: str, work: Path, waiting: Waiting) -> Iterator[Opener]:
    yield lambda path: (Path(location) / path).open("rb")


@contextmanager
def _own(location: str, work: Path, waiting: Waiting) -> Iterator[Opener]:
    folder = resources.files("luthier") / "own_bases" / location
    yield lambda path: (folder / path).open("rb")


@contextmanager
def _package(location: str, work: Path, waiting: Waiting) -> Iterator[Opener]:
    requirement, _, folder = location.rpartition(":")
    _download(requirement, work, waiting)
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())

        def open_member(path: str) -> IO[bytes]:
            # A member is only read by its whole name, and written to where the catalogue says: no name in a wheel can
            # lead out of the base's folder.
            if f"{folder}/{path}" not in names:
                raise SourceError(f"the package has no {folder}/{path}")
            return wheel.open(f"{folder}/{path}")

        yield open_member


def _get(url: str) -> IO[bytes]:
    """Sends a GET and returns the answer's body; raises SourceError where none begins within ANSWER_S."""
    request = urllib.request.Request(url, headers={"User-Agent": "luthier"})
    answer: Future[IO[bytes]] = Future()

    def ask() -> None:
        try:
            answer.set_result(urllib.request.urlopen(request, timeout=STALL_S))
        except urllib.error.HTTPError as error:
            error.close()
            answer.set_exception(SourceError(f"it answered {error.code} {error.reason}"))
        except Exception as error:
            answer.set_exception(error)

    # In a thread, because no time-out of a socket covers looking up a name, and every address tried has one of its own.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(ANSWER_S)
    except TimeoutError:
        answer.add_done_callback(lambda late: late.exception() or late.result().close())
        raise SourceError(f"it did not answer within {ANSWER_S:.0f} s") from None


def _download(requirement: str, work: Path, waiting: Waiting) -> None:
    """Has pip download one wheel, without installing anything; pip's own settings say from which index."""
    log = work / "pip.log"
    try:
        _pip(["--timeout", str(_PIP_ANSWER_S), "--retries", "0", requirement], log, waiting)
    except SourceError as error:
        if "No matching distribution" not in str(error):
            # The index knows the package, so it is there; it may take its own time to send it.
            _pip([requirement], log, waiting)
        elif "Could not fetch URL" in log.read_text(encoding="utf-8", errors="replace"):
            raise SourceError(f"the package index did not answer in time ({error})") from error
        else:
            raise


def _pip(arguments: list[str], log: Path, waiting: Waiting) -> None:
    """Runs `pip download` into the folder of the log; raises SourceError with the gist of why it failed."""
    work = log.parent
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(work)]
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--log", str(log)]
    with (work / "pip.txt").open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [*command, *quiet, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(work)},
        )
        try:
            while process.poll() is None:
                waiting(_downloaded(work))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_TICK_S)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        if process.returncode:
            raise SourceError(_reason(output.read()))


def _downloaded(work: Path) -> int:
    """Bytes of the wheel that pip has so far; it moves the file about meanwhile."""
    sizes = [0]
    for folder, _, names in os.walk(work):
        for name in fnmatch.filter(names, "*.whl"):
            with suppress(FileNotFoundError):
                sizes.append(Path(folder, name).stat().st_size)
    return max(sizes)


def _reason(output: str) -> str:
    """The gist of what pip printed."""
    if "No module named pip" in output:
        return "this Python has no pip to download it with; `python -m ensurepip` brings it"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip failed without a word"])[-1]


_FORMS = {
    "hub": re.compile(r"\w[\w.-]*/\w[\w.-]*@\w[\w.-]*"),
    "package": re.compile(r"[\w.-]+==[\w.+!-]+:[\w-]+(/[\w-]+)*"),
    "url": re.compile(r"https?://\S+"),
    "file": re.compile(r"/.*"),
    "own": re.compile(r"\w[\w.-]*"),
}
_KINDS: dict[str, Callable[[str, Path, Waiting], AbstractContextManager[Opener]]] = {
    "hub": _hub,
    "package": _package,
    "url": _url,
    "file": _folder,
    "own": _own,
}
