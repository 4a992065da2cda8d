"""A home in one file, and a home made of it again: the rows of the database, and the artefacts that they name.

A backup is taken beside running servers: the rows are of one moment, and artefacts never change. It does not say which
database it came from, so that a home can move from SQLite to PostgreSQL by it. What is worked on is not in it: an
operation that was running is begun anew.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import sqlalchemy as sa

from luthier import bundle, datasets
from luthier.bases import Catalogue
from luthier.database import Database, metadata
from luthier.errors import DataLoss, FailedPrecondition, LuthierError
from luthier.registry import artefacts
from luthier.settings import Settings
from luthier.store import Store

FORMAT = 1
"""Version of the file's format; restoring takes this one."""
HEAD_FILE = "backup.json"
TABLES, ARTEFACTS = "tables", "artefacts"
FOLDERS = ("bundles", "datasets", "bases", "predictions", "reports", "uploads")
"""Folders of a home that hold artefacts; `bases` in whole, with all that was pulled."""
FILES = ("luthier.toml", "bases.toml")
"""What an operator wrote."""


def run(program: str, settings: Settings) -> int:
    """`luthier backup` and `luthier restore`; returns 1 where it cannot be done, after it has said why."""
    file: Path = settings.file  # type: ignore[attr-defined]
    database = Database(settings.database)
    try:
        store = Store(settings.home, settings.artefacts)
        if program == "backup":
            size = save(store, database, file.absolute())
            print(f"{file}: {size / 2**20:,.1f} MiB")
        else:
            restore(file, store, database)
            print(f"{settings.home} is filled; start it with luthier serve --home {settings.home}")
    except LuthierError as error:
        print(f"luthier {program}: {error.message}", file=sys.stderr)
        return 1
    finally:
        database.close()
    return 0


def save(store: Store, database: Database, target: Path) -> int:
    """Writes a backup; returns its size in bytes. Raises DataLoss where an artefact is missing or was changed."""
    imported = [entry.folder for entry in Catalogue({}, database).all()]
    partial = target.with_name(f"{target.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            # Not for as long as the artefacts take: on SQLite whoever reads keeps others from writing.
            with database.snapshot() as connection:
                _write_rows(archive, connection)
                named = artefacts(connection)
            for path in _artefacts(store, named, imported):
                archive.write(path, str(PurePosixPath(ARTEFACTS, path.relative_to(store.home).as_posix())))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(target)
    return target.stat().st_size


def restore(source: Path, store: Store, database: Database) -> None:
    """Fills an empty home and database. Raises FailedPrecondition where they are not, DataLoss for a damaged file."""
    home = store.home
    taken = [name for name in (*FOLDERS, *FILES) if _holds_something(home / name)]
    if taken:
        raise FailedPrecondition(f"{home} holds {', '.join(taken)}; restore into a home that is empty")
    try:
        archive = zipfile.ZipFile(source)
        head = json.loads(archive.read(HEAD_FILE))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataLoss(f"{source.name} is no backup of Luthier", file=source.name) from error
    with archive:
        if head["format"] != FORMAT:
            raise FailedPrecondition(f"the backup has format {head['format']}, this release reads {FORMAT}")
        try:
            _unpack(archive, home)
            for path in _shared(home):
                store.share(path)
            database.migrate(head["revision"])
            with database.write() as connection:
                _insert(archive, connection)
        except BaseException as error:
            for name in FOLDERS:
                shutil.rmtree(home / name, ignore_errors=True)
            if isinstance(error, zipfile.BadZipFile):
                raise DataLoss(f"{source.name} is damaged: {error}", file=source.name) from error
            raise
    database.migrate()


def _write_rows(archive: zipfile.ZipFile, connection: sa.Connection) -> None:
    revision = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
    archive.writestr(HEAD_FILE, json.dumps({"format": FORMAT, "revision": revision}))
    for table in metadata.sorted_tables:
        with archive.open(f"{TABLES}/{table.name}.jsonl", "w") as lines:
            for row in connection.execute(sa.select(table)).mappings():
                lines.write(json.dumps(dict(row), default=_encoded).encode() + b"\n")


def _artefacts(store: Store, named: Mapping[str, set[str]], imported: Sequence[str]) -> Iterator[Path]:
    """The files that rows name, bundles and data sets checked, and those of bases and operators."""
    home = store.home
    for digest in sorted(named["bundles"]):
        directory = store.bring(store.bundle(digest))
        bundle.verify(directory, digest)
        yield from _files(directory)
    for digest in sorted(named["datasets"]):
        directory = store.bring(store.dataset(digest))
        datasets.load(directory)
        yield from _files(directory)
    for folder in imported:
        store.bring(store.bases / folder)
    # Not every evaluation has a report nor every operation predictions, and uploads go once they were read.
    folders = ("predictions", "reports", "uploads")
    some = [store.bring(home / folder / name) for folder in folders for name in sorted(named[folder])]
    yield from (path for path in [*some, *(home / name for name in FILES)] if path.exists())
    yield from _files(home / "bases")


def _shared(home: Path) -> Iterator[Path]:
    """What all homes on one database share: all but the bases that each pulls."""
    for folder in FOLDERS:
        if (home / folder).is_dir():
            yield from (path for path in (home / folder).iterdir() if folder != "bases" or "@" in path.name)


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _unpack(archive: zipfile.ZipFile, home: Path) -> None:
    for name in archive.namelist():
        path = PurePosixPath(name)
        if path.parts[0] != ARTEFACTS:
            continue
        inside = PurePosixPath(*path.parts[1:])
        if inside.parts[0] not in (*FOLDERS, *FILES) or ".." in inside.parts:
            raise DataLoss(f"the backup holds {name}, which belongs to no home", file=name)
        target = home / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(name) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)


def _insert(archive: zipfile.ZipFile, connection: sa.Connection) -> None:
    """Rows into the tables as they are in the backup's revision, which may be older than what the code knows."""
    reflected = sa.MetaData()
    reflected.reflect(connection)
    for known in metadata.sorted_tables:
        name = f"{TABLES}/{known.name}.jsonl"
        if name not in archive.namelist():
            continue
        table = reflected.tables[known.name]
        connection.execute(table.delete())
        with archive.open(name) as lines:
            for line in lines:
                connection.execute(table.insert().values(_decoded(json.loads(line))))


def _holds_something(path: Path) -> bool:
    return path.exists() and (path.is_file() or any(path.iterdir()))


def _encoded(value: object) -> object:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    raise TypeError(type(value))


def _decoded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value for name, value in row.items()
    }
