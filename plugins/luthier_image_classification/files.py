"""Reads labelled images: a folder for each class, a manifest beside the images, or a table that holds them.

In a zip, `folder` is `CLASS/…/image`; a folder for each part may come before: `train`, `validation` (or `val`, `valid`,
`dev`) and `test`. `manifest` is one or more CSV, TSV or JSONL files with the columns `image`, the image's path from the
manifest's own folder, and `label`. A column `split` may say which part a row belongs to, or the manifest's name does,
as in `train.csv`. An archive whose layout is not stated has a manifest where it has such a file with these columns.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pyarrow as pa

from luthier import images, tabular
from luthier.archives import Archive, open_archive
from luthier.errors import InvalidData
from luthier.task import DataFile, DataProblem
from luthier.tasks.image_classification.v1 import image_classification_pb2 as pb
from luthier_image_classification.data import some

SCHEMA = pa.schema({"image": pa.large_binary(), "label": pa.string(), "name": pa.string()})
MANIFESTS = ("csv", "tsv", "jsonl")
MAX_PROBLEMS = 1000
"""Problems listed for one file."""

_PART_OF = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_COLUMNS = (
    tabular.Column(name="image", required=True),
    tabular.Column(name="label", required=True),
    tabular.Column(name="split"),
)


@dataclass(frozen=True)
class Labelled:
    """An image of an archive that is an example."""

    path: str
    label: str
    part: str = ""
    """Empty where the archive does not divide its examples."""


@dataclass
class Findings:
    """What is wrong with a file, and what is odd in it."""

    file: DataFile
    problems: list[DataProblem] = field(default_factory=list)
    """Of single examples, which are left out of a lenient file."""
    fatal: list[DataProblem] = field(default_factory=list)
    """Of the file, or of a manifest in it."""
    misnamed: list[str] = field(default_factory=list)

    def add(self, message: str, *, path: str = "", row: int = 0, field: str = "") -> None:
        """Records what must be changed."""
        name = f"{self.file.name}/{path}" if path else self.file.name
        self.problems.append(DataProblem(file=name, row=row, field=field, message=message, count=1))

    def warn(self, message: str, count: int) -> None:
        """Records what was read nevertheless."""
        self.file.warnings.append(DataProblem(file=self.file.name, message=message, count=count))

    def settle(self) -> None:
        """Raises InvalidData with all problems, if there are any; those that a lenient file may have are warnings."""
        if self.misnamed:
            message = (
                f"{len(self.misnamed)} images are named for another format than they have: {some(self.misnamed)}; "
                "they are read as what they are"
            )
            self.warn(message, len(self.misnamed))
        if more := self.problems[MAX_PROBLEMS:]:
            message = f"there are {len(more)} more problems like these"
            more = [DataProblem(file=self.file.name, message=message, count=len(more))]
        listed = [*self.fatal, *self.problems[:MAX_PROBLEMS], *more]
        if listed and (self.fatal or not self.file.lenient):
            raise InvalidData(listed)
        self.file.warnings.extend(listed)


def read(file: DataFile) -> pa.Table | Mapping[str, pa.Table]:
    """Returns tables of SCHEMA, by part where the file divides its examples; raises InvalidData with every problem."""
    findings = Findings(file)
    if file.format not in ("", "folder", "manifest"):
        return _table(file, findings)
    with open_archive(file) as archive:
        layout = file.format or ("manifest" if _manifests(archive, file) else "folder")
        listed = _folders(archive, findings) if layout == "folder" else _listed(archive, findings)
        contents = _decoded(archive, [example.path for example in listed], findings)
    if not (listed or findings.problems or findings.fatal):
        findings.add(f"there is no image in it; those taken end in {', '.join(images.ENDINGS)}")
    findings.settle()
    listed = [example for example in listed if example.path in contents]
    by_part: dict[str, list[Labelled]] = defaultdict(list)
    for example in listed:
        by_part[example.part].append(example)
    tables = {part: _examples(examples, contents) for part, examples in by_part.items()}
    return tables[""] if tables.keys() == {""} else tables


def _examples(examples: Sequence[Labelled], contents: Mapping[str, bytes]) -> pa.Table:
    columns = {
        "image": [contents[example.path] for example in examples],
        "label": [example.label for example in examples],
        "name": [example.path for example in examples],
    }
    return pa.table(columns, SCHEMA)


def _table(file: DataFile, findings: Findings) -> pa.Table:
    """Rows that hold the images themselves."""
    table = tabular.read(file, pb.Example).cast(SCHEMA)
    whole = []
    for row, found in enumerate(_inspected(table["image"].to_pylist()), 1):
        whole.append(not isinstance(found, images.ImageError))
        if not whole[-1]:
            findings.add(str(found), row=row, field="image")
    findings.settle()
    return table.filter(pa.array(whole))


# A folder for each class.


def _folders(archive: Archive, findings: Findings) -> list[Labelled]:
    """The images of an archive with a folder for each class."""
    names = [name for name in archive.names if _ending(name) in images.ENDINGS]
    depth = int(_divides(names))
    found, loose = [], []
    for name in names:
        folders = PurePosixPath(name).parts[:-1]
        if len(folders) > depth:
            found.append(Labelled(name, folders[depth], _PART_OF[folders[0].casefold()] if depth else ""))
        else:
            loose.append(name)
    for name in loose:
        findings.add("the image lies in no class's folder", path=name)
    _warn_of_others(archive, findings)
    known = {tuple(PurePosixPath(example.path).parts[: depth + 1]) for example in found}
    holders = [*archive.folders, *(str(PurePosixPath(name).parent) for name in archive.names)]
    classes = {PurePosixPath(folder).parts[: depth + 1] for folder in holders}
    if empty := sorted("/".join(parts) for parts in classes - known if len(parts) == depth + 1):
        findings.warn(f"{len(empty)} folders hold no image: {some(empty)}; there are no such classes", len(empty))
    return found


def _divides(names: Sequence[str]) -> bool:
    """Whether the outermost folders are parts: all are called so, and have the classes' folders in them."""
    parts = [PurePosixPath(name).parts for name in names]
    return bool(parts) and all(len(p) > 2 and p[0].casefold() in _PART_OF for p in parts)


def _warn_of_others(archive: Archive, findings: Findings) -> None:
    """Files in folders that are no images by their names; those beside the folders are about the data set."""
    others = [name for name in archive.names if "/" in name and _ending(name) not in images.ENDINGS]
    for ending, count in sorted(Counter(_ending(name) for name in others).items()):
        what = f"end in .{ending}" if ending else "have no ending"
        findings.warn(f"{count} files {what} and are left out; images end in {', '.join(images.ENDINGS)}", count)


# A manifest.


def _manifests(archive: Archive, file: DataFile) -> list[str]:
    """The tables of an archive that have the columns of a manifest, or all tables where none has."""
    return [name for name in archive.names if _ending(name) in MANIFESTS and _has_columns(archive, name, file)]


def _has_columns(archive: Archive, name: str, file: DataFile) -> bool:
    start = archive.read(name)[:65536].decode("utf-8-sig", errors="replace").splitlines()[:1]
    return all(file.columns.get(column, column) in line for line in start for column in ("image", "label"))


def _listed(archive: Archive, findings: Findings) -> list[Labelled]:
    """The images that the manifests of an archive name."""
    manifests = _manifests(archive, findings.file) or [n for n in archive.names if _ending(n) in MANIFESTS]
    if not manifests:
        findings.add(f"there is no manifest in it, a file that ends in {', '.join(MANIFESTS)}")
    listed = [example for name in manifests for example in _rows(archive, name, findings)]
    if len({bool(example.part) for example in listed}) > 1:
        findings.add("some rows say which part they belong to, and others do not", field="split")
    if twice := [path for path, count in Counter(example.path for example in listed).items() if count > 1]:
        findings.warn(f"{len(twice)} images are named by several rows: {some(sorted(twice))}", len(twice))
    named = {example.path for example in listed}
    others = [name for name in archive.names if _ending(name) in images.ENDINGS and name not in named]
    if others and listed:
        findings.warn(f"{len(others)} images are in no manifest and are left out: {some(others)}", len(others))
    return listed


def _rows(archive: Archive, manifest: str, findings: Findings) -> Iterator[Labelled]:
    """The examples of one manifest whose images are there; reports the others."""
    table = _manifest_table(archive, manifest, findings)
    if table is None:
        return
    own_part = _PART_OF.get(PurePosixPath(manifest).stem.casefold(), "")
    for row, record in enumerate(table.to_pylist(), 1):
        path = _path(manifest, record["image"])
        stated = record["split"].strip().casefold()
        if path not in archive:
            message = f"there is no file `{path}` in the zip; paths go from the manifest's own folder"
            findings.add(message, path=manifest, row=row, field="image")
        elif stated and stated not in _PART_OF:
            message = f"`{record['split'][:40]}` is none of {', '.join(_PART_OF)}"
            findings.add(message, path=manifest, row=row, field="split")
        else:
            yield Labelled(path, record["label"], _PART_OF.get(stated, own_part))


def _manifest_table(archive: Archive, manifest: str, findings: Findings) -> pa.Table | None:
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(archive.read(manifest))
        copy.flush()
        name = f"{findings.file.name}/{manifest}"
        file = replace(findings.file, path=Path(copy.name), name=name, format=_ending(manifest))
        try:
            return tabular.read_columns(file, _COLUMNS)
        except InvalidData as error:
            findings.fatal.extend(error.problems)
            return None


def _path(manifest: str, image: str) -> str:
    """The path within the archive of an image that a manifest names."""
    parts: list[str] = []
    for part in (PurePosixPath(manifest).parent / image.strip().replace("\\", "/")).parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
    return "/".join(parts)


# Images.


def _decoded(archive: Archive, paths: Sequence[str], findings: Findings) -> dict[str, bytes]:
    """The bytes of images by path, each decoded once to see that it is whole; reports those that are not."""
    contents: dict[str, bytes] = {}
    for path in dict.fromkeys(paths):
        try:
            contents[path] = archive.read(path)
        except InvalidData as error:
            findings.problems.extend(error.problems)
    broken = set()
    for path, found in zip(contents, _inspected(contents.values()), strict=True):
        if isinstance(found, images.ImageError):
            findings.add(str(found), path=path)
            broken.add(path)
        elif images.misnamed(path, found):
            findings.misnamed.append(path)
    return {path: content for path, content in contents.items() if path not in broken}


def _inspected(encoded: Iterable[bytes]) -> Iterator[images.Header | images.ImageError]:
    """What each image says of itself, or what is wrong with it."""

    def inspected(data: bytes) -> images.Header | images.ImageError:
        try:
            images.decode(data)
            return images.inspect(data)
        except images.ImageError as error:
            return error

    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(inspected, encoded)


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix[1:].lower()
