"""Zips of strangers: nothing in one leads out of it, and all that is wrong with it is said at once."""

from __future__ import annotations

import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier import archives
from luthier.archives import open_archive
from luthier.errors import InvalidData
from luthier.task import DataFile

_OPENED = """
import encodings.cp437  # In which zips keep names: the interpreter would load it now.
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append((event, str(arguments[0])))
                 if event in ("open", "os.mkdir", "os.symlink", "socket.connect") else None)
from pathlib import Path
from luthier.archives import open_archive
from luthier.errors import InvalidData
from luthier.task import DataFile

opened.clear()
try:
    with open_archive(DataFile(path=Path(sys.argv[1]), name="a.zip", format="")) as archive:
        for name in archive.names:
            archive.read(name)
except InvalidData:
    pass
print([path for event, path in opened if path != sys.argv[1]])
"""
"""Prints what was opened, made or connected to beside the archive itself."""

Pack = Callable[..., DataFile]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Makes a zip of names and contents."""

    def make(files: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> DataFile:
        path = tmp_path / "upload"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return DataFile(path=path, name="a.zip", format="")

    return make


def refused(file: DataFile) -> dict[str, str]:
    """What is said of each file of an archive that is not taken."""

    def read() -> None:
        with open_archive(file) as archive:
            for name in archive.names:
                archive.read(name)

    with pytest.raises(InvalidData) as caught:
        read()
    return {problem.file: problem.message for problem in caught.value.problems}


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def test_files_are_read_by_their_paths(pack: Pack) -> None:
    with open_archive(pack({"b/2.txt": b"two", "a/1.txt": b"one"})) as archive:
        assert archive.names == ("a/1.txt", "b/2.txt")
        assert archive.read("b/2.txt") == b"two"
        assert archive.size("b/2.txt") == 3
        assert "a/1.txt" in archive
        assert "a" not in archive


@pytest.mark.parametrize(
    ("names", "read", "folders"),
    [
        (["photos/a/1", "photos/b/2"], ("a/1", "b/2"), ()),
        (["x/y/a/1", "x/y/b/2"], ("a/1", "b/2"), ()),
        (["a/1", "a/2"], ("a/1", "a/2"), ()),
        (["photos/", "photos/a/", "photos/a/1", "photos/b/"], ("a/1",), ("a", "b")),
        (["photos/", "photos/a/", "photos/a/1"], ("a/1",), ("a",)),
        (["photos/1", "photos/none/"], ("1",), ("none",)),
        (["photos/a/1", "__MACOSX/photos/a/._1", "photos/.DS_Store", "photos/a/Thumbs.db"], ("a/1",), ()),
        (["photos\\a\\1", "photos\\b\\2"], ("a/1", "b/2"), ()),
    ],
)
def test_a_folder_around_everything_and_junk_are_left_off(
    pack: Pack, names: list[str], read: tuple[str, ...], folders: tuple[str, ...]
) -> None:
    with open_archive(pack(dict.fromkeys(names, b""))) as archive:
        assert archive.names == read
        assert archive.folders == folders


@pytest.mark.parametrize(
    "name",
    ["../etc/passwd", "a/../../b", "/etc/passwd", "C:/windows/a", "C:\\windows\\a", "..\\a", "file:///etc/a", "a::b/c"],
)
def test_paths_that_lead_out_are_refused(pack: Pack, name: str) -> None:
    assert list(refused(pack({name: b"x", "good": b""})).values()) == ["its path leads out of the zip"]


def test_names_that_only_look_dangerous_are_names(pack: Pack) -> None:
    names = ("%2e%2e/a", "a#b", "a/..b/c", "a/b::c")
    with open_archive(pack(dict.fromkeys(names, b"x"))) as archive:
        assert set(archive.names) == set(names)


def test_a_link_is_a_file_that_holds_its_target(pack: Pack) -> None:
    """Nothing follows it: what is read is the path that it names."""
    with open_archive(pack({link("a/link"): b"/etc/passwd", "b/1": b""})) as archive:
        assert archive.read("a/link") == b"/etc/passwd"


def test_nothing_else_is_opened(pack: Pack, tmp_path: Path) -> None:
    good = pack({link("a/link"): b"/etc/passwd", "b/%2e%2e/1": b"x", "c#d": b"z"})
    done = subprocess.run(
        [sys.executable, "-c", _OPENED, str(good.path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]"
    assert [path.name for path in tmp_path.iterdir()] == ["upload"]


def test_encrypted_files_are_refused(pack: Pack) -> None:
    file = pack({"a/1": b"secret", "a/2": b"secret"})
    content = bytearray(file.path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = content.index(signature)
        content[place + flags] |= 1
    file.path.write_bytes(content)
    assert refused(file) == {"a.zip/a/1": "it is encrypted; pack it without a password"}


def test_a_path_that_comes_twice_is_refused(pack: Pack) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        file = pack({zipfile.ZipInfo("a/1"): b"x", zipfile.ZipInfo("a/./1"): b"", zipfile.ZipInfo("a/1"): b"y"})
    assert refused(file) == {"a.zip/a/1": "the zip holds it twice", "a.zip/a/./1": "the zip holds it twice"}


def test_all_problems_come_at_once(pack: Pack) -> None:
    file = pack({"../a": b"", "bomb": b"\0" * 2**22, "/b": b"", "good": b""})
    assert refused(file) == {
        "a.zip/../a": "its path leads out of the zip",
        "a.zip//b": "its path leads out of the zip",
        "a.zip/bomb": "it unpacks to more than 200 times its size in the zip",
    }


def test_a_bomb_that_lies_about_its_size_is_damaged(pack: Pack) -> None:
    """The directory says 100 bytes where 4 MB come: no more than it says is unpacked."""
    file = pack({"a/1": b"\0" * 2**22, "b/2": b""})
    content = file.path.read_bytes()
    file.path.write_bytes(content.replace((2**22).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    assert refused(file) == {"a.zip/a/1": "a/1 is damaged within the zip; pack it again"}


def test_too_large_a_file_is_refused(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 10)
    assert refused(pack({"a": b"x" * 11, "b": b""})) == {"a.zip/a": "it has 11 bytes; at most 10 are taken"}


def test_too_many_files_are_refused(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    assert refused(pack({"a": b"", "b": b"", "c": b""})) == {"a.zip": "3 files; at most 2 are taken"}


def test_flipped_bytes_are_found(pack: Pack) -> None:
    file = pack({"a/1": b"content" * 10, "b/2": b""}, zipfile.ZIP_STORED)
    file.path.write_bytes(file.path.read_bytes().replace(b"contentcontent", b"contentCONTENT", 1))
    assert refused(file) == {"a.zip/a/1": "a/1 is damaged within the zip; pack it again"}


def test_what_is_no_zip_is_refused(tmp_path: Path, pack: Pack) -> None:
    whole = pack({"a/1": b"x" * 100}).path.read_bytes()
    for content in (b"", b"PK\3\4 but no more", b"Rar!\x1a\7", whole[: len(whole) // 2]):
        path = tmp_path / "other"
        path.write_bytes(content)
        problems = refused(DataFile(path=path, name="a.zip", format=""))
        assert [message.partition(":")[0] for message in problems.values()] == ["the file is not a zip"]


def test_an_empty_zip_is_refused(pack: Pack) -> None:
    assert refused(pack({"only/folders/": b""})) == {"a.zip": "the zip holds no file"}
