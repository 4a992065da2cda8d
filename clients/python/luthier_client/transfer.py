"""Files on their way up and down, in chunks and checked by SHA-256. No network in here."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from luthier.v1.dataset_pb2 import UploadFilesRequest, UploadHeader
from luthier.v1.model_pb2 import BundleFile, DownloadVersionResponse
from luthier_client.errors import DataLoss, Unavailable

CHUNK_BYTES = 512 * 1024
"""Half of what the server takes at most in a message."""

DELAYS_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Between tries of an upload that brought nothing more."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can state."""


@contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """The path itself, or of a folder a zip that is gone afterwards: the same bytes for the same files."""
    if not path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="luthier-") as scratch:
        packed = Path(scratch) / f"{path.resolve().name}.zip"
        # Stored, not deflated: what such folders are made of, images, hardly shrinks.
        with zipfile.ZipFile(packed, "w") as archive:
            for file in sorted(file for file in path.rglob("*") if file.is_file()):
                entry = zipfile.ZipInfo(file.relative_to(path).as_posix(), _EPOCH)
                entry.file_size = file.stat().st_size
                with file.open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target)
        yield packed


def upload_header(path: Path) -> UploadHeader:
    """The header of a file's upload; reads the whole file for its hash."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return UploadHeader(filename=path.name, size_bytes=file.tell(), sha256=digest)


def upload_messages(path: Path, header: UploadHeader) -> Iterator[UploadFilesRequest]:
    """The header, then the chunks of a file from where the header says."""
    yield UploadFilesRequest(header=header)
    with path.open("rb") as file:
        file.seek(header.offset)
        while chunk := file.read(CHUNK_BYTES):
            yield UploadFilesRequest(chunk=chunk)


class Patience:
    """How long to wait before a broken upload goes on, and when to give up: after some tries that brought nothing."""

    def __init__(self) -> None:
        self._delays = iter(DELAYS_S)
        self._reached = -1

    def after(self, error: Unavailable, reached: int) -> float:
        """Seconds to wait before the next try, from where the last one began; raises the error where none is left."""
        if reached > self._reached:
            self._reached, self._delays = reached, iter(DELAYS_S)
        for delay in self._delays:
            return delay
        raise error


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name once all is written, and not at all where that fails."""
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Download:
    """Writes the files of a download into a folder. A context manager.

    Each file appears under its name once it is whole and its SHA-256 agrees, never before. Raises DataLoss where it
    does not agree, is cut short, or would lie outside the folder.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory.resolve()
        self._header: BundleFile | None = None
        self._file: BufferedRandom | None = None

    def __enter__(self) -> Download:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                self._file.close()
                os.unlink(self._file.name)

    def take(self, message: DownloadVersionResponse) -> None:
        """Takes the next message of the stream."""
        if message.HasField("file"):
            self._finish()
            self._begin(message.file)
        elif self._file is None:
            raise DataLoss("the download begins with a chunk, not with a file's header")
        else:
            self._file.write(message.chunk)

    def _begin(self, header: BundleFile) -> None:
        path = (self._directory / header.path).resolve()
        if path == self._directory or not path.is_relative_to(self._directory):
            raise DataLoss(f"{header.path!r} would lie outside the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._header = header
        self._file = path.with_name(f"{path.name}.part").open("w+b")

    def _finish(self) -> None:
        """Checks the file under way and gives it its name."""
        if self._file is None or self._header is None:
            return
        self._file.seek(0)
        if hashlib.file_digest(self._file, "sha256").hexdigest() != self._header.sha256:
            raise DataLoss(f"{self._header.path} arrived damaged or cut short: its SHA-256 differs")
        self._file.close()
        os.replace(self._file.name, self._directory / self._header.path)
        self._file = None
