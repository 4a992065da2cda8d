"""The home's folders, and how finished files become visible: whole, or not at all.

Where an object store is set, it holds what rows of the database name, and a home what was made or used on its machine.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path

from luthier.errors import FailedPrecondition, StoreUnavailable
from luthier.objectstore import ObjectStore

NAMED = ("bundles", "datasets", "reports", "predictions", "uploads")
"""Folders of a home whose content is named by rows of the database."""
OF_FOLDERS = ("bundles", "datasets", "bases")
"""Folders of a home that hold a folder for each artefact; the others hold files."""
JUST_PUT_S = 60.0
"""Seconds after which an object may be removed at once. Whoever put a younger one may be about to name it; housekeeping
comes back to it."""


class Store:
    """Files of one home. Artefacts are folders named by the digest of their content."""

    def __init__(self, home: Path, artefacts: str = "") -> None:
        """`artefacts` is the URL of an object store, or empty. Raises FailedPrecondition for want of a library."""
        self.home = home.absolute()
        for folder in ("uploads", "datasets", "bundles", "bases", "reports", "predictions", "work"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)
        self._objects = ObjectStore(artefacts) if artefacts else None

    def check(self) -> None:
        """Raises FailedPrecondition where the object store says no. One that says nothing now may do so later."""
        if self._objects is None:
            return
        try:
            self._objects.names("uploads")
        except StoreUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError | PermissionError):
                raise FailedPrecondition(error.message) from error

    def upload(self, id: str) -> Path:
        """The file of an upload."""
        return self.home / "uploads" / id

    def partial(self, sha256: str) -> Path:
        """The file of an upload that is not whole yet, by the hash of what it is to become."""
        return self.home / "uploads" / f"{sha256}.partial"

    def dataset(self, digest: str) -> Path:
        """The folder of a data set version."""
        return self.home / "datasets" / digest

    def bundle(self, digest: str) -> Path:
        """The folder of a model version."""
        return self.home / "bundles" / digest

    def report(self, evaluation: str) -> Path:
        """The report of an evaluation, by its id; not every evaluation has one."""
        return self.home / "reports" / f"{evaluation}.html"

    def predictions(self, operation: str) -> Path:
        """The predictions that an operation made, as JSON lines."""
        return self.home / "predictions" / f"{operation}.jsonl"

    @property
    def bases(self) -> Path:
        """The folder of all bases."""
        return self.home / "bases"

    def work(self, operation: str, attempt: int) -> Path:
        """A folder for one attempt at an operation. Of an earlier attempt its `run` stays: where a training stood.

        It is moved, so that a former attempt that still lives can no longer write there. A later one's folder is left
        as it is: then this attempt has lost its lease before it had begun.
        """
        directory = self.home / "work" / f"{operation}-{attempt}"
        directory.mkdir()
        for former in sorted((self.home / "work").glob(f"{operation}-*"), key=_attempt, reverse=True):
            if _attempt(former) < attempt:
                if (former / "run").is_dir() and not (directory / "run").exists():
                    (former / "run").rename(directory / "run")
                shutil.rmtree(former, ignore_errors=True)
        return directory

    def publish(self, source: Path, target: Path) -> None:
        """Moves a folder into place, where all homes find it; see `publish`. Raises StoreUnavailable."""
        publish(source, target)
        self.share(target)

    def write(self, content: bytes, target: Path) -> None:
        """Writes a file that all homes find whole or not at all. Raises StoreUnavailable."""
        write(content, target)
        self.share(target)

    def share(self, path: Path) -> None:
        """Puts an artefact of this home where all find it. Raises StoreUnavailable."""
        if self._objects is None:
            return
        if path.is_dir():
            self._objects.put_folder(path, self._name(path), _draft(path))
        else:
            self._objects.put(path, self._name(path))

    def bring(self, path: Path) -> Path:
        """Returns an artefact's path in this home, after fetching it where it is in the object store alone.

        There may be none: then nothing is at that path. Raises StoreUnavailable.
        """
        if self._objects is None or path.exists():
            return path
        fetched = _draft(path)
        try:
            if path.parent.name not in OF_FOLDERS:
                if self._objects.get(self._name(path), fetched):
                    _sync(fetched)
                    fetched.rename(path)
            elif self._objects.get_folder(self._name(path), fetched, _draft(path)):
                publish(fetched, path)
        finally:
            remove(fetched)
        return path

    def remove(self, path: Path) -> None:
        """Removes an artefact that nothing names any more. What cannot be removed now is left to housekeeping."""
        remove(path)
        if self._objects is not None:
            with suppress(StoreUnavailable):
                self._discard_object(self._name(path), time.time() - JUST_PUT_S)

    def artefacts(self) -> set[Path]:
        """The paths of all artefacts, here or in the object store, that rows of the database name; see
        `registry.artefacts`. Raises StoreUnavailable."""
        found = {path for folder in NAMED for path in (self.home / folder).iterdir()}
        if self._objects is not None:
            names = [name for folder in NAMED for name in self._objects.names(folder)]
            found |= {self.home / name.removesuffix(".tar") for name in names}
        return found

    def discard(self, path: Path, before: float) -> bool:
        """Removes an artefact that nobody has published again since a time; returns whether it did.

        Raises StoreUnavailable.
        """
        removed = _discard(path, before, self.home / "work" / f"waste-{uuid.uuid4().hex}")
        if self._objects is not None:
            removed |= self._discard_object(self._name(path), before)
        return removed

    def _discard_object(self, name: str, before: float) -> bool:
        assert self._objects is not None
        changed = self._objects.changed(name)
        if changed is None or changed >= before:
            return False
        self._objects.remove(name)
        return True

    def _name(self, path: Path) -> str:
        name = path.relative_to(self.home).as_posix()
        return f"{name}.tar" if path.parent.name in OF_FOLDERS else name

    def clear(self, is_open: Callable[[], Container[str]]) -> None:
        """Removes the folders of attempts at operations that have ended: all but those that `is_open` returns."""
        folders = list((self.home / "work").iterdir())
        # Asked after the folders were listed: whatever began since is not among them.
        still = is_open()
        for folder in folders:
            if folder.name.rpartition("-")[0] not in still:
                shutil.rmtree(folder, ignore_errors=True)


def _attempt(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def publish(source: Path, target: Path) -> None:
    """Moves a folder into place after its bytes are on disk. A target that exists holds the same content already."""
    for path in [*source.rglob("*"), source]:
        _sync(path)
    while True:
        try:
            source.rename(target)
        except OSError:
            try:
                # Keeps it from being discarded as something old that nothing names; see `Store.discard`.
                os.utime(target)
            except FileNotFoundError:
                if target.parent.is_dir():
                    continue
                raise
            shutil.rmtree(source)
        break
    _sync(target.parent)


def remove(path: Path) -> None:
    """Removes a file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write(content: bytes, target: Path) -> None:
    """Writes a file that is seen whole or not at all, and replaces the one there is."""
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    _sync(partial)
    partial.replace(target)
    _sync(target.parent)


def _discard(path: Path, before: float, waste: Path) -> bool:
    try:
        if path.stat().st_mtime >= before:
            return False
        path.rename(waste)
    except FileNotFoundError:
        return False
    # Whoever published the same content until the moment of the renaming relies on it, and has said so by its time.
    if waste.stat().st_mtime >= before:
        waste.rename(path)
        return False
    remove(waste)
    return True


def _draft(path: Path) -> Path:
    """A path beside it that is nobody else's."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
