"""Uploads that break, stall, and go on."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import grpc
import pytest

from luthier.v1 import dataset_pb2, dataset_pb2_grpc
from luthier_client import Client, transfer
from support import serving

SLOW_DISK = Path(__file__).parent / "slow_disk"
MIB = 2**20
CONTENT = bytes(range(256)) * (8 * MIB // 256)
HEADER = dataset_pb2.UploadHeader(filename="a.csv", size_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


def header(offset: int) -> dataset_pb2.UploadFilesRequest:
    return dataset_pb2.UploadFilesRequest(
        header=dataset_pb2.UploadHeader(
            filename=HEADER.filename, size_bytes=HEADER.size_bytes, sha256=HEADER.sha256, offset=offset
        )
    )


def chunks(start: int, end: int) -> Iterator[dataset_pb2.UploadFilesRequest]:
    for at in range(start, end, MIB):
        yield dataset_pb2.UploadFilesRequest(chunk=CONTENT[at : min(at + MIB, end)])


class Broken(Exception):
    """Ends a stream in its midst, as a cable that is pulled does."""


def broken_after(offset: int, end: int) -> Iterator[dataset_pb2.UploadFilesRequest]:
    yield header(offset)
    yield from chunks(offset, end)
    time.sleep(0.5)
    raise Broken


def held(stub: dataset_pb2_grpc.DatasetServiceStub) -> int:
    found: int = stub.FindUpload(dataset_pb2.FindUploadRequest(sha256=HEADER.sha256)).received_bytes
    return found


def break_off(stub: dataset_pb2_grpc.DatasetServiceStub, start: int, end: int) -> None:
    """Sends a part and no more, until the server holds it: while it has not noted the end of the last, it declines."""
    deadline = time.monotonic() + 10
    while held(stub) != end:
        assert time.monotonic() < deadline, held(stub)
        with pytest.raises(grpc.RpcError):
            stub.UploadFiles(broken_after(start, end))


def upload(stub: dataset_pb2_grpc.DatasetServiceStub, offset: int) -> dataset_pb2.Upload:
    """Sends the rest; tries again while the stream that broke has not ended on the server."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return cast(dataset_pb2.Upload, stub.UploadFiles(iter([header(offset), *chunks(offset, 8 * MIB)])))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_broken_upload_goes_on_where_it_broke(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        stub = server.stub(dataset_pb2_grpc.DatasetServiceStub)
        assert held(stub) == 0
        for start, end in ((0, 3 * MIB), (3 * MIB, 5 * MIB + 17)):
            break_off(stub, start, end)
        with pytest.raises(grpc.RpcError) as behind:
            upload(stub, 6 * MIB)
        assert behind.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert f"the server holds {5 * MIB + 17} bytes" in behind.value.details()
        # Less than the server holds is as good.
        uploaded = upload(stub, 5 * MIB)
        assert uploaded.sha256 == HEADER.sha256
        assert (tmp_path / uploaded.name).read_bytes() == CONTENT
        assert held(stub) == 0


def test_what_was_held_of_another_file_is_found_out(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        stub = server.stub(dataset_pb2_grpc.DatasetServiceStub)
        (tmp_path / "uploads" / f"{HEADER.sha256}.partial").write_bytes(b"x" * MIB)
        with pytest.raises(grpc.RpcError) as caught:
            stub.UploadFiles(iter([header(MIB), *chunks(MIB, 8 * MIB)]))
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert held(stub) == 0
        upload(stub, 0)


@pytest.mark.parametrize("mebibytes", [192, pytest.param(1024, marks=pytest.mark.slow)])
def test_a_large_upload_onto_a_slow_disk_takes_little_memory(tmp_path: Path, mebibytes: int) -> None:
    """The client is faster than the disk, which writes 48 MiB a second."""
    digest = hashlib.sha256()
    for _ in range(mebibytes // 8):
        digest.update(CONTENT)

    def messages() -> Iterator[dataset_pb2.UploadFilesRequest]:
        size = mebibytes * MIB
        yield dataset_pb2.UploadFilesRequest(
            header=dataset_pb2.UploadHeader(filename="a.csv", size_bytes=size, sha256=digest.hexdigest())
        )
        for _ in range(mebibytes // 8):
            yield from chunks(0, 8 * MIB)

    slow = {"PYTHONPATH": os.pathsep.join([str(SLOW_DISK), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with serving(tmp_path, **slow, LUTHIER_DISK_BYTES_S=str(48 * MIB)) as server:
        stub = server.stub(dataset_pb2_grpc.DatasetServiceStub)
        upload(stub, 0)
        process = Path(f"/proc/{server.process.pid}")
        # Has the kernel forget the most that was resident so far.
        (process / "clear_refs").write_text("5", encoding="utf-8")
        before = most_resident(process)
        started = time.monotonic()
        stub.UploadFiles(messages(), timeout=120)
        assert time.monotonic() - started > mebibytes / 48
        assert most_resident(process) - before < 64 * MIB


def most_resident(process: Path) -> int:
    """The most bytes that were resident at once."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) * 1024


def test_a_silent_upload_is_ended_and_its_thread_is_free(tmp_path: Path) -> None:
    over = threading.Event()

    def silent() -> Iterator[dataset_pb2.UploadFilesRequest]:
        yield header(0)
        yield from chunks(0, MIB)
        over.wait(30)

    with serving(tmp_path, "--upload-idle-s", "1", "--stream-threads", "1") as server:
        stub = server.stub(dataset_pb2_grpc.DatasetServiceStub)
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            stub.UploadFiles(silent(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        assert 0.5 < time.monotonic() - started < 10
        over.set()
        # The one thread for streams serves the next upload, which goes on from what came.
        assert held(stub) == MIB
        upload(stub, MIB)


def test_the_client_goes_on_when_the_server_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CONTENT)
    partial = tmp_path / "home" / "uploads" / f"{HEADER.sha256}.partial"
    sent: list[int] = []
    whole = transfer.upload_messages

    def interrupted(file: Path, header: dataset_pb2.UploadHeader) -> Iterator[dataset_pb2.UploadFilesRequest]:
        sent.append(header.offset)
        for number, message in enumerate(whole(file, header)):
            if len(sent) == 1 and number == 5:
                # What was sent may be anywhere between the two.
                deadline = time.monotonic() + 10
                while not (partial.exists() and partial.stat().st_size):
                    assert time.monotonic() < deadline, "nothing arrived"
                    time.sleep(0.02)
                first.process.kill()
                first.process.wait()
            yield message

    monkeypatch.setattr(transfer, "upload_messages", interrupted)
    with serving(tmp_path / "home") as first:
        port = first.address.rpartition(":")[2]
        uploaded: list[dataset_pb2.Upload] = []
        with Client(first.address) as client:
            caller = threading.Thread(target=lambda: uploaded.append(client.upload(path)))
            caller.start()
            first.process.wait()
            with serving(tmp_path / "home", listen=f"127.0.0.1:{port}") as second:
                caller.join(30)
                assert [upload.sha256 for upload in uploaded] == [HEADER.sha256]
                assert (second.home / uploaded[0].name).read_bytes() == CONTENT
    assert sent[0] == 0
    assert sent[-1] > 0, "it began anew"
