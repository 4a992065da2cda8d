"""Files up and down."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from luthier.v1.model_pb2 import BundleFile, DownloadVersionResponse
from luthier_client.errors import DataLoss
from luthier_client.transfer import CHUNK_BYTES, Download, as_file, upload_header, upload_messages


def header(path: str, content: bytes) -> DownloadVersionResponse:
    sha256 = hashlib.sha256(content).hexdigest()
    return DownloadVersionResponse(file=BundleFile(path=path, sha256=sha256, size_bytes=len(content)))


def chunk(content: bytes) -> DownloadVersionResponse:
    return DownloadVersionResponse(chunk=content)


def download(directory: Path, *messages: DownloadVersionResponse, breaks: bool = False) -> None:
    with Download(directory) as open_download:
        for message in messages:
            open_download.take(message)
        if breaks:
            raise ConnectionError


def test_an_upload_is_its_header_and_chunks_of_the_agreed_size(tmp_path: Path) -> None:
    content = bytes(range(256)) * (CHUNK_BYTES // 256) * 2 + b"tail"
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    first, *rest = upload_messages(path, upload_header(path))
    assert first.header.filename == "data.csv"
    assert first.header.size_bytes == len(content)
    assert first.header.sha256 == hashlib.sha256(content).hexdigest()
    assert [len(message.chunk) for message in rest] == [CHUNK_BYTES, CHUNK_BYTES, 4]
    assert b"".join(message.chunk for message in rest) == content


def test_an_empty_file_is_a_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.touch()
    assert [message.WhichOneof("part") for message in upload_messages(path, upload_header(path))] == ["header"]


def test_a_download_writes_files_in_their_folders(tmp_path: Path) -> None:
    download(tmp_path / "new", header("model.onnx", b"abcd"), chunk(b"ab"), chunk(b"cd"), header("a/b.txt", b""))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"new/model.onnx", "new/a/b.txt"}
    assert (tmp_path / "new/model.onnx").read_bytes() == b"abcd"


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", ".", "link/evil"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(DataLoss, match="outside the folder"):
        download(tmp_path / "folder", header(path, b""))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"abcX", b"abc", b"abcde"])
def test_a_file_that_differs_from_its_hash_never_appears(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataLoss, match="SHA-256"):
        download(tmp_path, header("model.onnx", b"abcd"), chunk(content))
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_keeps_only_whole_files(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        download(tmp_path, header("one", b"1"), chunk(b"1"), header("two", b"2222"), chunk(b"22"), breaks=True)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_chunk_needs_a_header(tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="header"):
        download(tmp_path, chunk(b"ab"))


def test_a_folder_goes_up_as_the_same_zip_each_time(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        folder = tmp_path / name / "photos"
        (folder / "cats").mkdir(parents=True)
        (folder / "cats" / "ä.jpg").write_bytes(b"meow" * 1000)
        (folder / "list.csv").write_text("file,label\n")
        with as_file(folder) as packed:
            assert packed.name == "photos.zip"
            with zipfile.ZipFile(packed) as archive:
                assert archive.namelist() == ["cats/ä.jpg", "list.csv"]
                assert archive.read("cats/ä.jpg") == b"meow" * 1000
            hashes.append(upload_header(packed).sha256)
        assert not packed.exists()
    assert hashes[0] == hashes[1]


def test_a_file_goes_up_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x")
    with as_file(path) as file:
        assert file == path
    assert path.exists()
