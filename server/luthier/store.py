"""The home's folders, and how finished files become visible: whole, or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Container, Iterator
from pathlib import Path

NAMED = ("bundles", "datasets", "reports", "predictions")
"""Folders of a home whose content is named by rows of the database."""


class Store:
    """Files of one home. Artefacts are folders named by the digest of their content."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        for folder in ("uploads", "datasets", "bundles", "bases", "reports", "predictions", "work"):
            (self.home / folder).mkdir(parents=True, exist_ok=True)

    def upload(self, id: str) -> Path:
        """The file of an upload."""
        return self.home / "uploads" / id

    def partial(self, sha256: str) -> Path:
        """The file of an upload that is not whole yet, by the hash of what it is to become."""
        return self.home / "uploads" / f"{sha256}.partial"

    def clear_partials(self, before: float) -> None:
        """Removes what broken uploads left behind and nobody has gone on with since a time."""
        for path in (self.home / "uploads").glob("*.partial"):
            if path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

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

        It is moved, so that a former attempt that still lives can no longer write there.
        """
        directory = self.home / "work" / f"{operation}-{attempt}"
        directory.mkdir()
        for former in sorted((self.home / "work").glob(f"{operation}-*"), key=_attempt, reverse=True):
            if former != directory:
                if (former / "run").is_dir() and not (directory / "run").exists():
                    (former / "run").rename(directory / "run")
                shutil.rmtree(former, ignore_errors=True)
        return directory

    def artefacts(self) -> Iterator[Path]:
        """All files and folders that rows of the database name; see `registry.artefacts`."""
        for folder in NAMED:
            yield from (path for path in (self.home / folder).iterdir() if path.suffix != ".partial")

    def discard(self, path: Path, before: float) -> bool:
        """Removes an artefact that nobody has published again since a time; returns whether it did."""
        waste = self.home / "work" / f"waste-{uuid.uuid4().hex}"
        try:
            path.rename(waste)
        except FileNotFoundError:
            return False
        # Whoever published the same content until the moment of the renaming relies on it, and has said so by its time.
        if waste.stat().st_mtime >= before:
            waste.rename(path)
            return False
        if waste.is_dir():
            shutil.rmtree(waste)
        else:
            waste.unlink()
        return True

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


def write(content: bytes, target: Path) -> None:
    """Writes a file that is seen whole or not at all, and replaces the one there is."""
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(content)
    _sync(partial)
    partial.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
