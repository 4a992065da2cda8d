"""Artefacts in S3 or what speaks as it does, for homes on several machines that work on one database.

Each artefact is one object, so that it is there whole or not at all; a folder is packed into one first. Where the store
is and who asks is said as for every other program: by `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, an instance's role.
"""

from __future__ import annotations

import errno
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import DataLoss, FailedPrecondition, StoreUnavailable

CONNECT_S, READ_S = 3, 30
"""Seconds without an answer after which a request is tried again; the library does so five times."""

PART_BYTES, MOST_PARTS = 8 * 2**20, 10_000
"""Large artefacts are put in parts, one after the other, of which two are in memory; the library's own would be ten of
50 MiB at once. Of one artefact S3 takes no more than so many."""

_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE}
"""What is wrong with this machine, not with the store."""


class ObjectStore:
    """Objects under a URL such as `s3://bucket/luthier`. Every method raises StoreUnavailable where it cannot be
    reached or refuses."""

    def __init__(self, url: str) -> None:
        """Reaches nothing yet. Raises FailedPrecondition where the library for it is not installed."""
        try:
            from s3fs import S3FileSystem
        except ImportError as error:
            raise FailedPrecondition(f"{url} needs another package: pip install 'luthier[s3]'") from error
        self._url = url
        self._root = url.removeprefix("s3://").rstrip("/")
        waiting = {"connect_timeout": CONNECT_S, "read_timeout": READ_S}
        # What is listed changes by other machines' hands.
        self._files: Any = S3FileSystem(use_listings_cache=False, config_kwargs=waiting, max_concurrency=1)

    def put(self, path: Path, name: str) -> None:
        """Keeps a file; replaces what has this name."""
        part = max(PART_BYTES, -(-path.stat().st_size // MOST_PARTS))
        with self._reaching():
            self._files.put_file(str(path), f"{self._root}/{name}", chunksize=part)

    def put_folder(self, path: Path, name: str, scratch: Path) -> None:
        """Keeps a folder, packed; `scratch` is a path for a file that may be written and removed."""
        try:
            with tarfile.open(scratch, "w") as packed:
                packed.add(path, arcname="")
            self.put(scratch, name)
        finally:
            scratch.unlink(missing_ok=True)

    def get(self, name: str, path: Path) -> bool:
        """Fetches a file to a path, and returns whether there is one."""
        with self._reaching():
            try:
                self._files.get_file(f"{self._root}/{name}", str(path))
            except FileNotFoundError:
                # That may be said of the bucket too, by which this raises it again.
                self._files.find(f"{self._root}/{name}")
                return False
        return True

    def get_folder(self, name: str, path: Path, scratch: Path) -> bool:
        """Fetches and unpacks a folder to a path where there is none, and returns whether there is one.

        Raises DataLoss where it cannot be unpacked; a part of it may be at the path then.
        """
        try:
            if not self.get(name, scratch):
                return False
            with tarfile.open(scratch) as packed:
                if odd := [member.name for member in packed if not (member.isfile() or member.isdir())]:
                    raise tarfile.TarError(f"{odd[0]} is neither a file nor a folder")
                packed.extractall(path, filter="data")
        except tarfile.TarError as error:
            raise DataLoss(f"{self._url}/{name} is damaged: {error}", file=name) from error
        finally:
            scratch.unlink(missing_ok=True)
        return True

    def names(self, folder: str) -> list[str]:
        """The names that begin with a folder's."""
        with self._reaching():
            found = self._files.find(f"{self._root}/{folder}/")
        return [name.removeprefix(f"{self._root}/") for name in found]

    def changed(self, name: str) -> float | None:
        """When an object was put last, in seconds since 1970; None where there is none."""
        with self._reaching():
            try:
                return float(self._files.modified(f"{self._root}/{name}").timestamp())
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Removes an object, if there is one."""
        with self._reaching():
            try:
                self._files.rm_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # What is not translated into an OSError has no class in common.
            if isinstance(error, OSError) and error.errno in _OURS:
                raise
            raise StoreUnavailable(f"{self._url} cannot be used: {error}") from error
