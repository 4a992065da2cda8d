"""The manifest of a bundle: which files belong to it, what they must hash to, and where they come from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from luthier.errors import DataLoss, FailedPrecondition

FORMAT = 1
"""Version of the manifest's format; a server opens this one and older ones."""
MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(directory: Path, manifest: dict[str, Any]) -> str:
    """Writes the manifest of a folder's files, with what is known of their making; returns the bundle's digest."""
    files = [
        {"path": path.relative_to(directory).as_posix(), "sha256": sha256_of(path), "size_bytes": path.stat().st_size}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    ]
    text = json.dumps({"format": FORMAT, "files": files, **manifest}, indent=2, sort_keys=True)
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def verify(directory: Path, digest: str) -> dict[str, Any]:
    """Reads a bundle's manifest and checks every file against it.

    Raises DataLoss where bytes are missing, changed or too many, FailedPrecondition where a newer Luthier wrote it.
    """
    try:
        text = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise DataLoss("the bundle's manifest cannot be read", file=MANIFEST) from error
    if hashlib.sha256(text).hexdigest() != digest:
        raise DataLoss("the bundle's manifest is not the one that was published", file=MANIFEST)
    manifest: dict[str, Any] = json.loads(text)
    if manifest["format"] > FORMAT:
        raise FailedPrecondition(
            f"the bundle has format {manifest['format']}, this server reads up to {FORMAT}; update the server"
        )
    if links := [path for path in directory.rglob("*") if path.is_symlink()]:
        raise DataLoss(f"{links[0].name} of the bundle is a link, which is never followed", file=links[0].name)
    expected = {file["path"]: file["sha256"] for file in manifest["files"]}
    if outside := [path for path in expected if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts]:
        raise DataLoss(f"the bundle's manifest names {outside[0]!r}, which leads out of it", file=MANIFEST)
    for path, sha256 in expected.items():
        if not (directory / path).is_file() or sha256_of(directory / path) != sha256:
            raise DataLoss(f"{path} of the bundle is missing or was changed", file=path)
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    if extra := sorted(present - expected.keys() - {MANIFEST}):
        raise DataLoss(f"{extra[0]} does not belong to the bundle", file=extra[0])
    return manifest
