"""Images that unpack to more than there is room for, and what only looks like one: refused, in little memory."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2
from PIL import Image

from luthier import images
from luthier.tasks.image_classification.v1 import image_classification_pb2 as pb
from luthier.tasks.image_classification.v1 import image_classification_pb2_grpc as pb_grpc
from luthier.tasks.object_detection.v1 import object_detection_pb2, object_detection_pb2_grpc
from luthier.tasks.semantic_segmentation.v1 import semantic_segmentation_pb2, semantic_segmentation_pb2_grpc
from luthier_client import Client, LuthierClientError
from luthier_client.errors import InvalidArgument
from support import Server, children, serving, status_of

MOST_GROWTH_MB = 64
"""What refusing them may take: none is decoded."""
MOST_WORKER_MB = 600
MOST_BYTES_A_PIXEL = 16
"""What decoding takes, as `luthier.images` has it."""


def saved(format: str, width: int = 64, height: int = 48, **options: Any) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, format, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: int = 0, extra: bytes = b"") -> bytes:
    pack = zlib.compressobj(9)
    pixels = b"".join(pack.compress(b"\0" * (width * 3 + 1)) for _ in range(rows)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A small one whose frame says that it is as large."""
    data = bytearray(saved("JPEG"))
    at = re.search(rb"\xff[\xc0\xc2]", bytes(data)).start()  # type: ignore[union-attr]
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    """An extended one, whose canvas says that it is as large."""
    inner = saved("WEBP", lossless=True)[12:]
    head = (
        b"VP8X"
        + struct.pack("<I", 10)
        + b"\0" * 4
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", 4 + len(head) + len(inner)) + b"WEBP" + head + inner


def gif(frames: int) -> bytes:
    stream = io.BytesIO()
    first = Image.new("P", (64, 64))
    first.save(stream, "GIF", save_all=True, append_images=[Image.new("P", (64, 64), i % 250) for i in range(frames)])
    return stream.getvalue()


def bmp(width: int, height: int) -> bytes:
    data = bytearray(saved("BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


ZEROS = zlib.compress(b"\0" * 2**27, 9)
BOMBS = {
    "png-60000": png(60_000, 60_000),
    "png-tall": png(1, 2**31 - 1),
    "png-200-million-rows": png(20_000, 20_000, 200),
    "png-text": png(2**15, 2**15, extra=chunk(b"zTXt", b"a\0\0" + ZEROS)),
    "jpeg-65500": jpeg(65_500, 65_500),
    "webp-16383": webp(16_383, 16_383),
    "bmp-100000": bmp(100_000, 100_000),
    "bmp-negative": bmp(-5, 100),
    "gif-1000-frames": gif(1000),
    "tiff": saved("TIFF"),
    "ico": saved("ICO"),
    "pdf": b"%PDF-1.7\n",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) run\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "html": b"<html>",
    "zip": b"PK\3\4" + b"\0" * 40,
    "png-0x0": png(0, 0),
    "png-0x5": png(0, 5),
    "jpeg-0x0": jpeg(0, 0),
    **{
        f"{format.lower()}-cut-{part}": saved(format)[: len(saved(format)) * part // 10]
        for format in ("PNG", "JPEG", "WEBP", "BMP")
        for part in (1, 5, 9)
    },
    "none": b"",
    "noise": os.urandom(1000),
}  # fmt: skip
"""Bytes by what they are; none is an image that is taken."""


@pytest.fixture(scope="module")
def seeing(tuned_home: Path) -> Iterator[Server]:
    with serving(tuned_home) as server:
        yield server


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_predictions_refuse_them(seeing: Server) -> None:
    classify = seeing.stub(pb_grpc.ImageClassificationServiceStub).Classify
    detect = seeing.stub(object_detection_pb2_grpc.ObjectDetectionServiceStub).Detect
    segment = seeing.stub(semantic_segmentation_pb2_grpc.SemanticSegmentationServiceStub).Segment
    calls = [
        (classify, "photos", pb.ClassifyRequest, pb.Instance),
        (detect, "boxes", object_detection_pb2.DetectRequest, object_detection_pb2.Instance),
        (segment, "masks", semantic_segmentation_pb2.SegmentRequest, semantic_segmentation_pb2.Instance),
    ]
    good = saved("PNG")
    for call, model, request, instance in calls:
        assert call(request(model=model, instances=[instance(image=good)])).predictions
    before = peak_mb(seeing.process.pid)
    for call, model, request, instance in calls:
        for name, data in BOMBS.items():
            with pytest.raises(grpc.RpcError) as caught:
                call(request(model=model, instances=[instance(image=good), instance(image=data)]), timeout=10)
            status = status_of(caught.value)
            assert status.code == code_pb2.INVALID_ARGUMENT, (model, name, status.message)
            assert status.message.startswith("instances[1].image: "), (model, name)
    grown = peak_mb(seeing.process.pid) - before
    print(f"{len(BOMBS) * len(calls)} refused; the peak of memory grew by {grown:.0f} MB from {before:.0f} MB")
    assert grown < MOST_GROWTH_MB
    for call, model, request, instance in calls:
        assert call(request(model=model, instances=[instance(image=good)])).predictions


def test_data_sets_refuse_them(seeing: Server, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            (folder / label / f"{number}.png").write_bytes(saved("PNG", width=20 + number + 9 * ord(label)))
    bad = {name: data for name, data in BOMBS.items() if name != "none"}
    for name, data in bad.items():
        (folder / "a" / f"{name}.jpg").write_bytes(data)
    peaks: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            # Threads and processes end while they are looked at.
            with suppress(FileNotFoundError, ProcessLookupError, IndexError):
                peaks.extend(peak_mb(pid) for pid in children(seeing.process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with Client(seeing.address) as client, pytest.raises(LuthierClientError) as caught:
            client.create_dataset("bombs", folder, task="image-classification").result(timeout=120)
    finally:
        over.set()
        watcher.join()
    assert caught.value.code == InvalidArgument.code
    named = "\n".join(caught.value.violations)
    assert not [name for name in bad if f"a/{name}.jpg" not in named]
    print(f"the worker's peak: {max(peaks):.0f} MB")
    assert max(peaks) < MOST_WORKER_MB


def test_the_largest_that_is_taken_is_within_bounds(seeing: Server) -> None:
    """Beside one another as many are decoded as there are cores, and no more."""
    classify = seeing.stub(pb_grpc.ImageClassificationServiceStub).Classify
    request = pb.ClassifyRequest(model="photos", instances=[pb.Instance(image=png(7071, 7071, 7071))])
    before = peak_mb(seeing.process.pid)
    began = time.monotonic()
    calls = [classify.future(request, timeout=120) for _ in range(8)]
    assert all(call.result().predictions for call in calls)
    cores = len(os.sched_getaffinity(0))
    grown = peak_mb(seeing.process.pid) - before
    print(
        f"8 of 50 million pixels in {time.monotonic() - began:.1f} s: the peak grew by {grown:.0f} MB on {cores} cores"
    )
    assert grown < cores * MOST_BYTES_A_PIXEL * images.MAX_PIXELS / 2**20
