"""A folder as one file: a zip that is read in place. Nothing is ever extracted, so no name in it can lead anywhere."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

from luthier.errors import InvalidData
from luthier.task import DataFile
from luthier.v1.dataset_pb2 import DataProblem

MAX_FILES = 2_000_000
MAX_FILE_BYTES = 2**30
"""The largest single file within. COCO's own annotation file has 450 MB."""
MAX_RATIO = 200
"""How much smaller than its content a member of more than a megabyte may be; text compresses to a tenth or so."""

_JUNK = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}


class Archive:
    """The files of a zip by their paths within it, with `/`. Files that operating systems leave behind are left out.

    A folder that all other folders lie in is left off the paths: a zip of `photos/` reads as one of what is in it.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive = archive
        self._name = name
        members, folders = _members(archive, name)
        common = _common_folder([*members, *(f"{folder}/" for folder in folders)])
        self._members = {path.removeprefix(common): info for path, info in members.items()}
        self.names: tuple[str, ...] = tuple(sorted(self._members))
        """Paths of all files, sorted."""
        self.folders: tuple[str, ...] = tuple(
            sorted(folder.removeprefix(common) for folder in folders if not common.startswith(f"{folder}/"))
        )
        """Paths of the folders that the zip lists as such, sorted: those without a file among them, where the program
        that packed it keeps them."""

    def __contains__(self, path: str) -> bool:
        return path in self._members

    def read(self, path: str) -> bytes:
        """The content of a file; raises InvalidData where it is damaged."""
        try:
            return self._archive.read(self._members[path])
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            raise self.invalid(path, f"{path} is damaged within the zip; pack it again") from error

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        return self._members[path].file_size

    def invalid(self, path: str, message: str) -> InvalidData:
        """The error for a single problem with a file within."""
        return InvalidData([DataProblem(file=f"{self._name}/{path}" if path else self._name, message=message)])


@contextmanager
def open_archive(file: DataFile) -> Iterator[Archive]:
    """Opens an uploaded zip; raises InvalidData with all that makes it unsafe or unreadable."""
    try:
        archive = zipfile.ZipFile(file.path)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        message = f"the file is not a zip: {error}"
        raise InvalidData([DataProblem(file=file.name, message=message)]) from error
    with archive:
        yield Archive(archive, file.name)


def _members(archive: zipfile.ZipFile, name: str) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """The files within, checked, and the folders that are listed; raises InvalidData."""
    problems: list[DataProblem] = []
    members: dict[str, zipfile.ZipInfo] = {}
    folders: list[str] = []
    listed = archive.infolist()
    if len(listed) > MAX_FILES:
        raise InvalidData([DataProblem(file=name, message=f"{len(listed)} files; at most {MAX_FILES} are taken")])
    for info in listed:
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if _JUNK.intersection(path.parts) or path.name.startswith("._"):
            continue
        if info.is_dir():
            folders.append(path.as_posix())
            continue
        if why := _refused(info, path):
            problems.append(DataProblem(file=f"{name}/{info.filename}", message=why))
        elif path.as_posix() in members:
            problems.append(DataProblem(file=f"{name}/{info.filename}", message="the zip holds it twice"))
        members[path.as_posix()] = info
    if problems:
        raise InvalidData(problems)
    if not members:
        raise InvalidData([DataProblem(file=name, message="the zip holds no file")])
    return members, folders


def _refused(info: zipfile.ZipInfo, path: PurePosixPath) -> str:
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return "its path leads out of the zip"
    if info.flag_bits & 1:
        return "it is encrypted; pack it without a password"
    if info.file_size > MAX_FILE_BYTES:
        return f"it has {info.file_size} bytes; at most {MAX_FILE_BYTES} are taken"
    if info.file_size > 2**20 and info.file_size > MAX_RATIO * info.compress_size:
        return f"it unpacks to more than {MAX_RATIO} times its size in the zip"
    return ""


def _common_folder(paths: Sequence[str]) -> str:
    """The folders, with `/` behind each, that all paths begin with, as long as there are folders within."""
    common = ""
    while True:
        inner = [path.removeprefix(common) for path in paths if path != common]
        folders = {path.partition("/")[0] for path in inner}
        if len(folders) != 1 or not any("/" in path.partition("/")[2] for path in inner):
            return common
        common += f"{folders.pop()}/"
